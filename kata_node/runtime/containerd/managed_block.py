"""Our entry in a shared file of containerd: an import, or a managed block of tables. Pure."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kata_node.runtime.containerd import main as containerd_main
from kata_node.runtime.containerd import read as containerd_read
from kata_node.runtime.model.config import is_drop_in, is_drop_in_of
from kata_node.toml import edit as toml_edit
from kata_node.toml import tables as toml_tables


def dangling_imports(
    install_dir: str, files: Mapping[str, bytes], exists: Callable[[str], bool]
) -> frozenset[str]:
    """Return the paths that ``files`` import in ``install_dir`` and that do not exist.

    An earlier installer left them. containerd does not start with them, so nobody needs them.
    """
    return frozenset(
        target
        for _, target in containerd_read.resolved_imports(files)
        if target.startswith(f"{install_dir}/") and not containerd_read.is_glob(target) and not exists(target)
    )


@dataclass(frozen=True)
class ContainerdEntry:
    """The entry of one installation.

    Its methods raise :class:`~kata_node.errors.HostError` for a file that is broken or not safe to edit.
    """

    install_dir: str
    suffix: str
    recorded_handlers: tuple[str, ...]
    """Handlers that belong to this installation even if the markers of the managed block are missing."""
    is_toml: bool
    """Whether the file is TOML. In a Go template only the markers can be found."""
    keeps_runc: bool
    """Whether the runc of the managed block stays for foreign handlers, which containerd 1.x needs."""
    dangling_imports: frozenset[str] = frozenset()
    """The result of :func:`dangling_imports`."""

    @property
    def name(self) -> str:
        """The name of the installation in the markers of its managed block."""
        return self.suffix or "default"

    @property
    def import_entry(self) -> str:
        """The import of the drop-ins in the install dir."""
        return f"{self.install_dir}/containerd/config.d/*.toml"

    def is_foreign(self, path: str, content: bytes) -> bool:
        """Return whether the managed block of this name belongs to an installation in another install dir."""
        block = toml_tables.block_content(content, self.name, where=path)
        return b"runtime_path" in block and not is_drop_in_of(self.install_dir, block)

    def remove_from(self, path: str, content: bytes, *, kept_import: str = "") -> bytes:
        """Return the file without our tables, and without imports of our drop-ins except ``kept_import``."""
        if self.is_toml:
            content = self._without_imports(path, content, kept_import=kept_import)
        return self._without_tables(path, content)

    def remove_incomplete(self, path: str, content: bytes) -> bytes:
        """Return the file without our imports, and without our tables unless both markers enclose them."""
        if not self.is_toml:
            return content
        content = self._without_imports(path, content)
        if toml_tables.has_both_markers(content, self.name, where=path):
            return content
        return self._without_tables(path, content)

    def _without_tables(self, path: str, content: bytes) -> bytes:
        if self.is_foreign(path, content):
            return content
        if not self.is_toml:
            return toml_tables.remove(content, self.name, where=path, template=True)
        tables = (
            containerd_read.handler_tables_below(path, content, self.install_dir, self.recorded_handlers)
            if self.recorded_handlers
            else ()
        )
        remaining = toml_tables.remove(content, self.name, where=path, tables=tables)
        if self.keeps_runc:
            block = toml_tables.block_content(content, self.name, where=path)
            remaining = containerd_main.keep_runc(remaining, block, where=path)
        return remaining

    def _without_imports(self, path: str, content: bytes, *, kept_import: str = "") -> bytes:
        """Return the file without imports of our drop-ins, except ``kept_import``.

        kata-node never writes the plain path of a drop-in. It is removed all the same, and so is every path
        in the install dir that does not exist, because containerd does not start with that.
        """
        directory = posixpath.dirname(self.import_entry)
        for entry in containerd_read.imports(content, path):
            target = containerd_read.resolve_import(path, entry)
            is_own_drop_in = posixpath.dirname(target) == directory and is_drop_in(target)
            is_own = target == self.import_entry or is_own_drop_in or target in self.dangling_imports
            if target != kept_import and is_own:
                content = toml_edit.remove(content, "imports", entry, where=path)
        return content
