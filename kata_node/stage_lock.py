"""The node's lock during a run, and the record of the stages that held it."""

from __future__ import annotations

import contextlib
import time

from kata_node import signals
from kata_node.host import lock
from kata_node.host.files import Root
from kata_node.plan import last_run
from kata_node.plan.last_run import Invocation
from kata_node.plan.report import StageReport


class StageLock:
    """Holds the node's lock during consecutive stages that write; a context manager that releases it.

    ``timeout`` is in seconds.
    """

    def __init__(self, root: Root, invocation: Invocation, timeout: float) -> None:
        self._root = root
        self._invocation = invocation
        self._timeout = timeout
        self._held: contextlib.ExitStack | None = None

    def __enter__(self) -> StageLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def acquire(self, stage: str) -> None:
        """Take the lock if it is not held. Raises :class:`LockedError`."""
        if self._held is None:
            held = contextlib.ExitStack()
            held.enter_context(lock.hold(self._root, self._invocation.command or stage, self._timeout))
            self._held = held

    def release(self) -> None:
        """Release the lock if it is held."""
        if self._held is not None:
            self._held.close()
            self._held = None

    def record(self, install_dir: str, report: StageReport) -> None:
        """Record how a stage ended that holds the lock now, for ``kata-node status``."""
        if self._held is not None:
            with signals.held():
                last_run.record(
                    self._root, install_dir, report, self._invocation, time.time() - report.seconds
                )
