"""What containerd reads, given its files, and what is wrong with it. Pure.

Callers use it through :mod:`kata_node.runtime.containerd.config`, which also has the measurements behind it.
"""

from __future__ import annotations

import contextlib
import posixpath
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kata_node.errors import HostError
from kata_node.host.go_glob import matches
from kata_node.runtime.model.config import Glob, ReadFile, handler_conflict
from kata_node.toml import edit as toml_edit

if TYPE_CHECKING:
    from kata_node.versions import Version

RUNTIME_PLUGIN = "io.containerd.cri.v1.runtime"
"""The plugin that holds the handlers, in every schema but 2."""
SCHEMA_2_PLUGIN = "io.containerd.grpc.v1.cri"
"""The same in schema 2. It is also the id of the plugin that serves the CRI, in every schema."""

HANDLER_PLUGINS = {1: "cri", 2: SCHEMA_2_PLUGIN, 3: RUNTIME_PLUGIN}
"""The plugin that has the handlers, by schema. containerd 1.x does not know the last, 2.x not the first."""

CRI_PLUGINS = (RUNTIME_PLUGIN, SCHEMA_2_PLUGIN, "io.containerd.cri.v1.images", "cri")
"""Plugins without any one of which containerd serves no CRI; ``cri`` is the name in schema 1."""

BUILT_IN_HANDLER = "runc"
"""The handler that containerd 2 has without any table, and whatever others there are."""

DEFAULT_SCHEMA = 3
"""The schema a drop-in may have where no file gives a ``version``."""


def imports(config: bytes, where: str = "") -> tuple[str, ...]:
    """The ``imports`` of one file, as written.

    Raises :class:`HostError` that names the file ``where``: it is not valid TOML, or ``imports`` is
    not an array of strings.
    """
    return toml_edit.string_array(toml_edit.load(config, where), "imports", where)


def resolve_import(importer: str, entry: str) -> str:
    """The absolute path or glob that ``entry`` means in the file at ``importer``."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(importer), entry))
    return "/" + path.lstrip("/")


def is_glob(path: str) -> bool:
    """Whether containerd takes an entry as a pattern; all others must exist."""
    return "*" in path


def missing_import(importer: str, path: str) -> str:
    """A sentence about an import of the file at ``importer`` that is nowhere to be found."""
    visibility_note = (
        ""
        if path.startswith(f"{posixpath.dirname(importer)}/")
        else ("; in a pod it may only be out of sight: a copy beside the importing file is not")
    )
    return f"it imports {path}, which is not there; containerd does not start with that{visibility_note}"


def resolved_imports(files: Mapping[str, bytes]) -> Iterator[tuple[str, str]]:
    """Each file's path with each entry it imports, made absolute. Broken files import nothing."""
    for path, content in files.items():
        try:
            entries = imports(content, path)
        except HostError:
            continue
        for entry in entries:
            yield path, resolve_import(path, entry)


