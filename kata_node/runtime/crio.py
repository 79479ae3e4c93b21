"""What CRI-O's configuration should be, as bytes, and what is wrong with one. Pure.

CRI-O reads ``crio.conf`` and then every file below ``crio.conf.d``: at any depth, of any name, hidden
ones and backups too, each directory's entries by the bytes of their names. Of most keys the last file
that has them wins. An instance has a drop-in with its handlers and, with ``debug``, one with the log
level; no file of others is ever edited.

By the sources of 1.36, and as far as it needs no pods measured on 1.36.3:

- A handler's table replaces one of the same name in an earlier file whole, not field by field.
- Broken TOML, a value of the wrong type, a file that cannot be read, such as a dangling symlink, or a
  ``default_runtime`` without a table stops the daemon. A byte order mark and unknown keys are passed
  over; known keys match in any case.
- A handler whose ``runtime_path`` or ``runtime_config_path`` is not there, or of type ``vm`` with a
  program not named ``containerd-shim-*-v2``, is dropped with a warning while the daemon serves the rest.
- All annotations of a pod reach the shim but a few of CRI-O's own. ``allowed_annotations`` is for
  those alone: any other name in it, such as ``io.katacontainers.*``, gets the handler dropped.
- ``storage_option`` of all files is one list, so ours takes none away from the administrator.

Why there is a ``storage_option`` at all: CRI-O's overlay driver makes the mount of its directory private,
so a root file system that is mounted there later is not seen in the mount namespace of a shim, and the
container's program "was not found". ``skip_mount_home`` leaves that mount out, from CRI-O's next start;
one of before stays as long as containers use it, at times until the node is rebooted. Other drivers have
no such mount, and refuse the option: CRI-O would not start.

On SIGHUP a running CRI-O takes in handlers, with all their fields, and the log level, but neither a
``storage_option`` nor a ``crio.conf.d`` that was not there when it started; a broken file leaves it
as it was. CRI ``Status`` lists the new handlers within a tenth of a second, and for an instant those
as well that are about to be dropped; with an unknown ``default_runtime`` these stay listed, so
:meth:`CrioConfig.check` comes first.
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
"""How the name of the file with the log level begins: no suffix has a dot, so none makes it another's."""

STORAGE_DRIVER = "overlay"
STORAGE_OPTION = "overlay.skip_mount_home=true"

RUNTIME_ROOT = "/run/vc"
"""Where Kata keeps the state of its sandboxes, and CRI-O looks for the shim's."""

BUILT_IN_HANDLERS = frozenset({"crun", "runc"})
"""Handlers that CRI-O has without any table: ``runc`` up to 1.30, ``crun`` since."""

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
    """How the instance in ``install_dir`` configures a CRI-O that reads ``config_dir``."""

    install_dir: str
    suffix: str
    config_dir: str = CONFIG_DIR

    @property
    def main_path(self) -> str:
        """CRI-O's own file; it need not be there."""
        return f"{self.config_dir}/crio.conf"

    @property
    def _drop_in_dir(self) -> str:
        return f"{self.config_dir}/crio.conf.d"

    def drop_in_locations(self) -> tuple[DropInLocation, ...]:
        """The one place there is."""
        drop_in, debug = (
            f"{self._drop_in_dir}/{suffixed_name(name, self.suffix)}"
            for name in (DROP_IN_NAME, DEBUG_DROP_IN_NAME)
        )
        return (DropInLocation(drop_in, (debug,)),)

    def shared_paths(self) -> tuple[str, ...]:
        """None: CRI-O reads drop-ins unasked."""
        return ()

    def read_files(self, read: ReadFile, glob: Glob) -> dict[str, bytes]:
        """Every file CRI-O reads, by path, in its order."""
        paths: list[str] = []
        pattern = self._drop_in_dir
        while found := glob(pattern := f"{pattern}/*"):
            paths += found
        directories = {posixpath.dirname(path) for path in paths}
        files = {path: _read_file(read, path) for path in (self.main_path, *paths) if path not in directories}
        return self._in_read_order({path: content for path, content in files.items() if content is not None})

    def desired_config(self, settings: Settings, files: Mapping[str, bytes]) -> DesiredConfig:
        """What the instance of ``settings`` wants, given the files that CRI-O reads now."""
        (location,) = self.drop_in_locations()
        others = self._in_read_order({path: files[path] for path in files if path not in location.paths})
        (debug,) = location.extra_drop_ins
        return DesiredConfig(
            "crio.conf.d",
            (
                FileChange(location.drop_in, render(settings, with_storage_option=_uses_overlay(others))),
                FileChange(debug, render_debug(settings) if settings.debug else None),
            ),
            tuple(handler.name for handler in handlers_of(settings)),
            {},
        )

    def without_entry(self, path: str, content: bytes) -> bytes | None:
        """The file as it is: nothing of ours is ever in a file of others."""
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
        """Everything that would keep CRI-O from serving ``handlers``, a sentence each with its file.

        Of ``files``, by path, only those count that CRI-O reads; ``own_paths`` are those this instance
        writes, ``labels`` names the settings some of them come from. ``exists`` tells whether a file
        of the install dir is there. An empty list is no proof that it serves: only the CRI can give that.
        """
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
        """Every handler that those of ``files`` define which CRI-O reads; broken ones define none."""
        return frozenset(name for file in _parsed_files(self._in_read_order(files)) for name in file.handlers)

    def loads_without_restart(self, before: Mapping[str, bytes], after: Mapping[str, bytes]) -> bool:
        """Whether a CRI-O that serves the files ``before`` comes to serve those ``after`` by SIGHUP.

        Not when the ``storage_option`` differs, which it reads at its start alone. Both are all files
        it reads, and of each only what an instance of ours can change is looked at.
        """
        one, other = (
            {option for file in _parsed_files(self._in_read_order(files)) for option in file.storage_options}
            for files in (before, after)
        )
        return one == other

    def _in_read_order(self, files: Mapping[str, bytes]) -> dict[str, bytes]:
        """Those of ``files`` that CRI-O reads, in the order it reads them; the rest it never sees.

        What an interrupted write of ours left is not among them: it goes before anything is written.
        """
        drop_ins = (path for path in files if path.startswith(f"{self._drop_in_dir}/"))
        paths = [self.main_path, *sorted(drop_ins, key=lambda path: path.split("/"))]
        return {path: files[path] for path in paths if path in files}


