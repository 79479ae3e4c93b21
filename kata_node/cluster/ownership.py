"""Whose the installations on a Node are: the record of each names the release that installed it. Pure.

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
        record = node_status.read(annotations, name)
        if record and record.release == release:
            return name
    return ""


def find_other_release(annotations: Mapping[str, str], installation: str, release: str) -> str:
    """Return the other release that has ``installation`` on a Node; empty if there is none.

    An install by hand has no release. It keeps no release from the Node, and no release keeps it from there.
    """
    record = node_status.read(annotations, installation) if release else None
    return record.release if record and record.release != release else ""


def check_installations(others: Mapping[str, str], installation: str, release: str) -> None:
    """Raise :class:`SettingsError` if ``others``, Node -> :func:`find_other_installation`, has one."""
    for other in sorted({*others.values()} - {""}):
        nodes = _listed([name for name, found in others.items() if found == other])
        suffix = json.dumps("" if other == DEFAULT_INSTALLATION else other)
        raise SettingsError(
            f"the release {release} has the installation {other} on {nodes} and cannot change to "
            f"{installation}, because nothing would revert it",
            where=_WHERE,
            hint=f"set it to {suffix}; to change it, remove Kata first (desiredState: absent, or "
            "`helm uninstall`), or install a second release",
        )


def check_releases(others: Mapping[str, str], installation: str, release: str) -> None:
    """Raise :class:`SettingsError` if ``others``, Node -> :func:`find_other_release`, has one."""
    for other in sorted({*others.values()} - {""}):
        nodes = _listed([name for name, found in others.items() if found == other])
        key = node_status.annotation(installation)
        raise SettingsError(
            f"the installation {installation} on {nodes} is of the release {other}, not of {release}",
            where=_WHERE,
            hint=f"set a suffix that no other release has, or uninstall {other} first; if that release no "
            f"longer exists, take its nodes over: `kubectl annotate nodes --all {key}-`",
        )


def check_node(node: NodeFacts, installation: str, release: str) -> None:
    """Raise :class:`SettingsError` if another suffix of ``release``, or another release, is on the Node."""
    check_releases(
        {node.name: find_other_release(node.annotations, installation, release)}, installation, release
    )
    other = find_other_installation(node.labels, node.annotations, installation, release)
    check_installations({node.name: other}, installation, release)


def _listed(names: Sequence[str]) -> str:
    more = len(names) - MAX_NAMED_NODES
    nodes = "the Node " if len(names) == 1 else "the Nodes "
    return nodes + ", ".join(names[:MAX_NAMED_NODES]) + (f" and {more} more" if more > 0 else "")
