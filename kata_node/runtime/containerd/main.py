"""What containerd 1.6 and 1.7 make of their main configuration file, and what is wrong with one. Pure.

An imported file replaces every plugin section it names (a drop-in with one handler wipes the sandbox
image, runc and all else of the CRI), so that an instance has its tables in the main file itself, as
one marked block. Measured on containerd 1.6.20 and 1.7.24, which do not differ but where it says so:

- Without a file, and with one that says ``version = 2`` only, they serve the same, to the last setting.
- The handlers of a file replace the built-in ones: the first ``runtimes.kata-…`` takes runc away, and
  the CRI does not load, as ``default_runtime_name`` is still ``runc``. An empty table of runtimes does
  that too. A runc of ``io.containerd.runc.v2`` alone puts it right: all of its settings are as they
  were built in, but that options which were given as their defaults are not given.
- A ``version`` of 0, 1 or none is schema 1: the plugin is ``cri``. There ``io.containerd.grpc.v1.cri``
  is passed over without a word; in schema 2 ``cri``, in ``plugins`` or in ``disabled_plugins``, stops
  the daemon. 3 and more stop 1.7; 1.6 takes them for 2.
- The last ``version`` of the main file and those it imports counts for all of them.
- Keys of the file and of its tables are found as written here or all in capitals, and the first wins
  over the second; ``Version`` is none. Imports are resolved as in 2.x, and a missing one stops the daemon.
- An imported file that has the CRI's table, were it empty, undoes all that the main file says of it.
- The ``snapshotter`` of a handler is passed over by 1.6; 1.7 uses it, and serves handlers of unknown ones.
- ``default_runtime`` (deprecated) is served as a handler ``default``, which is then the default one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from kata_node.errors import HostError
from kata_node.runtime.containerd.read import (
    HANDLER_PLUGINS,
    SCHEMA_2_PLUGIN,
    is_glob,
    missing_import,
    resolve_import,
)
from kata_node.toml import tables as toml_tables
from kata_node.toml.edit import load, quote, string_array

if TYPE_CHECKING:
    from kata_node.versions import Version

INITIAL_MAIN_FILE = b"""\
# Made by kata-node, as there was no configuration file. It goes with the last installation of Kata.
version = 2
"""
"""The main file where there was none, before it gets its block."""

RUNC, RUNC_TYPE = "runc", "io.containerd.runc.v2"
"""The handler that is built in until a file has any of its own."""


def schema_of(files: Iterable[Mapping[str, Any]]) -> int:
    """The schema that containerd 1.x reads all of ``files`` by, as ordered: 1 or 2."""
    given = [version for table in files if type(version := _value_of(table, "version")) is int and version]
    return 1 if not given or given[-1] == 1 else 2


def has_runc(block: bytes) -> bool:
    """Whether tables of ours bring runc."""
    return any(path[-2:] == ("runtimes", RUNC) for path in toml_tables.table_paths(block))


def keep_runc(remaining: bytes, block: bytes, *, where: str) -> bytes:
    """The file as ``left`` by taking ``block`` out, with the runc of that if it has handlers, and no runc.

    An administrator who added handlers beside ours found runc there: without it there may be no CRI.
    Raises :class:`HostError` when the file is broken.
    """
    table = load(remaining, where) if has_runc(block) else {}
    schema = schema_of([table])
    runtimes = _runtimes(table, schema)
    if not runtimes or RUNC in runtimes:
        return remaining
    path = ("plugins", HANDLER_PLUGINS[schema], "containerd", "runtimes", RUNC)
    text = f'[{toml_tables.dotted_key(path)}]\nruntime_type = "{RUNC_TYPE}"\n'
    line_end = b"\n" if not remaining.endswith(b"\n") else b""
    return remaining + line_end + b"\n" + text.encode()


def check_main(
    main_path: str,
    files: Mapping[str, bytes],
    *,
    instance: str,
    handlers: Collection[str],
    exists: Callable[[str], bool] | None = None,
    version: Version | None = None,
) -> list[str]:
    """Everything that would keep containerd 1.x from serving ``handlers``, a sentence each with its file.

    ``files`` has, by path and as ordered, what containerd reads: the main file, with our block or
    without it, and what it imports. ``exists`` tells of a path not in ``files`` whether it is there;
    without it, none is. Without a ``version`` the rules of all 1.x apply. An empty list is no proof
    that it serves: only the CRI can give that.
    """
    problems: list[str] = []
    tables: dict[str, Mapping[str, Any]] = {}
    for path, content in files.items():
        try:
            tables[path] = load(content, path)
        except HostError as error:
            problems.append(f"{path}: {error.what}")
    schema = schema_of(tables.values())
    for path, table in tables.items():
        found: list[str] = []
        try:
            found += _file_problems(table, path, schema, version)
            found += _import_problems(
                table, path, lambda path: path in files or bool(exists and exists(path))
            )
            if path == main_path:
                others = load(toml_tables.remove(files[path], instance, where=path), path)
                found += _main_file_problems(table, others, schema, handlers)
            elif HANDLER_PLUGINS[schema] in _subtable(table, "plugins"):
                found.append(
                    f"it names the plugin {HANDLER_PLUGINS[schema]}, which undoes all that {main_path} says "
                    "of it, handlers included; move it there"
                )
        except HostError as error:
            found.append(error.what)
        problems += [f"{path}: {text}" for text in found]
    return problems


def _file_problems(
    table: Mapping[str, Any], path: str, schema: int, version: Version | None
) -> Iterator[str]:
    found = _value_of(table, "version")
    if found is not None and (not isinstance(found, int) or isinstance(found, bool)):
        raise HostError("version is not a whole number", where=path)
    if found is not None and (found < 0 or (found > 2 and (version is None or version.at_least(1, 7)))):
        reader = version or "1.x"
        yield f"version = {found} is not one that containerd {reader} reads; write it for version = 2"
    for plugin in string_array(table, "disabled_plugins", path):
        if plugin == HANDLER_PLUGINS[schema]:
            yield f"disabled_plugins names {plugin}, without which containerd serves no CRI"
    for key in ("disabled_plugins", "required_plugins", "plugins"):
        names = _subtable(table, key) if key == "plugins" else string_array(table, key, path)
        for plugin in names:
            if schema == 2 and not _is_plugin_id(plugin, version):
                yield (
                    f"{key} names {plugin}, where version = 2 wants a name like io.containerd.grpc.v1.cri; "
                    "containerd does not start with that"
                )


def _import_problems(table: Mapping[str, Any], path: str, exists: Callable[[str], bool]) -> Iterator[str]:
    if _value_of(table, "imports") is None:
        return
    for entry in string_array(table, "imports", path):
        target = resolve_import(path, entry)
        if not is_glob(target) and not exists(target):
            yield missing_import(path, target)


def _main_file_problems(
    table: Mapping[str, Any], others: Mapping[str, Any], schema: int, own_handlers: Collection[str]
) -> Iterator[str]:
    """``table`` is the main file, ``others`` the same without our block."""
    table_above: Mapping[str, Any] = others
    for key in ("plugins", HANDLER_PLUGINS[schema], "containerd", "runtimes"):
        if key != HANDLER_PLUGINS[schema] and key.upper() in table_above:
            yield (
                f"it has {key.upper()} in capitals, which containerd passes over once there is {key}; "
                f"write it as {key}"
            )
        table_above = _subtable(table_above, key)
    for name in _runtimes(others, schema) or ():
        if name in own_handlers:
            yield (
                f"it defines the handler {name}, which this installation brings; remove it there, or give "
                "this installation an env.multiInstallSuffix"
            )
    if schema == 1 and _subtable(_subtable(_subtable(table, "plugins"), SCHEMA_2_PLUGIN), "containerd").get(
        "runtimes"
    ):
        yield (
            f"its handlers under {SCHEMA_2_PLUGIN} are not read by schema 1, which it has without a "
            "version = 2; add that line, and name all plugins by their long names"
        )
    containerd = _subtable(_subtable(_subtable(table, "plugins"), HANDLER_PLUGINS[schema]), "containerd")
    runtimes = _runtimes(table, schema)
    default = _value_of(containerd, "default_runtime_name")
    if default is not None and not isinstance(default, str):
        yield "default_runtime_name is not a string; containerd does not start with that"
    elif not _subtable(containerd, "default_runtime").get("runtime_type"):
        default = "runc" if default is None else default
        known = runtimes if runtimes is not None else {"runc": {}}
        if default not in known:
            yield (
                f"its default handler is {quote(default)}, which it does not define; "
                "containerd serves no CRI with that"
            )


def _is_plugin_id(plugin: str, version: Version | None) -> bool:
    """Whether schema 2 takes it for a plugin's name; 1.6 looks at the number of its parts alone."""
    lenient = version is not None and not version.at_least(1, 7)
    return plugin.count(".") >= 3 and (lenient or plugin.startswith("io.containerd."))


def _runtimes(table: Mapping[str, Any], schema: int) -> Mapping[str, Any] | None:
    """The handlers a file defines under the plugin of schema ``number``; ``None`` without such a table.

    Raises :class:`HostError` when anything on the way is no table.
    """
    containerd = _subtable(_subtable(_subtable(table, "plugins"), HANDLER_PLUGINS[schema]), "containerd")
    if _value_of(containerd, "runtimes") is None:
        return None
    runtimes = _subtable(containerd, "runtimes")
    for name in runtimes:
        _subtable(runtimes, name)
    return runtimes


def _value_of(table: Mapping[str, Any], key: str) -> Any:
    """The value of ``key`` as containerd 1.x finds it; ``None`` for nothing."""
    return table.get(key, table.get(key.upper()))


def _subtable(table: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = _value_of(table, key)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise HostError(f"{key} is not a table; containerd does not start with that")
    return found
