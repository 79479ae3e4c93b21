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
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from kata_node.errors import HostError
from kata_node.runtime.crio_read import (
    BUILT_IN_HANDLERS,
    BYTE_ORDER_MARK,
    DEFAULT_HANDLER_KEY,
    ParsedFile,
    default_runtime_problems,
    handler_problems,
    handlers_in,
    is_same_handler,
    key_path,
    parsed_files_of,
    read_file,
    uses_overlay,
)
from kata_node.runtime.model.config import (
    DROP_IN_NAME,
    CopyState,
    DesiredConfig,
    DropInLocation,
    FileChange,
    Glob,
    HandlerCopy,
    ReadFile,
    StartProblem,
    files_after,
    handler_conflict,
    suffixed_name,
    without_outdated,
    writer_of,
)
from kata_node.runtime.model.programs import programs, uses
from kata_node.settings.handlers import handlers as handlers_of
from kata_node.toml import edit as toml_edit
from kata_node.toml import render as toml
from kata_node.toml import tables as toml_tables

if TYPE_CHECKING:
    from kata_node.settings.handlers import Handler
    from kata_node.settings.model import Settings

CONFIG_DIR = "/etc/crio"

DEBUG_DROP_IN_NAME = f"{DROP_IN_NAME}.debug"
"""Prefix of the name of the drop-in with the log level. A suffix has no dot, so names cannot collide."""

STORAGE_OPTION = "overlay.skip_mount_home=true"

RUNTIME_ROOT = "/run/vc"
"""The directory where Kata keeps the state of its sandboxes and CRI-O expects that of the shim."""


