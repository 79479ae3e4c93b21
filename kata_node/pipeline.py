"""Run stages. For each stage: take the lock, gather facts, plan, apply, plan again, report.

This is the only module that turns errors into exit codes.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from msgspec import Struct, field
from msgspec.structs import replace

from kata_node import __version__, signals
from kata_node.errors import CriError, IneligibleNodeError, KataNodeError, OutdatedPlanError, RolledBackError
from kata_node.host.files import host_error
from kata_node.host.machine_id import is_same_machine_id, machine_id
from kata_node.log import timed
from kata_node.plan import last_run, refusal
from kata_node.plan import receipt as receipts
from kata_node.plan.actions import Action, Clients, Plan, RemoveReceipt, WriteReceipt
from kata_node.plan.blocking_pods import BlockingPods
from kata_node.plan.context import Options, StageContext
from kata_node.plan.install_dir import require_own_directory
from kata_node.plan.last_run import Invocation
from kata_node.plan.receipt import Receipt
from kata_node.plan.report import Outcome, Problem, StageReport, problem_of_findings
from kata_node.settings.model import Settings
from kata_node.stage_lock import StageLock, plan_beside_other_runs

log = logging.getLogger(__name__)


class Stage(Protocol):
    """The interface of the modules in ``stages``."""

    NAME: str

    def gather_facts(self, context: StageContext) -> Any:
        """Return the facts that the stage's plan depends on."""

    def plan(self, settings: Settings, facts: Any, receipt: Receipt) -> Plan:
        """Return the plan. Pure: the same arguments give the same plan."""


HOST_CHECK = "host-check"
READ_ONLY_STAGES = frozenset({HOST_CHECK, "claim", "label", "unlabel", "unclaim", "check-pods"})
"""Stages that write nothing on the node. They take no lock: the containers that label cannot see it."""


POLL = 1.0  # seconds between two checks for blocking pods
REMINDER_INTERVAL = 30.0  # seconds until the same blocking pods are logged again


class Run(Struct, frozen=True):
    """The parameters of one run."""

    settings: Settings
    options: Options
    clients: Clients
    lock_timeout: float
    """Seconds to wait for the node's lock."""
    dry_run: bool = False
    report: Callable[[StageReport], None] = lambda _: None
    """Called with the report of each stage when the stage ends."""
    invocation: Invocation = field(default_factory=Invocation)
    """The command that started this run."""
    earlier: tuple[StageReport, ...] = ()
    """The reports of the stages that this run has ended."""


def run(stages: Sequence[Stage], run: Run) -> list[StageReport]:
    """Run ``stages`` in order, and stop at the first one that fails. Return the reports of those that ran.

    A dry run plans each stage with the receipt that the stage before it would have written.
    """
    done: list[StageReport] = []
    predicted_receipt: Receipt | None = None
    stage_lock = StageLock(run.clients.root, run.invocation, run.lock_timeout)
    with contextlib.nullcontext() if run.dry_run else signals.changing(), stage_lock:
        for stage in stages:
            run, started = replace(run, earlier=tuple(done)), time.monotonic()
            try:
                signals.check()
                _check_machine_id(stage, run)
                if run.dry_run:
                    report, predicted_receipt = _dry_run(stage, run, predicted_receipt)
                else:
                    report = _run_stage(stage, run, stage_lock)
            except (Exception, KeyboardInterrupt) as error:
                kata_node_error = as_kata_node_error(error, stage.NAME)
                report = StageReport(
                    stage.NAME, "failed", kata_node_error.what, error=Problem.from_error(kata_node_error)
                )
            report = replace(report, seconds=time.monotonic() - started)
            stage_lock.record(run.settings.install_dir, report)
            if report.error:
                stage_lock.release()  # the report may take seconds, and this run changes nothing more
            run.report(report)
            done.append(report)
            if report.error:
                break
    return done


