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
from kata_node.text import first_of

MAX_NAMED_NODES = 5
"""Nodes that an error names."""

DEFAULT_INSTALLATION = "default"
"""The installation without a suffix."""

_WHERE = "env.multiInstallSuffix"


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

    An install by hand has no release, and belongs to none.
    """
    record = node_status.read(annotations, installation) if release else None
    return record.release if record and record.release != release else ""


def belongs_to(annotations: Mapping[str, str], installation: str, release: str) -> bool:
    """Return whether the record of ``installation`` on a Node names ``release``."""
    record = node_status.read(annotations, installation) if release else None
    return record is not None and record.release == release


def suffix_error(other: str, nodes: Sequence[str], installation: str, release: str) -> SettingsError:
    """Return the error for Nodes on which the release has the ``other`` installation."""
    suffix = json.dumps("" if other == DEFAULT_INSTALLATION else other)
    return SettingsError(
        f"the release {release} has the installation {other} on {_listed(nodes)} and cannot change to "
        f"{installation}, because nothing would revert it",
        where=_WHERE,
        hint=f"set it to {suffix}; to change it, remove Kata first (desiredState: absent, or "
        "`helm uninstall`), or install a second release",
    )


def release_error(other: str, node: str, installation: str, release: str) -> SettingsError:
    """Return the error for a revert by ``release`` on a Node whose installation belongs to ``other``."""
    return SettingsError(
        f"the installation {installation} on the Node {node} belongs to the release {other}, not to "
        f"{release}",
        where=_WHERE,
        hint=f"to remove it from this node, uninstall the release {other}",
    )


def check_suffix(node: NodeFacts, installation: str, release: str) -> None:
    """Raise :class:`SettingsError` if ``release`` has another installation on a Node."""
    if other := find_other_installation(node.labels, node.annotations, installation, release):
        raise suffix_error(other, [node.name], installation, release)


def _listed(names: Sequence[str]) -> str:
    return f"the Node{'' if len(names) == 1 else 's'} {first_of(names, MAX_NAMED_NODES)}"
