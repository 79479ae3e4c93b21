"""Merge a Kata configuration and its drop-ins as Kata does, and render drop-ins. Pure.

Facts from the source of both Kata runtimes: drop-ins are read in the lexical order of their names. Tables are
merged key by key. All other values are replaced, arrays as a whole, including arrays of tables. So a drop-in
can change a key but not remove it. For ``image`` and ``initrd`` the empty string means "not set".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from kata_node.toml import render as toml

Table = Mapping[str, Any]


def merge(base: Table, drop_ins: Mapping[str, bytes]) -> dict[str, Any]:
    """Return ``base`` with ``drop_ins`` (content by file name) merged into it, as Kata reads it.

    Raises :class:`tomllib.TOMLDecodeError` if a drop-in is not valid TOML. Kata does not start a pod then.
    """
    from kata_node.toml.parse import parse

    merged: dict[str, Any] = dict(base)
    for name in sorted(drop_ins):
        merged = overlay(merged, parse(drop_ins[name].decode()))
    return merged


def overlay(
    base: Table, override: Table, replaces: Callable[[Any, Any], bool] = lambda old, new: True
) -> dict[str, Any]:
    """Return ``base`` with ``override`` merged into it. Does not change either.

    ``replaces`` decides whether a value of ``override`` replaces that of ``base``, which is ``None`` if there
    is none.
    """
    merged = dict(base)
    for key, value in override.items():
        current = base.get(key)
        if isinstance(current, Mapping) and isinstance(value, Mapping):
            merged[key] = overlay(current, value, replaces)
        elif replaces(current, value):
            merged[key] = value
    return merged


def relocated_paths(table: Table, old: str, new: str) -> dict[str, Any]:
    """Return the values of ``table`` that are ``old`` or paths below it, with ``old`` replaced by ``new``.

    The result is an override for ``table``: it has no other keys, but an array with one such item is in it
    as a whole.
    """
    changed: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            if inner := relocated_paths(value, old, new):
                changed[key] = inner
        elif (relocated := _relocate(value, old, new)) != value:
            changed[key] = relocated
    return changed


def _relocate(value: Any, old: str, new: str) -> Any:
    if isinstance(value, str):
        return new + value.removeprefix(old) if is_below(value, old) else value
    if isinstance(value, list):
        return [_relocate(item, old, new) for item in value]
    if isinstance(value, Mapping):
        return {key: _relocate(item, old, new) for key, item in value.items()}
    return value


def section(table: Table, *keys: str) -> dict[str, Any]:
    """Return a copy of the table at ``keys``; an empty one if there is none."""
    for key in keys:
        table = table.get(key, {})
        if not isinstance(table, dict):
            return {}
    return dict(table)


def nested(keys: Sequence[str], value: Table) -> dict[str, Any]:
    """Return a table that has ``value`` at ``keys``; an empty one if ``value`` is empty."""
    for key in reversed(keys):
        value = {key: value} if value else {}
    return dict(value)


def is_below(path: str, directory: str) -> bool:
    """Return whether ``path`` is ``directory`` or below it."""
    return path == directory or path.startswith(f"{directory}/")


def all_strings(value: Any) -> Iterator[str]:
    """Yield every string in ``value`` and in the arrays and tables in it."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from all_strings(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from all_strings(item)


def render(content: Table, header_comment: str) -> bytes:
    """Return ``content`` as the TOML of a drop-in. ``header_comment`` is its second line."""
    return toml.render(content, ("Managed by kata-node, changes here are lost.", header_comment))
