"""The action that removes many files and links of an installation."""

from __future__ import annotations

import posixpath
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from kata_node.errors import HostError
from kata_node.host import files
from kata_node.host.real_paths import real_path
from kata_node.plan.actions import CHANGED_BY_OTHERS_HINT, Clients
from kata_node.plan.effects import Effect, PathEffect
from kata_node.text import pluralize


@dataclass(frozen=True)
class RemoveFiles:
    """Remove files and links below the install dir."""

    install_dir: str
    paths: tuple[str, ...]
    sizes: Mapping[str, int] = field(default_factory=dict, repr=False)
    """The bytes of the files by path, as far as they are known; only a plan shows them."""

    def describe(self) -> str:
        """Return the action as one line."""
        return f"remove {pluralize(len(self.paths), 'file')} below {self.install_dir}"

    def effects(self) -> tuple[Effect, ...]:
        """Return the files and links."""
        paths = ((f"{self.install_dir}/{path}", self.sizes.get(path, 0)) for path in self.paths)
        return tuple(PathEffect(f"remove {path}", path, "remove", size=size) for path, size in paths)

    def apply(self, clients: Clients) -> None:
        """Remove the existing files.

        A directory at one of the paths is foreign and stays, and so does what a symlink in place of one of
        our directories leads to.
        """
        for path in self._paths_of_files(clients.root):
            clients.root.remove(path)

    def check(self, clients: Clients) -> None:
        """Raise :class:`HostError` if one of the files exists."""
        for path in self._paths_of_files(clients.root):
            if clients.root.lstat(path) is not None:
                raise HostError(
                    "the file still exists after it was removed", where=path, hint=CHANGED_BY_OTHERS_HINT
                )

    def _paths_of_files(self, root: files.Root) -> Iterator[str]:
        """Yield the host paths that are not a directory, and are not behind a symlink in the install dir."""
        base = root.real_path(self.install_dir)
        is_real: dict[str, bool] = {}  # hundreds of files share a few directories
        for path in self.paths:
            parent = posixpath.dirname(path)
            if parent not in is_real:
                expected = f"{base}/{parent}".rstrip("/")
                is_real[parent] = real_path(root, f"{self.install_dir}/{parent}") == expected
            info = root.lstat(f"{self.install_dir}/{path}") if is_real[parent] else None
            # A missing file can have a temporary file.
            if is_real[parent] and (info is None or not stat.S_ISDIR(info.st_mode)):
                yield f"{self.install_dir}/{path}"
