"""Gets a node the one Job it is to have, past whatever an earlier run has left there.

Never are there two at once: a Job that runs is taken over when it does what is wanted, and its end
awaited when it does not. The Pods of a Job that was deleted, by the garbage collector together with the
dispatcher that made it, run on for as long as they may take to end, and are waited for as well.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable

from kata_node.dispatcher.adoption import Fate, Wanted, fate
from kata_node.dispatcher.api import Api
from kata_node.dispatcher.config import Config
from kata_node.dispatcher.eligibility import End
from kata_node.dispatcher.failures import Trouble
from kata_node.dispatcher.jobs import Jobs
from kata_node.dispatcher.kubernetes_objects import Job, JobState, Pod
from kata_node.dispatcher.nodes import Nodes
from kata_node.dispatcher.rollout import Outcome, Task
from kata_node.dispatcher.template import Identity, Owner, Template, Templates

TRIES = 5
"""How often the place for a node's Job may turn out to be taken by another one that is ours."""

log = logging.getLogger(__name__)


class Placement:
    """The Jobs, and what is left of Jobs, of the nodes that have not ended."""

    def __init__(self, api: Api, config: Config, nodes: Nodes, owner: Owner | None) -> None:
        self.jobs = Jobs(api, config.namespace)
        self._config = config
        self._nodes = nodes
        self._owner = owner
        self._identity = Identity(config.namespace, config.labels, config.generation, owner)
        self._there: dict[str, dict[str, Job]] = {}  # by node and uid
        self._lingering: dict[str, str] = {}  # the name of a Pod whose Job is gone, by node
        self._stale = True  # whether that has to be looked at again

    def begin(self, jobs: Iterable[Job], nodes: Collection[str]) -> None:
        """Take the ``jobs`` of these ``nodes`` for what is there."""
        self._there = {node: {} for node in nodes}
        for job in jobs:
            if job.node in nodes:
                self.note(job)

    # --- what is known ------------------------------------------------------------------------------

    def knows(self, node: str) -> bool:
        """Whether a node is one of this run, and has not ended."""
        return node in self._there

    def note(self, job: Job, *, node: str = "") -> None:
        """A Job is there, or has changed."""
        self._there.setdefault(node or job.node, {})[job.metadata.uid] = job

    def deleted(self, job: Job) -> None:
        """A Job is gone; if it had not ended, its Pods may not be."""
        self._there.get(job.node, {}).pop(job.metadata.uid, None)
        self._stale = self._stale or not job.finished

    def forget(self, node: str) -> None:
        """A node has ended."""
        self._there.pop(node, None)
        self._lingering.pop(node, None)

    def job(self, task: Task) -> Job | None:
        """The node's own Job, if it has one."""
        return self._there.get(task.target.name, {}).get(task.uid)

    def busy(self) -> frozenset[str]:
        """The nodes on which a Job has not ended."""
        return frozenset(
            node for node, jobs in self._there.items() if not all(job.finished for job in jobs.values())
        )

    def running(self, node: str) -> bool:
        """Whether a Job runs there that is not about to end."""
        jobs = self._there.get(node, {}).values()
        return any(job.state is JobState.RUNNING and not job.metadata.deletion_timestamp for job in jobs)

    def lingers(self, node: str) -> bool:
        """Whether only the Pods of a Job that is gone are waited for."""
        return node in self._lingering

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

    def look_again(self) -> None:
        """The Pods that are waited for may have ended."""
        self._stale = self._stale or bool(self._lingering)

    def give(self, task: Task) -> End | None:
        """See to it that a node has its Job, whose uid the task then has, or note what it waits for.

        The end of it comes back where there is nothing to wait for. Raises :class:`RefusedError`.
        """
        if self._config.skip_serving and self._nodes.serves(task.target.name):
            return End(Outcome.UNCHANGED, note=f"{self._config.mark} says it serves by now")
        wanted = self._wanted(task)
        for _ in range(TRIES):
            end = self._taken(task, wanted)
            if end or task.uid or task.note:
                return end
            manifest = self.template(task).render(task.job, task.action, task.target, self._identity)
            if made := self.jobs.create(manifest):
                self.note(made)
                task.uid = made.metadata.uid
                return None
            if there := self.jobs.get(task.job):
                self.note(there, node=task.target.name)
        return End(Outcome.FAILED, Trouble("another Job has the name of its own, again and again"))

    def _taken(self, task: Task, wanted: Wanted) -> End | None:
        """Deal with what is there. The task has a Job, or something to wait for, or needs a new one."""
        before, task.note = task.note, ""
        there = list(self._there.get(task.target.name, {}).values())
        fates = {job.metadata.uid: fate(job, wanted) for job in there}
        if any(each is Fate.FOREIGN for each in fates.values()):
            what = f"a Job named {task.job} is there, and is not of this release"
            hint = f"see whose it is: kubectl -n {self._config.namespace} describe job {task.job}"
            return End(Outcome.FAILED, Trouble(what, hint=hint))
        for job in there:
            how = fates[job.metadata.uid]
            if self._config.skip_serving and how in (Fate.AWAIT, Fate.STOP, Fate.ADOPT):
                # Who reconciles comes again; an upgrade that is under way has the newer settings.
                return End(Outcome.SKIPPED, note=f"the Job {job.metadata.name} is at work there")
            if how in (Fate.AWAIT, Fate.STOP):
                self._block(task, job, before, stop=how is Fate.STOP)
                return None
        others = any(job.metadata.name != task.job for job in there)
        for job in there:
            match fates[job.metadata.uid]:
                case Fate.DONE if not (others or task.renew):
                    return End(Outcome.UNCHANGED, note="done by an earlier run")
                case Fate.ADOPT:
                    self._adopt(task, job)
                    return None
        if self._lingering_on(task.target.name):
            task.note = f"waiting for the Pod {self._lingering[task.target.name]}, whose Job is gone"
            if task.note != before:
                log.info("%s: %s", task.target.name, task.note)
            return None
        for job in there:
            if fates[job.metadata.uid] in (Fate.DONE, Fate.RENEW):
                self.jobs.delete(job)
                self._there[task.target.name].pop(job.metadata.uid, None)
        return None

    def _adopt(self, task: Task, job: Job) -> None:
        task.uid, task.adopted = job.metadata.uid, True
        if self._owner and [owner.uid for owner in job.metadata.owner_references] != [self._owner.uid]:
            self.jobs.own(job, self._owner)

    def _block(self, task: Task, job: Job, before: str, *, stop: bool) -> None:
        """Wait until ``job`` has ended; one that has not begun on the node is not waited for."""
        task.renew = True
        task.note = f"waiting for the Job {job.metadata.name}"
        if stop or job.metadata.deletion_timestamp:
            if not job.metadata.deletion_timestamp:
                self.jobs.delete(job, wait=True)
            if task.note != before:
                self._say_what_ends(task, job)
        elif not any(pod.begun for pod in self.jobs.pods(job)):
            log.info("%s: the Job %s has not begun there; deleting it", task.target.name, job.metadata.name)
            self.jobs.delete(job, wait=True)
        else:
            log.info("%s: the Job %s still runs there; waiting for it", task.target.name, job.metadata.name)

    def _say_what_ends(self, task: Task, job: Job) -> None:
        pods = [pod.metadata.name for pod in self.jobs.pods(job) if pod.live]
        what = f"the Pod {pods[0]}" if pods else f"the Job {job.metadata.name}"
        log.info("%s: waiting for %s, which is still ending", task.target.name, what)

    def _lingering_on(self, node: str) -> bool:
        if self._stale:
            pods = self.jobs.live_pods(self._config.job_selector())
            self._lingering = {pod.spec.node_name: pod.metadata.name for pod in pods if self._is_left(pod)}
            self._stale = False
        return node in self._lingering

    def _is_left(self, pod: Pod) -> bool:
        job = self._there.get(pod.spec.node_name, {}).get(pod.job_uid)
        return job is None or job.finished

    def _wanted(self, task: Task) -> Wanted:
        return Wanted(
            name=task.job,
            action=task.action,
            digest=self.template(task).digest,
            generation=self._config.generation,
            node=task.target.name,
            node_uid=task.target.uid,
            labels=self._config.labels,
        )
