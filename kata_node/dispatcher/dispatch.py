"""Gives every node its Job, and sees each to its end.

One thread: it waits on the watch of the Jobs, and makes requests of its own between two events. What
happens meanwhile waits in the connection.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from kata_node.dispatcher.adoption import Fate, Wanted, fate
from kata_node.dispatcher.api import Api, RefusedError, is_rights
from kata_node.dispatcher.config import Config
from kata_node.dispatcher.failures import Trouble, diagnose
from kata_node.dispatcher.feed import Change, Feed
from kata_node.dispatcher.jobs import Jobs
from kata_node.dispatcher.nodes import Nodes
from kata_node.dispatcher.objects import Job, JobState
from kata_node.dispatcher.rollout import Outcome, Rollout, Task
from kata_node.dispatcher.telling import duration
from kata_node.dispatcher.template import Identity, Owner, Template, Templates
from kata_node.dispatcher.unfit import still_unready

FIRST_LOOK, LONGEST_LOOK = 60.0, 1200.0
"""Seconds after which somebody looks whether the Node of a Job is still there; doubled each time."""

ABSENCE = 45.0
"""Seconds a Node may be missing: some distributions delete it and register it anew on a restart."""

WATCH = 60.0
"""Seconds of one watch: what is to be done at a certain time may be as late as that."""

READY_POLL = 5.0
"""Seconds between two looks at a Node that is not ready."""

BLOCKED = 1800.0
"""Seconds a node waits for another Job to end, where the template of its own names no deadline."""

LOSSES = 3
"""How often a node's Job may be deleted by somebody before that is a failure."""

TRIES = 5
"""How often the place for a node's Job may turn out to be taken by another one that is ours."""

log = logging.getLogger(__name__)


