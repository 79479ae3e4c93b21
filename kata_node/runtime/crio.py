"""The configuration of CRI-O for one installation: render it and find its problems. Pure.

CRI-O reads ``crio.conf`` and then every file below ``crio.conf.d``, at any depth and with any name, including
hidden files and backups. It sorts the entries of a directory by the bytes of their names. For most keys the
last file wins. An installation has a drop-in with its handlers and, with ``debug``, one with the log level.
It edits no shared file.

Sources: the code of 1.36, and measurements on 1.36.3 for everything that needs no pods.

- The table of a handler replaces the whole table of the same handler in an earlier file.
- CRI-O does not start with broken TOML, a value of the wrong type, a file that it cannot read (for example a
  dangling symlink), or a ``default_runtime`` without a table. It ignores a byte order mark and unknown keys.
  Known keys match in any case.
- CRI-O drops a handler with a warning, and serves the others, if the ``runtime_path`` or
  ``runtime_config_path`` of the handler does not exist, or if its type is ``vm`` and its program is not named
  ``containerd-shim-*-v2``.
- All annotations of a pod reach the shim, except a few of CRI-O itself. ``allowed_annotations`` is only for
  those few. CRI-O drops a handler with any other name in it, for example ``io.katacontainers.*``.
- The ``storage_option`` lists of all files are joined, so ours does not replace those of the administrator.

kata-node sets a ``storage_option`` because the overlay driver of CRI-O makes the mount of its directory
private. A root file system that is mounted there later is not visible in the mount namespace of a shim, and
the program of the container "was not found". ``skip_mount_home`` avoids that mount from the next start of
CRI-O. A previous mount stays as long as containers use it, sometimes until the node reboots. Other drivers
have no such mount and refuse the option: CRI-O would not start.

On SIGHUP a running CRI-O loads handlers with all their fields, and the log level. It does not load a
``storage_option``, nor a ``crio.conf.d`` that did not exist when it started. With a broken file it keeps its
configuration. CRI ``Status`` lists the new handlers within 0.1 s. For an instant it also lists handlers that
CRI-O then drops; with an unknown ``default_runtime`` it keeps listing them. So :meth:`CrioConfig.check` comes
first.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kata_node.errors import HostError
from kata_node.runtime.model.config import (
    DROP_IN_NAME,
    DesiredConfig,
    DropInLocation,
    FileChange,
    Glob,
    ReadFile,
    handler_conflict,
    suffixed_name,
)
from kata_node.settings.handlers import handlers as handlers_of
from kata_node.toml import edit as toml_edit

if TYPE_CHECKING:
    from kata_node.settings.model import Settings

CONFIG_DIR = "/etc/crio"

DEBUG_DROP_IN_NAME = f"{DROP_IN_NAME}.debug"
"""Prefix of the name of the drop-in with the log level. A suffix has no dot, so names cannot collide."""

STORAGE_DRIVER = "overlay"
STORAGE_OPTION = "overlay.skip_mount_home=true"

RUNTIME_ROOT = "/run/vc"
"""The directory where Kata keeps the state of its sandboxes and CRI-O expects that of the shim."""

BUILT_IN_HANDLERS = frozenset({"crun", "runc"})
"""Handlers that CRI-O has without a table: ``runc`` up to 1.30, ``crun`` since then."""

_SHIM_NAME = re.compile(r"containerd-shim-[A-Za-z0-9+-]+-v2")
_TEXT, _FLAG, _TEXTS = "a string", "a boolean", "an array of strings"
_STORAGE_FIELDS = {"storage_driver": _TEXT, "storage_option": _TEXTS}
_RUNTIME_FIELDS = {"default_runtime": _TEXT, "log_level": _TEXT}
_HANDLER_FIELDS = {
    **dict.fromkeys(("runtime_path", "runtime_type", "runtime_root", "runtime_config_path"), _TEXT),
    **dict.fromkeys(("monitor_path", "monitor_cgroup", "container_min_memory", "seccomp_profile"), _TEXT),
    **dict.fromkeys(("privileged_without_host_devices", "runtime_pull_image", "no_sync_log"), _FLAG),
    **dict.fromkeys(("inherit_default_runtime", "stream_websockets"), _FLAG),
    **dict.fromkeys(("allowed_annotations", "monitor_env"), _TEXTS),
}


@dataclass(frozen=True)
class CrioConfig:
    """One installation on a CRI-O that reads ``main_path`` and ``drop_in_dir``."""

    install_dir: str
    suffix: str
    main_path: str = f"{CONFIG_DIR}/crio.conf"
    """CRI-O's main file, which may not exist."""
    drop_in_dir: str = f"{CONFIG_DIR}/crio.conf.d"

    def drop_in_locations(self) -> tuple[DropInLocation, ...]:
        """Return the only place: ``crio.conf.d``."""
        drop_in, debug = (
            f"{self.drop_in_dir}/{suffixed_name(name, self.suffix)}"
            for name in (DROP_IN_NAME, DEBUG_DROP_IN_NAME)
        )
        return (DropInLocation(drop_in, (debug,)),)

    def shared_paths(self) -> tuple[str, ...]:
        """Return no path: CRI-O reads drop-ins without an import."""
        return ()

    def read_files(self, read: ReadFile, glob: Glob) -> dict[str, bytes]:
        """Return by path every file that CRI-O reads, in its order."""
        paths: list[str] = []
        pattern = self.drop_in_dir
        while found := glob(pattern := f"{pattern}/*"):
            paths += found
        directories = {posixpath.dirname(path) for path in paths}
        files = {path: _read_file(read, path) for path in (self.main_path, *paths) if path not in directories}
        return self._in_read_order({path: content for path, content in files.items() if content is not None})

    def desired_config(self, settings: Settings, files: Mapping[str, bytes]) -> DesiredConfig:
        """Return the drop-ins for ``settings``, given the files that CRI-O reads now."""
        (location,) = self.drop_in_locations()
        foreign_files = self._in_read_order(
            {path: files[path] for path in files if path not in location.paths}
        )
        (debug,) = location.extra_drop_ins
        return DesiredConfig(
            "crio.conf.d",
            (
                FileChange(
                    location.drop_in, render(settings, with_storage_option=_uses_overlay(foreign_files))
                ),
                FileChange(debug, render_debug(settings) if settings.debug else None),
            ),
            tuple(handler.name for handler in handlers_of(settings)),
            {},
        )

    def without_entry(self, path: str, content: bytes) -> bytes | None:
        """Return ``content``: kata-node edits no shared file of CRI-O."""
        return content

    def check(
        self,
        files: Mapping[str, bytes],
        *,
        own_paths: Collection[str],
        handlers: Collection[str],
        labels: Mapping[str, str],
        exists: Callable[[str], bool],
    ) -> list[str]:
        """See :meth:`kata_node.runtime.model.config.CriConfig.check`."""
        problems: list[str] = []
        parsed_files: dict[str, _ParsedFile] = {}
        for path, content in self._in_read_order(files).items():
            name = f"{path} (from {labels[path]})" if path in labels else path
            try:
                parsed_files[path] = _ParsedFile.read(path, content)
            except HostError as error:
                problems.append(f"{name}: {error.what}")
        tables: dict[str, Mapping[str, Any]] = {}
        for path, file in parsed_files.items():
            tables |= file.handlers
            if path not in own_paths:
                problems += (handler_conflict(path, name) for name in file.handlers if name in handlers)
        problems += _default_runtime_problems(parsed_files, {*tables, *BUILT_IN_HANDLERS})
        for name in handlers:
            problems += (
                f"the handler {name}: {what}" for what in _handler_problems(tables.get(name), exists)
            )
        return problems

    def defined_handlers(self, files: Mapping[str, bytes]) -> frozenset[str]:
        """Return the handlers in those of ``files`` that CRI-O reads. Broken files define none."""
        return frozenset(name for file in _parsed_files(self._in_read_order(files)) for name in file.handlers)

    def loads_without_restart(self, before: Mapping[str, bytes], after: Mapping[str, bytes]) -> bool:
        """Return whether a CRI-O that has loaded the files ``before`` can load ``after`` on SIGHUP.

        It cannot if the ``storage_option`` differs, which CRI-O reads only at its start. Only settings that
        an installation can change are compared.
        """
        one, other = (
            {option for file in _parsed_files(self._in_read_order(files)) for option in file.storage_options}
            for files in (before, after)
        )
        return one == other

    def _in_read_order(self, files: Mapping[str, bytes]) -> dict[str, bytes]:
        """Return those of ``files`` that CRI-O reads, in its order."""
        drop_ins = (path for path in files if path.startswith(f"{self.drop_in_dir}/"))
        paths = [self.main_path, *sorted(drop_ins, key=lambda path: path.split("/"))]
        return {path: files[path] for path in paths if path in files}


