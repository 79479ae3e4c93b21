"""Ask all nodes whether pods run in Kata, before a cleanup changes the first one.

Without that, an uninstall would clean all nodes without such pods, and fail on the others. Only the runtime
of a node knows its pods for sure, so a Job that changes nothing asks it. The API server cannot select Pods by
their RuntimeClass, and with the right to read all Pods the dispatcher could read everything in their specs.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from msgspec.structs import replace

from kata_node.dispatcher.api import ApiClient
from kata_node.dispatcher.config import Config, OtherJobsConfig
from kata_node.dispatcher.dispatch import Dispatcher
from kata_node.dispatcher.nodes import Nodes
from kata_node.dispatcher.progress import task_line
from kata_node.dispatcher.rollout import Outcome, Rollout, RolloutPlan, Task
from kata_node.dispatcher.template import Owner, Target, job_name

log = logging.getLogger(__name__)


def find_running_pods(
    api: ApiClient, config: Config, jobs: OtherJobsConfig, targets: Sequence[Target], owner: Owner | None
) -> list[Task]:
    """Run the ``jobs`` on all ``targets``, and return the tasks of the nodes on which pods run in Kata.

    A node that gives no answer does not count: its cleanup asks again. Raises :class:`KubeError` and
    :class:`ShutdownRequested`.
    """
    check = replace(
        config, action="check", name_prefix=jobs.name_prefix, templates=jobs.templates, skip_serving=False
    )
    # An answer of an earlier run is out of date.
    tasks = [Task(target, "check", job_name(jobs.name_prefix, target.name), rerun=True) for target in targets]
    rollout = Rollout(tasks, RolloutPlan(config.parallelism))
    log.info("asking %d nodes whether pods run in Kata", len(tasks))

    def on_task_change(task: Task) -> None:
        if task.outcome is not Outcome.RUNNING:
            level = logging.WARNING if task.outcome is Outcome.FAILED else logging.DEBUG
            log.log(level, "%s", task_line(task, rollout, api.clock.now()))

    if tasks:
        Dispatcher(api, check, Nodes(api, check), rollout, owner=owner, on_task_change=on_task_change).run()
    return [task for task in tasks if task.problem and task.problem.pods_run]


def refusal(blocked: Iterable[Task], tasks: Sequence[Task]) -> tuple[str, list[Task]]:
    """Return why a cleanup changes nothing, and its ``tasks`` with the outcome of the ``blocked`` nodes."""
    by_name = {task.target.name: task for task in blocked}
    reason = (
        f"pods run in Kata on {len(by_name)} of {len(tasks)} nodes, so no node was changed; end these pods, "
        "or set job.cleanup.force to clean the other nodes"
    )
    for task in tasks:
        if asked := by_name.get(task.target.name):
            task.outcome, task.problem = Outcome.FAILED, asked.problem
        elif task.outcome is Outcome.WAITING:
            task.outcome, task.note = Outcome.NOT_STARTED, "pods run in Kata on other nodes"
    return reason, list(tasks)