class Dispatcher:
    """A rollout on its way. ``told`` hears of every task that began, or ended, after it did."""

    def __init__(
        self,
        api: Api,
        config: Config,
        nodes: Nodes,
        rollout: Rollout,
        *,
        owner: Owner | None,
        told: Callable[[Task], None],
    ) -> None:
        self._config = config
        self._nodes = nodes
        self._rollout = rollout
        self._clock = api.clock
        self._stop = api.stop
        self._owner = owner
        self._told = told
        self._jobs = Jobs(api, config.namespace)
        self._feed = Feed(api, config.namespace, config.job_selector())
        self._identity = Identity(config.namespace, config.labels, config.generation, owner)
        self._ready_by = api.clock.now() + config.wait_for_ready
        self._there: dict[str, dict[str, Job]] = {}
        """The Jobs of the release, by node and uid, of nodes that have not ended."""

    def run(self) -> None:
        """See all nodes to their end.

        Raises :class:`KubeError` when the API server is away for too long, or refuses to be watched,
        and :class:`Stopped` when that is asked for; Jobs that run go on.
        """
        nodes = {task.target.name for task in self._rollout.tasks}
        for job in self._feed.list():
            if job.node in nodes:
                self._there.setdefault(job.node, {})[job.metadata.uid] = job
        # What an earlier run has begun counts among those that run at once.
        self._rollout.first(
            frozenset(
                node for node, jobs in self._there.items() if not all(job.finished for job in jobs.values())
            )
        )
        self._fill()
        while not self._rollout.over():
            quiet, wait = True, any(task.unready for task in self._rollout.running())
            for change in self._feed.changes(READY_POLL if wait else WATCH):
                quiet = False
                self._seen(change)
                self._fill()
                if self._rollout.over():
                    return
            if quiet and not wait:
                self._say_what_runs()
            self._look_round()
            self._fill()

    # --- beginning ----------------------------------------------------------------------------------

    def _fill(self) -> None:
        while not self._stop.requested and (task := self._rollout.begin(self._clock.now())):
            task.looks, task.next_look = 0, self._clock.now() + FIRST_LOOK
            self._give(task)

    def _give(self, task: Task) -> None:
        """Get a node its Job, or what is in its way out of it."""
        try:
            if task.action != self._config.action and self._nodes.selects(task.target.name):
                self._end(task, Outcome.SKIPPED, note="it is selected again")
            elif not task.unready or self._ready(task):
                self._place(task)
        except RefusedError as error:
            self._end(task, Outcome.FAILED, Trouble(error.what, where="its Job", hint=error.hint))
            # What is refused for one node for such a reason is refused for all.
            if is_rights(error.failure) or error.failure.status in (401, 404, 422):
                self._rollout.stop(f"Jobs cannot be created: {error.what}")

    def _ready(self, task: Task) -> bool:
        """Whether the node, which was not ready, is by now, or its Job is what keeps it from that."""
        node = task.target.name
        if not all(job.finished for job in self._there.get(node, {}).values()):
            task.unready = task.note = ""
            return True
        if self._rollout.stopped or self._stop.requested:
            self._end(task, Outcome.NOT_STARTED, note=self._rollout.stopped or "asked to stop")
            return False
        now, left = self._clock.now(), self._ready_by - self._clock.now()
        found = self._nodes.again(node, self._templates(task))
        if found.eligible:
            task.target, task.began = found.eligible[0], now
            task.unready = task.note = ""
            return True
        if ended := still_unready(found, left, self._config.wait_for_ready):
            self._end(task, ended.outcome, ended.trouble, note=ended.note)
        else:
            if not task.note:
                log.info("%s: waiting until it is ready: %s", node, task.unready)
            task.note = f"waiting until it is ready: {task.unready}"
            task.next_look = now + min(READY_POLL, left)
        return False

    def _place(self, task: Task) -> None:
        wanted, template = self._wanted(task)
        for _ in range(TRIES):
            if self._taken(task, wanted):
                return
            made = self._jobs.create(template.render(task.job, task.action, task.target, self._identity))
            if made:
                self._note(made)
                task.uid = made.metadata.uid
                self._told(task)
                return
            there = self._jobs.get(task.job)
            if there:
                self._note(there, node=task.target.name)
        self._end(task, Outcome.FAILED, Trouble("another Job has the name of its own, again and again"))

    def _taken(self, task: Task, wanted: Wanted) -> bool:
        """Deal with the Jobs that are there; whether the node needs no new one for now."""
        there = list(self._there.get(task.target.name, {}).values())
        fates = {job.metadata.uid: fate(job, wanted) for job in there}
        others = any(job.metadata.name != task.job for job in there)
        for job in there:
            match fates[job.metadata.uid]:
                case Fate.FOREIGN:
                    what = f"a Job named {task.job} is there, and is not of this release"
                    hint = f"see whose it is: kubectl -n {self._config.namespace} describe job {task.job}"
                    self._end(task, Outcome.FAILED, Trouble(what, hint=hint))
                    return True
                case Fate.AWAIT | Fate.STOP as how:
                    self._block(task, job, stop=how is Fate.STOP)
                    return True
        for job in there:
            match fates[job.metadata.uid]:
                case Fate.DONE if not (others or task.renew):
                    self._end(task, Outcome.UNCHANGED, note="done by an earlier run")
                    return True
                case Fate.ADOPT:
                    self._adopt(task, job)
                    return True
                case Fate.DONE | Fate.RENEW:
                    self._jobs.delete(job)
                    self._there[task.target.name].pop(job.metadata.uid, None)
        return False

    def _adopt(self, task: Task, job: Job) -> None:
        task.uid, task.adopted = job.metadata.uid, True
        if self._owner and [owner.uid for owner in job.metadata.owner_references] != [self._owner.uid]:
            self._jobs.own(job, self._owner)
        self._told(task)

    def _block(self, task: Task, job: Job, *, stop: bool) -> None:
        """Wait until ``job`` has ended; one that has not begun on the node is not waited for."""
        task.renew = True
        task.note = f"waiting for the Job {job.metadata.name}"
        if job.metadata.deletion_timestamp:
            return
        if stop:
            self._jobs.delete(job, wait=True)
        elif not any(pod.begun for pod in self._jobs.pods(job)):
            log.info("%s: the Job %s has not begun there; deleting it", task.target.name, job.metadata.name)
            self._jobs.delete(job, wait=True)
        else:
            log.info("%s: the Job %s still runs there; waiting for it", task.target.name, job.metadata.name)

    def _wanted(self, task: Task) -> tuple[Wanted, Template]:
        config, template = self._config, self._templates(task).find(task.target)
        assert template is not None, "only nodes that have a template are begun"
        wanted = Wanted(
            name=task.job,
            action=task.action,
            digest=template.digest,
            generation=config.generation,
            node=task.target.name,
            node_uid=task.target.uid,
            labels=config.labels,
        )
        return wanted, template

    def _templates(self, task: Task) -> Templates:
        removed = self._config.removed
        return removed.templates if removed and task.action != self._config.action else self._config.templates

    # --- what happens -------------------------------------------------------------------------------

    def _note(self, job: Job, *, node: str = "") -> None:
        self._there.setdefault(node or job.node, {})[job.metadata.uid] = job

    def _seen(self, change: Change) -> None:
        """Something happened to a Job of the release."""
        job = change.job
        there = self._there.get(job.node)
        task = self._rollout.task(job.node)
        if there is None and task is None:
            return  # of a node that is not ours to work on, or has ended
        if change.deleted:
            (there or {}).pop(job.metadata.uid, None)
        else:
            self._note(job)
        if task is None:
            return
        if task.uid == job.metadata.uid:
            self._own_job(task, job, deleted=change.deleted)
        elif not task.uid and (change.deleted or job.finished):
            task.note = ""
            self._give(task)

    def _own_job(self, task: Task, job: Job, *, deleted: bool) -> None:
        if job.state is JobState.SUCCEEDED:
            self._end(task, Outcome.DONE)
        elif job.state is JobState.RUNNING:
            if deleted:
                self._lost(task)
        else:
            # Its Pods tell why. At its deadline a Job deletes them, so they are asked at the first sign.
            if task.trouble is None or not task.trouble.stage:
                task.trouble = self._trouble(job, task.trouble)
            if job.finished or deleted:
                self._failed(task)

    def _trouble(self, job: Job, before: Trouble | None) -> Trouble:
        try:
            pods = self._jobs.pods(job)
        except RefusedError as error:
            log.warning("%s", error)
            pods = []
        trouble = diagnose(job, pods)
        return trouble if trouble.stage or before is None else before

    def _failed(self, task: Task) -> None:
        if self._nodes.exists(task.target.name):
            self._end(task, Outcome.FAILED)
            return
        log.info("%s: there is no such Node now; giving it %g s to come back", task.target.name, ABSENCE)
        task.absent_since = self._clock.now()
        task.next_look = task.absent_since + ABSENCE

    def _lost(self, task: Task) -> None:
        task.lost += 1
        if task.lost >= LOSSES:
            what = f"its Job was deleted {task.lost} times while it ran, and not from here"
            self._end(task, Outcome.FAILED, Trouble(what, hint="find out who deletes Jobs in this namespace"))
            return
        log.warning("%s: its Job was deleted by somebody; making it anew", task.target.name)
        task.uid, task.renew = "", True
        self._give(task)

    def _say_what_runs(self) -> None:
        oldest, now = self._rollout.running()[:3], self._clock.now()
        shown = ", ".join(f"{task.target.name} for {duration(now - task.began)}" for task in oldest)
        log.info("%d running, the longest %s", self._rollout.in_flight, shown)

    # --- looking round ------------------------------------------------------------------------------

    def _look_round(self) -> None:
        """Nodes go without a word to their Jobs: ask for those whose Jobs take long."""
        for task in self._rollout.running():
            now = self._clock.now()
            if now < task.next_look or task.outcome is not Outcome.RUNNING:
                continue
            if task.unready:
                self._give(task)
                continue
            task.looks += 1
            task.next_look = now + min(LONGEST_LOOK, FIRST_LOOK * 2.0**task.looks)
            if not self._nodes.exists(task.target.name):
                self._absent(task, now)
                continue
            came_back, task.absent_since = task.absent_since is not None, None
            if came_back and task.trouble is not None:
                self._end(task, Outcome.FAILED)
            elif not task.uid:
                self._still_blocked(task, now)

    def _still_blocked(self, task: Task, now: float) -> None:
        """The Pods of a node whose kubelet is dead never end, and neither does a Job that waits for them."""
        if now - task.began < (self._wanted(task)[1].deadline or BLOCKED):
            self._give(task)
            return
        what = f"another Job does not end there: {task.note.removeprefix('waiting for the Job ')}"
        hint = "see whether the node's kubelet still works: kubectl describe node"
        self._end(task, Outcome.FAILED, Trouble(what, hint=hint))

    def _absent(self, task: Task, now: float) -> None:
        if task.absent_since is None:
            task.absent_since = now
        if now - task.absent_since < ABSENCE:
            task.next_look = task.absent_since + ABSENCE
            return
        for job in self._there.get(task.target.name, {}).values():
            if job.metadata.uid == task.uid:
                self._jobs.delete(job)
        task.trouble = None
        self._end(task, Outcome.GONE, note="its Node is no longer there")

    def _end(self, task: Task, outcome: Outcome, trouble: Trouble | None = None, *, note: str = "") -> None:
        task.trouble = trouble or task.trouble
        task.note = ""
        self._rollout.end(task, outcome, self._clock.now(), note=note)
        self._there.pop(task.target.name, None)
        self._told(task)
