"""What Kata makes of a configuration and its drop-ins, and how to say a change of it. Pure.

By the source of both runtimes: drop-ins are taken in the lexical order of their names. Tables merge key
by key; everything else replaces what was there, arrays as a whole, tables in arrays included. So a
drop-in can change a key and cannot take one away; where an empty string means "not set", as it does
for ``image`` and ``initrd``, that is how to unset it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kata_node.settings.values import describe_value

Table = Mapping[str, Any]


def merge(base: Table, drop_ins: Mapping[str, bytes]) -> dict[str, Any]:
    """What Kata reads: ``base``, and over it ``drop_ins``, by their file names.

    Raises :class:`tomllib.TOMLDecodeError`, as Kata refuses to start a pod then.
    """
    import tomllib

    merged: dict[str, Any] = dict(base)
    for name in sorted(drop_ins):
        merged = overlay(merged, tomllib.loads(drop_ins[name].decode()))
    return merged


def overlay(base: Table, override: Table) -> dict[str, Any]:
    """One merge of two tables; neither is changed."""
    merged = dict(base)
    for key, value in override.items():
        there = base.get(key)
        if isinstance(there, Mapping) and isinstance(value, Mapping):
            merged[key] = overlay(there, value)
        else:
            merged[key] = value
    return merged


def relocated_paths(table: Table, old: str, new: str) -> dict[str, Any]:
    """Those values of ``table`` that are paths at or below ``old``, as paths at or below ``new``.

    Laid over ``table`` they move all of them and change nothing else: an array with one such item is
    there as a whole.
    """
    changed: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            if inner := relocated_paths(value, old, new):
                changed[key] = inner
        elif (there := _relocate(value, old, new)) != value:
            changed[key] = there
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
    """The table at ``keys``; an empty one when there is none."""
    for key in keys:
        table = table.get(key, {})
        if not isinstance(table, dict):
            return {}
    return dict(table)


def nested(keys: Sequence[str], value: Table) -> dict[str, Any]:
    """``value`` as the table at ``keys``; nothing when it is empty."""
    for key in reversed(keys):
        value = {key: value} if value else {}
    return dict(value)


def is_below(path: str, directory: str) -> bool:
    """Whether ``path`` is ``directory`` or lies in it."""
    return path == directory or path.startswith(f"{directory}/")


def all_strings(value: Any) -> Iterator[str]:
    """Every string in ``value``, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from all_strings(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from all_strings(item)


def type_conflicts(base: Table, override: Table, path: str = "") -> Iterator[str]:
    """Sentences about what in ``over`` is of another type than in ``base``: Kata reads neither then."""
    for key, value in override.items():
        name = f"{path}.{key}" if path else key
        there = base.get(key)
        if isinstance(there, Mapping) and isinstance(value, Mapping):
            yield from type_conflicts(there, value, name)
        elif there is not None and _comparable_type(there) != _comparable_type(value):
            yield (
                f"{name} is {describe_value(value)}, and {describe_value(there)} in the configuration "
                "of the shim"
            )


def _comparable_type(value: object) -> type:
    # Kata's whole and broken numbers are not told apart here: runtime-rs takes 1 for 1.0.
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float
    return type(value)


def render(content: Table, header_comment: str) -> bytes:
    """``content`` as a drop-in of ours; ``about`` is a sentence for whoever opens it."""
    import tomlkit

    document = tomlkit.document()
    document.add(tomlkit.comment("Managed by kata-node, changes here are lost."))
    document.add(tomlkit.comment(header_comment))
    document.add(tomlkit.nl())
    for key, value in content.items():
        document.add(key, _toml_item(value))
    return document.as_string().encode()


def _toml_item(value: Any) -> Any:
    """With headers for tables, but for those that hold nothing but tables."""
    import tomlkit

    if _is_list_of_tables(value):
        tables = tomlkit.aot()
        for item in value:
            tables.append(_toml_item(item))
        return tables
    if not isinstance(value, Mapping):
        return tomlkit.item(value)
    table = tomlkit.table(is_super_table=all(isinstance(item, Mapping) for item in value.values()))
    for key, item in value.items():
        table.add(key, _toml_item(item))
    return table


def _is_list_of_tables(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, Mapping) for item in value)
