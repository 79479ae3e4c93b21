"""End a run early, on SIGTERM or SIGINT or at its deadline.

The current request is finished. Sleeps and watches are interrupted.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from kata_node.errors import KataNodeError

T = TypeVar("T")

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)


class ShutdownRequested(BaseException):
    """A shutdown was requested. A BaseException, so that ``except Exception`` does not catch it."""


class StoppedError(KataNodeError):
    """The run ended early, before it changed a node."""

    def __init__(self, stop: Shutdown) -> None:
        super().__init__(f"{stop.reason}; no node was changed", hint="run the helm command again")
        self.exit_code = stop.exit_code


class Shutdown:
    """Stores whether a shutdown was requested. Only the main thread uses it; Python handles signals there."""

    def __init__(self) -> None:
        self.requested = False
        self.reason = "the dispatcher was asked to stop"
        self.exit_code = 1
        """The exit code of the run. After a signal it is 128 plus the number of the signal, and the Job of
        the dispatcher replaces its Pod. After a failure and at a deadline it is 1."""
        self._waiting = False
        self._deadline_reason = ""

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Request a shutdown on SIGTERM and SIGINT, and at a deadline, within the context."""
        before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in before.items():
                signal.signal(number, handler)

    def set_deadline(self, seconds: float, reason: str) -> None:
        """Request a shutdown after ``seconds``, within :meth:`on_signals`."""
        self._deadline_reason = reason
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))

    def request(self) -> None:
        """Request a shutdown. A running :meth:`wait` raises :class:`ShutdownRequested`."""
        self.requested = True
        if self._waiting:
            self._waiting = False
            raise ShutdownRequested

    def wait(self, waiting: Callable[[], T]) -> T:
        """Call ``waiting`` and return its result.

        Raises :class:`ShutdownRequested` when a shutdown was requested before or is requested during the
        call.
        """
        # Set the flag first. A signal after the check, but before the flag, would be missed.
        self._waiting = True
        try:
            if self.requested:
                raise ShutdownRequested
            return waiting()
        finally:
            self._waiting = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGALRM:
            self.reason = self._deadline_reason
        else:
            self.exit_code = 128 + number
        self.request()
