"""The configuration of the containerd that k0s manages: render it and find its problems. Pure.

k0s writes containerd's main file from its own settings and the drop-ins of a directory that it watches. How
it does that depends on the release, see :mod:`kata_node.runtime.model.distributions`. Up to 1.35 it merges
drop-ins of schema 2; from 1.36 on drop-ins must have schema 3. The worker does not start with a drop-in that
it cannot use. So this module looks only at the drop-ins, not at the files that k0s makes from them. If an
administrator manages the main file, k0s reads no drop-ins and the node is treated like one with plain
containerd.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING

from msgspec import Struct

from kata_node.errors import HostError
from kata_node.runtime.containerd import own_tables
from kata_node.runtime.containerd import read as containerd_read
from kata_node.runtime.containerd.copies import merged_copies
from kata_node.runtime.containerd.read import HANDLER_PLUGINS
from kata_node.runtime.containerd.render import render
from kata_node.runtime.model.config import (
    DROP_IN_NAME,
    USER_DROP_IN_NAME,
    DesiredConfig,
    DropInLocation,
    FileChange,
    Glob,
    ReadFile,
    StartProblem,
    files_after,
    handler_conflict,
    suffixed_name,
    without_outdated,
)
from kata_node.settings.handlers import handler_names
from kata_node.toml import edit as toml_edit

if TYPE_CHECKING:
    from kata_node.settings.model import Settings
    from kata_node.versions import Version


class K0sConfig(Struct, frozen=True):
    """One installation on a k0s that manages ``main_path`` and reads the drop-ins in ``drop_in_dir``."""

    install_dir: str
    suffix: str
    version: Version
    """The version of containerd."""
    main_path: str
    drop_in_dir: str
    recorded_handlers: tuple[str, ...] = ()
    """The handlers of this installation that the receipt records."""

    def drop_in_locations(self) -> tuple[DropInLocation, ...]:
        """Return the only place: the drop-in directory of k0s."""
        handlers, user = (
            suffixed_name(f"{self.drop_in_dir}/{name}", self.suffix, ".toml")
            for name in (DROP_IN_NAME, USER_DROP_IN_NAME)
        )
        return (DropInLocation(handlers, (user,)),)

    def shared_paths(self) -> tuple[str, ...]:
        """Return no path: only k0s writes the main file."""
        return ()

    def read_files(self, read: ReadFile, glob: Glob) -> dict[str, bytes]:
        """Return the main file and every drop-in, in the order in which k0s reads them."""
        found = {path: read(path) for path in (self.main_path, *glob(f"{self.drop_in_dir}/*.toml"))}
        return {path: content for path, content in found.items() if content is not None}

    def desired_config(self, settings: Settings, files: Mapping[str, bytes]) -> DesiredConfig:
        """Return the drop-ins, which do not depend on ``files``."""
        (location,) = self.drop_in_locations()
        (user,) = location.extra_drop_ins
        text = settings.user_drop_in.rstrip("\n") + "\n"
        changes = (
            FileChange(location.drop_in, render(settings, self._schema, self.version, with_log_level=False)),
            FileChange(user, text.encode() if settings.user_drop_in.strip() else None),
        )
        copies = merged_copies(
            self._drop_in_files(files_after(files, changes)),
            location.paths,
            {path: files[path] for path in location.paths if path in files},
            handler_names(settings),
            set(self.recorded_handlers).difference(handler_names(settings)),
            self.install_dir,
        )
        return DesiredConfig(
            "conf.d",
            (*without_outdated(copies, files, self.without_own_handlers), *changes),
            handler_names(settings),
            {user: "containerd.userDropIn"},
            copies,
        )

    def without_entry(self, path: str, content: bytes) -> bytes | None:
        """Return ``content``: kata-node edits no shared file of k0s."""
        return content

    def own_handlers(self, path: str, content: bytes) -> frozenset[str]:
        """See :meth:`kata_node.runtime.model.config.CriConfig.own_handlers`.

        k0s writes the main file at every start.
        """
        return own_tables.handlers(content, self.install_dir, path) if path != self.main_path else frozenset()

    def without_own_handlers(self, path: str, content: bytes) -> bytes:
        """See :meth:`kata_node.runtime.model.config.CriConfig.without_own_handlers`."""
        return own_tables.without(content, self.install_dir, path)

    def without_default_handler(self, path: str, content: bytes, names: Collection[str]) -> bytes:
        """See :meth:`kata_node.runtime.model.config.CriConfig.without_default_handler`."""
        return own_tables.without_default(content, names, path) if path != self.main_path else content

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
        for path, content in self._drop_in_files(files).items():
            name = f"{path} (from {labels[path]})" if path in labels else path
            try:
                table = toml_edit.load(content, path)
                version = toml_edit.get(table, "version", path)
            except HostError as error:
                problems.append(StartProblem(f"{name}: {error.what}"))
                continue
            plugins = table.get("plugins")
            if self._schema == 3 and (
                version != 3 or (isinstance(plugins, dict) and HANDLER_PLUGINS[2] in plugins)
            ):
                problems.append(
                    StartProblem(
                        f"{name}: k0s starts only with drop-ins that have version = 3 and no table of "
                        f"{HANDLER_PLUGINS[2]}"
                    )
                )
            elif isinstance(version, int) and version > self._schema:
                problems.append(
                    StartProblem(f"{name}: containerd {self.version} cannot read version = {version}")
                )
            foreign_handlers = (
                ()
                if path in own_paths
                else self._handlers_defined_in(path, content)
                .intersection(handlers)
                .difference(self.own_handlers(path, content))
            )
            problems += (handler_conflict(name, handler) for handler in sorted(foreign_handlers))
        return problems + containerd_read.check_default_handler(
            self._drop_in_files(files), self._schema, labels
        )

    def default_handler(self, files: Mapping[str, bytes]) -> str:
        """See :meth:`kata_node.runtime.model.config.CriConfig.default_handler`."""
        return containerd_read.default_handler(self._drop_in_files(files))

    def loads_without_restart(self, before: Mapping[str, bytes], after: Mapping[str, bytes]) -> bool:
        """Return true: k0s restarts its containerd, which then reads all files."""
        return True

    def defined_handlers(self, files: Mapping[str, bytes]) -> frozenset[str]:
        """See :meth:`kata_node.runtime.model.config.CriConfig.defined_handlers`."""
        read = self._drop_in_files(files)
        return frozenset(name for path in read for name in self._handlers_defined_in(path, read[path]))

    @property
    def _schema(self) -> int:
        return 2 if self.version.major < 2 else 3

    def _drop_in_files(self, files: Mapping[str, bytes]) -> dict[str, bytes]:
        below = f"{self.drop_in_dir}/"
        return {path: files[path] for path in sorted(files) if path.startswith(below)}

    def _handlers_defined_in(self, path: str, content: bytes) -> frozenset[str]:
        return containerd_read.defined_handlers(path, {path: content})
