"""SIGTERM and SIGINT: what is under way is finished, what merely waits is not waited for."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

T = TypeVar("T")


class ShutdownRequested(BaseException):
    """Somebody asked for an end. Nobody's ``except Exception`` is meant to keep it."""


class Shutdown:
    """Whether an end was asked for. Used by the main thread alone, in which Python handles signals."""

    def __init__(self) -> None:
        self.requested = False
        self._waiting = False

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Take SIGTERM and SIGINT for the wish to stop."""
        before = {number: signal.signal(number, self._handle) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def request(self) -> None:
        """Ask for an end. While :meth:`wait` waits, it raises :class:`Stopped` there."""
        self.requested = True
        if self._waiting:
            self._waiting = False
            raise ShutdownRequested

    def wait(self, waiting: Callable[[], T]) -> T:
        """What ``waiting`` returns, unless an end is or was asked for: then :class:`Stopped` is raised."""
        # In this order: a wish between the two lines would otherwise be slept over.
        self._waiting = True
        try:
            if self.requested:
                raise ShutdownRequested
            return waiting()
        finally:
            self._waiting = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.request()
