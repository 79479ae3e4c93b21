"""One run of the dispatcher, from the selection of nodes to the result."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence

from msgspec.structs import replace

from kata_node.cluster.ownership import suffix_error
from kata_node.dispatcher.api import ApiClient
from kata_node.dispatcher.competing_dispatchers import (
    delete_superseded_dispatchers,
    stop_competing_dispatchers,
)
from kata_node.dispatcher.config import Config
from kata_node.dispatcher.deadline import set_deadline
from kata_node.dispatcher.desired_state import StateObject, find_reason_to_do_nothing, read_state
from kata_node.dispatcher.dispatch import Dispatcher
from kata_node.dispatcher.eligibility import no_template, not_labeled, taint_not_tolerated
from kata_node.dispatcher.events import EventRecorder
from kata_node.dispatcher.failures import NodeProblem
from kata_node.dispatcher.installed import check_installed, forget_installed, record_installed
from kata_node.dispatcher.kubernetes_objects import Action
from kata_node.dispatcher.last_rollout import RolloutRecorder
from kata_node.dispatcher.node_labels import NodeLabeler
from kata_node.dispatcher.node_records import NodeRecorder
from kata_node.dispatcher.nodes import Nodes, Selection
from kata_node.dispatcher.progress import Result, build_result, task_line
from kata_node.dispatcher.rollout import Outcome, Rollout, RolloutPlan, Task
from kata_node.dispatcher.running_pods import find_running_pods, refusal
from kata_node.dispatcher.settling import settled_selection
from kata_node.dispatcher.shutdown import ShutdownRequested
from kata_node.dispatcher.template import Owner, Target, job_name
from kata_node.errors import KubeError

log = logging.getLogger(__name__)


def run(config: Config, api: ApiClient, *, owner: Owner | None = None, reporter: str = "") -> Result:
    """Run the configured action on every selected node and return the result.

    ``owner`` is the Job and ``reporter`` the name of the Pod of this dispatcher. Failures of nodes are in the
    result. Before the first Job, raises :class:`KubeError` when the selection fails,
    :class:`SettingsError` when the nodes have another installation, and :class:`ShutdownRequested` when a
    shutdown is requested.
    """
    state = read_state(api, config)
    if reason := find_reason_to_do_nothing(api, config, state, owner):
        return _nothing(config, api, reason)
    check_installed(config, state)
    began = api.clock.now()
    set_deadline(api, config, owner)
    config = _tolerate_all_if_named(config)
    if config.action == "cleanup":
        stop_competing_dispatchers(api, config, owner, reporter)
    if owner and not config.generation:
        if not config.skip_serving:
            delete_superseded_dispatchers(api, config, owner)
        config = replace(config, generation=owner.uid)
        # An apply during the wait above found the Jobs of the other dispatchers, and made no new one.
        state = read_state(api, config)
        if reason := find_reason_to_do_nothing(api, config, state, owner):
            return _nothing(config, api, reason)
    recorder = RolloutRecorder(api, config, owner) if state is not None else None
    with recorder or contextlib.nullcontext():
        result = _run_on_nodes(config, api, owner, reporter, began, state)
    if recorder:
        recorder.record_end(result)
    if config.action == "cleanup" and result.outcome == "ok":
        forget_installed(api, config, state)
    return result


def _nothing(config: Config, api: ApiClient, reason: str) -> Result:
    log.warning("%s", reason)
    return Result(config.action, "ok", reason, [], 0.0, api.requests)


def _run_on_nodes(
    config: Config,
    api: ApiClient,
    owner: Owner | None,
    reporter: str,
    began: float,
    state: StateObject | None,
) -> Result:
    nodes = Nodes(api, config)
    selection = settled_selection(nodes, config, api)
    tasks = _tasks(config.action, config.name_prefix, selection)
    for task in tasks:
        # A node that does not serve needs a new Job, even if its last Job has succeeded.
        task.rerun = config.skip_serving
    removed, tasks_without_job = _deselected_tasks(config, nodes, selection)
    tasks_without_job = [*_tasks_without_job(config, selection), *tasks_without_job]
    plan = RolloutPlan(
        config.parallelism,
        config.canary_nodes(len(tasks)),
        config.wave_size,
        config.max_failures,
        config.unfit_fails,
        config.stops_on_rollbacks,
    )
    if config.check and (blocked := find_running_pods(api, config, config.check, selection.eligible, owner)):
        reason, tasks = refusal(blocked, [*tasks, *tasks_without_job])
        seconds = api.clock.now() - began
        return Result(config.action, "stopped", reason, tasks, seconds, api.requests)
    rollout = Rollout(tasks, plan, removed)
    _log_plan(config, selection, removed)
    events = EventRecorder(api, config.installation, reporter) if config.events else None
    record_failure = _failure_recorder(config, api, events)
    for task in tasks_without_job:
        record_failure(task)
    stopped = ""

    def on_task_change(task: Task) -> None:
        nonlocal stopped
        warned = (Outcome.FAILED, Outcome.UNFIT, Outcome.NOT_READY)
        level = logging.WARNING if task.outcome in warned else logging.INFO
        log.log(level, "%s", task_line(task, rollout, api.clock.now()))
        if stopped != (stopped := rollout.stopped):
            log.warning("the rollout stops, no more nodes are started: %s", stopped)
        record_failure(task)

    interrupted = ""
    try:
        if tasks and config.action == "install":
            record_installed(api, config, state)
        if rollout.tasks:
            how = config.label_nodes
            labeler = NodeLabeler(api, config, how, events) if how else None
            Dispatcher(
                api, config, nodes, rollout, owner=owner, labeler=labeler, on_task_change=on_task_change
            ).run()
    except ShutdownRequested:
        interrupted = api.stop.reason
    except KubeError as error:
        interrupted = error.what
        log.error("%s", error)
    rollout.close(interrupted or rollout.stopped, api.clock.now())
    if interrupted:
        interrupted += f"; running Jobs that continue by themselves: {rollout.in_flight}"
        log.warning("%s", interrupted)
    tasks = [*rollout.tasks, *tasks_without_job]
    return build_result(
        config.action,
        tasks,
        max_not_ready_nodes=config.max_not_ready_nodes(len(tasks)),
        unfit_fails=config.unfit_fails,
        failure_exit_code=api.stop.exit_code,
        stopped=rollout.stopped,
        interrupted=interrupted,
        seconds=api.clock.now() - began,
        requests=api.requests,
    )


def _failure_recorder(config: Config, api: ApiClient, events: EventRecorder | None) -> Callable[[Task], None]:
    """Return a function that records a task where it outlives the Job, if the task has failed.

    Unfit nodes are recorded by their Jobs, if these have credentials.
    """
    records = NodeRecorder(api, config)
    recorded = (Outcome.FAILED, Outcome.UNFIT) if config.label_nodes else (Outcome.FAILED,)

    def record(task: Task) -> None:
        if task.outcome not in recorded:
            return
        if events:
            events.record_failure(task)
        records.record_failure(task)

    return record


def _tolerate_all_if_named(config: Config) -> Config:
    """Return the configuration; if it names nodes, with templates that tolerate every taint.

    A name is an unambiguous choice. The toleration also keeps the Pod on the node when a taint is added.
    """
    if not config.nodes:
        return config
    return replace(config, templates=config.templates.tolerating_everything())


def _tasks(action: Action, prefix: str, found: Selection) -> list[Task]:
    """Return a task for each node that can get a Job now or later.

    Nodes that are not ready come last, so that they do not become canary nodes.
    """
    ready = [(target, "") for target in found.eligible]
    return [
        Task(target, action, job_name(prefix, target.name), unready=taint, cause=found.cause(target.name))
        for target, taint in (*ready, *found.unready)
    ]


def _deselected_tasks(config: Config, nodes: Nodes, selection: Selection) -> tuple[list[Task], list[Task]]:
    """Return the tasks for nodes that are no longer selected, and the tasks of those that get no Job."""
    if not config.removed:
        return [], []
    deselected = nodes.deselected(selection.selected, config.removed.templates)
    tasks = _tasks("cleanup", config.removed.name_prefix, deselected)
    if tasks and not selection.selected:
        # The labels of the nodes may not be set yet. An empty selection must not uninstall everything.
        log.warning(
            "no node is selected, so nothing is removed from the nodes with the label %s: %d; "
            "uninstall the release to remove Kata from them",
            config.installation_label,
            len(tasks),
        )
        return [], []
    return tasks, _ineligible_tasks("cleanup", deselected)


def _tasks_without_job(config: Config, selection: Selection) -> list[Task]:
    """Return finished tasks for the selected nodes that get no Job."""
    tasks = _ineligible_tasks(config.action, selection)
    for target, release in selection.other_releases:
        note = f"its installation belongs to the release {release}"
        tasks.append(Task(target, config.action, "", outcome=Outcome.NOT_OURS, note=note))
    for target, other in selection.other_installations:
        error = suffix_error(other, [target.name], config.installation, config.release)
        problem = NodeProblem(error.what, where=error.where, hint=error.hint)
        tasks.append(Task(target, config.action, "", outcome=Outcome.FAILED, problem=problem))
    for target in selection.serving:
        task = Task(
            target,
            config.action,
            "",
            outcome=Outcome.UNCHANGED,
            note="it serves already: its labels are true, and its Node reports its handlers",
        )
        tasks.append(task)
    for name in selection.missing:
        if config.action == "cleanup":
            tasks.append(
                Task(Target(name), config.action, "", outcome=Outcome.GONE, note="no Node has this name")
            )
        else:
            problem = NodeProblem("no Node has this name", hint="correct job.nodes in the values")
            tasks.append(Task(Target(name), config.action, "", outcome=Outcome.FAILED, problem=problem))
    return tasks


def _ineligible_tasks(action: Action, found: Selection) -> list[Task]:
    """Return finished tasks for nodes with a permanent taint, without a template, or not labeled yet."""
    ends = [(target, taint_not_tolerated(taint)) for target, taint in found.tainted]
    ends += [(target, no_template(runtime)) for target, runtime in found.without_template]
    ends += [(target, not_labeled()) for target in found.unlabeled]
    return [
        Task(target, action, "", outcome=end.outcome, problem=end.problem, note=end.note)
        for target, end in ends
    ]


def _log_plan(config: Config, selection: Selection, removed: Sequence[Task]) -> None:
    nodes = [*selection.eligible, *(target for target, _ in selection.unready)]
    count = min(config.canary_nodes(len(nodes)), len(nodes))
    canary = f"; canary nodes: {count}" if count else ""
    log.info(
        "starting %s; nodes: %d%s; at most %d run at the same time",
        *(config.action, len(nodes), canary, config.parallelism),
    )
    for name, found in selection.not_proven.items():
        log.log(logging.WARNING if found.has_drifted else logging.INFO, "%s: %s", name, found.reason)
    for target, taint in selection.tainted:
        log.info("%s: skipped, its taint %s is not tolerated", target.name, taint)
    for target, taint in selection.unready:
        log.info("%s: not ready, it has the taint %s; it gets its Job last", target.name, taint)
    for target in selection.unlabeled:
        log.warning("%s: skipped, node-feature-discovery has not labeled it", target.name)
    for target, runtime in selection.without_template:
        log.warning("%s: %s", target.name, no_template(runtime).problem)
    if selection.missing:
        log.warning("no Node has the name: %s", ", ".join(selection.missing))
    if removed:
        log.info("nodes that are no longer selected, cleaned up after all others: %d", len(removed))
    if not nodes and not removed:
        log.warning("no node is selected, or no selected node can get a Job; there is nothing to do")
