"""Compute the changes of a Node's labels for each goal of an installation. Pure.

The labels of an installation pass through these goals:

- ``claimed``: ``false``, before the first change of the node. Files may be there; no pod is scheduled. A
  ``true`` stays, unless the node is known not to serve.
- ``served``: ``true``, when the runtime serves the handlers.
- ``withdrawn``: ``false``, before the revert.
- ``released``: removed, when nothing of the installation is left on the node.
- ``unfit``: the installation label is ``unfit``, when the node cannot run Kata because of what it is.
- ``failed``: the labels stay as they are, and only the record of the installation changes.

An install or revert that did not finish can therefore be found by its label. With each goal the record of the
installation changes, see :mod:`kata_node.kube.node_status`.

Another program can set the shared label too. So an annotation records who set it, and changes in the same
request. A revert leaves a shared label that another program set, and one that another program still needs.

:func:`changes` is empty if the goal is reached. It is valid only for the Node that it was given: if the Node
has changed since, compute it again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, cast, get_args

from msgspec import Struct, field
from msgspec.structs import replace

from kata_node.kube import node_status
from kata_node.kube.node import SHARED_LABEL, MetadataChanges
from kata_node.kube.node_status import NodeStatus

SETTER_ANNOTATION = "katacontainers.io/kata-runtime-set-by"
"""The annotation that says who set the shared label, see :data:`Setter`."""

INSTALLATION_LABEL_PREFIX = "kata-deploy.katacontainers.io/"
"""The prefix of installation labels. The name of the installation follows."""

SERVING = "true"
CLAIMED = "false"
UNFIT = "unfit"

Goal = Literal["claimed", "served", "withdrawn", "released", "unfit", "failed"]
Setter = Literal["kata-node", "other"]
"""``kata-node``: an installation of kata-node set the shared label. ``other``: it was there before the first
installation of kata-node."""
Changes = dict[str, str | None]


class NodeState(Struct, frozen=True):
    """Labels and annotations of a Node, and what is known about the node itself."""

    labels: Mapping[str, str]
    annotations: Mapping[str, str] = field(default_factory=dict)
    has_record: bool = False
    """Whether a receipt, or a stage that removed something, shows the installation without its label."""
    serves_others: bool = False
    """Whether the runtime's configuration has handlers of another program."""
    is_served: bool = True
    """False if the runtime is known not to serve the installation, whatever the labels say."""

    @property
    def setter(self) -> Setter:
        """Who set the shared label.

        Without a record, an earlier version of kata-node set a label that is beside an installation label,
        and ``false``: no other program sets that.
        """
        recorded = self.annotations.get(SETTER_ANNOTATION)
        if recorded in get_args(Setter):
            return cast("Setter", recorded)
        is_ours = installation_labels(self.labels) or self.labels.get(SHARED_LABEL) != SERVING
        return "kata-node" if is_ours else "other"


def installation_label(instance: str) -> str:
    """Return the label of the installation ``instance``, which is its suffix or ``default``."""
    return INSTALLATION_LABEL_PREFIX + instance


def installation_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """Return the installation labels of all installations, with any value."""
    return {key: value for key, value in labels.items() if key.startswith(INSTALLATION_LABEL_PREFIX)}


def other_installation_labels(labels: Mapping[str, str], instance: str) -> dict[str, str]:
    """Return the installation labels of all other installations, with any value."""
    own = installation_label(instance)
    return {key: value for key, value in installation_labels(labels).items() if key != own}


def changes(goal: Goal, node: NodeState, instance: str, status: NodeStatus | None = None) -> MetadataChanges:
    """Return the changes of labels and annotations that bring ``instance`` to ``goal``.

    ``status`` is what the record shall say then. What it leaves empty is kept from the record before.
    """
    changed: Changes = {}
    match goal:
        case "claimed":
            changed = {**_claimed(node.labels, instance), **_disproved(node, instance)}
        case "served":
            changed = _served(node.labels, instance)
        case "unfit":
            changed = _unfit(node, instance)
        case "withdrawn":
            changed = _withdrawn(node, instance)
        case "released":
            changed = _released(node, instance)
    recorded = _status_changes(goal, node, instance, status)
    return MetadataChanges(
        {**changed, **recorded.labels}, {**_record(goal, node, changed), **recorded.annotations}
    )


def is_ours(node: NodeState, instance: str) -> bool:
    """Return whether ``instance`` is or was on the node, as far as its label and the node's records tell."""
    return installation_label(instance) in node.labels or node.has_record


