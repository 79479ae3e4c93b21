"""Gives every node its Job, and sees each to its end.

One thread: it waits on the watch of the Jobs, and makes requests of its own between two events. What
happens meanwhile waits in the connection.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from kata_node.dispatcher.api import Api, RefusedError, is_rights
from kata_node.dispatcher.config import Config
from kata_node.dispatcher.eligibility import still_unready
from kata_node.dispatcher.failures import Trouble, diagnose
from kata_node.dispatcher.job_watch import Change, Feed
from kata_node.dispatcher.kubernetes_objects import Job, JobState
from kata_node.dispatcher.node_jobs import Placement
from kata_node.dispatcher.nodes import UNREACHABLE, Nodes
from kata_node.dispatcher.progress import duration
from kata_node.dispatcher.rollout import Outcome, Rollout, Task
from kata_node.dispatcher.stuck_pods import Hangs
from kata_node.dispatcher.template import Owner

FIRST_LOOK, LONGEST_LOOK = 60.0, 1200.0
"""Seconds after which it is asked whether the Node of a Job is still there; doubled each time."""

ABSENCE = 45.0
"""Seconds a Node may be missing: some distributions delete it and register it anew on a restart."""

WATCH = 60.0
"""Seconds of one watch at most; as often it is said what runs, while nothing happens."""

SOON = 5.0
"""Seconds between two looks at what no watch tells of: a Node that is not ready, Pods without a Job.
Other looks are as much late, so that many are taken at once."""

BLOCKED = 1800.0
"""Seconds a node waits for another Job to end, where the template of its own names no deadline."""

LOSSES = 3
"""How often a node's Job may be deleted by somebody before that is a failure."""

