"""The node's lock during a run, and the record of the stages that held it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from msgspec.structs import replace

from kata_node import signals
from kata_node.host import lock
from kata_node.host.files import Root
from kata_node.plan import last_run
from kata_node.plan.actions import Plan
from kata_node.plan.last_run import Invocation
from kata_node.plan.report import Finding, StageReport


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


def plan_beside_other_runs(plan: Callable[[], Plan], root: Root, timeout: float) -> Plan:
    """Return the plan. If a check fails while another run holds the node's lock, plan again after that run.

    A stage with checks takes no lock, so it can see the runtime in the middle of a restart. This function
    waits at most ``timeout`` seconds. A check whose failure is permanent does not wait, unless the other run
    can be its cause. Such a failure is permanent only if it is still there after the other run.
    """
    deadline = time.monotonic() + timeout
    while True:
        held_before = lock.is_held(root)
        found = plan()
        failed = [check for check in found.checks if check.status == "fail"]
        if all(check.permanent and not check.depends_on_other_runs for check in failed):
            return found
        if not (held_before or lock.is_held(root)):
            return found
        if not lock.wait_until_free(root, deadline):
            return replace(found, checks=tuple(map(_retryable, found.checks)))


def _retryable(check: Finding) -> Finding:
    return replace(check, permanent=False) if check.depends_on_other_runs else check