def _record(goal: Goal, node: NodeState, changed: Changes) -> Changes:
    """Return the change of the annotation that belongs to ``changed``, the changes of the labels."""
    recorded = node.annotations.get(SETTER_ANNOTATION)
    wanted: str | None = recorded
    if goal == "released":
        after = {key: value for key, value in {**node.labels, **changed}.items() if value is not None}
        # Somebody may have removed the labels by hand. Without the shared label, the record says nothing.
        is_void = changed or node.has_record or SHARED_LABEL not in after
        if is_void and not installation_labels(after):
            wanted = None
    elif goal != "withdrawn":
        if SHARED_LABEL in changed:
            wanted = "kata-node"
        elif changed and recorded is None and not installation_labels(node.labels):
            wanted = node.setter
    return {} if wanted == recorded else {SETTER_ANNOTATION: wanted}


def _status_changes(goal: Goal, node: NodeState, instance: str, status: NodeStatus | None) -> MetadataChanges:
    """Return the changes of the record of ``instance``."""
    if goal == "released":
        return node_status.removal(node.labels, node.annotations, instance)
    if status is None or (goal in ("withdrawn", "failed") and not is_ours(node, instance)):
        return MetadataChanges()
    before = node_status.read(node.annotations, instance)
    if before is not None:
        if goal == "claimed" and _is_served(before, status, node, instance):
            status = before
        elif goal == "withdrawn":
            status = replace(before, outcome=status.outcome, reason="", since=status.since)
        else:
            status = replace(
                status,
                kata_version=status.kata_version or before.kata_version,
                handlers=status.handlers or before.handlers,
                release=status.release or before.release,
                # Why the labels were withdrawn stays until the repair has ended.
                reason=status.reason or (before.reason if before.outcome == status.outcome else ""),
            )
    return node_status.changes(node.labels, node.annotations, instance, status)


def _is_served(before: NodeStatus, status: NodeStatus, node: NodeState, instance: str) -> bool:
    """Return whether the Node serves what is to be installed, so that a claim begins nothing new."""
    return (
        before.outcome == "installed"
        and node.is_served
        and node.labels.get(installation_label(instance)) == SERVING
        and before.kata_version == (status.kata_version or before.kata_version)
        and before.release == (status.release or before.release)
        and (before.program_version, before.settings, before.machine_id)
        == (status.program_version, status.settings, status.machine_id)
    )


def _claimed(labels: Mapping[str, str], instance: str) -> Changes:
    """Claim the Node, before the first change of the node.

    Labels that are ``true`` stay: the handlers are served during another install.
    """
    return {
        key: CLAIMED
        for key in (SHARED_LABEL, installation_label(instance))
        if labels.get(key) not in (SERVING, CLAIMED)
    }


def _disproved(node: NodeState, instance: str) -> Changes:
    """Withdraw labels that are ``true`` although the node does not serve, for example a rebuilt machine."""
    if node.is_served or node.labels.get(installation_label(instance)) != SERVING:
        return {}
    return _withdrawn(node, instance)


def _unfit(node: NodeState, instance: str) -> Changes:
    """Say that the Node cannot run Kata.

    An installation label that is ``true`` stays while the node still serves an earlier installation. The
    shared label is added if it is missing, so that an uninstall finds the Node and removes both labels.
    """
    own = installation_label(instance)
    disproved = _disproved(node, instance)
    if node.labels.get(own) == UNFIT or (node.labels.get(own) == SERVING and not disproved):
        return {}
    return {**({} if SHARED_LABEL in node.labels else {SHARED_LABEL: CLAIMED}), **disproved, own: UNFIT}


def _served(labels: Mapping[str, str], instance: str) -> Changes:
    """Make both labels ``true``."""
    return {
        key: SERVING for key in (SHARED_LABEL, installation_label(instance)) if labels.get(key) != SERVING
    }


def _withdrawn(node: NodeState, instance: str) -> Changes:
    """Keep new pods away from ``instance`` before its revert.

    The shared label keeps its value while another installation serves, or if another program set it. Missing
    labels are not added.
    """
    if not is_ours(node, instance):
        return {}
    own = installation_label(instance)
    keys = (own,) if node.setter == "other" or _another_serves(node, instance) else (SHARED_LABEL, own)
    return {key: CLAIMED for key in keys if node.labels.get(key, CLAIMED) != CLAIMED}


def _released(node: NodeState, instance: str) -> Changes:
    """Remove the labels of ``instance``.

    The shared label is removed with the last installation label. It becomes ``false`` if other installations
    have labels and none of them serves. It stays if another program set it, and is ``true`` if the runtime
    has handlers of another program.
    """
    if not is_ours(node, instance):
        return {}
    own = installation_label(instance)
    changed: Changes = {own: None} if own in node.labels else {}
    if SHARED_LABEL not in node.labels or node.setter == "other":
        return changed
    if node.serves_others:
        return changed if node.labels[SHARED_LABEL] == SERVING else {SHARED_LABEL: SERVING, **changed}
    if not other_installation_labels(node.labels, instance):
        return {SHARED_LABEL: None, **changed}
    return {**_withdrawn(node, instance), **changed}


def _another_serves(node: NodeState, instance: str) -> bool:
    if node.serves_others:
        return True
    return SERVING in other_installation_labels(node.labels, instance).values()
