"""The order in which nodes are worked on, and when no more of them are begun. Pure."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum

from kata_node.dispatcher.config import IntOrPercent
from kata_node.dispatcher.failures import NodeProblem
from kata_node.dispatcher.kubernetes_objects import Action
from kata_node.dispatcher.template import Target


class Outcome(StrEnum):
    """What became of a node, or has not yet."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    UNCHANGED = "unchanged"
    FAILED = "failed"
    SKIPPED = "skipped"
    GONE = "gone"
    NOT_READY = "not ready"
    NOT_STARTED = "not started"


FINAL_OUTCOMES = frozenset(Outcome) - {Outcome.WAITING, Outcome.RUNNING}
SUCCESSFUL_OUTCOMES = frozenset({Outcome.DONE, Outcome.UNCHANGED, Outcome.SKIPPED, Outcome.GONE})
"""What does not make the whole a failure."""


@dataclass(slots=True)
class Task:
    """One node and its Job."""

    target: Target
    action: Action
    job: str
    wave: int = 0
    outcome: Outcome = Outcome.WAITING
    uid: str = ""
    """Of its Job, once there is one."""
    adopted: bool = False
    rerun: bool = False
    """Whether what an earlier Job has done does not count."""
    job_deletions: int = 0
    """How often its Job was deleted by somebody."""
    began: float = 0.0
    seconds: float = 0.0
    node_checks: int = 0
    next_node_check: float = 0.0
    absent_since: float | None = None
    failing_since: float | None = None
    """Since when its Job is to fail, as soon as its Pods have ended."""
    unready: str = ""
    """The taint that keeps it from being begun, and is expected to go."""
    pod_checks: int = 0
    next_pod_check: float = 0.0
    failed_tries: int = 0
    """How often its Job has failed so far, and is tried again."""
    last_retry: NodeProblem | None = None
    stuck_reason: NodeProblem | None = None
    """What its Job was last seen to wait for, or to try again after."""
    problem: NodeProblem | None = None
    note: str = ""
    """Why it was skipped, or what else there is to say."""


@dataclass(frozen=True)
class RolloutPlan:
    """How the nodes follow each other."""

    parallelism: int
    canary: int = 0
    wave_size: IntOrPercent | None = None
    max_failures: IntOrPercent | None = None


def assign_waves(count: int, plan: RolloutPlan) -> list[int]:
    """The wave of each of ``count`` nodes; the canaries, if any are wanted, are wave 0 and alone in it."""
    canary = min(plan.canary, count)
    size = max(1, plan.wave_size.scaled(count)) if plan.wave_size else max(1, count)
    first = 1 if canary else 0
    return [0] * canary + [first + index // size for index in range(count - canary)]


class Rollout:
    """All nodes of a run. The tasks of a wave are begun when all of the waves before have ended.

    ``last`` are tasks of a wave of their own after all others, whose failures stop nothing.
    """

    def __init__(self, tasks: Sequence[Task], plan: RolloutPlan, last: Sequence[Task] = ()) -> None:
        self.plan = plan
        self.tasks = [*tasks, *last]
        self.stopped = ""
        """Why no more nodes are begun; empty while they are."""
        for task, wave in zip(tasks, assign_waves(len(tasks), plan), strict=True):
            task.wave = wave
        end = tasks[-1].wave + 1 if tasks else 0
        for task in last:
            task.wave = end
        self.counts = Counter({Outcome.WAITING: len(self.tasks)})
        self._removal_wave = end
        self._total = len(tasks)
        self._failed = 0
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
        """The first wave that has not ended."""
        while self._wave < len(self._queues) and not self._unfinished_by_wave[self._wave]:
            self._wave += 1
        return self._wave

    @property
    def in_flight(self) -> int:
        """How many nodes are being worked on."""
        return self.counts[Outcome.RUNNING]

    def is_complete(self) -> bool:
        """Whether nothing runs, and nothing is to be begun."""
        return not self.in_flight and (bool(self.stopped) or not self.counts[Outcome.WAITING])

    def prioritize(self, names: Collection[str]) -> None:
        """Begin these before the others of their waves."""
        for number, queue in enumerate(self._queues):
            self._queues[number] = deque(sorted(queue, key=lambda task: task.target.name not in names))

    def start_next(self, now: float) -> Task | None:
        """The node to begin now, if there is one; it counts as running from here on."""
        if self.stopped or self.in_flight >= self.plan.parallelism or self.wave >= len(self._queues):
            return None
        queue = self._queues[self.wave]
        if not queue:
            return None
        task = queue.popleft()
        task.began = now
        self._set_outcome(task, Outcome.RUNNING)
        return task

    def end(self, task: Task, outcome: Outcome, now: float, *, note: str = "") -> None:
        """Note what became of a node; it may be what stops the rollout."""
        task.seconds = max(0.0, now - task.began)
        task.note = note or task.note
        self._set_outcome(task, outcome)
        self._unfinished_by_wave[task.wave] -= 1
        if outcome in (Outcome.DONE, Outcome.FAILED):
            self._timed_seconds += task.seconds
            self._timed_tasks += 1
        if outcome is Outcome.FAILED and task.wave < self._removal_wave:
            self._failed += 1
            self._check_failure_limit(canary=bool(self.plan.canary) and task.wave == 0)

    def stop(self, reason: str) -> None:
        """Begin no more nodes; the first reason stays."""
        self.stopped = self.stopped or reason

    def close(self, reason: str) -> None:
        """No more will happen: nodes that have no Job are told as not begun."""
        for task in self.tasks:
            if task.outcome is Outcome.WAITING or (task.outcome is Outcome.RUNNING and not task.uid):
                task.note = reason
                self._set_outcome(task, Outcome.NOT_STARTED)

    def estimate_remaining(self, now: float) -> float | None:
        """An estimate of the seconds to go, by how long nodes took so far; ``None`` before the first."""
        if not self._timed_tasks:
            return None
        mean = self._timed_seconds / self._timed_tasks
        ahead = [max(0.0, mean - (now - task.began)) for task in self._running.values()]
        waiting = 0 if self.stopped else self.counts[Outcome.WAITING]
        slots = max(1, min(self.plan.parallelism, len(ahead) + waiting))
        return max(max(ahead, default=0.0), (sum(ahead) + mean * waiting) / slots)

    def running(self) -> list[Task]:
        """The nodes that are being worked on, in the order they were begun."""
        return list(self._running.values())

    def task(self, node: str) -> Task | None:
        """The node of this name, if it is being worked on."""
        return self._running.get(node)

    def _set_outcome(self, task: Task, outcome: Outcome) -> None:
        self.counts[task.outcome] -= 1
        task.outcome = outcome
        self.counts[outcome] += 1
        if outcome is Outcome.RUNNING:
            self._running[task.target.name] = task
        else:
            self._running.pop(task.target.name, None)

    def _check_failure_limit(self, *, canary: bool) -> None:
        allowed, total = self.plan.max_failures, self._total
        if canary:
            # A share is one of the canaries: with one of all nodes they could fail, and nobody would care.
            total = sum(task.wave == 0 for task in self.tasks)
            allowed = allowed or IntOrPercent(0)
            if self._failed == total:
                self.stop("the canary has failed" if total == 1 else f"all {total} canaries have failed")
                return
        limit = allowed.scaled(total) if allowed else None
        if limit is not None and self._failed > limit:
            whom = f"of {total} canaries" if canary else "nodes"
            self.stop(f"{self._failed} {whom} have failed, and at most {limit} may")
