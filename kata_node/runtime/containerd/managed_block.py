"""What is ours in a file of others: one entry of its ``imports``, or one marked block of tables. Pure."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass

from kata_node.runtime.containerd import main as containerd_main
from kata_node.runtime.containerd import read as containerd_read
from kata_node.runtime.model.config import is_drop_in, is_of
from kata_node.toml import edit as toml_edit
from kata_node.toml import tables as toml_tables


@dataclass(frozen=True)
class OurPart:
    """The part of one instance.

    Its methods raise :class:`~kata_node.errors.HostError` on a file that is broken, or not safe to edit.
    """

    install_dir: str
    suffix: str
    ours: tuple[str, ...]
    """Handlers that are known to be of this instance, were their markers gone."""
    is_toml: bool
    """Whether the file is TOML; a template with Go's braces has nothing but our markers to go by."""
    keeps_runc: bool
    """Whether the runc that came with the block stays for handlers of others, as containerd 1.x needs it."""

    @property
    def name(self) -> str:
        """What the markers of the block call it."""
        return self.suffix or "default"

    @property
    def import_entry(self) -> str:
        """The entry of ``imports`` that names the drop-ins in the install dir."""
        return f"{self.install_dir}/containerd/config.d/*.toml"

    def is_of_others(self, path: str, content: bytes) -> bool:
        """Whether the block under this name is of an instance in another install dir."""
        block = toml_tables.block_of(content, self.name, where=path)
        return b"runtime_path" in block and not is_of(self.install_dir, block)

    def taken_out(self, path: str, content: bytes, *, but: str = "") -> bytes:
        """The file without our tables, and without the imports, ``but`` one, that mean our drop-ins."""
        if self.is_toml:
            content = self._without_imports(path, content, but=but)
        return self._without_tables(path, content)

    def without_strays(self, path: str, content: bytes) -> bytes:
        """The file with no more of ours than a block that is whole."""
        if not self.is_toml:
            return content
        content = self._without_imports(path, content)
        if toml_tables.is_whole(content, self.name, where=path):
            return content
        return self._without_tables(path, content)

    def _without_tables(self, path: str, content: bytes) -> bytes:
        if self.is_of_others(path, content):
            return content
        if not self.is_toml:
            return toml_tables.remove(content, self.name, where=path, template=True)
        tables = containerd_read.tables_below(path, content, self.install_dir, self.ours) if self.ours else ()
        left = toml_tables.remove(content, self.name, where=path, tables=tables)
        if self.keeps_runc:
            block = toml_tables.block_of(content, self.name, where=path)
            left = containerd_main.keep_runc(left, block, where=path)
        return left

    def _without_imports(self, path: str, content: bytes, *, but: str = "") -> bytes:
        """A plain path to a drop-in is never ours to write, but would stop the daemon once that is gone."""
        directory = posixpath.dirname(self.import_entry)
        for entry in containerd_read.imports(content, path):
            meant = containerd_read.resolve(path, entry)
            at_home = posixpath.dirname(meant) == directory and is_drop_in(meant)
            if meant != but and (meant == self.import_entry or at_home):
                content = toml_edit.remove(content, "imports", entry, where=path)
        return content
