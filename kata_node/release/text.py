"""Format the status of the cluster for people and as JSON. Pure."""

from __future__ import annotations

from collections import Counter
from typing import Any

from msgspec import to_builtins

from kata_node.release.model import ClusterStatus, Release, RolloutRecord, Row
from kata_node.text import pluralize

NO_VALUE = "-"


def to_text(status: ClusterStatus) -> str:
    """Return the releases, one table over all nodes with Kata, and a summary."""
    lines = [_release_line(each) for each in status.releases]
    lines += _table(status.rows)
    lines += [f"note: {each}" for each in status.notes]
    lines.append(_summary(status))
    return "\n".join(lines)


def to_json(status: ClusterStatus) -> dict[str, Any]:
    """Return the document of ``--output json``."""
    return {
        "outcome": "healthy" if status.is_healthy else "not healthy",
        "releases": [to_builtins(each) for each in status.releases],
        "nodes": [{**to_builtins(each), "healthy": each.is_healthy} for each in status.rows],
        "nodes_without_kata": status.nodes_without_kata,
        "notes": list(status.notes),
    }


def _release_line(release: Release) -> str:
    wanted = ", desiredState absent" if release.is_absent else ""
    rollout = _rollout_text(release.rollout) if release.rollout else "no rollout is recorded"
    if release.pods:
        rollout = f"DaemonSet {release.pods.name}: {release.pods.ready} of {release.pods.wanted} pods ready"
    elif release.deployment_mode == "daemonset":
        rollout = "the DaemonSet cannot be read"
    return f"release {release.name} in {release.namespace}{wanted}: {rollout}"


def _rollout_text(rollout: RolloutRecord) -> str:
    by = f" by Job {rollout.job}" if rollout.job else ""
    if not rollout.ended:
        return f"{rollout.action} begun at {rollout.begun}{by}, and no end is recorded"
    counts = ", ".join(f"{count} {outcome}" for outcome, count in rollout.counts.items())
    reason = f" ({rollout.reason})" if rollout.reason else ""
    omitted = f", {rollout.omitted} of them not recorded one by one" if rollout.omitted else ""
    return (
        f"{rollout.action} {rollout.outcome}{reason}, ended at {rollout.ended}{by}"
        f"{f': {counts}' if counts else ''}{omitted}"
    )


def _table(rows: tuple[Row, ...]) -> list[str]:
    if not rows:
        return []
    header = ["NODE", "INSTALLATION", "KATA", "PROGRAM", "OUTCOME", "SERVING", "SINCE", "DETAIL"]
    cells = [
        [
            *(row.node, row.installation, row.kata_version, row.program_version, row.outcome, row.serving),
            row.since,
            "; ".join([*(f"drift: {each}" for each in row.drift), *filter(None, (row.left, row.reason))]),
        ]
        for row in rows
    ]
    if len({row.installation for row in rows}) == 1:
        header, cells = [header[0], *header[2:]], [[row[0], *row[2:]] for row in cells]
    table = [header, *([cell or NO_VALUE for cell in row[:-1]] + row[-1:] for row in cells)]
    widths = [max(len(row[column]) for row in table) for column in range(len(header) - 1)]
    return [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]).rstrip()
        for row in table
    ]


def _summary(status: ClusterStatus) -> str:
    counts = Counter(row.outcome or "not recorded" for row in status.rows)
    drifted = sum(bool(row.drift) for row in status.rows)
    parts = [f"{count} {outcome}" for outcome, count in sorted(counts.items())]
    parts += [f"{drifted} with drift"] if drifted else []
    verdict = "healthy" if status.is_healthy else "not healthy"
    nodes = pluralize(len({row.node for row in status.rows}), "node")
    others = (
        f"; {pluralize(status.nodes_without_kata, 'node')} without Kata" if status.nodes_without_kata else ""
    )
    return f"{verdict}: {nodes} with Kata{': ' + ', '.join(parts) if parts else ''}{others}"
