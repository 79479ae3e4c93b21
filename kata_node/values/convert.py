"""Convert the text of a values file: old keys become present ones, and comments stay."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from kata_node.errors import SettingsError
from kata_node.settings.values import parse_values
from kata_node.values import yaml_text
from kata_node.values.old_keys import Change, conversion


class Converted(Struct, frozen=True):
    """The converted text, and what a person should look at."""

    text: str
    notes: tuple[str, ...]


def convert(text: str, where: str) -> Converted:
    """Return the converted ``text`` of the file ``where``.

    Raises :class:`SettingsError` when the file cannot be changed without a change of other values, for
    example because it has an anchor at an old key.
    """
    before = _parse(text, where)
    plan = conversion(before)
    if plan.changes and not text.endswith("\n"):
        # A block of text on the last line ends there. An edit could put a line behind it.
        text += "\n"
        before = _parse(text, where)
    expected = _copy(before)
    for change in plan.changes:
        text = _edit(text, change, where)
        _apply(expected, change)
    if _copy(_parse(text, where)) != expected:
        raise _cannot_convert(where)
    return Converted(text, tuple(plan.notes))


def _edit(text: str, change: Change, where: str) -> str:
    try:
        if change.renamed:
            return yaml_text.rename(text, change.old, change.renamed)
        comments: list[str] = []
        if change.old:
            text, comments = yaml_text.remove(text, change.old, keep_comments=not change.new)
        for path, value in change.new.items():
            text = yaml_text.put(text, path, value, comments)
            comments = []
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _cannot_convert(where) from error
    return text


def _apply(values: dict[str, Any], change: Change) -> None:
    """Make a change of the content."""
    if change.renamed:
        values[change.old[0]] = {
            (change.renamed if key == change.old[1] else key): below
            for key, below in values[change.old[0]].items()
        }
        return
    if change.old:
        _remove(values, change.old)
    for path, value in change.new.items():
        below = values
        for key in path[:-1]:
            if not isinstance(below.get(key), dict):
                below[key] = {}
            below = below[key]
        below[path[-1]] = value


def _remove(values: dict[str, Any], path: tuple[str, ...]) -> None:
    parent = values if len(path) == 1 else values[path[0]]
    del parent[path[-1]]
    if not parent and len(path) > 1:
        del values[path[0]]


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(below) for key, below in value.items()}
    return [_copy(each) for each in value] if isinstance(value, list) else value


def _parse(text: str, where: str) -> dict[Any, Any]:
    return dict(parse_values(text, where, hint="correct the YAML, then run again", as_helm=True))


def _cannot_convert(where: str) -> SettingsError:
    return SettingsError(
        "the file cannot be converted without changing other values",
        where=where,
        hint="replace anchors, aliases and merged keys of the file by their values, then run again",
    )
