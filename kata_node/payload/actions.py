"""The action that places files of the payload on the node."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from typing import TYPE_CHECKING

from msgspec import Struct

from kata_node.errors import HostError
from kata_node.host import files
from kata_node.plan.actions import CHANGED_BY_OTHERS_HINT, Clients
from kata_node.plan.effects import Effect, PathEffect
from kata_node.text import human_size, pluralize

if TYPE_CHECKING:
    from kata_node.payload.index import Payload
    from kata_node.payload.manifest import Entry


class SetDirModes(Struct, frozen=True):
    """Give existing directories their modes; ``modes`` are pairs of host path and mode, parents first.

    This comes before other changes: from then on no other user can exchange a path in these directories.
    """

    modes: tuple[tuple[str, int], ...]

    def describe(self) -> str:
        """Return the action as one line."""
        return f"set the mode of {pluralize(len(self.modes), 'directory', 'directories')}"

    def effects(self) -> tuple[Effect, ...]:
        """Return the directories."""
        return tuple(
            PathEffect(f"set mode {mode:04o} of directory {path}", path, "change", "dir")
            for path, mode in self.modes
        )

    def apply(self, clients: Clients) -> None:
        """Set the modes."""
        for path, mode in self.modes:
            clients.root.set_dir_mode(path, mode)

    def check(self, clients: Clients) -> None:
        """Raise :class:`HostError` unless each directory has its mode."""
        for path, mode in self.modes:
            info = clients.root.lstat(path)
            if info is None or stat.S_IMODE(info.st_mode) != mode:
                raise HostError(
                    f"the directory does not have the mode {mode:04o} after it was set",
                    where=path,
                    hint=CHANGED_BY_OTHERS_HINT,
                )


class PlaceFiles(Struct, frozen=True):
    """Copy or unpack payload entries below the install dir."""

    install_dir: str
    entries: tuple[Entry, ...]
    payload: Payload
    existing: Collection[str] = ()
    """The paths, relative to the install dir, that exist already; only a plan shows the difference."""

    @property
    def size(self) -> int:
        """Return the number of bytes to write, holes included."""
        return sum(entry.size for entry in self.entries)

    def describe(self) -> str:
        """Return the number of files and their size as one line."""
        count = pluralize(sum(entry.kind != "dir" for entry in self.entries), "file")
        return f"place {count} ({human_size(self.size)}) below {self.install_dir}"

    def effects(self) -> tuple[Effect, ...]:
        """Return the files and links, without the content, which is mostly binary."""
        return tuple(
            PathEffect(
                f"place {self.install_dir}/{entry.path} ({human_size(entry.size)})",
                f"{self.install_dir}/{entry.path}",
                "change" if entry.path in self.existing else "add",
                entry.kind,
                entry.size,
            )
            for entry in self.entries
            if entry.kind != "dir"
        )

    def apply(self, clients: Clients) -> None:
        """Place the entries. On an error no new file stays behind, see :func:`kata_node.host.place.place`."""
        from kata_node.host.place import place

        with clients.progress(self.size, f"placing below {self.install_dir}") as advance:
            place(clients.root, self.payload, self.entries, self.install_dir, progress=advance)

    def check(self, clients: Clients) -> None:
        """Raise :class:`HostError` unless each file has its size and each link its target."""
        from kata_node.host.open_dirs import stat_below

        entries = {entry.path: entry for entry in self.entries}
        for path, info in stat_below(clients.root, self.install_dir, entries):
            if not _is_complete(clients.root, f"{self.install_dir}/{path}", entries[path], info):
                raise HostError(
                    f"the {entries[path].kind} is missing or incomplete after it was placed",
                    where=f"{self.install_dir}/{path}",
                    hint=CHANGED_BY_OTHERS_HINT,
                )


def _is_complete(root: files.Root, path: str, entry: Entry, info: os.stat_result | None) -> bool:
    if info is None or entry.kind == "link":
        return info is not None and root.read_link(path) == entry.link
    if entry.kind == "dir":
        return stat.S_ISDIR(info.st_mode)
    return stat.S_ISREG(info.st_mode) and info.st_size == entry.size
