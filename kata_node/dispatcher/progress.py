"""Format the progress and the result of a run: log lines, the final table, the JSON document. Pure.

The document of ``--output json``::

    {"outcome": "ok", "failed", "stopped" or "interrupted", "reason": "why it stopped or failed",
     "action": "install" or "cleanup", "seconds": 12.3, "requests": 7, "counts": {"done": 3, ...},
     "nodes": [{"node", "action", "outcome", "seconds", "job", "note",
                "error": {"what", "where", "hint", "stage", "exit_code",
                          "node_words": {"what", "where", "hint"}}}]}      as the node reported them
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from msgspec import Struct, to_builtins

from kata_node.dispatcher.kubernetes_objects import Action
from kata_node.dispatcher.rollout import FINAL_OUTCOMES, SUCCESSFUL_OUTCOMES, Outcome, Rollout, Task

MAX_ROWS, MAX_INTERIM_ROWS = 50, 12
"""Maximum rows of the table, at the end and during the run. With more nodes it omits done and unchanged
nodes, and nodes with the same outcome and detail share a row."""

WORST_FIRST = (
    Outcome.FAILED,
    Outcome.UNFIT,
    Outcome.NOT_READY,
    Outcome.RUNNING,
    Outcome.WAITING,
    Outcome.NOT_STARTED,
    Outcome.SKIPPED,
    Outcome.GONE,
    Outcome.NOT_OURS,
    Outcome.DONE,
    Outcome.UNCHANGED,
)


class Result(Struct, frozen=True):
    """The result of a run. ``requests`` counts the requests to the API server by description."""

    action: Action
    outcome: Literal["ok", "failed", "stopped", "interrupted"]
    reason: str
    tasks: Sequence[Task]
    seconds: float
    requests: Mapping[str, int]
    failure_exit_code: int = 1

    @property
    def exit_code(self) -> int:
        """0 when the outcome is ``ok``, else :attr:`failure_exit_code`."""
        return 0 if self.outcome == "ok" else self.failure_exit_code


def build_result(
    action: Action,
    tasks: Sequence[Task],
    *,
    stopped: str,
    interrupted: str,
    seconds: float,
    requests: Mapping[str, int],
    max_not_ready_nodes: int = 0,
    unfit_fails: bool = False,
    failure_exit_code: int = 1,
) -> Result:
    """Return the result of a run.

    ``stopped`` and ``interrupted`` say why it ended early, if it did. Otherwise the run has failed when more
    than ``max_not_ready_nodes`` nodes are not ready, or any other node has an outcome that is not in
    :data:`kata_node.dispatcher.rollout.SUCCESSFUL_OUTCOMES`. With ``unfit_fails``, unfit nodes fail it too.
    Without, they fail an install that leaves no node with Kata.
    """
    not_ready = sum(task.outcome is Outcome.NOT_READY for task in tasks)
    successful = SUCCESSFUL_OUTCOMES - ({Outcome.UNFIT} if unfit_fails else set())
    unsuccessful = sum(task.outcome not in successful for task in tasks)
    outcome: Literal["ok", "failed", "stopped", "interrupted"] = "ok"
    reason = ""
    if unsuccessful > not_ready:
        outcome, reason = "failed", f"{unsuccessful} of {len(tasks)} nodes did not succeed"
    elif not_ready > max_not_ready_nodes:
        outcome = "failed"
        reason = f"{not_ready} of {len(tasks)} nodes are not ready, maxNotReady allows {max_not_ready_nodes}"
    else:
        # Nobody installs Kata to get it on no node: the selection, the values or the image is wrong.
        outcomes = Counter(task.outcome for task in tasks if task.action == "install")
        if outcomes[Outcome.UNFIT] and not (outcomes[Outcome.DONE] or outcomes[Outcome.UNCHANGED]):
            outcome = "failed"
            reason = f"no node has Kata, {outcomes[Outcome.UNFIT]} of {outcomes.total()} cannot run it"
    if stopped:
        outcome, reason = "stopped", stopped
    if interrupted:
        outcome, reason = "interrupted", interrupted
    return Result(action, outcome, reason, tasks, seconds, requests, failure_exit_code)


def task_line(task: Task, rollout: Rollout, now: float) -> str:
    """Return the log line for a change of ``task``: the node, the change, and the counts of the rollout."""
    what: str
    if task.outcome in FINAL_OUTCOMES:
        what = str(task.outcome)
        if task.outcome in (Outcome.DONE, Outcome.FAILED):
            what += f" after {duration(task.seconds)}"
    else:
        what = f"{'adopted running' if task.adopted else 'started'} Job {task.job}"
    detail = f": {task.problem}" if task.problem else f" ({task.note})" if task.note else ""
    return f"{task.target.name}: {_action_prefix(task, rollout)}{what}{detail}  [{counts(rollout, now)}]"


def _action_prefix(task: Task, rollout: Rollout) -> str:
    """Return ``cleanup: `` for a node that is no longer selected, during an install; else nothing."""
    return "" if task.action == rollout.tasks[0].action else f"{task.action}: "


def counts(rollout: Rollout, now: float) -> str:
    """Return the counts: ``12 of 500 nodes ended, 1 failed, 100 running, about 7 min left``."""
    there = rollout.counts
    ended = sum(there[outcome] for outcome in FINAL_OUTCOMES)
    parts = [f"{ended} of {len(rollout.tasks)} nodes ended"]
    parts += [f"{there[each]} {each}" for each in (Outcome.FAILED, Outcome.UNFIT) if there[each]]
    parts += [f"{rollout.in_flight} running"]
    left = rollout.estimate_remaining(now)
    # The estimate is 0 when the running nodes already take longer than the mean.
    if left and ended < len(rollout.tasks):
        parts.append(f"about {duration(left)} left")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """Return a duration as text: ``41 s``, ``7 min``, ``2 h 5 min``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def text(result: Result) -> str:
    """Return the result as text: a table with a hint below each problem, and a summary line."""
    return "\n".join([*_table(result.tasks, MAX_ROWS), *_failures_by_stage(result.tasks), summary(result)])


