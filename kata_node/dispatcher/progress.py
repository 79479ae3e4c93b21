"""What is said of a rollout: a line per change, a table or a document at its end. Pure.

The document, with ``--output json``::

    {"outcome": "ok", "failed", "stopped" or "interrupted", "reason": "why it was stopped, or failed",
     "action": "install" or "cleanup", "seconds": 12.3, "requests": 7, "counts": {"done": 3, ...},
     "nodes": [{"node", "action", "outcome", "seconds", "job", "note",
                "error": {"what", "where", "hint", "stage", "exit_code"}}]}
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from kata_node.dispatcher.kubernetes_objects import Action
from kata_node.dispatcher.rollout import FINAL_OUTCOMES, SUCCESSFUL_OUTCOMES, Outcome, Rollout, Task

MAX_ROWS = 50
"""The longest table. Of more nodes than this it has only those that are worth a look, and one row for all
of them of which there is the same to tell."""

WORST_FIRST = (
    Outcome.FAILED,
    Outcome.NOT_READY,
    Outcome.RUNNING,
    Outcome.WAITING,
    Outcome.NOT_STARTED,
    Outcome.SKIPPED,
    Outcome.GONE,
    Outcome.DONE,
    Outcome.UNCHANGED,
)


@dataclass(frozen=True)
class Result:
    """A run at its end. ``requests`` counts what was sent to the API server."""

    action: Action
    outcome: Literal["ok", "failed", "stopped", "interrupted"]
    reason: str
    tasks: Sequence[Task]
    seconds: float
    requests: Mapping[str, int]

    @property
    def exit_code(self) -> int:
        """0 when every node is as wanted, or could not be meant."""
        return 0 if self.outcome == "ok" else 1


def build_result(
    action: Action,
    tasks: Sequence[Task],
    *,
    stopped: str,
    interrupted: str,
    seconds: float,
    requests: Mapping[str, int],
    max_not_ready_nodes: int = 0,
) -> Result:
    """The result of a run; ``stopped`` and ``interrupted`` say why it ended early, if it did."""
    not_ready = sum(task.outcome is Outcome.NOT_READY for task in tasks)
    unsuccessful = sum(task.outcome not in SUCCESSFUL_OUTCOMES for task in tasks)
    outcome: Literal["ok", "failed", "stopped", "interrupted"] = "ok"
    reason = ""
    if unsuccessful > not_ready:
        outcome, reason = "failed", f"{unsuccessful} of {len(tasks)} nodes are not as wanted"
    elif not_ready > max_not_ready_nodes:
        outcome = "failed"
        reason = f"{not_ready} of {len(tasks)} nodes are not ready, and at most {max_not_ready_nodes} may be"
    if stopped:
        outcome, reason = "stopped", stopped
    if interrupted:
        outcome, reason = "interrupted", interrupted
    return Result(action, outcome, reason, tasks, seconds, requests)


def task_line(task: Task, rollout: Rollout, now: float) -> str:
    """One change: what became of a node, and how far the whole is."""
    what: str
    if task.outcome in FINAL_OUTCOMES:
        what = str(task.outcome)
        if task.outcome in (Outcome.DONE, Outcome.FAILED):
            what += f" after {duration(task.seconds)}"
    else:
        what = f"{'taken over' if task.adopted else 'started'}: {task.job}"
    detail = f": {task.problem}" if task.problem else f" ({task.note})" if task.note else ""
    return f"{task.target.name}: {_action_prefix(task, rollout)}{what}{detail}  [{counts(rollout, now)}]"


def _action_prefix(task: Task, rollout: Rollout) -> str:
    """Which action is meant, where there are two."""
    return "" if task.action == rollout.tasks[0].action else f"{task.action} "


def counts(rollout: Rollout, now: float) -> str:
    """``12 of 500 ended, 1 failed, 100 running, about 7 min left``."""
    there = rollout.counts
    ended = sum(there[outcome] for outcome in FINAL_OUTCOMES)
    parts = [f"{ended} of {len(rollout.tasks)} ended"]
    parts += [f"{there[Outcome.FAILED]} failed"] if there[Outcome.FAILED] else []
    parts += [f"{rollout.in_flight} running"]
    left = rollout.estimate_remaining(now)
    # Nothing is known of nodes that take longer than those before them.
    if left and ended < len(rollout.tasks):
        parts.append(f"about {duration(left)} left")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """``41 s``, ``7 min``, ``2 h 5 min``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def text(result: Result) -> str:
    """The result for a person: a table with what to do about problems, and a line that sums up."""
    groups = _groups(result.tasks)
    rows = [("NODE", "ACTION", "OUTCOME", "TIME", "DETAIL")]
    rows += [
        (_names(group), group[0].action, str(group[0].outcome), _longest(group), _detail(group[0]))
        for group in groups[:MAX_ROWS]
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = []
    for row, group in zip(rows, [None, *groups], strict=False):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        lines.append("  ".join([*cells, row[4]]).rstrip())
        if group and group[0].problem and group[0].problem.hint:
            lines.append(f"  hint: {group[0].problem.hint}")
    if more := sum(len(group) for group in groups[MAX_ROWS:]):
        lines.append(f"… and {more} more nodes; each has a line of its own in the log")
    return "\n".join([*(lines if groups else []), *_failures_by_stage(result.tasks), summary(result)])


def _groups(tasks: Sequence[Task]) -> list[list[Task]]:
    """The rows of the table, worst first."""
    ordered = sorted(tasks, key=lambda task: (WORST_FIRST.index(task.outcome), task.target.name))
    if len(tasks) <= MAX_ROWS:
        return [[task] for task in ordered]
    groups: dict[tuple[str, ...], list[Task]] = {}
    for task in ordered:
        if task.outcome not in (Outcome.DONE, Outcome.UNCHANGED):
            groups.setdefault((task.outcome, task.action, _detail(task)), []).append(task)
    return list(groups.values())


def _names(group: Sequence[Task]) -> str:
    first = group[0].target.name
    return f"{first} and {len(group) - 1} more" if len(group) > 1 else first


def _longest(group: Sequence[Task]) -> str:
    seconds = max(task.seconds for task in group)
    return duration(seconds) if seconds else "-"


def _detail(task: Task) -> str:
    return str(task.problem) if task.problem else task.note


def _failures_by_stage(tasks: Sequence[Task]) -> list[str]:
    """Where most of it went wrong: ``failed: 812 at cri (exit code 4), 3 at host-check (exit code 3)``."""
    failed = [task.problem for task in tasks if task.outcome is Outcome.FAILED and task.problem]
    if len(failed) <= 1:
        return []
    tally = Counter(
        (each.stage or "no stage") + (f" (exit code {each.exit_code})" if each.exit_code is not None else "")
        for each in failed
    )
    totals = ", ".join(f"{count} at {place}" for place, count in tally.most_common())
    return [f"failed: {totals}"]


def summary(result: Result) -> str:
    """The whole in one line."""
    counts_by_outcome = Counter(task.outcome for task in result.tasks)
    totals = ", ".join(
        f"{counts_by_outcome[outcome]} {outcome}" for outcome in Outcome if counts_by_outcome[outcome]
    )
    reason = f" ({result.reason})" if result.reason else ""
    nodes = "1 node" if len(result.tasks) == 1 else f"{len(result.tasks)} nodes"
    return (
        f"{result.action} {result.outcome}{reason}: {nodes}{f': {totals}' if totals else ''}; "
        f"{duration(result.seconds)}"
    )


def document(result: Result) -> dict[str, Any]:
    """The result for a program, see the head of this module."""
    counts_by_outcome = Counter(task.outcome for task in result.tasks)
    return {
        "outcome": result.outcome,
        "reason": result.reason,
        "action": result.action,
        "seconds": round(result.seconds, 1),
        "requests": sum(result.requests.values()),
        "counts": {
            str(outcome): counts_by_outcome[outcome] for outcome in Outcome if counts_by_outcome[outcome]
        },
        "nodes": [_node(task) for task in sorted(result.tasks, key=lambda task: task.target.name)],
    }


def _node(task: Task) -> dict[str, Any]:
    node: dict[str, Any] = {
        "node": task.target.name,
        "action": task.action,
        "outcome": str(task.outcome),
        "seconds": round(task.seconds, 1),
        "job": task.job,
    }
    if task.note:
        node["note"] = task.note
    if task.problem:
        node["error"] = asdict(task.problem)
    return node
