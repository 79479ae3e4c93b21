"""What the cluster says about the installations on its nodes, as data; and the verdict. Pure."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from msgspec import Struct, field
from msgspec.structs import replace

from kata_node.cluster.labels import INSTALLATION_LABEL_PREFIX, SERVING, installation_label
from kata_node.kube import node_status
from kata_node.kube.node import SHARED_LABEL, NodeFacts
from kata_node.kube.release_state import RECONCILE_KEY, ROLLOUT_KEY, STATE_PREFIX
from kata_node.text import foreign_words, pluralize


class RolloutRecord(Struct, frozen=True):
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

    @property
    def is_complete(self) -> bool:
        """Whether a node that ``nodes`` does not name was as wanted at the end."""
        return bool(self.ended) and self.outcome != "interrupted" and not self.omitted


class DaemonSetPods(Struct, frozen=True):
    """The pods of a DaemonSet: how many are wanted and ready, and why pods on nodes are not ready."""

    name: str
    wanted: int
    ready: int
    not_ready: Mapping[str, str] = field(default_factory=dict)


class Release(Struct, frozen=True):
    """A release of the chart. ``rollout`` is ``None`` if none is recorded.

    ``pods`` is ``None`` unless its ``deployment_mode`` is ``daemonset``, and its DaemonSet can be read.
    """

    name: str
    namespace: str
    installation: str
    desired_state: str = ""
    rollout: RolloutRecord | None = None
    reconcile: RolloutRecord | None = None
    deployment_mode: str = ""
    pods: DaemonSetPods | None = None

    @property
    def is_absent(self) -> bool:
        """Whether Kata is not wanted on any node."""
        return self.desired_state == "absent"

    @property
    def has_unfinished_work(self) -> bool:
        """Whether a rollout is under way or lost, or a pod of the DaemonSet is not ready."""
        under_way = self.rollout is not None and not self.rollout.ended
        return under_way or (self.pods is not None and self.pods.ready < self.pods.wanted)


class Row(Struct, frozen=True):
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
    """What contradicts the labels, the record or ``desiredState``, as sentences without a full stop."""
    left: str = ""
    """What the last run left undone on a node with an older installation, or why its pod is not ready."""
    installed_by: str = ""
    """The release that the record on the Node names, as ``namespace/name``; empty if it names none."""

    @property
    def is_healthy(self) -> bool:
        """Whether the node serves, or cannot run Kata, and nothing contradicts that.

        A release says with ``job.unfitNodes`` whether unfit nodes make it fail.
        """
        if self.drift or self.left:
            return False
        return self.outcome == "unfit" or (self.serving == SERVING and self.outcome in ("", "installed"))


class ClusterStatus(Struct, frozen=True):
    """All installations on all nodes. ``notes`` say what could not be read."""

    releases: tuple[Release, ...]
    rows: tuple[Row, ...]
    nodes_without_kata: int = 0
    notes: tuple[str, ...] = ()

    @property
    def is_healthy(self) -> bool:
        """Whether every node is as its release wants it, and no release has unfinished work.

        Without a node with Kata, every release must want it absent.
        """
        if not self.rows and not (self.releases and all(each.is_absent for each in self.releases)):
            return False
        unfinished = any(each.has_unfinished_work for each in self.releases)
        return all(each.is_healthy for each in self.rows) and not unfinished


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
        foreign_words(data.get("deploymentMode", "")),
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
    except (ValueError, TypeError, AttributeError, RecursionError, OverflowError):
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
    names: set[str] = set()
    without = 0
    unlabeled: list[str] = []
    for node in sorted(nodes, key=lambda each: each.name):
        found = [_row(node, each, releases) for each in _installations(node, releases, only)]
        rows += found
        without += not found
        names.add(node.name)
        if not found and any(map(_is_of_kata, node.handlers or ())):
            unlabeled += [] if _installations(node, releases, None) else [node.name]
    gone = [note for each in releases if (note := _note_on_missing_nodes(each, names))]
    more = (*_shared_installations(releases), *_notes_on_unlabeled(unlabeled), *gone)
    return ClusterStatus(tuple(releases), tuple(rows), without, (*notes, *more))


def _is_of_kata(handler: str) -> bool:
    return handler == "kata" or handler.startswith("kata-")


def _notes_on_unlabeled(names: Sequence[str]) -> Iterator[str]:
    if names:
        first = f"{', '.join(names[:3])}{', …' if len(names) > 3 else ''}"
        yield (
            f"{pluralize(len(names), 'node')} without a label of an installation report handlers of Kata: "
            f"{first}; another program installed it there, or the Node was deleted and registered again; "
            "`helm upgrade` labels selected nodes again"
        )


_MADE_BY_HAND = "it was installed by hand, or its release is gone"


def notes_on_left_installations(rows: Iterable[Row]) -> tuple[str, ...]:
    """Return a sentence for each installation of no release. The rows must be those of all releases."""
    counts = Counter((row.installation, row.installed_by) for row in rows if not row.release)
    return tuple(
        f"no release has the installation {foreign_words(installation)}, which is on "
        f"{pluralize(count, 'node')}: {'its release is gone' if by else _MADE_BY_HAND}; to remove it, "
        f"install the chart with this suffix{f' as the release {by}' if by else ''}, and uninstall it"
        for (installation, by), count in counts.items()
    )


def _shared_installations(releases: Sequence[Release]) -> Iterator[str]:
    """Yield a sentence for each installation that several releases want."""
    owners: dict[str, list[str]] = {}
    for each in releases:
        if not each.is_absent:
            owners.setdefault(each.installation, []).append(f"{each.namespace}/{each.name}")
    for installation, names in owners.items():
        if len(names) > 1:
            yield (
                f"several releases have the installation {foreign_words(installation)}: {', '.join(names)}; "
                "--namespace or --release shows what one of them says; uninstall the others, or give each a "
                "suffix of its own"
            )


def _installations(node: NodeFacts, releases: Sequence[Release], only: Collection[str] | None) -> list[str]:
    """Return the installations that the Node, the last run or the DaemonSet of a release names."""
    marked = {
        key.removeprefix(INSTALLATION_LABEL_PREFIX)
        for key in node.labels
        if key.startswith(INSTALLATION_LABEL_PREFIX)
    }
    told = {
        each.installation
        for each in releases
        if _told(each, node.name) or (each.pods and node.name in each.pods.not_ready)
    }
    found = marked | told | set(node_status.installations(node.annotations))
    return sorted(found if only is None else found & set(only))


class _Told(Struct, frozen=True):
    """What a run of the dispatcher recorded about a node that was not as wanted."""

    action: str
    outcome: str
    reason: str
    ended: str

    def __str__(self) -> str:
        return f"{self.action} {self.outcome}{f': {self.reason}' if self.reason else ''}"


def _told(release: Release, node: str) -> _Told | None:
    """Return what the newest run that knows the node recorded about it; ``None`` if it was as wanted.

    A node that is not of the release is as wanted, too.
    """
    for run in _newest_first(release):
        if node in run.nodes:
            told = _Told(run.action, *run.nodes[node], run.ended)
            return None if told.outcome == "not ours" else told
        if run.is_complete:
            return None
    return None


def _newest_first(release: Release) -> Iterator[RolloutRecord]:
    runs = [run for run in (release.rollout, release.reconcile) if run is not None and run.ended]
    yield from sorted(runs, key=lambda run: run.ended, reverse=True)


def _note_on_missing_nodes(release: Release, names: Collection[str]) -> str:
    """Return a sentence about the nodes that the last run names and the cluster does not have."""
    run = next(_newest_first(release), None)
    missing = sorted(set(run.nodes) - set(names)) if run else []
    if run is None or not missing:
        return ""
    first = missing[0]
    more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
    told = _Told(run.action, *run.nodes[first], run.ended)
    return f"the cluster has no Node {foreign_words(first)} (the last run: {told}){more}"


def _row(node: NodeFacts, installation: str, releases: Sequence[Release]) -> Row:
    candidates = [each for each in releases if each.installation == installation]
    # The state of a release that was removed can outlive it.
    release = min(candidates, key=lambda each: each.is_absent, default=None)
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
            drift=(*_drift(node, record, row.serving), *_foreign(record.release, row.release)),
            installed_by=record.release,
        )
    elif node_status.annotation(installation) in node.annotations:
        row = replace(row, drift=("the record on the Node cannot be read",))
    elif row.serving == SERVING:
        row = replace(row, reason="the Node has no record of the installation")
    return _with_release(row, node, release) if release else row


def _foreign(installed_by: str, release: str) -> tuple[str, ...]:
    """Return that another release installed Kata, if the record and a known release differ."""
    return (
        (f"the release {installed_by} installed it",)
        if installed_by and release not in ("", installed_by)
        else ()
    )


def _with_release(row: Row, node: NodeFacts, release: Release) -> Row:
    """Return the row with what the release says about the node."""
    told = _told(release, node.name)
    pod = release.pods.not_ready.get(node.name, "") if release.pods else ""
    # A record from after the run knows more. The record of a failure says why itself.
    if told and row.since <= told.ended and row.outcome not in ("failed", "rolled-back", "unfit"):
        if row.outcome == "installed":
            # Nothing was begun on it, or the dispatcher may not change Nodes.
            row = replace(row, left=str(told))
        else:
            # Where the dispatcher may not change Nodes, a failed node keeps the record of its begin.
            row = replace(row, outcome=told.outcome, reason=told.reason, since=row.since or told.ended)
    elif pod:
        row = replace(row, left=pod)
    if release.is_absent and (row.outcome or row.serving):
        row = replace(row, drift=(*row.drift, "Kata is not wanted here, because desiredState is absent"))
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
