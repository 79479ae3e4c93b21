"""Gets a node the one Job it is to have, past whatever an earlier run has left there.

Never are there two at once: a Job that runs is taken over when it does what is wanted, and its end
awaited when it does not. The Pods of a Job that was deleted, by the garbage collector together with the
dispatcher that made it, run on for as long as they may take to end, and are waited for as well.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable

from kata_node.dispatcher.adoption import DesiredJob, JobDecision, decide
from kata_node.dispatcher.api import ApiClient
from kata_node.dispatcher.config import Config
from kata_node.dispatcher.eligibility import TaskResult
from kata_node.dispatcher.failures import NodeProblem
from kata_node.dispatcher.jobs import Jobs
from kata_node.dispatcher.kubernetes_objects import Job, JobState, Pod
from kata_node.dispatcher.nodes import Nodes
from kata_node.dispatcher.rollout import Outcome, Task
from kata_node.dispatcher.template import JobIdentity, Owner, Template, Templates

MAX_CREATE_TRIES = 5
"""How often the place for a node's Job may turn out to be taken by another one that is ours."""

log = logging.getLogger(__name__)


class NodeJobs:
    """The Jobs, and what is left of Jobs, of the nodes that have not ended."""

    def __init__(self, api: ApiClient, config: Config, nodes: Nodes, owner: Owner | None) -> None:
        self.jobs = Jobs(api, config.namespace)
        self._config = config
        self._nodes = nodes
        self._owner = owner
        self._identity = JobIdentity(config.namespace, config.labels, config.generation, owner)
        self._jobs_by_node: dict[str, dict[str, Job]] = {}  # by node and uid
        self._orphaned_pods: dict[str, str] = {}  # the name of a Pod whose Job is gone, by node
        self._orphans_outdated = True  # whether that has to be looked at again

    def load(self, jobs: Iterable[Job], nodes: Collection[str]) -> None:
        """Take the ``jobs`` of these ``nodes`` for what is there."""
        self._jobs_by_node = {node: {} for node in nodes}
        for job in jobs:
            if job.node in nodes:
                self.note(job)

    # --- what is known ------------------------------------------------------------------------------

    def tracks(self, node: str) -> bool:
        """Whether a node is one of this run, and has not ended."""
        return node in self._jobs_by_node

    def note(self, job: Job, *, node: str = "") -> None:
        """A Job is there, or has changed."""
        self._jobs_by_node.setdefault(node or job.node, {})[job.metadata.uid] = job

    def deleted(self, job: Job) -> None:
        """A Job is gone; if it had not ended, its Pods may not be."""
        self._jobs_by_node.get(job.node, {}).pop(job.metadata.uid, None)
        self._orphans_outdated = self._orphans_outdated or not job.finished

    def forget(self, node: str) -> None:
        """A node has ended."""
        self._jobs_by_node.pop(node, None)
        self._orphaned_pods.pop(node, None)

    def job(self, task: Task) -> Job | None:
        """The node's own Job, if it has one."""
        return self._jobs_by_node.get(task.target.name, {}).get(task.uid)

    def busy_nodes(self) -> frozenset[str]:
        """The nodes on which a Job has not ended."""
        return frozenset(
            node
            for node, jobs in self._jobs_by_node.items()
            if not all(job.finished for job in jobs.values())
        )

    def running(self, node: str) -> bool:
        """Whether a Job runs there that is not about to end."""
        jobs = self._jobs_by_node.get(node, {}).values()
        return any(job.state is JobState.RUNNING and not job.metadata.deletion_timestamp for job in jobs)

    def has_orphaned_pod(self, node: str) -> bool:
        """Whether only the Pods of a Job that is gone are waited for."""
        return node in self._orphaned_pods

    def templates(self, task: Task) -> Templates:
        """The templates for what is done on a node."""
        removed = self._config.removed
        return removed.templates if removed and task.action != self._config.action else self._config.templates

    def template(self, task: Task) -> Template:
        """The template of its Job."""
        found = self.templates(task).find(task.target)
        assert found is not None, "only nodes that have a template are begun"
        return found

    # --- what is done -------------------------------------------------------------------------------

    def refresh_orphans(self) -> None:
        """The Pods that are waited for may have ended."""
        self._orphans_outdated = self._orphans_outdated or bool(self._orphaned_pods)

    def ensure_job(self, task: Task) -> TaskResult | None:
        """See to it that a node has its Job, whose uid the task then has, or note what it waits for.

        The end of it comes back where there is nothing to wait for. Raises :class:`RefusedError`.
        """
        if self._config.skip_serving and self._nodes.serves(task.target.name):
            return TaskResult(
                Outcome.UNCHANGED, note=f"{self._config.installation_label} says it serves by now"
            )
        desired = self._desired_job(task)
        for _ in range(MAX_CREATE_TRIES):
            end = self._handle_existing_jobs(task, desired)
            if end or task.uid or task.note:
                return end
            manifest = self.template(task).render(task.job, task.action, task.target, self._identity)
            if made := self.jobs.create(manifest):
                self.note(made)
                task.uid = made.metadata.uid
                return None
            if existing := self.jobs.get(task.job):
                self.note(existing, node=task.target.name)
        return TaskResult(Outcome.FAILED, NodeProblem("another Job has the name of its own, again and again"))

    def _handle_existing_jobs(self, task: Task, desired: DesiredJob) -> TaskResult | None:
        """Deal with what is there. The task has a Job, or something to wait for, or needs a new one."""
        previous_note, task.note = task.note, ""
        existing = list(self._jobs_by_node.get(task.target.name, {}).values())
        decisions = {job.metadata.uid: decide(job, desired) for job in existing}
        if any(each is JobDecision.FOREIGN for each in decisions.values()):
            what = f"a Job named {task.job} is there, and is not of this release"
            hint = f"see whose it is: kubectl -n {self._config.namespace} describe job {task.job}"
            return TaskResult(Outcome.FAILED, NodeProblem(what, hint=hint))
        for job in existing:
            decision = decisions[job.metadata.uid]
            if self._config.skip_serving and decision in (
                JobDecision.AWAIT,
                JobDecision.STOP,
                JobDecision.ADOPT,
            ):
                # Who reconciles comes again; an upgrade that is under way has the newer settings.
                return TaskResult(Outcome.SKIPPED, note=f"the Job {job.metadata.name} is at work there")
            if decision in (JobDecision.AWAIT, JobDecision.STOP):
                self._wait_for_job(task, job, previous_note, stop=decision is JobDecision.STOP)
                return None
        others = any(job.metadata.name != task.job for job in existing)
        for job in existing:
            match decisions[job.metadata.uid]:
                case JobDecision.DONE if not (others or task.rerun):
                    return TaskResult(Outcome.UNCHANGED, note="done by an earlier run")
                case JobDecision.ADOPT:
                    self._adopt(task, job)
                    return None
        if self._has_orphaned_pod(task.target.name):
            task.note = f"waiting for the Pod {self._orphaned_pods[task.target.name]}, whose Job is gone"
            if task.note != previous_note:
                log.info("%s: %s", task.target.name, task.note)
            return None
        for job in existing:
            if decisions[job.metadata.uid] in (JobDecision.DONE, JobDecision.REPLACE):
                self.jobs.delete(job)
                self._jobs_by_node[task.target.name].pop(job.metadata.uid, None)
        return None

    def _adopt(self, task: Task, job: Job) -> None:
        task.uid, task.adopted = job.metadata.uid, True
        if self._owner and [owner.uid for owner in job.metadata.owner_references] != [self._owner.uid]:
            self.jobs.set_owner(job, self._owner)

    def _wait_for_job(self, task: Task, job: Job, previous_note: str, *, stop: bool) -> None:
        """Wait until ``job`` has ended; one that has not begun on the node is not waited for."""
        task.rerun = True
        task.note = f"waiting for the Job {job.metadata.name}"
        if stop or job.metadata.deletion_timestamp:
            if not job.metadata.deletion_timestamp:
                self.jobs.delete(job, wait=True)
            if task.note != previous_note:
                self._log_ending(task, job)
        elif not any(pod.started for pod in self.jobs.pods(job)):
            log.info("%s: the Job %s has not begun there; deleting it", task.target.name, job.metadata.name)
            self.jobs.delete(job, wait=True)
        else:
            log.info("%s: the Job %s still runs there; waiting for it", task.target.name, job.metadata.name)

    def _log_ending(self, task: Task, job: Job) -> None:
        pods = [pod.metadata.name for pod in self.jobs.pods(job) if pod.live]
        what = f"the Pod {pods[0]}" if pods else f"the Job {job.metadata.name}"
        log.info("%s: waiting for %s, which is still ending", task.target.name, what)

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
        )