def interim_text(rollout: Rollout, now: float) -> str:
    """Return the counts, and a table of the nodes that have no Kata or run the longest.

    If the run is killed, this is the last that is known of it.
    """
    shown = (Outcome.FAILED, Outcome.UNFIT, Outcome.NOT_READY)
    bad = [task for task in rollout.tasks if task.outcome in shown]
    longest = rollout.running()[: max(1, MAX_INTERIM_ROWS - len(bad))]
    return "\n".join([counts(rollout, now), *_table([*bad, *longest], MAX_INTERIM_ROWS)])


def _table(tasks: Sequence[Task], limit: int) -> list[str]:
    groups = _groups(tasks, limit)
    if not groups:
        return []
    rows = [("NODE", "ACTION", "OUTCOME", "TIME", "DETAIL")]
    rows += [
        (_names(group), group[0].action, str(group[0].outcome), _longest(group), _detail(group[0]))
        for group in groups[:limit]
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = []
    for row, group in zip(rows, [None, *groups], strict=False):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        lines.append("  ".join([*cells, row[4]]).rstrip())
        if group and group[0].problem:
            lines += [f"  {hint}" for hint in group[0].problem.hints]
    if more := sum(len(group) for group in groups[limit:]):
        lines.append(f"… and {more} more nodes; see the log, which has a line for each node")
    return lines


def _groups(tasks: Sequence[Task], limit: int) -> list[list[Task]]:
    """Return the rows of the table, worst outcome first. The tasks of a group share a row."""
    ordered = sorted(tasks, key=lambda task: (WORST_FIRST.index(task.outcome), task.target.name))
    if len(tasks) <= limit:
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
    stuck = task.stuck_reason if task.outcome is Outcome.RUNNING else None
    return str(task.problem or task.note or stuck or "")


def _failures_by_stage(tasks: Sequence[Task]) -> list[str]:
    """Return ``failed nodes by stage: 812 at cri (exit code 4), 3 at host-check (exit code 3)``.

    Empty for less than two failed nodes.
    """
    failed = [task.problem for task in tasks if task.outcome is Outcome.FAILED and task.problem]
    if len(failed) <= 1:
        return []
    tally = Counter(
        (each.stage or "an unknown stage")
        + (f" (exit code {each.exit_code})" if each.exit_code is not None else "")
        for each in failed
    )
    totals = ", ".join(f"{count} at {place}" for place, count in tally.most_common())
    return [f"failed nodes by stage: {totals}"]


def summary(result: Result) -> str:
    """Return the result in one line."""
    counts_by_outcome = Counter(task.outcome for task in result.tasks)
    totals = ", ".join(
        f"{counts_by_outcome[outcome]} {outcome}" for outcome in Outcome if counts_by_outcome[outcome]
    )
    reason = f" ({result.reason})" if result.reason else ""
    nodes = "1 node" if len(result.tasks) == 1 else f"{len(result.tasks)} nodes"
    return (
        f"{result.action} {result.outcome}{reason}: {nodes}{f': {totals}' if totals else ''}; "
        f"took {duration(result.seconds)}"
    )


def document(result: Result) -> dict[str, Any]:
    """Return the JSON document, see the docstring of this module."""
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
        node["error"] = to_builtins(task.problem)
        for key in ("unfit", "pods_run", "node_words"):
            if not node["error"][key]:
                del node["error"][key]
    return node
