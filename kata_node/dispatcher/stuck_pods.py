"""Tells of Jobs that do not get on: one list of Pods for all of them, and one more for each in trouble."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable

from kata_node.dispatcher.api import RefusedError
from kata_node.dispatcher.failures import Trouble, held_up, tried_again
from kata_node.dispatcher.jobs import Jobs
from kata_node.dispatcher.kubernetes_objects import Job, Pod
from kata_node.dispatcher.rollout import Task
from kata_node.kube.retry import Clock

EARLY = 15.0
"""Seconds after which a Job is looked into for the first time; doubled each time."""

PAUSE, BEGINNING = 60.0, 60.0
"""Seconds between two lists of Pods at least, in the beginning of a run :data:`EARLY`: what is wrong with the
values shows there, and of many nodes most are through before it is their turn to be looked into."""

log = logging.getLogger(__name__)


class Hangs:
    """What holds Jobs up. Nothing but what is said depends on it, so Pods may be unreadable."""

    def __init__(self, jobs: Jobs, selector: str, clock: Clock) -> None:
        self._jobs = jobs
        self._selector = selector
        self._clock = clock
        self._beginning = clock.now() + BEGINNING
        self._next = 0.0

    def given(self, task: Task) -> None:
        """A node has its Job from now on."""
        task.checks, task.next_check = 0, self._clock.now() + EARLY
        task.tries, task.retried, task.held_up = 0, None, None

    def due(self, tasks: Iterable[Task]) -> float | None:
        """When Pods are to be listed again; none while no Job runs."""
        first = min((task.next_check for task in tasks if _runs(task)), default=None)
        return None if first is None else max(first, self._next)

    def look(self, there: Iterable[tuple[Task, Job]]) -> None:
        """Say of each Job that is old enough what holds it up, where that is news."""
        now = self._clock.now()
        jobs = [(task, job) for task, job in there if _runs(task) and (task.checks or task.next_check <= now)]
        due = self.due(task for task, _ in jobs)
        if due is None or now < due:
            return
        self._next = now + (EARLY if now < self._beginning else PAUSE)
        live = self._live()
        for task, job in jobs:
            is_due = task.next_check <= now
            if is_due:
                task.checks += 1
                task.next_check = now + EARLY * 2.0**task.checks
            pods: list[Pod] | None = live.get(job.metadata.uid) if live is not None else None
            if live is not None and not pods and is_due:
                # It may just have ended, or failed and be about to be tried again.
                pods = self.pods(job)
            if pods is not None:
                self._told(task, held_up(job, pods))

    def changed(self, task: Task, job: Job) -> None:
        """Say at once that a Job that runs is tried again, and why."""
        if job.status.failed <= task.tries:
            return
        task.tries = job.status.failed
        if retried := tried_again(job, self.pods(job) or []):
            task.retried = retried
            self._told(task, None)

    def pods(self, job: Job) -> list[Pod] | None:
        """The Pods of a Job; none when they cannot be read."""
        try:
            return self._jobs.pods(job)
        except RefusedError as error:
            log.warning("%s", error)
            return None

    def _live(self) -> dict[str, list[Pod]] | None:
        """The Pods that have not ended, by the uid of their Job; none when they cannot be read."""
        found: defaultdict[str, list[Pod]] = defaultdict(list)
        try:
            for pod in self._jobs.live_pods(self._selector):
                found[pod.job_uid].append(pod)
        except RefusedError as error:
            log.warning("%s", error)
            return None
        return found

    def _told(self, task: Task, held: Trouble | None) -> None:
        before, task.held_up = task.held_up, held or task.retried
        if task.held_up and task.held_up != before:
            hint = f"; {task.held_up.hint}" if task.held_up.hint else ""
            log.warning("%s: %s%s", task.target.name, task.held_up, hint)


def _runs(task: Task) -> bool:
    return bool(task.uid) and task.failing_since is None and task.absent_since is None
