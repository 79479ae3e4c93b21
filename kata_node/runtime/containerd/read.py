"""Read the files of containerd 2 as it does, and find what keeps it from serving. Pure.

:mod:`kata_node.runtime.containerd.config` has the measurements behind these rules.
"""

from __future__ import annotations

import contextlib
import posixpath
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from kata_node.errors import HostError
from kata_node.host.go_glob import is_malformed, matches
from kata_node.runtime.model.config import Glob, ReadFile, StartProblem, handler_conflict
from kata_node.runtime.model.programs import programs, uses
from kata_node.toml import edit as toml_edit
from kata_node.toml.edit import DuplicateKeyError

if TYPE_CHECKING:
    from kata_node.versions import Version

RUNTIME_PLUGIN = "io.containerd.cri.v1.runtime"
"""The plugin with the handlers, in schema 3 and later."""
SCHEMA_2_PLUGIN = "io.containerd.grpc.v1.cri"
"""The plugin with the handlers in schema 2. In every schema it is also the plugin that serves the CRI."""

HANDLER_PLUGINS = {1: "cri", 2: SCHEMA_2_PLUGIN, 3: RUNTIME_PLUGIN}
"""Schema -> the plugin with the handlers. 1.x does not know the plugin of schema 3, 2.x not that of 1."""

IMAGES_PLUGIN = "io.containerd.cri.v1.images"
"""The plugin with the snapshotter of each handler, in schema 3 and later."""

CRI_PLUGINS = (RUNTIME_PLUGIN, SCHEMA_2_PLUGIN, IMAGES_PLUGIN, "cri")
"""Plugins that containerd needs to serve the CRI; ``cri`` is the name in schema 1."""

BUILT_IN_HANDLER = "runc"
"""The handler that containerd 2 always has, without a table and beside other handlers."""

DEFAULT_HANDLER_KEY = "default_runtime_name"

DEFAULT_SCHEMA = 3
"""The schema of a drop-in where no file has a ``version``."""


KeyPath = tuple[str, ...]


def values_at(table: Mapping[str, Any], *keys: str) -> Iterator[tuple[KeyPath, Any]]:
    """Yield the values at ``plugins``, a plugin, and the further ``keys``, with their key paths as spelled.

    containerd 2 reads these keys in any case, and merges the tables of all spellings; only the name of a
    plugin has one. A value on the way that is no table is yielded too, with its shorter key path.
    """
    found: list[tuple[KeyPath, Any]] = [((), table)]
    for depth, key in enumerate(("plugins", *keys)):
        yield from ((path, value) for path, value in found if not isinstance(value, dict))
        found = [
            ((*path, spelling), value[spelling])
            for path, value in found
            if isinstance(value, dict)
            for spelling in value
            if (spelling if depth == 1 else spelling.lower()) == key
        ]
    yield from found


def tables_at(table: Mapping[str, Any], *keys: str) -> Iterator[tuple[KeyPath, Mapping[str, Any]]]:
    """Yield those of :func:`values_at` that are tables at the end of the ``keys``."""
    yield from (
        (path, value)
        for path, value in values_at(table, *keys)
        if len(path) == len(keys) + 1 and isinstance(value, dict)
    )


def imports(config: bytes, where: str = "") -> tuple[str, ...]:
    """Return the ``imports`` of one file, as written.

    Raises :class:`HostError` for the file ``where`` when it is not valid TOML or ``imports`` is not an array
    of strings.
    """
    return toml_edit.string_array(toml_edit.load(config, where), "imports", where)


def resolve_import(importer: str, entry: str) -> str:
    """Return the absolute path or glob of the import ``entry`` in the file ``importer``."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(importer), entry))
    return "/" + path.lstrip("/")


def is_glob(path: str) -> bool:
    """Return whether containerd reads an import as a pattern. A path without pattern must exist."""
    return "*" in path


def malformed_import(path: str) -> str:
    """Return the problem of an import with a malformed pattern; ``""`` for any other import."""
    if is_glob(path) and is_malformed(path):
        return f"it imports {path}, which is not a valid pattern; containerd does not start with that"
    return ""


def missing_import(importer: str, path: str) -> str:
    """Return the problem of an import of the file ``importer`` that does not exist."""
    visibility_note = (
        ""
        if path.startswith(f"{posixpath.dirname(importer)}/")
        else "; if it exists on the node, copy it to the directory of the importing file, "
        "where the pod can see it"
    )
    return f"it imports {path}, which does not exist; containerd does not start with that{visibility_note}"


def resolved_imports(files: Mapping[str, bytes]) -> Iterator[tuple[str, str]]:
    """Yield the path of each file with each of its imports, made absolute. Broken files import nothing."""
    for path, content in files.items():
        try:
            entries = imports(content, path)
        except HostError:
            continue
        for entry in entries:
            yield path, resolve_import(path, entry)


def is_imported(paths: Collection[str], files: Mapping[str, bytes]) -> bool:
    """Return whether an imported glob matches all ``paths``.

    A glob that does not end in ``.toml`` does not count: it would also match the temporary file of an
    interrupted write, and containerd would not start.
    """
    return any(
        pattern.endswith(".toml") and all(matches(pattern, path) for path in paths)
        for _, pattern in resolved_imports(files)
    )


def import_closure(main_path: str, read: ReadFile, glob: Glob) -> dict[str, bytes]:
    """Return by path every file that containerd reads, in its order, the main file first.

    Missing files are left out, so the result is empty without a main file.
    """
    files: dict[str, bytes] = {}
    pending = [main_path]
    while pending:
        path = pending.pop(0)
        content = None if path in files else read(path)
        if content is None:
            continue
        files[path] = content
        for _, entry in resolved_imports({path: content}):
            pending += glob(entry) if is_glob(entry) else [entry]
    return files


def in_read_order(main_path: str, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return those of ``files`` that containerd reads, in its order."""
    paths = sorted(files, key=lambda path: path.split("/"))
    return import_closure(main_path, files.get, lambda glob: [path for path in paths if matches(glob, path)])


