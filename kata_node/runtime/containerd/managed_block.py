"""What is ours in a file of others: one entry of its ``imports``, or one marked block of tables. Pure."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass

from kata_node.runtime.containerd import main as containerd_main
from kata_node.runtime.containerd import read as containerd_read
from kata_node.runtime.model.config import is_drop_in, is_drop_in_of
from kata_node.toml import edit as toml_edit
from kata_node.toml import tables as toml_tables


@dataclass(frozen=True)
class ContainerdEntry:
    """The part of one instance.

    Its methods raise :class:`~kata_node.errors.HostError` on a file that is broken, or not safe to edit.
    """

    install_dir: str
    suffix: str
    recorded_handlers: tuple[str, ...]
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

    def is_foreign(self, path: str, content: bytes) -> bool:
        """Whether the block under this name is of an instance in another install dir."""
        block = toml_tables.block_content(content, self.name, where=path)
        return b"runtime_path" in block and not is_drop_in_of(self.install_dir, block)

    def remove_from(self, path: str, content: bytes, *, kept_import: str = "") -> bytes:
        """The file without our tables, and without the imports, ``but`` one, that mean our drop-ins."""
        if self.is_toml:
            content = self._without_imports(path, content, kept_import=kept_import)
        return self._without_tables(path, content)

    def remove_incomplete(self, path: str, content: bytes) -> bytes:
        """The file with no more of ours than a block that is whole."""
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
        """A plain path to a drop-in is never ours to write, but would stop the daemon once that is gone."""
        directory = posixpath.dirname(self.import_entry)
        for entry in containerd_read.imports(content, path):
            target = containerd_read.resolve_import(path, entry)
            is_own_drop_in = posixpath.dirname(target) == directory and is_drop_in(target)
            if target != kept_import and (target == self.import_entry or is_own_drop_in):
                content = toml_edit.remove(content, "imports", entry, where=path)
        return content
