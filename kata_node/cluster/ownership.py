"""Which release owns each installation on a Node. The record of an installation names its release. Pure.

The state object of a release can be deleted, and applied manifests know nothing of other releases. So the
Nodes themselves are asked before the first change.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from kata_node.cluster.labels import INSTALLATION_LABEL_PREFIX, other_installation_labels
from kata_node.errors import SettingsError
from kata_node.kube import node_status
from kata_node.kube.node import NodeFacts
from kata_node.records import dataclass

MAX_NAMED_NODES = 5
"""Nodes that an error names."""

DEFAULT_INSTALLATION = "default"
"""The installation without a suffix."""

_WHERE = "env.multiInstallSuffix"


@dataclass(frozen=True)
class Conflict:
    """Why a release may not install on a Node. Exactly one field is set.

    ``installation``: the release has this installation there, under another suffix. ``release``: this other
    release has the installation there.
    """

    installation: str = ""
    release: str = ""


def find_other_installation(
    labels: Mapping[str, str], annotations: Mapping[str, str], installation: str, release: str
) -> str:
    """Return the first other installation that ``release`` has on a Node; empty if it has none.

    ``release`` is ``NAMESPACE/NAME``, and empty for an install by hand, which has no other installations.
    """
    for key in sorted(other_installation_labels(labels, installation)) if release else ():
        name = key.removeprefix(INSTALLATION_LABEL_PREFIX)
        if belongs_to(annotations, name, release):
            return name
    return ""


def find_other_release(annotations: Mapping[str, str], installation: str, release: str) -> str:
    """Return the other release that has ``installation`` on a Node; empty if there is none.

    An install by hand has no release. It keeps no release from the Node, and no release keeps it from there.
    """
    record = node_status.read(annotations, installation) if release else None
    return record.release if record and record.release != release else ""


def belongs_to(annotations: Mapping[str, str], installation: str, release: str) -> bool:
    """Return whether the record of ``installation`` on a Node names ``release``."""
    record = node_status.read(annotations, installation) if release else None
    return record is not None and record.release == release


def find_conflict(
    labels: Mapping[str, str], annotations: Mapping[str, str], installation: str, release: str
) -> Conflict | None:
    """Return what keeps ``release`` from having ``installation`` on a Node; ``None`` if nothing does."""
    if other := find_other_release(annotations, installation, release):
        return Conflict(release=other)
    if other := find_other_installation(labels, annotations, installation, release):
        return Conflict(installation=other)
    return None


def conflict_error(
    conflict: Conflict, nodes: Sequence[str], installation: str, release: str
) -> SettingsError:
    """Return the error for the Nodes with this conflict."""
    if conflict.release:
        key = node_status.annotation(installation)
        return SettingsError(
            f"the installation {installation} on {_listed(nodes)} belongs to the release "
            f"{conflict.release}, not to {release}",
            where=_WHERE,
            hint=f"set a suffix that no other release has, or uninstall {conflict.release} first; if that "
            f"release no longer exists, take its nodes over: `kubectl annotate nodes --all {key}-`",
        )
    suffix = json.dumps("" if conflict.installation == DEFAULT_INSTALLATION else conflict.installation)
    return SettingsError(
        f"the release {release} has the installation {conflict.installation} on {_listed(nodes)} and cannot "
        f"change to {installation}, because nothing would revert it",
        where=_WHERE,
        hint=f"set it to {suffix}; to change it, remove Kata first (desiredState: absent, or "
        "`helm uninstall`), or install a second release",
    )


def check_node(node: NodeFacts, installation: str, release: str) -> None:
    """Raise :class:`SettingsError` if something keeps ``release`` from having ``installation`` on a Node."""
    if conflict := find_conflict(node.labels, node.annotations, installation, release):
        raise conflict_error(conflict, [node.name], installation, release)


def _listed(names: Sequence[str]) -> str:
    more = len(names) - MAX_NAMED_NODES
    nodes = "the Node " if len(names) == 1 else "the Nodes "
    return nodes + ", ".join(names[:MAX_NAMED_NODES]) + (f" and {more} more" if more > 0 else "")
