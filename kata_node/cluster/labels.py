"""Compute the changes of a Node's labels for each goal of an installation. Pure.

The labels of an installation pass through these goals:

- ``claimed``: ``false``, before the first change of the node. Files may be there; no pod is scheduled.
- ``served``: ``true``, when the runtime serves the handlers.
- ``withdrawn``: ``false``, before the revert.
- ``released``: removed, when nothing of the installation is left on the node.
- ``unfit``: the installation label is ``unfit``, when the node cannot run Kata because of what it is.

An install or revert that did not finish can therefore be found by its label.

The result of each function maps a label to its new value, or to ``None`` if the label is removed. It is
empty if the goal is reached. It is valid only for the labels that the function was given: if the Node has
changed since, compute it again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

SHARED_LABEL = "katacontainers.io/kata-runtime"
"""The label that RuntimeClasses select. ``true``: an installation serves Kata handlers on this node."""

INSTALLATION_LABEL_PREFIX = "kata-deploy.katacontainers.io/"
"""The prefix of installation labels. The name of the installation follows."""

SERVING = "true"
CLAIMED = "false"
UNFIT = "unfit"

Goal = Literal["claimed", "served", "withdrawn", "released", "unfit"]
Changes = dict[str, str | None]


def installation_label(instance: str) -> str:
    """Return the label of the installation ``instance``, which is its suffix or ``default``."""
    return INSTALLATION_LABEL_PREFIX + instance


def other_installation_labels(labels: Mapping[str, str], instance: str) -> dict[str, str]:
    """Return the installation labels of all other installations, with any value."""
    own = installation_label(instance)
    return {
        key: value
        for key, value in labels.items()
        if key.startswith(INSTALLATION_LABEL_PREFIX) and key != own
    }


def claimed(labels: Mapping[str, str], instance: str) -> Changes:
    """Return the changes that claim the Node, before the first change of the node.

    Labels that are ``true`` stay: the handlers are served during another install.
    """
    return {
        key: CLAIMED
        for key in (SHARED_LABEL, installation_label(instance))
        if labels.get(key) not in (SERVING, CLAIMED)
    }


def unfit(labels: Mapping[str, str], instance: str) -> Changes:
    """Return the changes that say that the Node cannot run Kata.

    An installation label that is ``true`` stays, because the node still serves an earlier installation. The
    shared label is added if it is missing, so that an uninstall finds the Node and removes both labels.
    """
    own = installation_label(instance)
    if labels.get(own) in (SERVING, UNFIT):
        return {}
    return {own: UNFIT} if SHARED_LABEL in labels else {SHARED_LABEL: CLAIMED, own: UNFIT}


def served(labels: Mapping[str, str], instance: str) -> Changes:
    """Return the changes that make both labels ``true``."""
    return {
        key: SERVING for key in (SHARED_LABEL, installation_label(instance)) if labels.get(key) != SERVING
    }


def withdrawn(labels: Mapping[str, str], instance: str) -> Changes:
    """Return the changes that keep new pods away from ``instance`` before its revert.

    The shared label keeps its value while another installation serves. Missing labels are not added.
    """
    own = installation_label(instance)
    keys = (own,) if _another_serves(labels, instance) else (SHARED_LABEL, own)
    return {key: CLAIMED for key in keys if labels.get(key, CLAIMED) != CLAIMED}


def released(labels: Mapping[str, str], instance: str) -> Changes:
    """Return the changes that remove the labels of ``instance``.

    The shared label is removed with the last installation label. It becomes ``false`` if other installations
    have labels and none of them serves. Without any installation label it is removed too: no installation
    would remove it, and the scheduler would send pods to a node that cannot run them.
    """
    own = installation_label(instance)
    changes: Changes = {own: None} if own in labels else {}
    if not other_installation_labels(labels, instance):
        return {SHARED_LABEL: None, **changes} if SHARED_LABEL in labels else changes
    return {**withdrawn(labels, instance), **changes}


def _another_serves(labels: Mapping[str, str], instance: str) -> bool:
    return SERVING in other_installation_labels(labels, instance).values()


CHANGES: Mapping[Goal, Callable[[Mapping[str, str], str], Changes]] = {
    "claimed": claimed,
    "served": served,
    "withdrawn": withdrawn,
    "released": released,
    "unfit": unfit,
}
"""The function for each goal."""
