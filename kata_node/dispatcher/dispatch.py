"""Create the Job of every node and follow each node until it has a result.

There is one thread. It waits for events of the Job watch and sends other requests between two events. Events
that arrive during such a request wait in the connection.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from msgspec.structs import replace

from kata_node.dispatcher.api import ApiClient, RefusedError, is_rbac_denial
from kata_node.dispatcher.config import Config
from kata_node.dispatcher.failures import (
    NodeProblem,
    check_kubelet_hint,
    diagnose,
    found_nothing,
    not_ready_problem,
    stage_reports,
)
from kata_node.dispatcher.job_watch import JobChange, JobWatch
from kata_node.dispatcher.kubernetes_objects import Job, JobState, Pod
from kata_node.dispatcher.node_jobs import NodeJobs
from kata_node.dispatcher.node_labels import NodeLabeler, NotLabeledError
from kata_node.dispatcher.node_readiness import NodeReadiness
from kata_node.dispatcher.nodes import Nodes
from kata_node.dispatcher.progress import interim_text
from kata_node.dispatcher.recheck import NodeRecheck
from kata_node.dispatcher.rollout import Outcome, Rollout, Task
from kata_node.dispatcher.stuck_pods import StuckPodMonitor
from kata_node.dispatcher.template import Owner
from kata_node.errors import IneligibleNodeError, KataNodeError
from kata_node.kube.failures import NoSuchNodeError

FIRST_NODE_CHECK, MAX_NODE_CHECK_INTERVAL = 60.0, 1200.0
"""Seconds until the first check whether the Node of a Job still exists, and the longest interval between two
checks. The interval doubles each time."""

NODE_ABSENCE_TIMEOUT = 45.0
"""Seconds that a Node may be absent. Some distributions delete and register it again on a restart."""

WATCH_TIMEOUT = 60.0
"""Maximum seconds of one watch."""

PROGRESS_INTERVAL = 60.0
"""Seconds between two tables in the log. helm shows the log after its timeout, and the pod may be lost."""

POLL_INTERVAL = 5.0
"""Seconds between two checks of what no watch reports: Nodes that are not ready, and Pods without a Job.
Other checks may be late by this time, so that many of them run together."""

BLOCKED_TIMEOUT = 1800.0
"""Seconds that a node waits for the end of an earlier Job if its template sets no activeDeadlineSeconds."""

MAX_JOB_DELETIONS = 3
"""The node fails when others have deleted its Job this many times."""

TERMINATION_MARGIN = 60.0
"""Seconds that the Pods of a failing Job get to end, in addition to their grace period."""

log = logging.getLogger(__name__)


class Dispatcher:
    """Run a rollout. ``on_task_change`` is called after each start and each end of a task.

    ``labeler`` labels the Nodes, if their Jobs do not.
    """

    def __init__(
        self,
        api: ApiClient,
        config: Config,
        nodes: Nodes,
        rollout: Rollout,
        *,
        owner: Owner | None,
        labeler: NodeLabeler | None = None,
        on_task_change: Callable[[Task], None],
    ) -> None:
        self._config = config
        self._nodes = nodes
        self._rollout = rollout
        self._clock = api.clock
        self._stop = api.stop
        self._on_task_change = on_task_change
        self._job_watch = JobWatch(api, config.namespace, config.job_selector())
        self._labeler = labeler
        prepare = labeler.prepare if labeler else lambda _: None
        self._node_jobs = NodeJobs(api, config, nodes, owner, prepare)
        self._readiness = NodeReadiness(api)
        self._stuck_pods = StuckPodMonitor(
            self._node_jobs.jobs, self._readiness, config.job_selector(), api.clock
        )
        self._recheck = NodeRecheck(config, nodes, self._node_jobs, api.clock, rollout)
        self._last_progress = api.clock.now()

    def run(self) -> None:
        """Follow all nodes until each has a result.

        Raises :class:`KubeError` when the API server is unreachable for too long or refuses the watch, and
        :class:`ShutdownRequested` when a shutdown is requested. Running Jobs continue in both cases.
        """
        nodes = {task.target.name for task in self._rollout.tasks}
        self._node_jobs.load(self._job_watch.list(), nodes)
        # Nodes with a running Job of an earlier run come first, so that these Jobs count for parallelism.
        self._rollout.prioritize(self._node_jobs.busy_nodes())
        self._start_tasks()
        self._recheck.expire()
        while not self._rollout.is_complete():
            for change in self._job_watch.changes(self._seconds_until_next_check()):
                self._handle_change(change)
                self._start_tasks()
                if self._rollout.is_complete():
                    return
            self._check_running_tasks()
            self._start_tasks()
            self._log_progress()

    # --- starting nodes -----------------------------------------------------------------------------

    def _start_tasks(self) -> None:
        while not self._stop.requested and (task := self._rollout.start_next(self._clock.now())):
            task.node_checks, task.next_node_check = 0, self._clock.now() + FIRST_NODE_CHECK
            self._ensure_job(task)

    def _ensure_job(self, task: Task) -> None:
        """Create or adopt the Job of a node, or note what the node waits for, or end the task."""
        try:
            if task.action != self._config.action and self._nodes.selects(task.target.name):
                self._end(task, Outcome.SKIPPED, note="it is selected again")
            elif task.unready and self._is_stopped() and not self._node_jobs.running(task.target.name):
                note = self._rollout.stopped or self._stop.reason
                self._end(task, Outcome.NOT_STARTED, note=note)
            elif end := self._recheck.check(task):
                self._end(task, end.outcome, end.problem, note=end.note)
            elif not task.unready and task.absent_since is None:
                if end := self._node_jobs.ensure_job(task):
                    if job := self._node_jobs.job(task):  # it was done by an earlier dispatcher
                        self._succeed(task, job, end.outcome, end.note)
                    else:
                        self._end(task, end.outcome, end.problem, note=end.note)
                elif task.uid:
                    self._stuck_pods.job_started(task)
                    self._on_task_change(task)
                elif self._needs_polling(task):
                    task.next_node_check = self._clock.now() + POLL_INTERVAL
        except RefusedError as error:
            self._end(task, Outcome.FAILED, NodeProblem(error.what, where="its Job", hint=error.hint))
            # These errors are the same for every node.
            if is_rbac_denial(error.failure) or error.failure.status in (401, 404, 422):
                self._rollout.stop(f"no node can get a Job: {error.what}")
        except (IneligibleNodeError, NotLabeledError) as error:
            self._fail(task, error)

    def _is_stopped(self) -> bool:
        return bool(self._rollout.stopped) or self._stop.requested

    def _needs_polling(self, task: Task) -> bool:
        """Return whether the node waits for something that no watch reports."""
        return bool(task.unready) or (not task.uid and self._node_jobs.has_orphaned_pod(task.target.name))

    # --- handling changes of Jobs -------------------------------------------------------------------

    def _handle_change(self, change: JobChange) -> None:
        """Update the state for a change of a Job of the release."""
        job = change.job
        if not self._node_jobs.tracks(job.node):
            return
        task = self._rollout.task(job.node)
        if change.deleted:
            self._node_jobs.deleted(job)
        else:
            self._node_jobs.note(job)
        if task is None:
            return
        if task.uid == job.metadata.uid:
            self._handle_own_job(task, job, deleted=change.deleted)
        elif not task.uid and (change.deleted or job.finished):
            task.note = ""
            self._ensure_job(task)

    def _handle_own_job(self, task: Task, job: Job, *, deleted: bool) -> None:
        if task.labeling is not None:
            return  # the Job has succeeded, and what happens to it afterwards does not matter
        if job.state is JobState.SUCCEEDED:
            self._succeed(task, job, Outcome.DONE, task.cause)
        elif job.state is JobState.RUNNING:
            if deleted:
                self._handle_lost_job(task)
            else:
                self._stuck_pods.job_changed(task, job)
        else:
            # The Pods show the cause. A Job deletes them at its deadline, so read them as early as possible.
            if task.problem is None or not task.problem.stage:
                task.problem = self._diagnose(task, job)
            if deleted or (job.finished and not self._stuck_pods.is_ending(job)):
                self._handle_failed_job(task)
            elif task.failing_since is None:
                log.info("%s: its Job fails, waiting for its Pod to end: %s", task.target.name, task.problem)
                task.failing_since = self._clock.now()
                self._wait_for_pods(task, job, self._termination_timeout(task))

    def _succeed(self, task: Task, job: Job, outcome: Outcome, note: str) -> None:
        """End a task whose Job has succeeded, as soon as its Node has its labels."""
        # Few of the Nodes that a cleanup selects have no installation label.
        is_unmarked = task.action == "cleanup" and not task.target.marked
        pods: list[Pod] = []
        if is_unmarked or self._labeler is not None:
            try:
                pods = self._node_jobs.jobs.pods(job)
            except RefusedError as error:
                if self._labeler is not None:  # without the reports of the stages there is nothing to write
                    self._fail(task, error)
                    return
                log.warning("%s", error)
        if is_unmarked and outcome is Outcome.DONE and found_nothing(pods):
            outcome = Outcome.NOT_OURS
            note = "nothing of this installation is on it, and it was not changed"
        if self._labeler is None:
            self._end(task, outcome, note=note)
        else:
            self._labeler.begin(task, pods, outcome, note)
            self._label(task)

    def _label(self, task: Task) -> None:
        """Continue to label the Node of a Job that has succeeded."""
        labeling, now = task.labeling, self._clock.now()
        assert labeling is not None
        assert self._labeler is not None
        try:
            pause = self._labeler.proceed(task)
        except NoSuchNodeError:
            self._handle_absent_node(task, now)
        except (RefusedError, IneligibleNodeError, NotLabeledError) as error:
            self._fail(task, error)
        else:
            task.absent_since = None
            if pause is None:
                self._end(task, labeling.outcome, note=labeling.note)
            else:
                task.next_node_check = now + pause

    def _diagnose(self, task: Task, job: Job) -> NodeProblem:
        pods = self._stuck_pods.pods(job) or []
        task.not_served = next((each.not_served for each in stage_reports(pods) if each.not_served), "")
        problem, before = diagnose(job, pods), task.problem
        if problem.exit_code is None and not self._readiness.is_ready(task.target.name):
            # Its Pod shows only how far it was.
            condition = job.condition
            why = not_ready_problem(task.target.name)
            ended = f"; its Job failed ({condition.reason})" if condition else ""
            return replace(why, what=f"{why.what}{ended}", stage=problem.stage)
        if not problem.stage and before is not None:
            return before
        if not problem.stage and task.stuck_reason:
            what = f"{problem.what}; before that: {task.stuck_reason}"
            hint = task.stuck_reason.hint or problem.hint
            return replace(problem, what=what, hint=hint, node_words=task.stuck_reason.node_words)
        return problem

    def _handle_failed_job(self, task: Task) -> None:
        if self._nodes.exists(task.target.name):
            unfit = task.problem is not None and task.problem.unfit
            self._end(task, Outcome.UNFIT if unfit else Outcome.FAILED)
            return
        log.info(
            "%s: its Node does not exist, waiting %g s for it to come back",
            task.target.name,
            NODE_ABSENCE_TIMEOUT,
        )
        task.absent_since = self._clock.now()
        task.next_node_check = task.absent_since + NODE_ABSENCE_TIMEOUT

    def _handle_lost_job(self, task: Task) -> None:
        if self._config.skip_serving:
            # Usually an upgrade with other settings deleted it. Two dispatchers must not compete for a node.
            note = "its Job was deleted, not by this dispatcher; the next run continues with this node"
            self._end(task, Outcome.SKIPPED, note=note)
            return
        task.job_deletions += 1
        if task.job_deletions >= MAX_JOB_DELETIONS:
            what = f"its running Job was deleted {task.job_deletions} times, not by this dispatcher"
            hint = f"find out what deletes Jobs in the namespace {self._config.namespace}"
            self._end(task, Outcome.FAILED, NodeProblem(what, hint=hint))
            return
        log.warning("%s: its Job was deleted, not by this dispatcher; creating it again", task.target.name)
        task.uid, task.stuck_reason, task.rerun = "", None, True
        self._ensure_job(task)

    def _log_progress(self) -> None:
        now = self._clock.now()
        if now - self._last_progress < PROGRESS_INTERVAL or self._rollout.is_complete():
            return
        self._last_progress = now
        self._rollout.update_seconds(now)
        log.info("%s", interim_text(self._rollout, now))

    # --- periodic checks ----------------------------------------------------------------------------

    def _check_running_tasks(self) -> None:
        """Check long-running tasks for deleted Nodes and for Jobs that wait; no watch reports these."""
        self._node_jobs.refresh_orphans()
        self._stuck_pods.check_nodes(self._rollout.running())
        for task in self._rollout.running():
            now = self._clock.now()
            if now < task.next_node_check or task.outcome is not Outcome.RUNNING:
                continue
            if task.labeling is not None:
                self._label(task)
                continue
            if task.unready or (self._needs_polling(task) and now - task.began < self._blocked_timeout(task)):
                self._ensure_job(task)
                continue
            task.node_checks += 1
            task.next_node_check = now + min(
                MAX_NODE_CHECK_INTERVAL, FIRST_NODE_CHECK * 2.0**task.node_checks
            )
            if not self._nodes.exists(task.target.name):
                self._handle_absent_node(task, now)
                continue
            came_back, task.absent_since = task.absent_since is not None, None
            if task.uid and task.failing_since is not None:
                self._handle_failing_task(task, now - task.failing_since)
            elif came_back and task.problem is not None:
                self._end(task, Outcome.FAILED)
            elif not task.uid:
                self._handle_blocked_task(task, now)
        running = [(task, self._node_jobs.job(task)) for task in self._rollout.running()]
        self._stuck_pods.check_jobs(
            (task, job) for task, job in running if job and job.state is JobState.RUNNING
        )

    def _seconds_until_next_check(self) -> float:
        running, now = self._rollout.running(), self._clock.now()
        delays = [task.next_node_check - now for task in running]
        if next_check_time := self._stuck_pods.next_check_time(running):
            delays.append(next_check_time - now)
        return min(WATCH_TIMEOUT, max(POLL_INTERVAL, min(delays, default=POLL_INTERVAL)))

    def _handle_blocked_task(self, task: Task, now: float) -> None:
        """Check a node that waits for an earlier Job or Pod; end the task as failed after the time limit.

        The Pods of a node with a dead kubelet never end, and their Job waits for them.
        """
        if now - task.began < self._blocked_timeout(task):
            self._ensure_job(task)
            return
        what = f"a leftover of an earlier run does not end: {task.note.removeprefix('waiting for ')}"
        hint = check_kubelet_hint(task.target.name)
        self._end(task, Outcome.FAILED, NodeProblem(what, hint=hint))

    def _handle_failing_task(self, task: Task, seconds: float) -> None:
        job, left = self._node_jobs.job(task), self._termination_timeout(task) - seconds
        if job and job.finished and not self._stuck_pods.is_ending(job):
            self._handle_failed_job(task)
        elif left > 0:
            self._wait_for_pods(task, job, left)
        else:
            why = task.problem or NodeProblem("its Job has failed")
            what, hint = f"{why.what}; its Pod has still not ended", check_kubelet_hint(task.target.name)
            self._end(task, Outcome.FAILED, replace(why, what=what, hint=why.hint or hint))

    def _wait_for_pods(self, task: Task, job: Job | None, left: float) -> None:
        # No change of a Job that has failed already tells when its Pods have ended.
        pause = min(left, POLL_INTERVAL) if job and job.finished else left
        task.next_node_check = self._clock.now() + pause

    def _blocked_timeout(self, task: Task) -> float:
        return self._node_jobs.template(task).deadline or BLOCKED_TIMEOUT

    def _termination_timeout(self, task: Task) -> float:
        return self._node_jobs.template(task).termination_grace_period + TERMINATION_MARGIN

    def _handle_absent_node(self, task: Task, now: float) -> None:
        if task.absent_since is None:
            task.absent_since = now
        if now - task.absent_since < NODE_ABSENCE_TIMEOUT:
            task.next_node_check = task.absent_since + NODE_ABSENCE_TIMEOUT
            return
        if job := self._node_jobs.job(task):
            self._node_jobs.jobs.delete(job)
        task.problem = None
        self._end(task, Outcome.GONE, note="its Node no longer exists")

    def _fail(self, task: Task, error: KataNodeError) -> None:
        self._end(task, Outcome.FAILED, NodeProblem(error.what, where=error.where, hint=error.hint))

    def _end(
        self, task: Task, outcome: Outcome, problem: NodeProblem | None = None, *, note: str = ""
    ) -> None:
        task.problem = problem or task.problem
        task.note, task.labeling = "", None
        self._rollout.end(task, outcome, self._clock.now(), note=note)
        self._node_jobs.forget(task.target.name)
        self._on_task_change(task)
