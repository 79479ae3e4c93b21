"""Stop a run on a signal, but never in the middle of a change.

A Pod that is deleted gets SIGTERM. A terminal that is closed sends SIGHUP, and Ctrl-C sends SIGINT:

================  =======================================  ===============================================
section           SIGTERM, SIGHUP                          SIGINT
================  =======================================  ===============================================
elsewhere         end the run at once                      ends the run at once
:func:`changing`  are remembered until the stage is done   interrupts the stage, which then rolls back
:func:`held`      are remembered                           is remembered
================  =======================================  ===============================================

Inside :func:`changing`, :func:`interruptible` marks the parts that only wait or read. There every signal ends
the run at once. At most one signal raises an exception, so that nothing interrupts what it led to.

Python runs signal handlers in the main thread. The state of this module belongs to that thread.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Literal

from kata_node.errors import KataNodeError

STOP_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)

_Section = Literal["interruptible", "changing", "held"]


class StopRequested(KeyboardInterrupt):
    """A signal asked this run to stop. Like Ctrl-C, ``except Exception`` does not catch it."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number.name)
        self.number = number


_section: _Section = "interruptible"
_remembered: signal.Signals | None = None
_has_raised = False


def handle_signals() -> None:
    """Handle the signals from now on, except those that this process was started to ignore (``nohup``).

    The kernel discards a signal that the first process of a container does not handle.
    """
    for number in STOP_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _handle)


@contextmanager
def changing() -> Iterator[None]:
    """Remember SIGTERM and SIGHUP within the context, until :func:`check` or :func:`interruptible`."""
    with _in_section("changing"):
        yield


@contextmanager
def held() -> Iterator[None]:
    """Remember every signal within the context, and ignore :func:`interruptible`."""
    with _in_section("held"):
        yield


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise :class:`StopRequested` within the context, or at its start, on a signal."""
    if _section == "held":
        yield
        return
    # Change the section first. A signal between the check and the change would not end the wait.
    with _in_section("interruptible"):
        check()
        yield


def sleep(seconds: float) -> None:
    """Sleep. Raise :class:`StopRequested` on a signal."""
    with interruptible():
        time.sleep(seconds)


def check() -> None:
    """Raise :class:`StopRequested` if a signal has asked this run to stop."""
    global _has_raised
    if _remembered is not None and _section != "held":
        _has_raised = True
        raise StopRequested(_remembered)


def is_stopping() -> bool:
    """Return whether a signal has asked this run to stop."""
    return _remembered is not None


def stopped_error(error: KeyboardInterrupt) -> KataNodeError:
    """Return the error of a run that a signal ended."""
    number = error.number if isinstance(error, StopRequested) else signal.SIGINT
    what = "interrupted" if number == signal.SIGINT else f"stopped by {number.name}"
    return KataNodeError(what, hint="run the same command again")


@contextmanager
def _in_section(section: _Section) -> Iterator[None]:
    global _section
    before, _section = _section, section
    try:
        yield
    finally:
        _section = before


def _handle(number: int, frame: FrameType | None) -> None:
    global _remembered, _has_raised
    received = signal.Signals(number)
    _remembered = _remembered or received
    if _has_raised or _section == "held" or (_section == "changing" and received != signal.SIGINT):
        return
    _has_raised = True
    raise StopRequested(received)
