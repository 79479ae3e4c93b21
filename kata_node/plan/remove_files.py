"""The action that removes many files and links of an installation."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct, field

from kata_node.errors import HostError
from kata_node.host import removal
from kata_node.plan.actions import CHANGED_BY_OTHERS_HINT, Clients
from kata_node.plan.effects import Effect, PathEffect
from kata_node.text import pluralize


class RemoveFiles(Struct, frozen=True):
    """Remove files and links below the install dir."""

    install_dir: str
    paths: tuple[str, ...]
    sizes: Mapping[str, int] = field(default_factory=dict)
    """The bytes of the files by path, as far as they are known; only a plan shows them."""
    directories: tuple[str, ...] = ()
    """Directories that stay. What an interrupted run wrote to become them is removed."""

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
        removal.remove_files(clients.root, self.install_dir, self.paths, self.directories)

    def check(self, clients: Clients) -> None:
        """Raise :class:`HostError` if one of the files exists."""
        for path in removal.existing_files(clients.root, self.install_dir, self.paths):
            raise HostError(
                "the file still exists after it was removed",
                where=f"{self.install_dir}/{path}",
                hint=CHANGED_BY_OTHERS_HINT,
            )