def schema(files: Mapping[str, bytes]) -> int:
    """Return the schema that applies to all ``files``: the first ``version`` in them, in reading order."""
    for path, content in files.items():
        try:
            version = toml_edit.get(toml_edit.load(content, path), "version", path)
        except HostError:
            continue
        if isinstance(version, int) and not isinstance(version, bool) and version > 0:
            return version
    return DEFAULT_SCHEMA


def defined_handlers(main_path: str, files: Mapping[str, bytes]) -> frozenset[str]:
    """Return the handlers in those of ``files`` that containerd reads. Broken files define none."""
    found: set[str] = set()
    for path, content in in_read_order(main_path, files).items():
        for plugin in CRI_PLUGINS:
            with contextlib.suppress(HostError):
                found |= (
                    _ParsedFile(path, path, toml_edit.load(content, path), is_own=False)
                    .runtimes(plugin)
                    .keys()
                )
    return frozenset(found)


def default_handler(files: Mapping[str, bytes]) -> str:
    """Return the default handler that ``files``, which are in reading order, set; the last one wins."""
    found = ""
    for path, content in files.items():
        with contextlib.suppress(HostError):
            file = _ParsedFile(path, path, toml_edit.load(content, path), is_own=False)
            found = next(filter(None, map(file.default_runtime, CRI_PLUGINS)), found)
    return found


class _ParsedFile(Struct, frozen=True):
    path: str
    name: str
    """The path, and the setting that the content comes from."""
    table: Mapping[str, Any]
    is_own: bool

    def top_level_value(self, key: str) -> Any:
        return toml_edit.get(self.table, key, self.path)

    def runtimes(self, plugin: str) -> Mapping[str, Any]:
        """Return the handlers that the table of ``plugin`` defines.

        Raises :class:`HostError` when a value has the wrong type.
        """
        handlers: dict[str, Any] = {}
        for path, runtimes in self._tables(plugin, "containerd", "runtimes"):
            for handler, fields in runtimes.items():
                handlers[handler] = {
                    **handlers.get(handler, {}),
                    **self._require_table(fields, (*path, handler)),
                }
        return handlers

    def default_runtime(self, plugin: str) -> str:
        """Return the default handler in the table of ``plugin``, or ``""``.

        Raises :class:`HostError` when it is not a string.
        """
        default = ""
        for _, table in self._tables(plugin, "containerd"):
            for default in (table[key] for key in table if key.lower() == DEFAULT_HANDLER_KEY):
                if not isinstance(default, str):
                    raise HostError(
                        f"{DEFAULT_HANDLER_KEY} is not a string; containerd does not start with that",
                        where=self.path,
                    )
        return default

    def _tables(self, *keys: str) -> Iterator[tuple[KeyPath, Mapping[str, Any]]]:
        self.top_level_value("plugins")  # two spellings of it are an error
        for path, value in values_at(self.table, *keys):
            yield path, self._require_table(value, path)

    def _require_table(self, value: Any, path: KeyPath) -> Mapping[str, Any]:
        if not isinstance(value, dict):
            name = ".".join(path)
            raise HostError(f"{name} is not a table; containerd does not start with that", where=self.path)
        return value


def check(
    main_path: str,
    files: Mapping[str, bytes],
    *,
    own_paths: Collection[str],
    handlers: Collection[str],
    labels: Mapping[str, str] | None = None,
    exists: Callable[[str], bool] | None = None,
    version: Version | None = None,
    install_dir: str = "",
) -> list[str]:
    """Return every problem that would keep containerd from serving ``handlers``.

    Without ``exists`` no path outside ``files`` exists. Without ``version`` the rules of every supported 2.x
    apply. Handlers with programs below ``install_dir`` are no conflict. See
    :meth:`kata_node.runtime.model.config.CriConfig.check`.
    """
    labels = labels or {}
    files = in_read_order(main_path, files)
    problems: list[str] = []
    parsed_files: list[_ParsedFile] = []
    for path, content in files.items():
        name = f"{path} (from {labels[path]})" if path in labels else path
        try:
            file = _ParsedFile(path, name, toml_edit.load(content, path), path in own_paths)
            problems += _import_problems(
                file, lambda path: path in files or (exists is not None and exists(path))
            )
            problems += _plugin_problems(file, () if file.is_own else handlers, install_dir)
            for plugin in CRI_PLUGINS:
                file.default_runtime(plugin)
            _declared_version(file)
        except DuplicateKeyError as error:
            problems.append(f"{name}: {error.what}")
        except HostError as error:
            problems.append(StartProblem(f"{name}: {error.what}"))
        else:
            parsed_files.append(file)
    copies = {file.path for file in parsed_files if _copies_all(file, handlers, install_dir)}
    problems += _schema_problems(main_path, parsed_files, schema(files), version, copies)
    return problems + check_default_handler(files, schema(files), labels)