def _check_machine_id(stage: Stage, run: Run) -> None:
    """Raise :class:`IneligibleNodeError` if the machine id is not the expected one.

    Another machine can join the cluster with the name of a Node. host-check reports this too, but a revert
    does not run host-check.
    """
    expected = run.options.expected_machine_id
    if not expected or stage.NAME in READ_ONLY_STAGES:
        return
    if not is_same_machine_id(found := machine_id(run.clients.root), expected):
        raise IneligibleNodeError(
            f"the machine id of this node is {found or 'not set'}, expected {expected}",
            where="/etc/machine-id",
            hint="start the install or revert again, so that the Node is read again: another machine now has "
            "its name",
        )


def _run_stage(stage: Stage, run: Run, stage_lock: StageLock) -> StageReport:
    since = time.monotonic()

    def plan_now() -> Plan:
        if stage.NAME in READ_ONLY_STAGES:
            stage_lock.release()
        else:
            stage_lock.acquire(stage.NAME)
            receipts.remove_leftovers(run.clients.root, run.settings.install_dir)
            last_run.remove_leftover(run.clients.root, run.settings.install_dir)
        with signals.interruptible():
            return _plan(stage, run, _load_receipt(stage, run), since)

    def plan_again() -> Plan:
        return _plan(stage, run, _load_receipt(stage, run), since, plans_again=True)

    def prove() -> Plan:
        from kata_node.cluster.labelling import WaitForNode

        found = plan_again()
        # After a restart of the runtime the Node can be not Ready for a moment. This is not a difference.
        if any(not isinstance(action, WaitForNode) or action.missing for action in found.actions):
            raise KataNodeError(
                "the node still differs from the plan after all changes: " + "; ".join(found.changes),
                hint="find the program that reverts these changes and stop it, then run again",
            )
        return found

    def apply(plan: Plan) -> Plan:
        return _apply_plan(plan, run.clients, run.settings.install_dir, prove) if plan.actions else plan

    plan = plan_when_unblocked(
        lambda: plan_beside_other_runs(plan_now, run.clients.root, run.lock_timeout),
        stage_lock.release,
        run.options,
    )
    signals.check()
    try:
        next_plan = apply(plan)
    except OutdatedPlanError as error:
        log.info("%s: planning again: %s: %s", stage.NAME, error.where, error.what)
        plan = plan_again()
        next_plan = apply(plan)
    tried, failures = _apply_best_effort(next_plan.best_effort, run.clients)
    observed = replace(plan, summary=next_plan.summary) if plan.is_forecast else plan
    report = _report(stage, observed, "done" if plan.actions or tried else "skipped")
    changes = tuple(line for action in (*plan.actions, *tried) if (line := action.describe()))
    repaired = (f"repaired because it changed on the node: {path}" for path in plan.drifted)
    later_notes = (note for note in next_plan.notes if note not in report.notes)
    notes = (*repaired, *report.notes, *later_notes, *failures)
    return replace(report, changes=changes, notes=notes)


def _dry_run(stage: Stage, run: Run, predicted_receipt: Receipt | None) -> tuple[StageReport, Receipt]:
    from kata_node.plan.dry_run import preview
    from kata_node.runtime.restart import RestartRuntime

    since = time.monotonic()
    receipt = predicted_receipt or _empty_receipt(run)

    def plan_now() -> Plan:
        nonlocal receipt
        receipt = predicted_receipt or _load_receipt(stage, run)
        return _plan(stage, run, receipt, since)

    plan = plan_beside_other_runs(plan_now, run.clients.root, run.lock_timeout)
    planned_with = receipt
    for action in plan.actions:
        if isinstance(action, WriteReceipt):
            receipt = action.receipt
        elif isinstance(action, RestartRuntime) and action.receipt_after_proof:
            receipt = action.receipt_after_proof
        elif isinstance(action, RemoveReceipt):
            receipt = _empty_receipt(run)
    report = _report(stage, plan, "planned" if plan.changes else "skipped")
    if plan.blocking_pods is not None:
        report = replace(report, notes=(*report.notes, f"would be blocked: {plan.blocking_pods}"))
    return replace(report, preview=preview(plan, planned_with)), receipt