def _read_file(read: ReadFile, path: str) -> bytes | None:
    """Return the content of a file; ``None`` for an empty directory, which a glob also finds."""
    try:
        return read(path)
    except HostError as error:
        if isinstance(error.__cause__, IsADirectoryError):
            return None
        raise


def render(settings: Settings, *, with_storage_option: bool = True) -> bytes:
    """Return the drop-in with the handlers."""
    import tomlkit

    document = tomlkit.document()
    document.add(
        tomlkit.comment(f"Managed by kata-node (instance {settings.instance}). Changes here are lost.")
    )
    document.add(tomlkit.nl())
    crio = tomlkit.table(is_super_table=not with_storage_option)
    if with_storage_option:
        crio.add(tomlkit.comment("Without it a shim cannot see the root file system of a container."))
        crio["storage_option"] = [STORAGE_OPTION]
    runtimes = tomlkit.table(is_super_table=True)
    for handler in handlers_of(settings):
        table = tomlkit.table()
        table["runtime_path"] = f"{settings.install_dir}/{handler.shim.shim_binary}"
        table["runtime_type"] = "vm"
        table["runtime_root"] = RUNTIME_ROOT
        table["runtime_config_path"] = f"{settings.install_dir}/{handler.own_config}"
        table["privileged_without_host_devices"] = True
        if handler.guest_pull:
            table["runtime_pull_image"] = True
        runtimes[handler.name] = table
    runtime = tomlkit.table(is_super_table=True)
    runtime["runtimes"] = runtimes
    crio["runtime"] = runtime
    document["crio"] = crio
    return document.as_string().encode()