def import_closure(main_path: str, read: ReadFile, glob: Glob) -> dict[str, bytes]:
    """Every file containerd reads, by its path, in the order it reads them; the main one first.

    ``read`` gives the content of a file, or ``None``; ``glob`` the paths a pattern matches, sorted.
    Files that are not there are left out, so the result is empty without a main file.
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
    """Those of ``files`` that containerd reads, in the order it reads them; the rest it never sees."""
    paths = sorted(files, key=lambda path: path.split("/"))
    return import_closure(main_path, files.get, lambda glob: [path for path in paths if matches(glob, path)])


def schema(files: Mapping[str, bytes]) -> int:
    """The schema that binds all: the first ``version`` given by any of ``files``, as ordered."""
    for path, content in files.items():
        try:
            version = toml_edit.get(toml_edit.load(content, path), "version", path)
        except HostError:
            continue
        if isinstance(version, int) and not isinstance(version, bool) and version > 0:
            return version
    return DEFAULT_SCHEMA


def handler_tables_below(
    path: str, content: bytes, install_dir: str, handlers: Collection[str]
) -> tuple[tuple[str, ...], ...]:
    """The key paths of those ``handlers`` in a file whose programs lie below ``install_dir``."""
    file = _ParsedFile(path, path, toml_edit.load(content, path), is_own=False)
    return tuple(
        ("plugins", plugin, "containerd", "runtimes", name)
        for plugin in CRI_PLUGINS
        for name, fields in file.runtimes(plugin).items()
        if name in handlers and str(fields.get("runtime_path", "")).startswith(f"{install_dir}/")
    )


def defined_handlers(main_path: str, files: Mapping[str, bytes]) -> frozenset[str]:
    """Every handler that those of ``files`` define which containerd reads; broken ones define none."""
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


@dataclass(frozen=True)
class _ParsedFile:
    path: str
    name: str
    """The path, and the setting its content comes from."""
    table: Mapping[str, Any]
    is_own: bool

    def top_level_value(self, key: str) -> Any:
        return toml_edit.get(self.table, key, self.path)

    def runtimes(self, plugin: str) -> Mapping[str, Any]:
        """The handlers that the table of ``plugin`` defines. Raises :class:`HostError` on a wrong type."""
        name = f"plugins.{plugin}.containerd.runtimes"
        handlers = self._table(self._containerd(plugin).get("runtimes"), name)
        for handler, fields in handlers.items():
            self._table(fields, f"{name}.{handler}")
        return handlers

    def default_runtime(self, plugin: str) -> str:
        """The handler of pods that ask for none, as the table of ``plugin`` has it; empty for nothing."""
        found = self._containerd(plugin).get("default_runtime_name", "")
        if not isinstance(found, str):
            raise HostError(
                "default_runtime_name is not a string; containerd does not start with that", where=self.path
            )
        return found

    def _containerd(self, plugin: str) -> Mapping[str, Any]:
        found, name = self.top_level_value("plugins"), "plugins"
        for part in (plugin, "containerd"):
            found, name = self._table(found, name).get(part), f"{name}.{part}"
        return self._table(found, name)

    def _table(self, value: Any, name: str) -> Mapping[str, Any]:
        if value is None:
            return {}
        if not isinstance(value, dict):
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
) -> list[str]:
    """Everything that would keep containerd from serving ``handlers``, a sentence each with its file.

    Of ``files``, by path, only those count that the main one imports; ``own_paths`` are those this
    instance writes, ``labels`` names the settings some of them come from. ``exists`` tells of a path
    not in ``files`` whether it is there; without it, none is. Without a ``version`` the rules of every
    supported containerd apply. An empty list is no proof that it serves: only the CRI can give that.
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
            problems += _plugin_problems(file, () if file.is_own else handlers)
            for plugin in CRI_PLUGINS:
                file.default_runtime(plugin)
            _declared_version(file)
        except HostError as error:
            problems.append(f"{name}: {error.what}")
        else:
            parsed_files.append(file)
    problems += _schema_problems(main_path, parsed_files, schema(files), version)
    return problems + check_default_handler(files, schema(files), labels)


def check_default_handler(files: Mapping[str, bytes], schema: int, labels: Mapping[str, str]) -> list[str]:
    """What is wrong with the default handler of ``files``, as ordered and of ``schema``; a sentence or none.

    The last file that names one has its way. Broken files are left to others.
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
        if not is_glob(path) and not exists(path):
            yield f"{file.name}: {missing_import(file.path, path)}"


def _plugin_problems(file: _ParsedFile, handlers: Collection[str]) -> Iterator[str]:
    for plugin in toml_edit.string_array(file.table, "disabled_plugins", file.path):
        if plugin in CRI_PLUGINS:
            yield f"{file.name}: disabled_plugins names {plugin}, without which containerd serves no CRI"
    for plugin in CRI_PLUGINS:
        for name in file.runtimes(plugin):
            if name in handlers:
                yield handler_conflict(file.name, name)


def _schema_problems(
    main_path: str, files: list[_ParsedFile], effective_schema: int, version: Version | None
) -> Iterator[str]:
    merges_before_migrating = version is None or not version.at_least(2, 3)
    for file in files:
        found = _declared_version(file)
        if found > effective_schema:
            yield (
                f"{file.name}: its version = {found} is above the {effective_schema} that {main_path} sets; "
                f"write it for version = {effective_schema}"
            )
        elif found > DEFAULT_SCHEMA and version is not None and merges_before_migrating:
            yield f"{file.name}: version = {found} is too new for containerd {version}"
        if not merges_before_migrating:
            continue
        if effective_schema == 2 and file.runtimes(RUNTIME_PLUGIN):
            yield (
                f"{file.name}: its runtimes under {RUNTIME_PLUGIN} would hide those under {SCHEMA_2_PLUGIN}, "
                f"where version = 2 has them; move them there"
            )
        if effective_schema != 2 and file.is_own and file.runtimes(SCHEMA_2_PLUGIN):
            yield (
                f"{file.name}: its runtimes under {SCHEMA_2_PLUGIN} would not be read beside "
                f"version = {effective_schema}; move them to {RUNTIME_PLUGIN}"
            )
