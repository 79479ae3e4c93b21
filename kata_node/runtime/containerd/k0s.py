"""What k0s' containerd should be told, as bytes, and what is wrong with it. Pure.

k0s writes containerd's configuration itself, from its own settings and the drop-ins of a directory it
watches; how it does that differs by release, see :mod:`kata_node.runtime.model.distributions`. To 1.35 it
merges the drop-ins of schema 2, from 1.36 on they must be of schema 3, and one it cannot use keeps the
worker from starting. So the drop-ins are all that is looked at, and never what k0s has made of them. Where an
administrator has taken the main file over, k0s reads none, and the node is as one with plain containerd.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kata_node.errors import HostError
from kata_node.runtime.containerd import read as containerd_read
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
    handler_conflict,
    suffixed_name,
)
from kata_node.settings.handlers import handler_names
from kata_node.toml import edit as toml_edit

if TYPE_CHECKING:
    from kata_node.settings.model import Settings
    from kata_node.versions import Version


@dataclass(frozen=True)
class K0sConfig:
    """The instance in ``install_dir`` on a k0s that manages ``main_path`` and reads ``drop_ins``."""

    install_dir: str
    suffix: str
    version: Version
    """containerd's."""
    main_path: str
    drop_in_dir: str

    def drop_in_locations(self) -> tuple[DropInLocation, ...]:
        """The one place there is."""
        handlers, user = (
            suffixed_name(f"{self.drop_in_dir}/{name}", self.suffix, ".toml")
            for name in (DROP_IN_NAME, USER_DROP_IN_NAME)
        )
        return (DropInLocation(handlers, (user,)),)

    def shared_paths(self) -> tuple[str, ...]:
        """None: the main file is k0s'."""
        return ()

    def read_files(self, read: ReadFile, glob: Glob) -> dict[str, bytes]:
        """The main file and every drop-in, in k0s' order."""
        found = {path: read(path) for path in (self.main_path, *glob(f"{self.drop_in_dir}/*.toml"))}
        return {path: content for path, content in found.items() if content is not None}

    def desired_config(self, settings: Settings, files: Mapping[str, bytes]) -> DesiredConfig:
        """The drop-ins, whatever the ``files``."""
        (location,) = self.drop_in_locations()
        (user,) = location.extra_drop_ins
        text = settings.user_drop_in.rstrip("\n") + "\n"
        return DesiredConfig(
            "conf.d",
            (
                FileChange(location.drop_in, render(settings, self._schema, self.version)),
                FileChange(user, text.encode() if settings.user_drop_in.strip() else None),
            ),
            handler_names(settings),
            {user: "containerd.userDropIn"},
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
        """As of :class:`~kata_node.runtime.model.config.CriConfig`."""
        problems: list[str] = []
        for path, content in self._drop_in_files(files).items():
            name = f"{path} (from {labels[path]})" if path in labels else path
            try:
                table = toml_edit.load(content, path)
                version = toml_edit.get(table, "version", path)
            except HostError as error:
                problems.append(f"{name}: {error.what}")
                continue
            plugins = table.get("plugins")
            if self._schema == 3 and (
                version != 3 or (isinstance(plugins, dict) and HANDLER_PLUGINS[2] in plugins)
            ):
                problems.append(
                    f"{name}: k0s starts with drop-ins of version = 3 alone, without "
                    f"{HANDLER_PLUGINS[2]} in them"
                )
            elif isinstance(version, int) and version > self._schema:
                problems.append(f"{name}: version = {version} is too new for containerd {self.version}")
            others = (
                () if path in own_paths else self._handlers_defined_in(path, content).intersection(handlers)
            )
            problems += (handler_conflict(name, handler) for handler in sorted(others))
        return problems + containerd_read.check_default_handler(
            self._drop_in_files(files), self._schema, labels
        )

    def loads_without_restart(self, before: Mapping[str, bytes], after: Mapping[str, bytes]) -> bool:
        """k0s has its containerd read everything anew."""
        return True

    def defined_handlers(self, files: Mapping[str, bytes]) -> frozenset[str]:
        """As of :class:`~kata_node.runtime.model.config.CriConfig`."""
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
