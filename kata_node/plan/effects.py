"""What an action would change, as data that a plan shows to people and prints as JSON. Pure."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

MAX_TEXT_SIZE = 1 << 20
"""Bytes of the largest file whose content is read only to show a change."""

Change = Literal["add", "change", "remove"]
UnitOperation = Literal["restart", "reload", "wait for", "start", "stop"]


class Effect(Struct, frozen=True):
    """One change, as a line for people. The subclasses have its parts."""

    line: str


class PathEffect(Effect, frozen=True):
    """The change of one path on the node."""

    path: str
    change: Change
    kind: Literal["file", "link", "dir"] = "file"
    size: int = 0
    """The bytes of a file that is written, or that a removal frees."""
    before: bytes | None = None
    """The previous content of a text file; ``None`` if there is none, or if it is not known."""
    after: bytes | None = None
    """The new content of a text file; ``None`` if there is none, or if it comes from the payload."""
    is_configuration: bool = False
    """Whether the container runtime reads this file."""
    is_secret: bool = False
    """Whether any value in it can be a password, so that a diff shows no string."""


class UnitEffect(Effect, frozen=True):
    """A systemd unit that is started, stopped or restarted.

    ``reload`` and ``wait for`` restart the unit only if it does not load the change by itself.
    """

    unit: str
    operation: UnitOperation
    is_runtime: bool = False
    only_if_running: bool = False


class LabelEffect(Effect, frozen=True):
    """A label of the Node; ``value`` is ``None`` for a label that is removed."""

    key: str
    value: str | None


def written_file(
    path: str,
    before: bytes | None,
    after: bytes,
    *,
    is_configuration: bool = False,
    is_secret: bool = False,
) -> PathEffect:
    """Return the effect of writing a small file. ``before`` is ``None`` for a new file."""
    change: Change = "add" if before is None else "change"
    line = f"{'write' if before is None else 'change'} {path}"
    return PathEffect(
        line,
        path,
        change,
        size=len(after),
        before=before,
        after=after,
        is_configuration=is_configuration,
        is_secret=is_secret,
    )


def removed_file(
    path: str, before: bytes, *, is_configuration: bool = False, is_secret: bool = False
) -> PathEffect:
    """Return the effect of removing a small file."""
    return PathEffect(
        f"remove {path}",
        path,
        "remove",
        size=len(before),
        before=before,
        is_configuration=is_configuration,
        is_secret=is_secret,
    )