def _report(stage: Stage, plan: Plan, outcome: Outcome) -> StageReport:
    error = problem_of_findings(plan.checks)
    if plan.checks:  # a stage with checks has no actions, so a dry run does the same
        outcome = "failed" if error else "done"
    return StageReport(
        stage.NAME,
        outcome,
        plan.summary,
        plan.changes,
        plan.notes,
        plan.checks,
        plan.left_out,
        plan.other_install_dirs,
        plan.kata_version,
        error=error,
        not_served=plan.not_served,
        handlers=plan.handlers,
        is_new=plan.is_new,
    )


def _plan(stage: Stage, run: Run, receipt: Receipt, since: float, *, plans_again: bool = False) -> Plan:
    with timed(log, f"{stage.NAME}: look at the node"):
        context = StageContext(
            run.settings, receipt, run.clients, run.options, since, run.earlier, plans_again, run.dry_run
        )
        facts = stage.gather_facts(context)
    plan = stage.plan(run.settings, facts, receipt)
    log.debug("%s: decided: %s; %s", stage.NAME, plan.summary, "; ".join(plan.changes) or "no changes")
    return plan


def _load_receipt(stage: Stage, run: Run) -> Receipt:
    """Return the receipt, with the version of this program; an empty receipt if there is none.

    Raises :class:`IneligibleNodeError` if the install dir leads to a directory of the system, or if another
    user can write the receipt. host-check reports the latter as a finding.
    """
    require_own_directory(run.clients.root, run.settings.install_dir)
    if untrusted := receipts.untrusted(run.clients.root, run.settings.install_dir):
        if stage.NAME != HOST_CHECK:
            raise untrusted.error()
        return _empty_receipt(run)
    found = receipts.load(run.clients.root, run.settings.install_dir)
    return replace(found, program=__version__) if found else _empty_receipt(run)


def _empty_receipt(run: Run) -> Receipt:
    return Receipt(run.settings.instance, run.settings.install_dir, __version__)


def _apply_plan(plan: Plan, clients: Clients, install_dir: str, prove: Callable[[], Plan]) -> Plan:
    """Apply the actions, and return the plan that proves them. Roll back when either of both fails."""
    started = time.time()
    try:
        _apply_actions(plan.actions, clients)
        proof = prove()
        if plan.tried_config is not None:
            refusal.remove(clients.root, install_dir)
        return proof
    except (Exception, KeyboardInterrupt) as error:
        if not plan.rollback:
            raise
        from kata_node.runtime.unit_log import Period, last_words, unit_of

        cause = as_kata_node_error(error, "")
        place = f"{cause.where}: " if cause.where else ""
        log.error("%s%s; rolling back", place, cause.what)
        with signals.held():
            rolled_back_at = time.time()
            failures = _roll_back(plan.rollback, clients)
            # Only now: the runtime comes first.
            periods: list[Period] = [(rolled_back_at, None)] if failures else []
            periods.append((started, rolled_back_at))
            unit_log = last_words(clients, unit_of(plan.actions, cause.where), periods)
        if failures:
            raise KataNodeError(
                f"{cause.what}; the rollback failed too: " + "; ".join(failures),
                where=cause.where,
                hint="correct the cause on this node now, then run the same command again to continue",
                unit_log=unit_log,
            ) from error
        if plan.tried_config is not None and cause.is_refusal:
            reason = "; ".join(filter(None, (cause.what, unit_log)))
            refusal.save(clients.root, install_dir, plan.tried_config, reason)
        raise RolledBackError(
            f"{cause.what}; the changes of this stage were rolled back",
            where=cause.where,
            hint=cause.hint or "correct the cause, then run again",
            unit_log=unit_log,
        ) from error