class CrioConfig(Struct, frozen=True):
    """One installation on a CRI-O that reads ``main_path`` and ``drop_in_dir``."""

    install_dir: str
    suffix: str
    main_path: str = f"{CONFIG_DIR}/crio.conf"
    """CRI-O's main file, which may not exist."""
    drop_in_dir: str = f"{CONFIG_DIR}/crio.conf.d"
    recorded_handlers: tuple[str, ...] = ()
    """The handlers of this installation that the receipt records."""

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
        files = {path: read_file(read, path) for path in (self.main_path, *paths) if path not in directories}
        return self._in_read_order({path: content for path, content in files.items() if content is not None})

    def desired_config(self, settings: Settings, files: Mapping[str, bytes]) -> DesiredConfig:
        """Return the drop-ins for ``settings``, given the files that CRI-O reads now."""
        (location,) = self.drop_in_locations()
        foreign_files = self._in_read_order(
            {path: files[path] for path in files if path not in location.paths}
        )
        (debug,) = location.extra_drop_ins
        changes = (
            FileChange(location.drop_in, render(settings, with_storage_option=uses_overlay(foreign_files))),
            FileChange(debug, render_debug(settings) if settings.debug else None),
        )
        handlers = tuple(handler.name for handler in handlers_of(settings))
        copies = self._copies(files, changes, handlers)
        return DesiredConfig(
            "crio.conf.d",
            (*without_outdated(copies, files, self.without_own_handlers), *changes),
            handlers,
            {},
            copies,
        )

    def _copies(
        self, files: Mapping[str, bytes], changes: Collection[FileChange], wanted: Collection[str]
    ) -> tuple[HandlerCopy, ...]:
        """Return the copies of our handlers. The table of a later file replaces that of an earlier file."""
        (location,) = self.drop_in_locations()
        read = self._in_read_order(files_after(files, changes))
        tables = {file.path: file.handlers for file in parsed_files_of(read)}
        written = handlers_in(location.drop_in, files.get(location.drop_in, b""))
        later = list(tables)[list(tables).index(location.drop_in) :]
        removed = set(self.recorded_handlers).difference(wanted)
        found: list[HandlerCopy] = []
        for path in tables:
            own = self.own_handlers(path, read[path]) if path not in location.paths else frozenset()
            copied = [name for name in tables[path] if name in own and name in (*wanted, *removed)]
            desired = tables[location.drop_in]
            wrong = [
                name
                for name in copied
                if name in removed
                or (path in later and not is_same_handler(tables[path][name], desired.get(name)))
            ]
            stale = all(
                name in removed or is_same_handler(tables[path][name], written.get(name)) for name in wrong
            )
            state: CopyState = "same" if not wrong else "outdated" if stale else "different"
            if copied:
                found.append(HandlerCopy(path, tuple(wrong or copied), state, writer_of(path, read[path])))
        return tuple(found)

    def without_entry(self, path: str, content: bytes) -> bytes | None:
        """Return ``content``: kata-node edits no shared file of CRI-O."""
        return content

    def own_handlers(self, path: str, content: bytes) -> frozenset[str]:
        """See :meth:`kata_node.runtime.model.config.CriConfig.own_handlers`."""
        if posixpath.basename(self.install_dir).encode() not in content and b"\\" not in content:
            return frozenset()
        try:
            handlers = ParsedFile.read(path, content).handlers
        except HostError:
            if f"{self.install_dir}/".encode() in content:
                raise
            return frozenset()
        return frozenset(name for name in handlers if uses(programs(handlers[name]), self.install_dir))

    def without_own_handlers(self, path: str, content: bytes) -> bytes:
        """See :meth:`kata_node.runtime.model.config.CriConfig.without_own_handlers`."""
        own = self.own_handlers(path, content)
        if not own:
            return content
        text = content.removeprefix(BYTE_ORDER_MARK)
        runtimes = key_path(toml_edit.load(text, path), "crio", "runtime", "runtimes")
        edited = toml_tables.remove_tables(text, [(*runtimes, name) for name in own], where=path)
        return content[: len(content) - len(text)] + edited

    def without_default_handler(self, path: str, content: bytes, names: Collection[str]) -> bytes:
        """See :meth:`kata_node.runtime.model.config.CriConfig.without_default_handler`."""
        file = next(parsed_files_of({path: content}), None)
        if file is None or file.default_runtime not in names:
            return content
        text = content.removeprefix(BYTE_ORDER_MARK)
        key = key_path(toml_edit.load(text, path), "crio", "runtime", DEFAULT_HANDLER_KEY)
        edited = toml_tables.remove_tables(text, [key], where=path)
        return content[: len(content) - len(text)] + edited

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
        parsed_files: dict[str, ParsedFile] = {}
        for path, content in self._in_read_order(files).items():
            name = f"{path} (from {labels[path]})" if path in labels else path
            try:
                parsed_files[path] = ParsedFile.read(path, content)
            except HostError as error:
                problems.append(StartProblem(f"{name}: {error.what}"))
        tables: dict[str, Mapping[str, Any]] = {}
        for path, file in parsed_files.items():
            tables |= file.handlers
            if path not in own_paths:
                problems += (
                    handler_conflict(path, name)
                    for name, fields in file.handlers.items()
                    if name in handlers and not uses(programs(fields), self.install_dir)
                )
        problems += default_runtime_problems(parsed_files, {*tables, *BUILT_IN_HANDLERS})
        for name in handlers:
            problems += (f"the handler {name}: {what}" for what in handler_problems(tables.get(name), exists))
        return problems

    def defined_handlers(self, files: Mapping[str, bytes]) -> frozenset[str]:
        """Return the handlers in those of ``files`` that CRI-O reads. Broken files define none."""
        return frozenset(
            name for file in parsed_files_of(self._in_read_order(files)) for name in file.handlers
        )

    def default_handler(self, files: Mapping[str, bytes]) -> str:
        """See :meth:`kata_node.runtime.model.config.CriConfig.default_handler`."""
        given = [file.default_runtime for file in parsed_files_of(self._in_read_order(files))]
        return next(filter(None, reversed(given)), "")

    def loads_without_restart(self, before: Mapping[str, bytes], after: Mapping[str, bytes]) -> bool:
        """Return whether a CRI-O that has loaded the files ``before`` can load ``after`` on SIGHUP.

        It cannot if the ``storage_option`` differs, which CRI-O reads only at its start. Only settings that
        an installation can change are compared.
        """
        one, other = (
            {
                option
                for file in parsed_files_of(self._in_read_order(files))
                for option in file.storage_options
            }
            for files in (before, after)
        )
        return one == other

    def _in_read_order(self, files: Mapping[str, bytes]) -> dict[str, bytes]:
        """Return those of ``files`` that CRI-O reads, in its order."""
        drop_ins = (path for path in files if path.startswith(f"{self.drop_in_dir}/"))
        paths = [self.main_path, *sorted(drop_ins, key=lambda path: path.split("/"))]
        return {path: files[path] for path in paths if path in files}


def render(settings: Settings, *, with_storage_option: bool = True) -> bytes:
    """Return the drop-in with the handlers."""
    tables = {handler.name: _handler_table(settings, handler) for handler in handlers_of(settings)}
    comments = [_managed_by(settings)]
    if with_storage_option:
        comments.append("Without the storage option a shim cannot see the root file system of a container.")
    option = {"storage_option": [STORAGE_OPTION]} if with_storage_option else {}
    return toml.render({"crio": {**option, "runtime": {"runtimes": tables}}}, tuple(comments))


def _handler_table(settings: Settings, handler: Handler) -> dict[str, Any]:
    return {
        "runtime_path": f"{settings.install_dir}/{handler.shim.shim_binary}",
        "runtime_type": "vm",
        "runtime_root": RUNTIME_ROOT,
        "runtime_config_path": f"{settings.install_dir}/{handler.own_config}",
        "privileged_without_host_devices": True,
        **({"runtime_pull_image": True} if handler.guest_pull else {}),
    }


def render_debug(settings: Settings) -> bytes:
    """Return the drop-in with the log level of ``debug: true``."""
    return toml.render({"crio": {"runtime": {"log_level": "debug"}}}, (_managed_by(settings),))


def _managed_by(settings: Settings) -> str:
    return f"Managed by kata-node (instance {settings.instance}). Changes here are lost."
