"""Judge copies of our handlers in files of other programs, before an install. Pure.

containerd 2 merges the tables of a handler, field by field; the later file wins. In containerd 1.x the last
file with the CRI plugin replaces the handlers of all others. A copy has every key, with containerd's default
where we set none.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from kata_node.errors import HostError
from kata_node.runtime.containerd.main import schema_of
from kata_node.runtime.containerd.read import (
    BUILT_IN_HANDLER,
    HANDLER_PLUGINS,
    RUNTIME_PLUGIN,
    SCHEMA_2_PLUGIN,
    tables_at,
    values_at,
)
from kata_node.runtime.model.config import CopyState, HandlerCopy, writer_of
from kata_node.runtime.model.programs import programs, uses
from kata_node.toml.edit import load

Handlers = Mapping[str, Mapping[str, Any]]

_DEFAULTS = {"sandboxer": "podsandbox", "sandbox_mode": "podsandbox"}
"""Keys of a handler with a default that is neither empty nor false."""


def merged_copies(
    files: Mapping[str, bytes],
    own_paths: Collection[str],
    before: Mapping[str, bytes],
    wanted: Collection[str],
    removed: Collection[str],
    install_dir: str,
    *,
    hidden_by_schema_3: bool = False,
) -> tuple[HandlerCopy, ...]:
    """Return the copies among ``files`` of containerd 2, which are in its reading order after the install.

    With ``hidden_by_schema_3`` our tables are not read if another file has a CRI section of schema 3.
    ``before`` are the current files at ``own_paths``. ``wanted`` and ``removed`` are handlers of the
    installation: those that the settings ask for, and others that the receipt records.
    """
    tables = {path: _handlers(content, path) for path, content in files.items()}
    foreign = [path for path in files if path not in own_paths]
    desired = _merged(tables[path] for path in files if path in own_paths)
    written = _merged(_handlers(content, path) for path, content in before.items())
    found: list[HandlerCopy] = []
    for path in foreign:
        hiding = _handlers(files[path], path, (RUNTIME_PLUGIN,)) if hidden_by_schema_3 else {}
        missing = tuple(name for name in wanted if name not in hiding)
        # A file with single handlers has to be corrected; a copy of the whole section is made again.
        if BUILT_IN_HANDLER in hiding and missing:
            found.append(HandlerCopy(path, missing, "incomplete", writer_of(path, files[path])))
            continue
        copied = {
            name: fields
            for name, fields in tables[path].items()
            if name in (*wanted, *removed) and uses(programs(fields), install_dir)
        }
        if not copied:
            continue
        served = _merged(tables[each] for each in files if each in own_paths or each == path)
        wrong = [name for name in copied if name in removed or not _is_same(served[name], desired.get(name))]
        stale = all(name in removed or _is_same(copied[name], written.get(name)) for name in wrong)
        state: CopyState = "same" if not wrong else "outdated" if stale else "different"
        found.append(HandlerCopy(path, tuple(wrong or copied), state, writer_of(path, files[path])))
    return tuple(found)


def replacing_copies(
    files: Mapping[str, bytes], desired: Handlers, install_dir: str
) -> tuple[HandlerCopy, ...]:
    """Return the file of containerd 1.x that replaces the handlers ``desired`` of the main file, if any.

    ``files`` are in its reading order, the main file first. A file without handlers is not a copy.
    """
    plugin = HANDLER_PLUGINS[schema_of(_load(content, path) for path, content in files.items())]
    _, *imported = files
    last = next((path for path in reversed(imported) if _has_plugin(files[path], path, plugin)), None)
    copied = _handlers(files[last], last, (plugin,)) if last else {}
    if last is None or not copied:
        return ()
    missing = [name for name in desired if name not in copied]
    wrong = [
        name
        for name, fields in desired.items()
        if name in copied
        and uses(programs(copied[name]), install_dir)
        and not _is_same(copied[name], _with_lower_keys(fields))
    ]
    state: CopyState = "incomplete" if missing else "different" if wrong else "same"
    return (HandlerCopy(last, tuple(missing or wrong or desired), state, writer_of(last, files[last])),)


def _is_same(found: Mapping[str, Any], wanted: Mapping[str, Any] | None) -> bool:
    """Return whether a table has every value of ``wanted``, and containerd's default for every other key."""
    return wanted is not None and all(
        _is_same(found.get(key, {}), wanted.get(key, {}))
        if isinstance(found.get(key, {}), dict) and isinstance(wanted.get(key, {}), dict)
        else _value(found, key) == _value(wanted, key)
        for key in {*found, *wanted}
    )


def _value(table: Mapping[str, Any], key: str) -> Any:
    """Return the value of a key; ``None`` when it is containerd's default."""
    value = table.get(key)
    return value if value and value != _DEFAULTS.get(key) else None


def _merged(each: Iterator[Handlers]) -> dict[str, dict[str, Any]]:
    """Return handlers as containerd 2 merges them; those of later files win."""
    merged: dict[str, dict[str, Any]] = {}
    for handlers in each:
        for name, fields in handlers.items():
            before = merged.get(name, {})
            options = before.get("options"), fields.get("options")
            merged[name] = {**before, **fields}
            if isinstance(options[0], dict) and isinstance(options[1], dict):
                merged[name]["options"] = {**options[0], **options[1]}
    return merged


def _handlers(
    content: bytes, where: str, plugins: tuple[str, ...] = (RUNTIME_PLUGIN, SCHEMA_2_PLUGIN)
) -> dict[str, dict[str, Any]]:
    """Return the handlers of a file, with their keys in lower case: containerd 2 reads them in any case."""
    found: dict[str, dict[str, Any]] = {}
    table = _load(content, where)
    for plugin in plugins:
        for _, runtimes in tables_at(table, plugin, "containerd", "runtimes"):
            for name, fields in runtimes.items():
                if isinstance(fields, dict):
                    found[name] = {**found.get(name, {}), **_with_lower_keys(fields)}
    return found


def _with_lower_keys(table: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key.lower(): _with_lower_keys(value) if isinstance(value, dict) else value
        for key, value in table.items()
    }


def _has_plugin(content: bytes, where: str, plugin: str) -> bool:
    return any(path[-1] == plugin for path, _ in values_at(_load(content, where), plugin))


def _load(content: bytes, where: str) -> Mapping[str, Any]:
    try:
        return load(content, where)
    except HostError:
        return {}