def _apply_actions(actions: Sequence[Action], clients: Clients) -> None:
    for action in actions:
        if line := action.describe():
            log.info("%s", line)
        action.apply(clients)
        action.check(clients)


def _apply_best_effort(actions: Sequence[Action], clients: Clients) -> tuple[list[Action], list[str]]:
    """Apply each action, even if others fail. Return the applied actions, and a note for each failure."""
    done: list[Action] = []
    notes: list[str] = []
    for action in actions:
        try:
            _apply_actions((action,), clients)
            done.append(action)
        except Exception as error:
            kata_node_error = as_kata_node_error(error, "")
            log.warning("could not %s: %s", action.describe(), kata_node_error)
            notes.append(f"could not {action.describe()}: {kata_node_error.what}")
    return done, notes


def _roll_back(actions: Sequence[Action], clients: Clients) -> list[str]:
    """Apply each rollback action, even if others fail. Return a sentence for each failure.

    After a failure the receipt is not changed any more, so that the next run continues from it.
    """
    from kata_node.runtime.file_actions import RemoveReserves
    from kata_node.runtime.restart import RestartRuntime

    failures: list[str] = []
    for action in actions:
        if failures and isinstance(action, WriteReceipt | RemoveReceipt | RemoveReserves):
            continue
        if failures and isinstance(action, RestartRuntime):
            action = replace(action, receipt_after_proof=None, cleanup=())
        try:
            _apply_actions((action,), clients)
        except Exception as error:
            kata_node_error = as_kata_node_error(error, "")
            place = f"{kata_node_error.where}: " if kata_node_error.where else ""
            failures.append(f"{action.describe() or 'write the receipt'}: {place}{kata_node_error.what}")
    return failures


def as_kata_node_error(error: BaseException, where: str) -> KataNodeError:
    """Return ``error`` as a :class:`KataNodeError`. ``where`` is used if an ``OSError`` has no file name."""
    log.debug("failed", exc_info=error)
    if isinstance(error, KataNodeError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return signals.stopped_error(error)
    if isinstance(error, OSError):
        return host_error(str(error.filename or where), error)
    return KataNodeError(
        f"unexpected error: {type(error).__name__}: {error}",
        hint="run again with --log-level debug, and report the traceback: this is a defect of kata-node",
    )


def plan_when_unblocked(plan: Callable[[], Plan], release_lock: Callable[[], None], options: Options) -> Plan:
    """Return the plan as soon as no pods block it, or when the wait ends and ``options.ignore_pods`` is set.

    ``plan`` takes the node's lock if it is not held; it is called again every second. ``release_lock``
    releases the lock during the wait, so that other runs can work on the node. Raises the refusal if pods
    still block the plan after ``options.wait_for_pods`` seconds.
    """
    found = plan()
    deadline = time.monotonic() + options.wait_for_pods
    last_logged: BlockingPods | None = None
    last_logged_at = 0.0
    while found.blocking_pods is not None:
        now = time.monotonic()
        if now >= deadline:
            if not options.ignore_pods:
                raise found.blocking_pods.refusal(options.wait_for_pods)
            log.warning("%s; continuing because --ignore-pods is set", found.blocking_pods)
            return replace(found, blocking_pods=None, notes=(*found.notes, found.blocking_pods.note()))
        if found.blocking_pods != last_logged or now - last_logged_at >= REMINDER_INTERVAL:
            last_logged, last_logged_at = found.blocking_pods, now
            log.info("%s; waiting at most %.0f s", last_logged, deadline - now)
        release_lock()
        with signals.interruptible():
            time.sleep(min(POLL, deadline - now))
        found = _replan(plan, found)
    return found


def _replan(plan: Callable[[], Plan], before: Plan) -> Plan:
    """Return a new plan, with the blocking pods of ``before`` if the runtime cannot list its pods now."""
    try:
        found = plan()
    except CriError as error:
        log.debug("cannot list the pods now: %s", error)
        return before
    return replace(found, blocking_pods=before.blocking_pods) if found.pods_unknown else found
