"""Log why running Jobs are stuck or retried.

One list of Pods covers all Jobs. A Job without a live Pod costs one more list. The Pods on a Node that is not
Ready do not show the cause.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable

from kata_node.dispatcher.api import RefusedError
from kata_node.dispatcher.failures import NodeProblem, not_ready_problem, retry_reason, stuck_reason
from kata_node.dispatcher.jobs import Jobs
from kata_node.dispatcher.kubernetes_objects import DEADLINE_EXCEEDED, Job, Pod
from kata_node.dispatcher.node_readiness import CHECK_INTERVAL as NODE_CHECK_INTERVAL
from kata_node.dispatcher.node_readiness import FIRST_CHECK as FIRST_NODE_CHECK
from kata_node.dispatcher.node_readiness import NodeReadiness
from kata_node.dispatcher.rollout import Task
from kata_node.kube.retry import Clock

FIRST_CHECK_DELAY = 15.0
"""Seconds until the first check of a Job. The interval doubles each time."""

CHECK_INTERVAL, STARTUP_PERIOD = 60.0, 60.0
"""Minimum seconds between two lists of Pods, and seconds of the startup period.

During the startup period the minimum is :data:`FIRST_CHECK_DELAY`, because wrong values show then. Later,
most Jobs end before they are due for a check."""

log = logging.getLogger(__name__)


class StuckPodMonitor:
    """Checks the Pods of running Jobs. It affects only messages, so it tolerates a lack of rights on Pods."""

    def __init__(self, jobs: Jobs, readiness: NodeReadiness, selector: str, clock: Clock) -> None:
        self._jobs = jobs
        self._readiness = readiness
        self._next_node_check = 0.0
        self._selector = selector
        self._clock = clock
        self._startup_deadline = clock.now() + STARTUP_PERIOD
        self._next_list = 0.0

    def job_started(self, task: Task) -> None:
        """Start the checks for a node that got its Job."""
        task.pod_checks, task.next_pod_check = 0, self._clock.now() + FIRST_CHECK_DELAY
        task.job_began = self._clock.now()
        task.failed_tries, task.last_retry, task.stuck_reason = 0, None, None

    def next_check_time(self, tasks: Iterable[Task]) -> float | None:
        """Return when to list Pods or to look at the Nodes again; ``None`` while no Job runs."""
        running = [task for task in tasks if _is_running(task)]
        times = (self._next_list_time(running), self._next_node_check_time(running))
        return min((time for time in times if time is not None), default=None)

    def _next_list_time(self, tasks: Iterable[Task]) -> float | None:
        first = min((task.next_pod_check for task in tasks if self._is_ready(task)), default=None)
        return None if first is None else max(first, self._next_list)

    def _next_node_check_time(self, running: Iterable[Task]) -> float | None:
        first = min((task.job_began + FIRST_NODE_CHECK for task in running), default=None)
        return None if first is None else max(first, self._next_node_check)

    def check_nodes(self, tasks: Iterable[Task]) -> None:
        """Log which running Jobs are on Nodes that have become not Ready, or are Ready again."""
        running, now = [task for task in tasks if _is_running(task)], self._clock.now()
        due = self._next_node_check_time(running)
        if due is None or now < due:
            return
        self._readiness.update()
        self._next_node_check = self._clock.now() + NODE_CHECK_INTERVAL
        for task in running:
            if not self._is_ready(task):
                self._log_stuck_reason(task, not_ready_problem(task.target.name))
            elif task.stuck_reason == not_ready_problem(task.target.name):
                log.info("%s: its Node is Ready again", task.target.name)
                self._log_stuck_reason(task, None)

    def _is_ready(self, task: Task) -> bool:
        return self._readiness.is_ready(task.target.name)

    def check_jobs(self, running: Iterable[tuple[Task, Job]]) -> None:
        """Log why a Job is stuck, for each Job that is due for a check, if the reason has changed."""
        now = self._clock.now()
        jobs = [
            (task, job)
            for task, job in running
            if _is_running(task) and (task.pod_checks or task.next_pod_check <= now) and self._is_ready(task)
        ]
        next_check_time = self._next_list_time(task for task, _ in jobs)
        if next_check_time is None or now < next_check_time:
            return
        self._next_list = now + (FIRST_CHECK_DELAY if now < self._startup_deadline else CHECK_INTERVAL)
        live = self._list_live_pods()
        for task, job in jobs:
            is_check_due = task.next_pod_check <= now
            if is_check_due:
                task.pod_checks += 1
                task.next_pod_check = now + FIRST_CHECK_DELAY * 2.0**task.pod_checks
            pods: list[Pod] | None = live.get(job.metadata.uid) if live is not None else None
            if live is not None and not pods and is_check_due:
                # Its Pod may have just ended, or it has failed and a retry is due.
                pods = self.pods(job)
            if pods is not None:
                self._log_stuck_reason(task, stuck_reason(job, pods))

    def job_changed(self, task: Task, job: Job) -> None:
        """Log the retry of a running Job and its cause, as soon as a Pod of it has failed."""
        if job.status.failed <= task.failed_tries:
            return
        task.failed_tries = job.status.failed
        if last_retry := retry_reason(job, self.pods(job) or []):
            task.last_retry = last_retry
            self._log_stuck_reason(task, None)

    def pods(self, job: Job) -> list[Pod] | None:
        """Return the Pods of a Job; ``None`` when they cannot be read."""
        try:
            return self._jobs.pods(job)
        except RefusedError as error:
            log.warning("%s", error)
            return None

    def is_ending(self, job: Job) -> bool:
        """Return whether a failed Job still has Pods, which it deleted at its deadline.

        From Kubernetes 1.31 on it fails only when they have ended.
        """
        if job.condition is None or job.condition.reason != DEADLINE_EXCEEDED:
            return False
        return any(pod.live for pod in self.pods(job) or ())

    def _list_live_pods(self) -> dict[str, list[Pod]] | None:
        """Return the Pods that have not ended by the uid of their Job; ``None`` when they cannot be read."""
        found: defaultdict[str, list[Pod]] = defaultdict(list)
        try:
            for pod in self._jobs.live_pods(self._selector):
                found[pod.job_uid].append(pod)
        except RefusedError as error:
            log.warning("%s", error)
            return None
        return found

    def _log_stuck_reason(self, task: Task, stuck: NodeProblem | None) -> None:
        before, task.stuck_reason = task.stuck_reason, stuck or task.last_retry
        if task.stuck_reason and task.stuck_reason != before:
            text = "; ".join((str(task.stuck_reason), *task.stuck_reason.hints))
            log.warning("%s: %s", task.target.name, text)


def _is_running(task: Task) -> bool:
    has_ended = task.failing_since is not None or task.labeling is not None
    return bool(task.uid) and not has_ended and task.absent_since is None
