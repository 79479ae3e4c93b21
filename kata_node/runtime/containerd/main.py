"""The main file of containerd 1.6 and 1.7: how it is read, and what keeps it from serving. Pure.

An imported file replaces every plugin table that it has: a drop-in with one handler removes the sandbox
image, runc and all other settings of the CRI. So an installation has its tables in the main file, as a
managed block. Measured on containerd 1.6.20 and 1.7.24, which behave the same unless noted:

- A file with only ``version = 2`` serves exactly what a node without main file serves.
- The handlers of a file replace the built-in ones. The first ``runtimes.kata-…``, or an empty table of
  runtimes, removes runc. Then the CRI does not load, because ``default_runtime_name`` is still ``runc``. A
  runc with only the type ``io.containerd.runc.v2`` repairs this. Its settings equal the built-in ones; only
  options with default values are missing.
- A ``version`` of 0 or 1, or none, is schema 1, with the plugin ``cri``. Schema 1 silently ignores
  ``io.containerd.grpc.v1.cri``. In schema 2, containerd does not start with ``cri`` in ``plugins`` or
  ``disabled_plugins``. 1.7 does not start with a ``version`` of 3 or more; 1.6 reads it as 2.
- The last ``version`` in the main file and its imports counts for all of them.
- Keys of the file and of its tables are found as spelled here or in capitals; the former wins. ``Version`` is
  not found. Imports are resolved as in 2.x. containerd does not start with a missing import.
- An imported file with a CRI table, even an empty one, replaces the whole CRI table of the main file.
- 1.6 ignores the ``snapshotter`` of a handler. 1.7 uses it, and serves handlers with an unknown snapshotter.
- ``default_runtime`` (deprecated) is served as the handler ``default``, which becomes the default handler.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from kata_node.errors import HostError
from kata_node.runtime.containerd.read import (
    HANDLER_PLUGINS,
    SCHEMA_2_PLUGIN,
    is_glob,
    malformed_import,
    missing_import,
    resolve_import,
)
from kata_node.runtime.model.config import StartProblem
from kata_node.runtime.model.programs import programs, uses
from kata_node.toml import tables as toml_tables
from kata_node.toml.edit import DuplicateKeyError, load, quote, string_array

if TYPE_CHECKING:
    from kata_node.versions import Version

RUNC, RUNC_TYPE = "runc", "io.containerd.runc.v2"
"""The handler, and its type, that is built in as long as no file defines a handler."""


def schema_of(files: Iterable[Mapping[str, Any]]) -> int:
    """Return the schema, 1 or 2, by which containerd 1.x reads ``files``, which are in its reading order."""
    given = [version for table in files if type(version := _value_of(table, "version")) is int and version]
    return 1 if not given or given[-1] == 1 else 2


def has_runc(block: bytes) -> bool:
    """Return whether a managed block defines runc."""
    return any(path[-2:] == ("runtimes", RUNC) for path in toml_tables.table_paths(block))


def keep_runc(remaining: bytes, block: bytes, *, where: str) -> bytes:
    """Return the file ``remaining`` after the removal of ``block``, with the runc of ``block`` if needed.

    It is needed if ``remaining`` has foreign handlers but no runc. They were added while our block defined
    runc, and without runc the CRI may not load. Raises :class:`HostError` when the file is broken.
    """
    table = load(remaining, where) if has_runc(block) else {}
    schema = schema_of([table])
    try:
        runtimes = _runtimes(table, schema)
    except HostError as error:
        raise HostError(error.what, where=where, hint="correct this value in the file") from error
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
    install_dir: str = "",
) -> list[str]:
    """Return every problem that would keep containerd 1.x from serving ``handlers``.

    ``files`` has, by path and in reading order, the main file, with or without our block, and its imports.
    Without ``exists`` no path outside ``files`` exists. Without ``version`` the rules of all 1.x apply.
    Handlers with programs below ``install_dir`` are no conflict. See
    :meth:`kata_node.runtime.model.config.CriConfig.check`.
    """
    problems: list[str] = []
    tables: dict[str, Mapping[str, Any]] = {}
    for path, content in files.items():
        try:
            tables[path] = load(content, path)
        except HostError as error:
            problems.append(StartProblem(f"{path}: {error.what}"))
    schema = schema_of(tables.values())
    for path, table in tables.items():
        found: list[str] = []
        try:
            found += _file_problems(table, path, schema, version)
            found += _import_problems(
                table, path, lambda path: path in files or bool(exists and exists(path))
            )
            if path == main_path:
                without_block = load(toml_tables.remove(files[path], instance, where=path), path)
                found += _main_file_problems(table, without_block, schema, handlers, install_dir)
            elif HANDLER_PLUGINS[schema] in _subtable(table, "plugins"):
                copied = _runtimes(table, schema) or {}
                if not handlers or not all(
                    uses(programs(copied.get(name)), install_dir) for name in handlers
                ):
                    found.append(
                        f"its table of the plugin {HANDLER_PLUGINS[schema]} replaces that of {main_path}, "
                        f"handlers included; move it to {main_path}"
                    )
        except DuplicateKeyError as error:
            found.append(error.what)
        except HostError as error:
            found.append(StartProblem(error.what))
        problems += [type(text)(f"{path}: {text}") for text in found]
    return problems


def _file_problems(
    table: Mapping[str, Any], path: str, schema: int, version: Version | None
) -> Iterator[str]:
    found = _value_of(table, "version")
    if found is not None and (not isinstance(found, int) or isinstance(found, bool)):
        raise HostError("version is not a whole number", where=path)
    if found is not None and (found < 0 or (found > 2 and (version is None or version.at_least(1, 7)))):
        reader = version or "1.x"
        yield StartProblem(
            f"containerd {reader} cannot read version = {found}; write the file for version = 2"
        )
    for plugin in string_array(table, "disabled_plugins", path):
        if plugin == HANDLER_PLUGINS[schema]:
            yield f"disabled_plugins has {plugin}, without which containerd serves no CRI; remove it"
    for key in ("disabled_plugins", "required_plugins", "plugins"):
        names = _subtable(table, key) if key == "plugins" else string_array(table, key, path)
        for plugin in names:
            if schema == 2 and not _is_plugin_id(plugin, version):
                yield StartProblem(
                    f"{key} has {plugin}, but version = 2 needs a name like io.containerd.grpc.v1.cri; "
                    "containerd does not start with that"
                )


def _import_problems(table: Mapping[str, Any], path: str, exists: Callable[[str], bool]) -> Iterator[str]:
    if _value_of(table, "imports") is None:
        return
    for entry in string_array(table, "imports", path):
        target = resolve_import(path, entry)
        if problem := malformed_import(target):
            yield StartProblem(problem)
        elif not is_glob(target) and not exists(target):
            yield StartProblem(missing_import(path, target))


def _main_file_problems(
    table: Mapping[str, Any],
    without_block: Mapping[str, Any],
    schema: int,
    own_handlers: Collection[str],
    install_dir: str,
) -> Iterator[str]:
    """Yield the problems of the main file. ``without_block`` is the same file without our block."""
    table_above: Mapping[str, Any] = without_block
    for key in ("plugins", HANDLER_PLUGINS[schema], "containerd", "runtimes"):
        if key != HANDLER_PLUGINS[schema] and key.upper() in table_above:
            yield (
                f"it has {key.upper()} in capitals, which containerd ignores once the file has {key}; "
                f"write it as {key}"
            )
        table_above = _subtable(table_above, key)
    for name, fields in (_runtimes(without_block, schema) or {}).items():
        if name in own_handlers and not uses(programs(fields), install_dir):
            yield (
                f"it defines the handler {name}, which this installation also defines; remove it from this "
                "file, or set env.multiInstallSuffix"
            )
    if schema == 1 and _subtable(_subtable(_subtable(table, "plugins"), SCHEMA_2_PLUGIN), "containerd").get(
        "runtimes"
    ):
        yield (
            f"containerd does not read its handlers under {SCHEMA_2_PLUGIN}, because the file has no "
            "version = 2; add that line, and use the long names of all plugins"
        )
    containerd = _subtable(_subtable(_subtable(table, "plugins"), HANDLER_PLUGINS[schema]), "containerd")
    runtimes = _runtimes(table, schema)
    default = _value_of(containerd, "default_runtime_name")
    if default is not None and not isinstance(default, str):
        yield StartProblem("default_runtime_name is not a string; containerd does not start with that")
    elif not _subtable(containerd, "default_runtime").get("runtime_type"):
        default = "runc" if default is None else default
        known = runtimes if runtimes is not None else {"runc": {}}
        if default not in known:
            yield (
                f"its default_runtime_name is {quote(default)}, a handler that it does not define; "
                "containerd serves no CRI with that"
            )


def _is_plugin_id(plugin: str, version: Version | None) -> bool:
    """Return whether schema 2 accepts the name of a plugin. 1.6 checks only the number of its parts."""
    lenient = version is not None and not version.at_least(1, 7)
    return plugin.count(".") >= 3 and (lenient or plugin.startswith("io.containerd."))


def _runtimes(table: Mapping[str, Any], schema: int) -> Mapping[str, Any] | None:
    """Return the handlers that a file defines under the plugin of ``schema``; ``None`` without their table.

    Raises :class:`HostError` when a value on that key path is not a table.
    """
    containerd = _subtable(_subtable(_subtable(table, "plugins"), HANDLER_PLUGINS[schema]), "containerd")
    if _value_of(containerd, "runtimes") is None:
        return None
    runtimes = _subtable(containerd, "runtimes")
    for name in runtimes:
        _subtable(runtimes, name)
    return runtimes


def _value_of(table: Mapping[str, Any], key: str) -> Any:
    """Return the value of ``key`` as containerd 1.x finds it, or ``None``."""
    return table.get(key, table.get(key.upper()))


def _subtable(table: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = _value_of(table, key)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise HostError(f"{key} is not a table; containerd does not start with that")
    return found
