"""Run stages: lock, facts, plan, apply, plan again, report.

The only place that turns errors into exit codes.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from kata_node import __version__
from kata_node import receipt as receipts
from kata_node.actions import Action, Forget, Plan, Record, Tools
from kata_node.errors import KataNodeError, RolledBackError, UnfitNodeError
from kata_node.facts import Look, Options
from kata_node.host import lock
from kata_node.host.files import host_error
from kata_node.receipt import Receipt
from kata_node.report import Check, Problem, StageReport
from kata_node.restart import RestartRuntime
from kata_node.settings import Settings

log = logging.getLogger(__name__)


class Stage(Protocol):
    """What a module of ``stages`` is. ``plan`` is pure: the same facts give the same plan."""

    NAME: str

    def look(self, look: Look) -> Any:
        """Gather the facts this stage decides by."""

    def plan(self, settings: Settings, facts: Any, receipt: Receipt) -> Plan:
        """Decide."""


READS_ONLY = frozenset({"host-check", "label", "unlabel"})
"""Stages that write nothing on the host. The label containers do not even see the lock."""


@dataclass(frozen=True)
class Run:
    """One call of the program. ``report`` is told of each stage as it ends."""

    settings: Settings
    options: Options
    tools: Tools
    lock_timeout: float
    dry_run: bool = False
    report: Callable[[StageReport], None] = lambda _: None


def run(stages: Sequence[Stage], run: Run) -> list[StageReport]:
    """Run ``stages`` in order; the first that fails is the last.

    A dry run plans each stage on the receipt that the one before it would have left.
    """
    done: list[StageReport] = []
    imagined: Receipt | None = None
    with _Lock(run) as locked:
        for stage in stages:
            started = time.monotonic()
            try:
                locked.for_stage(stage.NAME)
                if run.dry_run:
                    report, imagined = _imagine(stage, run, imagined)
                else:
                    report = _carry_out(stage, run)
            except Exception as error:
                report = _failed(stage.NAME, error)
            report = replace(report, seconds=time.monotonic() - started)
            run.report(report)
            done.append(report)
            if report.error:
                break
    return done


def _carry_out(stage: Stage, run: Run) -> StageReport:
    plan = _plan(stage, run, _receipt(run))
    _apply(plan, run.tools)
    if plan.actions:
        left = _plan(stage, run, _receipt(run))
        if left.actions:
            raise KataNodeError(
                "the node still differs after everything was done: " + "; ".join(left.changes),
                hint="look for another program that writes the same files, then run again",
            )
    return StageReport(
        stage.NAME,
        "done" if plan.actions or plan.checks else "skipped",
        plan.summary,
        plan.changes,
        plan.notes,
        plan.checks,
        error=_refusal(plan.checks),
    )


def _imagine(stage: Stage, run: Run, imagined: Receipt | None) -> tuple[StageReport, Receipt]:
    receipt = imagined or _receipt(run)
    plan = _plan(stage, run, receipt)
    for action in plan.actions:
        if isinstance(action, Record):
            receipt = action.receipt
        elif isinstance(action, RestartRuntime):
            receipt = action.proven
        elif isinstance(action, Forget):
            receipt = _blank(run)
    report = StageReport(
        stage.NAME,
        "planned" if plan.changes else "skipped",
        plan.summary,
        plan.changes,
        plan.notes,
        plan.checks,
        "".join(action.diff() for action in plan.actions),
        error=_refusal(plan.checks),
    )
    return report, receipt


def _plan(stage: Stage, run: Run, receipt: Receipt) -> Plan:
    return stage.plan(run.settings, stage.look(Look(run.settings, receipt, run.tools, run.options)), receipt)


def _receipt(run: Run) -> Receipt:
    return receipts.load(run.tools.root, run.settings.install_dir) or _blank(run)


def _blank(run: Run) -> Receipt:
    return Receipt(run.settings.instance, run.settings.install_dir, __version__)


def _apply(plan: Plan, tools: Tools) -> None:
    try:
        _do(plan.actions, tools)
    except Exception as error:
        if not plan.undo:
            raise
        cause = error.what if isinstance(error, KataNodeError) else repr(error)
        where = error.where if isinstance(error, KataNodeError) else ""
        log.error("%s; putting back what was there", str(error).replace("\n", "; "))
        try:
            _do(plan.undo, tools)
        except Exception as second:
            raise KataNodeError(
                f"{cause}; and putting back what was there failed too: {second}",
                where=where,
                hint="look at this node now; running the stage again goes on from where this one stopped",
            ) from error
        raise RolledBackError(
            f"{cause}; the node was put back as it was",
            where=where,
            hint=getattr(error, "hint", "") or "correct the cause, then run again",
        ) from error


def _do(actions: Sequence[Action], tools: Tools) -> None:
    for action in actions:
        if line := action.describe():
            log.info("%s", line)
        action.apply(tools)
        action.check(tools)


def _refusal(checks: Sequence[Check]) -> Problem | None:
    failed = [check for check in checks if check.status == "fail"]
    if not failed:
        return None
    what = "; ".join(f"{check.name}: {check.reason}" for check in failed)
    hint = "; ".join(check.remedy for check in failed if check.remedy)
    kind = UnfitNodeError if any(check.permanent for check in failed) else KataNodeError
    return Problem.of(kind(what, hint=hint))


def _failed(stage: str, error: Exception) -> StageReport:
    log.debug("failed", exc_info=error)
    if isinstance(error, OSError):
        error = host_error(str(error.filename or stage), error)
    elif not isinstance(error, KataNodeError):
        error = KataNodeError(
            f"unexpected error: {type(error).__name__}: {error}",
            hint="this is a defect of kata-node: run again with --log-level debug and report the traceback",
        )
    return StageReport(stage, "failed", error.what, error=Problem.of(error))


class _Lock:
    """Holds the node's lock across stages that write, and lets go before those that wait for the cluster."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._held: contextlib.ExitStack | None = None

    def __enter__(self) -> _Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self._release()

    def for_stage(self, stage: str) -> None:
        if stage in READS_ONLY or self._run.dry_run:
            self._release()
        elif self._held is None:
            held = contextlib.ExitStack()
            held.enter_context(lock.hold(self._run.tools.root, stage, self._run.lock_timeout))
            self._held = held

    def _release(self) -> None:
        if self._held is not None:
            self._held.close()
            self._held = None
