"""Create the Job of a node, and handle leftovers of earlier runs first.

A node never has two running Jobs. A running Job that does the desired work is adopted. For any other running
Job the dispatcher waits until it has ended. It also waits for the Pods of deleted Jobs: when a dispatcher is
deleted, the garbage collector deletes its node Jobs, and their Pods keep running during their grace period.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable

from kata_node.dispatcher.adoption import DesiredJob, JobDecision, decide
from kata_node.dispatcher.api import ApiClient, RefusedError
from kata_node.dispatcher.config import Config
from kata_node.dispatcher.eligibility import TaskResult
from kata_node.dispatcher.failures import NodeProblem, diagnose
from kata_node.dispatcher.jobs import Jobs
from kata_node.dispatcher.kubernetes_objects import Job, JobState, Pod
from kata_node.dispatcher.nodes import Nodes
from kata_node.dispatcher.rollout import Outcome, Task
from kata_node.dispatcher.template import JobIdentity, Owner, Template, Templates

MAX_CREATE_TRIES = 5
"""The node fails after this many tries to create its Job, each refused because the name exists."""

log = logging.getLogger(__name__)


class NodeJobs:
    """The Jobs and orphaned Pods of the nodes that have no result yet."""

    def __init__(
        self,
        api: ApiClient,
        config: Config,
        nodes: Nodes,
        owner: Owner | None,
        before_create: Callable[[Task], None],
    ) -> None:
        """``before_create`` is called before the Job of a task is created."""
        self._before_create = before_create
        self.jobs = Jobs(api, config.namespace)
        self._config = config
        self._nodes = nodes
        self._owner = owner
        self._identity = JobIdentity(config.namespace, config.labels, config.generation, owner)
        self._jobs_by_node: dict[str, dict[str, Job]] = {}  # node -> uid -> Job
        self._orphaned_pods: dict[str, str] = {}  # node -> name of a live Pod without a running Job
        self._orphans_outdated = True  # whether the Pods must be listed again

    def load(self, jobs: Iterable[Job], nodes: Collection[str]) -> None:
        """Start with the existing ``jobs`` of these ``nodes``; ignore Jobs of other nodes."""
        self._jobs_by_node = {node: {} for node in nodes}
        for job in jobs:
            if job.node in nodes:
                self.note(job)

    # --- known Jobs ---------------------------------------------------------------------------------

    def tracks(self, node: str) -> bool:
        """Return whether a node belongs to this run and has no result yet."""
        return node in self._jobs_by_node

    def note(self, job: Job, *, node: str = "") -> None:
        """Record a new or changed Job."""
        self._jobs_by_node.setdefault(node or job.node, {})[job.metadata.uid] = job

    def deleted(self, job: Job) -> None:
        """Record that a Job was deleted; if it had not ended, its Pods may still run."""
        self._jobs_by_node.get(job.node, {}).pop(job.metadata.uid, None)
        self._orphans_outdated = self._orphans_outdated or not job.finished

    def forget(self, node: str) -> None:
        """Drop all records of a node that has a result."""
        self._jobs_by_node.pop(node, None)
        self._orphaned_pods.pop(node, None)

    def job(self, task: Task) -> Job | None:
        """Return the Job of a task; ``None`` when it has none."""
        return self._jobs_by_node.get(task.target.name, {}).get(task.uid)

    def busy_nodes(self) -> frozenset[str]:
        """Return the nodes with a Job that has not ended."""
        return frozenset(
            node
            for node, jobs in self._jobs_by_node.items()
            if not all(job.finished for job in jobs.values())
        )

    def running(self, node: str) -> bool:
        """Return whether the node has a running Job that is not being deleted."""
        jobs = self._jobs_by_node.get(node, {}).values()
        return any(job.state is JobState.RUNNING and not job.metadata.deletion_timestamp for job in jobs)

    def has_orphaned_pod(self, node: str) -> bool:
        """Return whether the node waits for a Pod of a deleted Job."""
        return node in self._orphaned_pods

    def templates(self, task: Task) -> Templates:
        """Return the templates for the action of a task."""
        removed = self._config.removed
        return removed.templates if removed and task.action != self._config.action else self._config.templates

    def template(self, task: Task) -> Template:
        """Return the template for the Job of a task."""
        found = self.templates(task).find(task.target)
        assert found is not None, "only nodes with a template are started"
        return found

    # --- creating Jobs ------------------------------------------------------------------------------

    def refresh_orphans(self) -> None:
        """List the orphaned Pods again at the next use, if any were known."""
        self._orphans_outdated = self._orphans_outdated or bool(self._orphaned_pods)

    def ensure_job(self, task: Task) -> TaskResult | None:
        """Create or adopt the Job of a node and set ``task.uid``.

        If the node must wait first, set ``task.note`` to what it waits for. Return a result when the task
        ends without a Job, else ``None``. Raises :class:`RefusedError`.
        """
        if self._config.skip_serving and self._nodes.serves(task.target.name):
            return TaskResult(Outcome.UNCHANGED, note="it serves by now")
        desired = self._desired_job(task)
        for _ in range(MAX_CREATE_TRIES):
            end = self._handle_existing_jobs(task, desired)
            if end or task.uid or task.note:
                return end
            self._before_create(task)
            manifest = self.template(task).render(task.job, task.action, task.target, self._identity)
            if made := self.jobs.create(manifest):
                self.note(made)
                task.uid = made.metadata.uid
                return None
            if existing := self.jobs.get(task.job):
                self.note(existing, node=task.target.name)
        what = f"its Job could not be created in {MAX_CREATE_TRIES} tries, because another Job has its name"
        hint = f"find out what creates the Job {task.job} in the namespace {self._config.namespace}"
        return TaskResult(Outcome.FAILED, NodeProblem(what, hint=hint))

    def _handle_existing_jobs(self, task: Task, desired: DesiredJob) -> TaskResult | None:
        """Handle the existing Jobs and orphaned Pods of a node.

        Afterwards ``task.uid`` is set (it has a Job), ``task.note`` is set (it waits), a result is returned,
        or none of these: then the caller can create the Job.
        """
        previous_note, task.note = task.note, ""
        existing = list(self._jobs_by_node.get(task.target.name, {}).values())
        decisions = {job.metadata.uid: decide(job, desired) for job in existing}
        if any(each is JobDecision.FOREIGN for each in decisions.values()):
            what = f"the Job {task.job} exists and does not belong to this release"
            hint = (
                f"run `kubectl describe job {task.job} -n {self._config.namespace}` to find its owner, and "
                "delete it if it is not needed"
            )
            return TaskResult(Outcome.FAILED, NodeProblem(what, hint=hint))
        for job in existing:
            decision = decisions[job.metadata.uid]
            if self._config.skip_serving and decision in (
                JobDecision.AWAIT,
                JobDecision.STOP,
                JobDecision.ADOPT,
            ):
                # The CronJob runs again later. A concurrent upgrade has the newer settings.
                note = f"the Job {job.metadata.name} already runs on this node"
                return TaskResult(Outcome.SKIPPED, note=note)
            if decision in (JobDecision.AWAIT, JobDecision.STOP):
                self._wait_for_job(task, job, previous_note, stop=decision is JobDecision.STOP)
                return None
        others = any(job.metadata.name != task.job for job in existing)
        for job in existing:
            match decisions[job.metadata.uid]:
                case JobDecision.DONE | JobDecision.FAILED if not (others or task.rerun):
                    return self._earlier_result(task, job)
                case JobDecision.ADOPT:
                    self._adopt(task, job)
                    return None
        if self._has_orphaned_pod(task.target.name):
            task.note = f"waiting for the Pod {self._orphaned_pods[task.target.name]} of a deleted Job"
            if task.note != previous_note:
                log.info("%s: %s", task.target.name, task.note)
            return None
        for job in existing:
            if decisions[job.metadata.uid] in (JobDecision.DONE, JobDecision.FAILED, JobDecision.REPLACE):
                self.jobs.delete(job)
                self._jobs_by_node[task.target.name].pop(job.metadata.uid, None)
        return None

    def _earlier_result(self, task: Task, job: Job) -> TaskResult:
        if job.state is JobState.SUCCEEDED:
            task.uid = job.metadata.uid
            return TaskResult(Outcome.UNCHANGED, note="done by an earlier run")
        try:
            problem = diagnose(job, self.jobs.pods(job))
        except RefusedError as error:
            log.warning("%s", error)
            problem = diagnose(job, [])
        return TaskResult(Outcome.UNFIT if problem.unfit else Outcome.FAILED, problem)

    def _adopt(self, task: Task, job: Job) -> None:
        task.uid, task.adopted = job.metadata.uid, True
        if self._owner and [owner.uid for owner in job.metadata.owner_references] != [self._owner.uid]:
            self.jobs.set_owner(job, self._owner)

    def _wait_for_job(self, task: Task, job: Job, previous_note: str, *, stop: bool) -> None:
        """Set ``task.note`` to wait for the end of ``job``; delete a Job that has not started on the node."""
        task.rerun = True
        task.note = f"waiting for the Job {job.metadata.name}"
        if stop or job.metadata.deletion_timestamp:
            if not job.metadata.deletion_timestamp:
                self.jobs.delete(job, wait=True)
            if task.note != previous_note:
                self._log_ending(task, job)
        elif not any(pod.started for pod in self.jobs.pods(job)):
            name = job.metadata.name
            log.info("%s: deleting the Job %s, which has not started on the node", task.target.name, name)
            self.jobs.delete(job, wait=True)
        else:
            name = job.metadata.name
            log.info("%s: waiting for the Job %s, which still runs on the node", task.target.name, name)

    def _log_ending(self, task: Task, job: Job) -> None:
        pods = [pod.metadata.name for pod in self.jobs.pods(job) if pod.live]
        what = f"the Pod {pods[0]}" if pods else f"the Job {job.metadata.name}"
        log.info("%s: waiting for %s, which is terminating", task.target.name, what)

    def _has_orphaned_pod(self, node: str) -> bool:
        if self._orphans_outdated:
            pods = self.jobs.live_pods(self._config.job_selector())
            self._orphaned_pods = {
                pod.spec.node_name: pod.metadata.name for pod in pods if self._is_orphaned(pod)
            }
            self._orphans_outdated = False
        return node in self._orphaned_pods

    def _is_orphaned(self, pod: Pod) -> bool:
        job = self._jobs_by_node.get(pod.spec.node_name, {}).get(pod.job_uid)
        return job is None or job.finished

    def _desired_job(self, task: Task) -> DesiredJob:
        return DesiredJob(
            name=task.job,
            action=task.action,
            digest=self.template(task).digest,
            generation=self._config.generation,
            node=task.target.name,
            node_uid=task.target.uid,
            labels=self._config.labels,
            owner_uid=self._owner.uid if self._owner and not self._config.retries_failed_nodes else "",
        )