def render_debug(settings: Settings) -> bytes:
    """Return the drop-in with the log level of ``debug: true``."""
    return (
        f"# Managed by kata-node (instance {settings.instance}). Changes here are lost.\n\n"
        '[crio.runtime]\nlog_level = "debug"\n'
    ).encode()


@dataclass(frozen=True)
class _ParsedFile:
    """The relevant settings of one configuration file."""

    path: str
    handlers: Mapping[str, Mapping[str, Any]]
    default_runtime: str
    storage_driver: str
    storage_options: tuple[str, ...]

    @classmethod
    def read(cls, path: str, content: bytes) -> _ParsedFile:
        """Parse a file. Raise :class:`HostError` when CRI-O would not start with it."""
        # Unlike tomllib, the parser of CRI-O ignores a byte order mark.
        table = toml_edit.load(content.removeprefix(b"\xef\xbb\xbf"), path)
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
            _fields(runtime, _RUNTIME_FIELDS, "crio.runtime", path).get("default_runtime", ""),
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


def _parsed_files(files: Mapping[str, bytes]) -> Iterator[_ParsedFile]:
    for path, content in files.items():
        try:
            yield _ParsedFile.read(path, content)
        except HostError:
            continue


def _uses_overlay(files: Mapping[str, bytes]) -> bool:
    """Return whether the storage driver is overlay, which is the default, judged by CRI-O's files."""
    drivers = [file.storage_driver for file in _parsed_files(files) if file.storage_driver]
    return not drivers or drivers[-1].startswith(STORAGE_DRIVER)


def _default_runtime_problems(files: Mapping[str, _ParsedFile], known: Collection[str]) -> Iterator[str]:
    given = [(path, file.default_runtime) for path, file in files.items() if file.default_runtime]
    if given and given[-1][1] not in known:
        path, handler = given[-1]
        yield (
            f"{path}: its default_runtime is {handler}, but no file has the table "
            f"[crio.runtime.runtimes.{handler}]; CRI-O does not start with that"
        )


def _handler_problems(table: Mapping[str, Any] | None, exists: Callable[[str], bool]) -> Iterator[str]:
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