def _read_file(read: ReadFile, path: str) -> bytes | None:
    """The content of a file; ``None`` for an empty directory, which a pattern does not tell from one."""
    try:
        return read(path)
    except HostError as error:
        if isinstance(error.__cause__, IsADirectoryError):
            return None
        raise


def render(settings: Settings, *, with_storage_option: bool = True) -> bytes:
    """The drop-in with the handlers."""
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
    """The file with the log level of ``debug: true``."""
    return (
        f"# Managed by kata-node (instance {settings.instance}). Changes here are lost.\n\n"
        '[crio.runtime]\nlog_level = "debug"\n'
    ).encode()


@dataclass(frozen=True)
class _ParsedFile:
    """What matters here of one configuration file."""

    path: str
    handlers: Mapping[str, Mapping[str, Any]]
    default_runtime: str
    storage_driver: str
    storage_options: tuple[str, ...]

    @classmethod
    def read(cls, path: str, content: bytes) -> _ParsedFile:
        """Raises :class:`HostError` when CRI-O would not start with it."""
        # Unlike tomllib, CRI-O's parser passes over a byte order mark.
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
    """The table under ``key``, in any case unless ``exact``; ``name`` is its own, for errors."""
    value = above[key] if exact else toml_edit.get(above, key, path)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise HostError(f"{name} is not a table; CRI-O does not start with that", where=path)
    return value


def _fields(table: Mapping[str, Any], kinds: Mapping[str, str], name: str, path: str) -> dict[str, Any]:
    """Those of ``kinds`` that the table has, by their names in lower case."""
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
    """Whether the storage driver is overlay, as far as CRI-O's own files tell; it is by default."""
    drivers = [file.storage_driver for file in _parsed_files(files) if file.storage_driver]
    return not drivers or drivers[-1].startswith(STORAGE_DRIVER)


def _default_runtime_problems(files: Mapping[str, _ParsedFile], known: Collection[str]) -> Iterator[str]:
    given = [(path, file.default_runtime) for path, file in files.items() if file.default_runtime]
    if given and given[-1][1] not in known:
        path, handler = given[-1]
        yield (
            f"{path}: its default_runtime is {handler}, of which no file has a table "
            f"[crio.runtime.runtimes.{handler}]; CRI-O does not start with that"
        )


def _handler_problems(table: Mapping[str, Any] | None, exists: Callable[[str], bool]) -> Iterator[str]:
    """Why CRI-O would serve everything but this handler."""
    if table is None:
        yield "no file that CRI-O reads defines it"
        return
    program = table.get("runtime_path", "")
    if not _SHIM_NAME.search(posixpath.basename(program)):
        yield f"{program} is not named containerd-shim-*-v2, without which CRI-O leaves the handler out"
    for path in (program, table.get("runtime_config_path", "")):
        if path and not exists(path):
            yield f"{path} is not there, without which CRI-O leaves the handler out"
