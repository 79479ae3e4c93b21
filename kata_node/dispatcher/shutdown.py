"""Handle SIGTERM and SIGINT: finish the current request, and interrupt sleeps and watches."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

T = TypeVar("T")


class ShutdownRequested(BaseException):
    """A shutdown was requested. A BaseException, so that ``except Exception`` does not catch it."""


class Shutdown:
    """Stores whether a shutdown was requested. Only the main thread uses it; Python handles signals there."""

    def __init__(self) -> None:
        self.requested = False
        self._waiting = False

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Request a shutdown on SIGTERM and SIGINT within the context."""
        before = {number: signal.signal(number, self._handle) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

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
        self.request()
