"""What the cluster says about the installations on its nodes, as data; and the verdict. Pure."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from kata_node.cluster.labels import INSTALLATION_LABEL_PREFIX, SERVING, installation_label
from kata_node.kube import node_status
from kata_node.kube.node import SHARED_LABEL, NodeFacts
from kata_node.kube.release_state import RECONCILE_KEY, ROLLOUT_KEY, STATE_PREFIX
from kata_node.text import foreign_words


@dataclass(frozen=True)
class RolloutRecord:
    """What the dispatcher recorded about a run; empty texts for what it did not record."""

    action: str = ""
    job: str = ""
    generation: str = ""
    begun: str = ""
    ended: str = ""
    outcome: str = ""
    reason: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)
    nodes: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """The outcome and the reason of each node that is not as wanted."""
    omitted: int = 0
    """How many such nodes ``nodes`` does not have."""


@dataclass(frozen=True)
class Release:
    """A release of the chart. ``rollout`` is ``None`` if none is recorded."""

    name: str
    namespace: str
    installation: str
    desired_state: str = ""
    rollout: RolloutRecord | None = None
    reconcile: RolloutRecord | None = None


@dataclass(frozen=True)
class Row:
    """One installation on one node."""

    node: str
    installation: str
    release: str = ""
    """``namespace/name``; empty if no release of this installation is known."""
    kata_version: str = ""
    program_version: str = ""
    outcome: str = ""
    """As in the record on the Node, or as the dispatcher recorded it; empty if neither has it."""
    since: str = ""
    serving: str = ""
    """The value of the installation label; empty without it."""
    reason: str = ""
    drift: tuple[str, ...] = ()
    """What contradicts the labels or the record, each as a sentence without a full stop."""

    @property
    def is_healthy(self) -> bool:
        """Whether the node serves, or cannot run Kata, and nothing contradicts that.

        A release says with ``job.unfitNodes`` whether unfit nodes make it fail.
        """
        if self.drift:
            return False
        return self.outcome == "unfit" or (self.serving == SERVING and self.outcome in ("", "installed"))


@dataclass(frozen=True)
class ClusterStatus:
    """All installations on all nodes. ``notes`` say what could not be read."""

    releases: tuple[Release, ...]
    rows: tuple[Row, ...]
    nodes_without_kata: int = 0
    notes: tuple[str, ...] = ()

    @property
    def is_healthy(self) -> bool:
        """Whether there is an installation, all of them are healthy, and no rollout is under way or lost."""
        unfinished = any(each.rollout and not each.rollout.ended for each in self.releases)
        return bool(self.rows) and all(each.is_healthy for each in self.rows) and not unfinished


def release_of(config_map: Mapping[str, Any]) -> Release | None:
    """Return the release whose state ``config_map`` is; ``None`` for another ConfigMap."""
    metadata, data = config_map["metadata"], config_map.get("data") or {}
    name = metadata["name"]
    if not name.startswith(STATE_PREFIX):
        return None
    return Release(
        name.removeprefix(STATE_PREFIX),
        metadata["namespace"],
        data.get("multiInstallSuffix") or "default",
        foreign_words(data.get("desiredState", "")),
        _rollout(data.get(ROLLOUT_KEY, "")),
        _rollout(data.get(RECONCILE_KEY, "")),
    )


def _rollout(text: str) -> RolloutRecord | None:
    """Return a recorded rollout with printable texts; ``None`` for anything else."""
    try:
        found = json.loads(text)
        texts = {
            key: foreign_words(str(found.get(key, "")))
            for key in ("action", "job", "generation", "begun", "ended", "outcome", "reason")
        }
        counts = {foreign_words(key): int(count) for key, count in found.get("counts", {}).items()}
        nodes = {
            name: (foreign_words(outcome), foreign_words(str(reason)))
            for outcome, reasons in found.get("nodes", {}).items()
            for name, reason in reasons.items()
        }
        return RolloutRecord(**texts, counts=counts, nodes=nodes, omitted=int(found.get("omitted", 0)))
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None


def status_of(
    nodes: Iterable[NodeFacts],
    releases: Sequence[Release],
    *,
    only: Collection[str] | None = None,
    notes: Sequence[str] = (),
) -> ClusterStatus:
    """Return the status of all installations, or of those named in ``only``."""
    rows: list[Row] = []
    without = 0
    for node in sorted(nodes, key=lambda each: each.name):
        found = [_row(node, each, releases) for each in _installations(node, releases, only)]
        rows += found
        without += not found
    return ClusterStatus(tuple(releases), tuple(rows), without, tuple(notes))


def _installations(node: NodeFacts, releases: Sequence[Release], only: Collection[str] | None) -> list[str]:
    """Return the installations that the Node, or the last rollout of a release, names."""
    marked = {
        key.removeprefix(INSTALLATION_LABEL_PREFIX)
        for key in node.labels
        if key.startswith(INSTALLATION_LABEL_PREFIX)
    }
    told = {each.installation for each in releases if each.rollout and node.name in each.rollout.nodes}
    found = marked | told | set(node_status.installations(node.annotations))
    return sorted(found if only is None else found & set(only))


def _row(node: NodeFacts, installation: str, releases: Sequence[Release]) -> Row:
    release = next((each for each in releases if each.installation == installation), None)
    record = node_status.read(node.annotations, installation)
    row = Row(
        node.name,
        installation,
        f"{release.namespace}/{release.name}" if release else "",
        serving=foreign_words(node.labels.get(installation_label(installation), "")),
    )
    if record is not None:
        row = replace(
            row,
            kata_version=record.kata_version,
            program_version=record.program_version,
            outcome=record.outcome,
            since=record.since,
            reason=record.reason,
            drift=_drift(node, record, row.serving),
        )
    rollout = release.rollout if release else None
    told = rollout.nodes.get(node.name) if rollout else None
    # Where the dispatcher may not change Nodes, a failed node keeps the record of its begin.
    if (
        rollout
        and told
        and (record is None or (record.outcome == "installing" and record.since <= rollout.ended))
    ):
        row = replace(row, outcome=told[0], reason=told[1], since=row.since or rollout.ended)
    return row


def _drift(node: NodeFacts, record: node_status.NodeStatus, serving: str) -> tuple[str, ...]:
    found = []
    if node_status.is_of_other_machine(record, node.machine_id):
        found.append("another machine has the name of the Node now")
    if serving == SERVING:
        if missing := node.missing(record.handlers):
            found.append(f"the Node does not report {', '.join(missing)}")
        if node.labels.get(SHARED_LABEL) != SERVING:
            found.append(f"the label {SHARED_LABEL} is not true")
    elif record.outcome == "installed":
        found.append("the installation label is not true")
    return tuple(found)
