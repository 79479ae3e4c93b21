"""Read the files of CRI-O as it does, and find what keeps it from serving. Pure.

:mod:`kata_node.runtime.crio` has the sources of these rules.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from msgspec import Struct

from kata_node.errors import HostError
from kata_node.runtime.model.config import ReadFile, StartProblem
from kata_node.toml import edit as toml_edit

BUILT_IN_HANDLERS = frozenset({"crun", "runc"})
"""Handlers that CRI-O has without a table: ``runc`` up to 1.30, ``crun`` since then."""

DEFAULT_HANDLER_KEY = "default_runtime"

STORAGE_DRIVER = "overlay"

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SHIM_NAME = re.compile(r"containerd-shim-[A-Za-z0-9+-]+-v2")
_TEXT, _FLAG, _TEXTS = "a string", "a boolean", "an array of strings"
_STORAGE_FIELDS = {"storage_driver": _TEXT, "storage_option": _TEXTS}
_RUNTIME_FIELDS = {DEFAULT_HANDLER_KEY: _TEXT, "log_level": _TEXT}
_HANDLER_FIELDS = {
    **dict.fromkeys(("runtime_path", "runtime_type", "runtime_root", "runtime_config_path"), _TEXT),
    **dict.fromkeys(("monitor_path", "monitor_cgroup", "container_min_memory", "seccomp_profile"), _TEXT),
    **dict.fromkeys(("privileged_without_host_devices", "runtime_pull_image", "no_sync_log"), _FLAG),
    **dict.fromkeys(("inherit_default_runtime", "stream_websockets"), _FLAG),
    **dict.fromkeys(("allowed_annotations", "monitor_env"), _TEXTS),
}


_OF_THE_MONITOR = ("monitor_path", "monitor_cgroup", "monitor_env")
_DEFAULTS = {"container_min_memory": "12MiB"}
"""Keys of a handler with a default that is neither empty nor false."""


def is_same_handler(one: Mapping[str, Any], other: Mapping[str, Any] | None) -> bool:
    """Return whether two tables of a shim are the same to CRI-O.

    ``crio config`` prints every key, with the default where no file sets it. Only runtimes without a shim
    have a monitor.
    """
    return other is not None and all(
        _value(one, key) == _value(other, key) for key in {*one, *other}.difference(_OF_THE_MONITOR)
    )


def _value(table: Mapping[str, Any], key: str) -> Any:
    """Return the value of a key; ``None`` when it is CRI-O's default."""
    value = table.get(key)
    return value if value and value != _DEFAULTS.get(key) else None


def read_file(read: ReadFile, path: str) -> bytes | None:
    """Return the content of a file; ``None`` for an empty directory, which a glob also finds."""
    try:
        return read(path)
    except HostError as error:
        if isinstance(error.__cause__, IsADirectoryError):
            return None
        raise


class ParsedFile(Struct, frozen=True):
    """The relevant settings of one configuration file."""

    path: str
    handlers: Mapping[str, Mapping[str, Any]]
    default_runtime: str
    storage_driver: str
    storage_options: tuple[str, ...]

    @classmethod
    def read(cls, path: str, content: bytes) -> ParsedFile:
        """Parse a file. Raise :class:`HostError` when CRI-O would not start with it."""
        # Unlike tomllib, the parser of CRI-O ignores a byte order mark.
        table = toml_edit.load(content.removeprefix(BYTE_ORDER_MARK), path)
        crio = _table(table, "crio", "crio", path)
        storage = _fields(crio, _STORAGE_FIELDS, "crio", path)
        runtime = _table(crio, "runtime", "crio.runtime", path)
        runtimes = _table(runtime, "runtimes", "crio.runtime.runtimes", path)
        return cls(
            path,
            {
                name: _fields(_table(runtimes, name, where, path, exact=True), _HANDLER_FIELDS, where, path)
                for name in runtimes
                for where in (f"crio.runtime.runtimes.{name}",)
            },
            _fields(runtime, _RUNTIME_FIELDS, "crio.runtime", path).get(DEFAULT_HANDLER_KEY, ""),
            storage.get("storage_driver", ""),
            tuple(storage.get("storage_option", ())),
        )


def _table(
    above: Mapping[str, Any], key: str, name: str, path: str, *, exact: bool = False
) -> Mapping[str, Any]:
    """Return the table under ``key``, which matches in any case unless ``exact``. ``name`` is for errors."""
    value = above[key] if exact else toml_edit.get(above, key, path)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise HostError(f"{name} is not a table; CRI-O does not start with that", where=path)
    return value


def key_path(table: Mapping[str, Any], *keys: str) -> tuple[str, ...]:
    """Return the key path of ``keys``, which the table has, as spelled in the file."""
    path: tuple[str, ...] = ()
    for key in keys:
        path = (*path, next(spelling for spelling in table if spelling.lower() == key))
        table = table[path[-1]]
    return path


def _fields(table: Mapping[str, Any], kinds: Mapping[str, str], name: str, path: str) -> dict[str, Any]:
    """Return those keys of ``kinds`` that the table has, in lower case, with their values."""
    fields = {key: toml_edit.get(table, key, path) for key in kinds}
    for key, value in fields.items():
        if value is not None and not _has_type(kinds[key], value):
            what = f"{name}.{key} is not {kinds[key]}; CRI-O does not start with that"
            raise HostError(what, where=path)
    return {key: value for key, value in fields.items() if value is not None}


def _has_type(kind: str, value: object) -> bool:
    if kind == _TEXTS:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    return isinstance(value, bool if kind == _FLAG else str)


def parsed_files_of(files: Mapping[str, bytes]) -> Iterator[ParsedFile]:
    """Yield the files that are not broken."""
    for path, content in files.items():
        try:
            yield ParsedFile.read(path, content)
        except HostError:
            continue


def handlers_in(path: str, content: bytes) -> Mapping[str, Mapping[str, Any]]:
    """Return the handlers of one file; none when it is broken."""
    return next((file.handlers for file in parsed_files_of({path: content})), {})


def uses_overlay(files: Mapping[str, bytes]) -> bool:
    """Return whether the storage driver is overlay, which is the default, judged by CRI-O's files."""
    drivers = [file.storage_driver for file in parsed_files_of(files) if file.storage_driver]
    return not drivers or drivers[-1].startswith(STORAGE_DRIVER)


def default_runtime_problems(files: Mapping[str, ParsedFile], known: Collection[str]) -> Iterator[str]:
    """Yield the problem of a default handler that is not in ``known``."""
    given = [(path, file.default_runtime) for path, file in files.items() if file.default_runtime]
    if given and given[-1][1] not in known:
        path, handler = given[-1]
        yield StartProblem(
            f"{path}: its default_runtime is {handler}, but no file has the table "
            f"[crio.runtime.runtimes.{handler}]; CRI-O does not start with that"
        )


def handler_problems(table: Mapping[str, Any] | None, exists: Callable[[str], bool]) -> Iterator[str]:
    """Yield the reasons why CRI-O would drop this handler."""
    if table is None:
        yield "no file that CRI-O reads defines it"
        return
    program = table.get("runtime_path", "")
    if not _SHIM_NAME.search(posixpath.basename(program)):
        yield f"{program} is not named containerd-shim-*-v2; CRI-O drops the handler"
    for path in (program, table.get("runtime_config_path", "")):
        if path and not exists(path):
            yield f"{path} does not exist; CRI-O drops the handler"
