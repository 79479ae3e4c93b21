"""Our entry in a shared file of containerd: an import, or a managed block of tables. Pure."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Mapping

from msgspec import Struct

from kata_node.runtime.containerd import main as containerd_main
from kata_node.runtime.containerd import own_tables
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


class ContainerdEntry(Struct, frozen=True):
    """The entry of one installation.

    Its methods raise :class:`~kata_node.errors.HostError` for a file that is broken or not safe to edit.
    """

    install_dir: str
    suffix: str
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
        if self.is_toml:
            content = self._without_imports(path, content)
        if not self._has_block(path, content):
            return self._without_tables(path, content)
        without_block = self.without_block(path, content)
        tables = own_tables.key_paths(without_block, self.install_dir, path, template=not self.is_toml)
        return toml_tables.remove_tables(content, tables, where=path, template=not self.is_toml)

    def handlers(self, path: str, content: bytes) -> frozenset[str]:
        """Return the handlers of this installation that the file defines."""
        return own_tables.handlers(content, self.install_dir, path, template=not self.is_toml)

    def without_block(self, path: str, content: bytes) -> bytes:
        """Return the file without our managed block; our tables outside of it stay."""
        return toml_tables.remove(content, self.name, where=path, template=not self.is_toml)

    def _has_block(self, path: str, content: bytes) -> bool:
        return toml_tables.has_both_markers(content, self.name, where=path)

    def _without_tables(self, path: str, content: bytes) -> bytes:
        """Return the file without our managed block, and without our tables outside of it."""
        template, block = not self.is_toml, b""
        if not self.is_foreign(path, content):
            tables = own_tables.key_paths(content, self.install_dir, path) if self.is_toml else ()
            block = toml_tables.block_content(content, self.name, where=path)
            content = toml_tables.remove(content, self.name, where=path, template=template, tables=tables)
        content = own_tables.without(content, self.install_dir, path, template=template)
        if self.keeps_runc and self.is_toml:
            content = containerd_main.keep_runc(content, block, where=path)
        return content

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
