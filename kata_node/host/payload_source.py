"""What placing files needs to know of a payload."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from kata_node.host.archive import Digest
from kata_node.host.spool import Spool


class PlacedEntry(Protocol):
    """A file, link or directory to place; :class:`kata_node.payload.manifest.Entry` is one."""

    @property
    def path(self) -> str:
        """The path relative to the install dir; it must not lead outside."""

    @property
    def kind(self) -> str:
        """``file``, ``link`` or ``dir``."""

    @property
    def mode(self) -> int:
        """Permission bits."""

    @property
    def size(self) -> int:
        """The size in bytes."""

    @property
    def mtime(self) -> int:
        """The modification time in whole seconds."""

    @property
    def sha256(self) -> str:
        """The digest of the content."""

    @property
    def link(self) -> str:
        """The target of a link."""

    @property
    def component(self) -> str:
        """The component that has the file; empty if none has it."""


class PayloadSource(Protocol):
    """The source of the content; :class:`kata_node.payload.index.Payload` is one."""

    @property
    def spool(self) -> Spool | None:
        """The content of files of archives, as far as it is on the host already."""

    def file(self, path: str) -> str:
        """Return the real path of a file that is in no archive."""

    def archive(self, component: str) -> tuple[Path, Digest] | None:
        """Return the real path of a component's archive, and its digest in the manifest.

        ``None`` if the files of the component are in no archive.
        """

    def member(self, component: str, name: str) -> PlacedEntry | None:
        """Return the manifest's entry for the member ``name`` of an archive; ``None`` if it has none."""
