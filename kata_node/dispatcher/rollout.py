"""The order of the nodes in a rollout, and the conditions that stop it. Pure."""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Collection, Sequence
from enum import StrEnum

from msgspec import Struct

from kata_node.dispatcher.config import IntOrPercent
from kata_node.dispatcher.failures import NodeProblem
from kata_node.dispatcher.kubernetes_objects import Action
from kata_node.dispatcher.template import Target
from kata_node.errors import RolledBackError
from kata_node.plan.report import StageReport


class Outcome(StrEnum):
    """The state of a node in this run."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    UNCHANGED = "unchanged"
    FAILED = "failed"
    SKIPPED = "skipped"
    GONE = "gone"
    NOT_OURS = "not ours"
    UNFIT = "unfit"
    NOT_READY = "not ready"
    NOT_STARTED = "not started"


FINAL_OUTCOMES = frozenset(Outcome) - {Outcome.WAITING, Outcome.RUNNING}
SUCCESSFUL_OUTCOMES = frozenset(
    {
        *(Outcome.DONE, Outcome.UNCHANGED, Outcome.SKIPPED),
        *(Outcome.GONE, Outcome.NOT_OURS, Outcome.UNFIT),
    }
)
"""The outcomes that do not make the run fail. Unfit nodes do if the plan says so, or if no node has Kata."""


class Labeling(Struct):
    """What is left to do on the Node of a Job that has ended, see :mod:`kata_node.dispatcher.node_labels`."""

    reports: tuple[StageReport, ...]
    """What the stages of the Job have reported."""
    outcome: Outcome
    note: str
    """The outcome of the node when its Node has the labels, and the reason."""
    deadline: float
    changed_at: float | None = None
    """When the labels were changed last; ``None`` if the Node has not had them since then."""
    has_changed: bool = False
    overwritten: int = 0
    """How often another program undid the changes."""
    conflicts: int = 0


class Task(Struct):
    """One node and its Job."""

    target: Target
    action: Action
    job: str
    wave: int = 0
    outcome: Outcome = Outcome.WAITING
    uid: str = ""
    """The uid of its Job; empty while it has none."""
    adopted: bool = False
    rerun: bool = False
    """Whether to run a new Job even if an earlier Job has done the same work."""
    job_deletions: int = 0
    """How often its Job was deleted, not by this dispatcher."""
    began: float = 0.0
    seconds: float = 0.0
    node_checks: int = 0
    next_node_check: float = 0.0
    absent_since: float | None = None
    failing_since: float | None = None
    """Time since which its Job has the condition FailureTarget and waits for the end of its Pods."""
    unready: str = ""
    """The temporary taint because of which it has no Job yet."""
    ready_deadline: float | None = None
    """Time until which it may be not ready; ``None`` while it is ready."""
    job_began: float = 0.0
    """Time at which its Job was created or adopted."""
    pod_checks: int = 0
    next_pod_check: float = 0.0
    failed_tries: int = 0
    """Number of failed Pods of its Job that were already reported."""
    last_retry: NodeProblem | None = None
    stuck_reason: NodeProblem | None = None
    """What its Job waits for, or why it was retried, as reported last."""
    problem: NodeProblem | None = None
    not_served: str = ""
    """Why the runtime of its node did not serve the installation, as the stage host-check found."""
    claim: StageReport | None = None
    """What the dispatcher changed on the Node before the Job, if the dispatcher labels the Nodes."""
    labeling: Labeling | None = None
    """What is left to do after its Job; ``None`` while the Job runs, or if the Job labels its Node itself."""
    cause: str = ""
    """Why a reconciling run gives it a Job, see :mod:`kata_node.dispatcher.drift`."""
    note: str = ""
    """Why it was skipped, or what it waits for."""


class RolloutPlan(Struct, frozen=True):
    """The settings of a rollout."""

    parallelism: int
    canary: int = 0
    wave_size: IntOrPercent | None = None
    max_failures: IntOrPercent | None = None
    unfit_fails: bool = False
    """Whether a node that cannot run Kata counts as failed."""
    stops_on_rollbacks: bool = False
    """Whether only nodes that roll back stop it: the canary node, or more than :meth:`max_rollbacks`."""

    @staticmethod
    def max_rollbacks(total: int) -> int:
        """Return how many of ``total`` nodes may roll back."""
        return max(2, total // 100)


def assign_waves(count: int, plan: RolloutPlan) -> list[int]:
    """Return the wave of each of ``count`` nodes. If there are canary nodes, only they are in wave 0."""
    canary = min(plan.canary, count)
    size = max(1, plan.wave_size.scaled(count)) if plan.wave_size else max(1, count)
    first = 1 if canary else 0
    return [0] * canary + [first + index // size for index in range(count - canary)]


class Rollout:
    """All tasks of a run. The tasks of a wave start when all tasks of the earlier waves have ended.

    The tasks in ``last`` are one more wave after all others. Their failures do not stop the rollout.
    """

    def __init__(self, tasks: Sequence[Task], plan: RolloutPlan, last: Sequence[Task] = ()) -> None:
        self.plan = plan
        self.tasks = [*tasks, *last]
        self.stopped = ""
        """Why no more nodes are started; empty unless the rollout has stopped."""
        for task, wave in zip(tasks, assign_waves(len(tasks), plan), strict=True):
            task.wave = wave
        end = tasks[-1].wave + 1 if tasks else 0
        for task in last:
            task.wave = end
        self.counts = Counter({Outcome.WAITING: len(self.tasks)})
        self._removal_wave = end
        self._total = len(tasks)
        self._failed = 0
        self._rolled_back = 0
        self._queues: list[deque[Task]] = [deque() for _ in range(end + bool(last))]
        for task in self.tasks:
            self._queues[task.wave].append(task)
        self._unfinished_by_wave = Counter(task.wave for task in self.tasks)
        self._wave = 0
        self._running: dict[str, Task] = {}
        self._timed_tasks = 0
        self._timed_seconds = 0.0

    @property
    def wave(self) -> int:
        """The number of the first wave that has not ended."""
        while self._wave < len(self._queues) and not self._unfinished_by_wave[self._wave]:
            self._wave += 1
        return self._wave

    @property
    def in_flight(self) -> int:
        """The number of running nodes."""
        return self.counts[Outcome.RUNNING]

    def is_complete(self) -> bool:
        """Return whether no node runs and no node will be started."""
        return not self.in_flight and (bool(self.stopped) or not self.counts[Outcome.WAITING])

    def prioritize(self, names: Collection[str]) -> None:
        """Move the nodes with these names to the front of their waves."""
        for number, queue in enumerate(self._queues):
            self._queues[number] = deque(sorted(queue, key=lambda task: task.target.name not in names))

    def start_next(self, now: float) -> Task | None:
        """Return the next task to start and mark it as running; ``None`` when no task can start now."""
        if self.stopped or self.in_flight >= self.plan.parallelism or self.wave >= len(self._queues):
            return None
        queue = self._queues[self.wave]
        if not queue:
            return None
        task = queue.popleft()
        task.began = now
        self._set_outcome(task, Outcome.RUNNING)
        return task

    def next_targets(self, count: int) -> list[Target]:
        """Return the nodes that :meth:`start_next` starts next, at most ``count``, of the current wave."""
        queue = self._queues[self.wave] if self.wave < len(self._queues) else ()
        return [task.target for task in itertools.islice(queue, count)]

    def end(self, task: Task, outcome: Outcome, now: float, *, note: str = "") -> None:
        """Record the outcome of a task; stop the rollout when too many tasks have failed."""
        task.seconds = max(0.0, now - task.began)
        task.note = note or task.note
        self._set_outcome(task, outcome)
        self._unfinished_by_wave[task.wave] -= 1
        if outcome in (Outcome.DONE, Outcome.NOT_OURS, Outcome.FAILED):
            self._timed_seconds += task.seconds
            self._timed_tasks += 1
        failed = outcome is Outcome.FAILED or (outcome is Outcome.UNFIT and self.plan.unfit_fails)
        if failed and task.wave < self._removal_wave:
            self._failed += 1
            canary = bool(self.plan.canary) and task.wave == 0
            if self.plan.stops_on_rollbacks:
                self._check_rollbacks(task, canary=canary)
            else:
                self._check_failure_limit(canary=canary)

    def stop(self, reason: str) -> None:
        """Start no more nodes. The reason of the first call is kept."""
        self.stopped = self.stopped or reason

    def update_seconds(self, now: float) -> None:
        """Set the seconds of the running tasks."""
        for task in self.running():
            task.seconds = max(0.0, now - task.began)

    def close(self, reason: str, now: float) -> None:
        """Mark all tasks without a Job as not started, at the end of a run."""
        self.update_seconds(now)
        for task in self.tasks:
            if task.outcome is Outcome.WAITING or (task.outcome is Outcome.RUNNING and not task.uid):
                task.note = reason
                self._set_outcome(task, Outcome.NOT_STARTED)

    def estimate_remaining(self, now: float) -> float | None:
        """Return the estimated remaining seconds, from the mean time of the ended nodes.

        ``None`` while no node has ended.
        """
        if not self._timed_tasks:
            return None
        mean = self._timed_seconds / self._timed_tasks
        ahead = [max(0.0, mean - (now - task.began)) for task in self._running.values()]
        waiting = 0 if self.stopped else self.counts[Outcome.WAITING]
        slots = max(1, min(self.plan.parallelism, len(ahead) + waiting))
        return max(max(ahead, default=0.0), (sum(ahead) + mean * waiting) / slots)

    def running(self) -> list[Task]:
        """Return the running tasks, in the order of their start."""
        return list(self._running.values())

    def task(self, node: str) -> Task | None:
        """Return the running task of this node; ``None`` when there is none."""
        return self._running.get(node)

    def _set_outcome(self, task: Task, outcome: Outcome) -> None:
        self.counts[task.outcome] -= 1
        task.outcome = outcome
        self.counts[outcome] += 1
        if outcome is Outcome.RUNNING:
            self._running[task.target.name] = task
        else:
            self._running.pop(task.target.name, None)

    def _check_rollbacks(self, task: Task, *, canary: bool) -> None:
        if task.problem is None or task.problem.exit_code != RolledBackError.exit_code:
            return
        self._rolled_back += 1
        if canary:
            self.stop(f"the canary node {task.target.name} rolled back")
        elif self._rolled_back > self.plan.max_rollbacks(self._total):
            self.stop(f"{self._rolled_back} of {self._total} nodes rolled back")

    def _check_failure_limit(self, *, canary: bool) -> None:
        allowed, total = self.plan.max_failures, self._total
        if canary:
            # A percentage counts the canary nodes. A percentage of all nodes could allow all of them to fail.
            total = sum(task.wave == 0 for task in self.tasks)
            allowed = allowed or IntOrPercent(0)
            if self._failed == total:
                self.stop("the canary node failed" if total == 1 else f"all {total} canary nodes failed")
                return
        limit = allowed.scaled(total) if allowed else None
        if limit is not None and self._failed > limit:
            nodes = "canary nodes" if canary else "nodes"
            self.stop(f"{self._failed} of {total} {nodes} failed, maxFailures allows {limit}")