DYING = 60.0
"""Seconds that the Pods of a Job that is to fail have to end, besides their own grace period."""

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
        self._told = told
        self._feed = Feed(api, config.namespace, config.job_selector())
        self._placement = Placement(api, config, nodes, owner)
        self._hangs = Hangs(self._placement.jobs, config.job_selector(), api.clock)
        self._quiet_since = api.clock.now()
        self._ready_by = api.clock.now() + config.wait_for_ready

    def run(self) -> None:
        """See all nodes to their end.

        Raises :class:`KubeError` when the API server is away for too long, or refuses to be watched,
        and :class:`Stopped` when that is asked for; Jobs that run go on.
        """
        nodes = {task.target.name for task in self._rollout.tasks}
        self._placement.begin(self._feed.list(), nodes)
        # What an earlier run has begun counts among those that run at once.
        self._rollout.first(self._placement.busy())
        self._fill()
        while not self._rollout.over():
            for change in self._feed.changes(self._until_a_look()):
                self._quiet_since = self._clock.now()
                self._seen(change)
                self._fill()
                if self._rollout.over():
                    return
            self._look_round()
            self._fill()
            self._say_what_runs()

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
                if end := self._placement.give(task):
                    self._end(task, end.outcome, end.trouble, note=end.note)
                elif task.uid:
                    self._hangs.given(task)
                    self._told(task)
                elif self._polled(task):
                    task.next_look = self._clock.now() + SOON
        except RefusedError as error:
            self._end(task, Outcome.FAILED, Trouble(error.what, where="its Job", hint=error.hint))
            # What is refused for one node for such a reason is refused for all.
            if is_rights(error.failure) or error.failure.status in (401, 404, 422):
                self._rollout.stop(f"no node can get its Job: {error.what}")

    def _polled(self, task: Task) -> bool:
        """Whether no watch tells of what a node waits for."""
        return bool(task.unready) or (not task.uid and self._placement.lingers(task.target.name))

    def _ready(self, task: Task) -> bool:
        """Whether the node, which was not ready, is by now, or its Job is what keeps it from that."""
        node = task.target.name
        if self._placement.running(node) and not task.unready.startswith(UNREACHABLE):
            task.unready = task.note = ""
            return True
        if self._rollout.stopped or self._stop.requested:
            self._end(task, Outcome.NOT_STARTED, note=self._rollout.stopped or "asked to stop")
            return False
        now, left = self._clock.now(), self._ready_by - self._clock.now()
        found = self._nodes.again(node, self._placement.templates(task))
        if found.eligible:
            task.target, task.began = found.eligible[0], now
            task.unready = task.note = ""
            return True
        if ended := still_unready(task.action, found, left, self._config.wait_for_ready):
            self._end(task, ended.outcome, ended.trouble, note=ended.note)
        else:
            if not task.note:
                log.info("%s: waiting until it is ready: %s", node, task.unready)
            task.note = f"waiting until it is ready: {task.unready}"
            task.next_look = now + min(SOON, left)
        return False

    # --- what happens -------------------------------------------------------------------------------

    def _seen(self, change: Change) -> None:
        """Something happened to a Job of the release."""
        job = change.job
        if not self._placement.knows(job.node):
            return
        task = self._rollout.task(job.node)
        if change.deleted:
            self._placement.deleted(job)
        else:
            self._placement.note(job)
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
                self._hangs.changed(task, job)
        else:
            # Its Pods tell why. At its deadline a Job deletes them, so they are asked at the first sign.
            if task.trouble is None or not task.trouble.stage:
                task.trouble = self._trouble(task, job)
            if job.finished or deleted:
                self._failed(task)
            elif task.failing_since is None:
                log.info("%s: waiting for its Pod to end: %s", task.target.name, task.trouble)
                task.failing_since = self._clock.now()
                task.next_look = task.failing_since + self._dying(task)

    def _trouble(self, task: Task, job: Job) -> Trouble:
        trouble, before = diagnose(job, self._hangs.pods(job) or []), task.trouble
        if not trouble.stage and before is not None:
            return before
        if not trouble.stage and task.held_up:
            what = f"{trouble.what}; before that, {task.held_up}"
            return replace(trouble, what=what, hint=task.held_up.hint or trouble.hint)
        return trouble

    def _failed(self, task: Task) -> None:
        if self._nodes.exists(task.target.name):
            self._end(task, Outcome.FAILED)
            return
        log.info("%s: there is no such Node now; giving it %g s to come back", task.target.name, ABSENCE)
        task.absent_since = self._clock.now()
        task.next_look = task.absent_since + ABSENCE

    def _lost(self, task: Task) -> None:
        if self._config.skip_serving:
            # Mostly an upgrade, which has other settings: two that fight for a node help nobody.
            self._end(task, Outcome.SKIPPED, note="its Job was deleted by somebody; the next run sees to it")
            return
        task.lost += 1
        if task.lost >= LOSSES:
            what = f"its Job was deleted {task.lost} times while it ran, and not from here"
            self._end(task, Outcome.FAILED, Trouble(what, hint="find out who deletes Jobs in this namespace"))
            return
        log.warning("%s: its Job was deleted by somebody; making it anew", task.target.name)
        task.uid, task.held_up, task.renew = "", None, True
        self._give(task)

    def _say_what_runs(self) -> None:
        now = self._clock.now()
        if now - self._quiet_since < WATCH or self._rollout.over():
            return
        self._quiet_since = now
        oldest = [
            f"{task.target.name} for {duration(now - task.began)}"
            + (f" ({told})" if (told := task.note or task.held_up) else "")
            for task in self._rollout.running()[:3]
        ]
        log.info("%d running, the longest %s", self._rollout.in_flight, ", ".join(oldest))

    # --- looking round ------------------------------------------------------------------------------

    def _look_round(self) -> None:
        """Nodes go, and Jobs wait, without a word: ask about those that take long."""
        self._placement.look_again()
        for task in self._rollout.running():
            now = self._clock.now()
            if now < task.next_look or task.outcome is not Outcome.RUNNING:
                continue
            if task.unready or (self._polled(task) and now - task.began < self._patience(task)):
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
            elif task.failing_since is not None:
                self._still_failing(task, now - task.failing_since)
        running = [(task, self._placement.job(task)) for task in self._rollout.running()]
        self._hangs.look((task, job) for task, job in running if job and job.state is JobState.RUNNING)

    def _until_a_look(self) -> float:
        running, now = self._rollout.running(), self._clock.now()
        looks = [task.next_look - now for task in running]
        if due := self._hangs.due(running):
            looks.append(due - now)
        return min(WATCH, max(SOON, min(looks, default=SOON)))

    def _still_blocked(self, task: Task, now: float) -> None:
        """The Pods of a node whose kubelet is dead never end, and neither does a Job that waits for them."""
        if now - task.began < self._patience(task):
            self._give(task)
            return
        what = f"what was begun there before does not end: {task.note.removeprefix('waiting for ')}"
        hint = "see whether the node's kubelet still works: kubectl describe node"
        self._end(task, Outcome.FAILED, Trouble(what, hint=hint))

    def _still_failing(self, task: Task, seconds: float) -> None:
        if seconds < self._dying(task):
            task.next_look = self._clock.now() + self._dying(task) - seconds
            return
        why = task.trouble or Trouble("its Job has failed")
        what = f"{why.what}; its Pod has not ended since"
        hint = "see whether the node's kubelet still works: kubectl describe node"
        self._end(task, Outcome.FAILED, replace(why, what=what, hint=why.hint or hint))

    def _patience(self, task: Task) -> float:
        return self._placement.template(task).deadline or BLOCKED

    def _dying(self, task: Task) -> float:
        return self._placement.template(task).grace + DYING

    def _absent(self, task: Task, now: float) -> None:
        if task.absent_since is None:
            task.absent_since = now
        if now - task.absent_since < ABSENCE:
            task.next_look = task.absent_since + ABSENCE
            return
        if job := self._placement.job(task):
            self._placement.jobs.delete(job)
        task.trouble = None
        self._end(task, Outcome.GONE, note="its Node is no longer there")

    def _end(self, task: Task, outcome: Outcome, trouble: Trouble | None = None, *, note: str = "") -> None:
        task.trouble = trouble or task.trouble
        task.note = ""
        self._rollout.end(task, outcome, self._clock.now(), note=note)
        self._placement.forget(task.target.name)
        self._told(task)
