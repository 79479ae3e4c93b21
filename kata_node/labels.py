"""Which labels an instance wants on its Node, and the changes that get them there and away again.

All functions are pure. A set of changes maps a label to its new value, or to ``None`` where the
label goes; an empty one means that the Node is as it should be.
"""

from __future__ import annotations

from collections.abc import Mapping

SHARED = "katacontainers.io/kata-runtime"
"""What RuntimeClasses select: some instance serves Kata handlers on this node."""

MARK_PREFIX = "kata-deploy.katacontainers.io/"
"""Followed by the name of an instance: that one is on this node."""

SERVING = "true"


def mark(instance: str) -> str:
    """The label that only ``instance`` (its suffix, or ``default``) puts on a Node and takes off it."""
    return MARK_PREFIX + instance


def other_marks(labels: Mapping[str, str], instance: str) -> dict[str, str]:
    """The marks of all the other instances among ``labels``, whatever their value."""
    own = mark(instance)
    return {key: value for key, value in labels.items() if key.startswith(MARK_PREFIX) and key != own}


def wanted(labels: Mapping[str, str], instance: str) -> dict[str, str | None]:
    """What to change so that the Node says that ``instance`` serves its handlers."""
    return {key: SERVING for key in (SHARED, mark(instance)) if labels.get(key) != SERVING}


def unwanted(labels: Mapping[str, str], instance: str) -> dict[str, str | None]:
    """What to change so that the Node no longer says that ``instance`` is there.

    The shared label stays as it is while any other mark is left, and goes with the last one. It
    also goes when it is found with no mark at all: nothing would ever take it away, and pods would
    go on being sent to a node that cannot run them.
    """
    going = [mark(instance)] if other_marks(labels, instance) else [SHARED, mark(instance)]
    return {key: None for key in going if key in labels}