def check_default_handler(files: Mapping[str, bytes], schema: int, labels: Mapping[str, str]) -> list[str]:
    """Return the problem of the default handler in ``files``, if any; they are in reading order.

    The last file that has a default handler wins. Broken files are ignored: another check reports them.
    """
    plugin = SCHEMA_2_PLUGIN if schema == 2 else RUNTIME_PLUGIN
    known, default, name = {BUILT_IN_HANDLER}, "", ""
    for path, content in files.items():
        with contextlib.suppress(HostError):
            file = _ParsedFile(path, path, toml_edit.load(content, path), is_own=False)
            known.update(handler for each in CRI_PLUGINS for handler in file.runtimes(each))
            if found := file.default_runtime(plugin):
                default, name = found, f"{path} (from {labels[path]})" if path in labels else path
    if not default or default in known:
        return []
    return [
        f"{name}: its default_runtime_name is {default}, a handler that no file defines; containerd serves "
        "no CRI with that"
    ]


def _declared_version(file: _ParsedFile) -> int:
    version = file.top_level_value("version")
    if version is not None and (not isinstance(version, int) or isinstance(version, bool)):
        raise HostError("version is not a whole number", where=file.path)
    return version or 0


def _import_problems(file: _ParsedFile, exists: Callable[[str], bool]) -> Iterator[str]:
    for entry in toml_edit.string_array(file.table, "imports", file.path):
        path = resolve_import(file.path, entry)
        if problem := malformed_import(path):
            yield StartProblem(f"{file.name}: {problem}")
        elif not is_glob(path) and not exists(path):
            yield StartProblem(f"{file.name}: {missing_import(file.path, path)}")


def _plugin_problems(file: _ParsedFile, handlers: Collection[str], install_dir: str) -> Iterator[str]:
    for plugin in toml_edit.string_array(file.table, "disabled_plugins", file.path):
        if plugin in CRI_PLUGINS:
            yield (
                f"{file.name}: disabled_plugins has {plugin}, "
                "without which containerd serves no CRI; remove it"
            )
    for plugin in CRI_PLUGINS:
        for name, fields in file.runtimes(plugin).items():
            if name in handlers and not uses(programs(fields), install_dir):
                yield handler_conflict(file.name, name)


def _copies_all(file: _ParsedFile, handlers: Collection[str], install_dir: str) -> bool:
    """Return whether a file of another program has all ``handlers`` of the installation, in schema 3."""
    found = file.runtimes(RUNTIME_PLUGIN)
    return (
        bool(handlers)
        and not file.is_own
        and all(uses(programs(found.get(name)), install_dir) for name in handlers)
    )


def _schema_problems(
    main_path: str,
    files: list[_ParsedFile],
    effective_schema: int,
    version: Version | None,
    copies: Collection[str],
) -> Iterator[str]:
    """Yield the problems of files that are not written for the effective schema.

    Up to containerd 2.2 the files of ``copies`` hide our drop-in and serve the same handlers.
    """
    merges_before_migrating = version is None or not version.at_least(2, 3)
    for file in files:
        found = _declared_version(file)
        if merges_before_migrating and file.path in copies and found <= DEFAULT_SCHEMA:
            continue
        if found > effective_schema:
            problem = (
                f"{file.name}: its version = {found} is above version = {effective_schema} of {main_path}; "
                f"write the file for version = {effective_schema}"
            )
            yield problem if merges_before_migrating else StartProblem(problem)
        elif found > DEFAULT_SCHEMA and version is not None and merges_before_migrating:
            yield StartProblem(f"{file.name}: containerd {version} cannot read version = {found}")
        if not merges_before_migrating:
            continue
        if effective_schema == 2 and file.runtimes(RUNTIME_PLUGIN):
            yield (
                f"{file.name}: its runtimes under {RUNTIME_PLUGIN} would hide those under {SCHEMA_2_PLUGIN}; "
                f"move them to {SCHEMA_2_PLUGIN}, which version = 2 needs"
            )
        if effective_schema != 2 and file.is_own and file.runtimes(SCHEMA_2_PLUGIN):
            yield (
                f"{file.name}: containerd would not read its runtimes under {SCHEMA_2_PLUGIN} beside "
                f"version = {effective_schema}; move them to {RUNTIME_PLUGIN}"
            )
