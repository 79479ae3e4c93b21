"""Which labels an instance wants on its Node, and the changes that get them there and away again.

A Node is first *claimed* (``false``: something may be on it, nothing is to be scheduled there), then
*served* (``true``), on the way back *withdrawn* (``false`` again) and at the very end *released*
(gone). So whatever was begun, in either direction, can be found by a label until it is finished.

All functions are pure. A set of changes maps a label to its new value, or to ``None`` where the
label goes; an empty one means that the Node is as it should be. What they say holds for the labels
they were given, so the changes have to be made on exactly those, or worked out anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

SHARED_LABEL = "katacontainers.io/kata-runtime"
"""What RuntimeClasses select: some instance serves Kata handlers on this node."""

INSTALLATION_LABEL_PREFIX = "kata-deploy.katacontainers.io/"
"""Followed by the name of an instance: that one is on this node."""

SERVING = "true"
CLAIMED = "false"

Goal = Literal["claimed", "served", "withdrawn", "released"]
Changes = dict[str, str | None]


def installation_label(instance: str) -> str:
    """The label that only ``instance`` (its suffix, or ``default``) puts on a Node and takes off it."""
    return INSTALLATION_LABEL_PREFIX + instance


def other_installation_labels(labels: Mapping[str, str], instance: str) -> dict[str, str]:
    """The marks of all the other instances among ``labels``, whatever their value."""
    own = installation_label(instance)
    return {
        key: value
        for key, value in labels.items()
        if key.startswith(INSTALLATION_LABEL_PREFIX) and key != own
    }


def claimed(labels: Mapping[str, str], instance: str) -> Changes:
    """What to change before the first byte is written to the node of ``instance``.

    What says that it serves is left: it does so while it is installed again, and so do the others.
    """
    return {
        key: CLAIMED
        for key in (SHARED_LABEL, installation_label(instance))
        if labels.get(key) not in (SERVING, CLAIMED)
    }


def served(labels: Mapping[str, str], instance: str) -> Changes:
    """What to change so that the Node says that ``instance`` serves its handlers."""
    return {
        key: SERVING for key in (SHARED_LABEL, installation_label(instance)) if labels.get(key) != SERVING
    }


def withdrawn(labels: Mapping[str, str], instance: str) -> Changes:
    """What to change so that no pod comes for ``instance`` any more, while its files are still there.

    The shared label stays as it is while another instance serves. Labels that are not there are not made.
    """
    own = installation_label(instance)
    keys = (own,) if _another_serves(labels, instance) else (SHARED_LABEL, own)
    return {key: CLAIMED for key in keys if labels.get(key, CLAIMED) != CLAIMED}


def released(labels: Mapping[str, str], instance: str) -> Changes:
    """What to change so that nothing on the Node speaks of ``instance``.

    The shared label goes with the last mark, and while the others that are left only claim the Node
    it is ``false``. It also goes when it is found with no mark at all: nothing would ever take it
    away, and pods would go on being sent to a node that cannot run them.
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
}
"""How each goal is reached."""
