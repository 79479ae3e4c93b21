"""A run from the selection of nodes to the result."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from kata_node.dispatcher.api import ApiClient
from kata_node.dispatcher.competing_dispatchers import stop_competing_dispatchers
from kata_node.dispatcher.config import Config
from kata_node.dispatcher.dispatch import Dispatcher
from kata_node.dispatcher.eligibility import no_template, taint_not_tolerated
from kata_node.dispatcher.events import EventRecorder
from kata_node.dispatcher.failures import NodeProblem
from kata_node.dispatcher.kubernetes_objects import Action
from kata_node.dispatcher.nodes import Nodes, Selection
from kata_node.dispatcher.progress import Result, build_result, task_line
from kata_node.dispatcher.rollout import Outcome, Rollout, RolloutPlan, Task
from kata_node.dispatcher.shutdown import ShutdownRequested
from kata_node.dispatcher.template import Owner, Target, job_name
from kata_node.errors import KubeError

log = logging.getLogger(__name__)


def run(config: Config, api: ApiClient, *, owner: Owner | None = None, reporter: str = "") -> Result:
    """Do what the configuration asks for, on every node it selects; ``reporter`` is the pod it runs in.

    Whatever fails on a node is in the result. Raises :class:`KubeError` when it comes to nothing at all,
    and :class:`Stopped` when it is to stop before the first Job.
    """
    began = api.clock.now()
    if config.action == "cleanup":
        stop_competing_dispatchers(api, config, owner, reporter)
    nodes = Nodes(api, config)
    selection = nodes.selection()
    tasks = _tasks(config.action, config.name_prefix, selection)
    for task in tasks:
        # A node that does not serve is not as its Job left it, whatever that says.
        task.rerun = config.skip_serving
    removed, tasks_without_job = _deselected_tasks(config, nodes, selection)
    tasks_without_job = [*_tasks_without_job(config, selection), *tasks_without_job]
    plan = RolloutPlan(config.parallelism, config.canary, config.wave_size, config.max_failures)
    rollout = Rollout(tasks, plan, removed)
    _log_plan(config, selection, removed)
    events = EventRecorder(api, config.installation, reporter) if config.events else None
    for task in tasks_without_job:
        if events and task.outcome is Outcome.FAILED:
            events.record_failure(task)

    stopped = ""

    def on_task_change(task: Task) -> None:
        nonlocal stopped
        level = logging.WARNING if task.outcome in (Outcome.FAILED, Outcome.NOT_READY) else logging.INFO
        log.log(level, "%s", task_line(task, rollout, api.clock.now()))
        if stopped != (stopped := rollout.stopped):
            log.warning("no more nodes are begun: %s", stopped)
        if events and task.outcome is Outcome.FAILED:
            events.record_failure(task)

    interrupted = ""
    try:
        if rollout.tasks:
            Dispatcher(api, config, nodes, rollout, owner=owner, on_task_change=on_task_change).run()
    except ShutdownRequested:
        interrupted = "asked to stop"
    except KubeError as error:
        interrupted = error.what
        log.error("%s", error)
    rollout.close(interrupted or rollout.stopped)
    if interrupted:
        interrupted += f"; {rollout.in_flight} Jobs that run go on by themselves"
        log.warning("%s", interrupted)
    tasks = [*rollout.tasks, *tasks_without_job]
    return build_result(
        config.action,
        tasks,
        max_not_ready_nodes=config.max_not_ready_nodes(len(tasks)),
        stopped=rollout.stopped,
        interrupted=interrupted,
        seconds=api.clock.now() - began,
        requests=api.requests,
    )


def _tasks(action: Action, prefix: str, found: Selection) -> list[Task]:
    """Those that can be begun, or will be; the last in the row, so no canaries, are not ready yet."""
    ready = [(target, "") for target in found.eligible]
    return [
        Task(target, action, job_name(prefix, target.name), unready=taint)
        for target, taint in (*ready, *found.unready)
    ]


def _deselected_tasks(config: Config, nodes: Nodes, selection: Selection) -> tuple[list[Task], list[Task]]:
    """What is to be done on nodes that left the selection, and those of them where nothing can be done."""
    if not config.removed:
        return [], []
    deselected = nodes.deselected(selection.selected, config.removed.templates)
    tasks = _tasks("cleanup", config.removed.name_prefix, deselected)
    if tasks and not selection.selected:
        # Labels may just not have arrived yet, and nobody means to uninstall by that.
        log.warning(
            "no node is selected, and %d carry %s: nothing is removed from them; "
            "uninstall the release if that is meant",
            len(tasks),
            config.installation_label,
        )
        return [], []
    return tasks, _ineligible_tasks("cleanup", deselected)


def _tasks_without_job(config: Config, selection: Selection) -> list[Task]:
    """The nodes that get no Job, and why."""
    tasks = _ineligible_tasks(config.action, selection)
    for target in selection.serving:
        task = Task(
            target,
            config.action,
            "",
            outcome=Outcome.UNCHANGED,
            note=f"{config.installation_label} says it serves",
        )
        tasks.append(task)
    for name in selection.missing:
        if config.action == "cleanup":
            tasks.append(
                Task(Target(name), config.action, "", outcome=Outcome.GONE, note="there is no such Node")
            )
        else:
            problem = NodeProblem("there is no such Node", hint="correct job.nodes in the values")
            tasks.append(Task(Target(name), config.action, "", outcome=Outcome.FAILED, problem=problem))
    return tasks


def _ineligible_tasks(action: Action, found: Selection) -> list[Task]:
    """The nodes on which nothing can be done as they are."""
    ends = [(target, taint_not_tolerated(taint)) for target, taint in found.tainted]
    ends += [(target, no_template(runtime)) for target, runtime in found.without_template]
    return [
        Task(target, action, "", outcome=end.outcome, problem=end.problem, note=end.note)
        for target, end in ends
    ]


def _log_plan(config: Config, selection: Selection, removed: Sequence[Task]) -> None:
    nodes = [*selection.eligible, *(target for target, _ in selection.unready)]
    first = f", {min(config.canary, len(nodes))} of them first" if config.canary else ""
    log.info("%s on %d nodes%s, %d at a time", config.action, len(nodes), first, config.parallelism)
    for target, taint in selection.tainted:
        log.info("%s: passed over, its taint %s is not tolerated", target.name, taint)
    for target, taint in selection.unready:
        log.info("%s: not ready (%s), so it comes last", target.name, taint)
    for target, runtime in selection.without_template:
        log.warning("%s: %s", target.name, no_template(runtime).problem)
    if selection.missing:
        log.warning("there is no Node named %s", ", ".join(selection.missing))
    if removed:
        log.info("cleanup, at the end, on %d nodes that are no longer selected", len(removed))
    if not nodes and not removed:
        log.warning("no node is selected that a Job can run on: nothing is done")
