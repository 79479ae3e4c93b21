"""What the payload holds and what of it stands below the install dir."""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from kata_node import __version__
from kata_node.host.files import Root, missing_dirs
from kata_node.kata import drop_ins
from kata_node.kata.drop_ins import doubts
from kata_node.payload.layout import Found, Wanted, layout
from kata_node.plan.context import Look
from kata_node.plan.receipt import STATE_DIR, dirs_of_others
from kata_node.settings.handlers import handlers
from kata_node.snapshotters import mapping

if TYPE_CHECKING:
    from kata_node.payload.index import Payload
    from kata_node.payload.manifest import Entry
    from kata_node.settings.model import Settings


@dataclass(frozen=True)
class ArtifactFacts:
    """For the artifacts stage.

    ``wanted`` is ``None`` when the inputs are those of the last completed run and nothing has
    changed on the host since: then reading the payload at all would be wasted.
    """

    inputs: str
    wanted: Mapping[str, Wanted] | None = None
    entries: tuple[Entry, ...] = ()
    """What the payload brings for the enabled shims, before it is laid out."""
    found: Mapping[str, Found] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)
    missing_dirs: tuple[str, ...] = ()
    """Down to the install dir, outermost first; those that another instance made are as good as missing."""
    release: str = ""
    doubts: tuple[str, ...] = ()
    """Sentences about settings that can be carried out and will hardly do what is meant."""
    payload: Callable[[], Payload] = field(default=lambda: _no_payload(), repr=False, compare=False)


def look(look: Look) -> ArtifactFacts:
    """Compare by stat alone where the receipt vouches for the content; hash only what it does not know."""
    from kata_node.payload import index
    from kata_node.payload.manifest import select

    settings, root = look.settings, look.tools.root
    placed = look.receipt.artifacts
    signature = index.signature(look.options.payload)
    inputs = _inputs(signature, settings)
    if placed and placed.state == "placed" and placed.inputs == inputs:
        found = find(root, settings.install_dir, placed.files)
        if all(path in found and found[path].is_as(record) for path, record in placed.files.items()):
            return ArtifactFacts(inputs)
    payload = index.load(look.options.payload)
    every = handlers(settings)
    shims = {handler.shim.name: handler.shim for handler in every}
    entries = select(payload.manifest, shims.values(), settings.arch, mapping.components(settings))
    wanted = layout(entries, settings)
    known = placed.files if placed else {}
    found = find(root, settings.install_dir, {**wanted, **known})
    unknown = (path for path in found if path not in known and found[path].kind == "file")
    digests = {
        path: _sha256(root.resolve(f"{settings.install_dir}/{path}"))
        for path in unknown
        if found[path].size == wanted[path].size
    }
    return ArtifactFacts(
        inputs,
        wanted,
        entries,
        found,
        digests,
        _to_remove_one_day(root, settings.install_dir),
        payload.manifest.release,
        tuple(dict.fromkeys(doubt for handler in every for doubt in doubts(handler, settings, wanted))),
        lambda: payload,
    )


_OF_RECORD = re.compile(
    rf"{re.escape(STATE_DIR)}/(receipt\.json|\.receipt\.json\.kata-node-tmp|backups/\.?[0-9a-f]{{64}}(\..*)?)"
)
"""The record, its backups, and what an interrupted writing of them left, but no copies somebody made."""


@dataclass(frozen=True)
class RemovalFacts:
    """For remove-artifacts. ``found`` are the files and links below the install dir, the record's aside.

    ``bare``: there is an install dir to remove that holds nothing but, at most, what the record left.
    """

    recorded: bool
    bare: bool
    found: tuple[str, ...]


def look_for_removal(look: Look) -> RemovalFacts:
    """Everything below the install dir, whoever put it there."""
    root, install_dir = look.tools.root, look.receipt.install_dir
    found = tuple(path for path in walk(root, install_dir) if not _OF_RECORD.fullmatch(path))
    names = root.list_dir(install_dir)
    empty = not names and root.is_dir(install_dir) and not os.path.ismount(root.resolve(install_dir))
    return RemovalFacts(
        recorded=look.receipt.artifacts is not None,
        bare=not found and (empty or names == [STATE_DIR]),
        found=found,
    )


def find(root: Root, install_dir: str, paths: Iterable[str]) -> dict[str, Found]:
    """What stands at ``paths`` below the install dir; those with nothing are left out."""
    found: dict[str, Found] = {}
    parents: dict[str, Path] = {}  # hundreds of files share a few directories
    for path in paths:
        parent, name = posixpath.split(f"{install_dir}/{path}")
        if parent not in parents:
            parents[parent] = root.resolve(parent)
        real = parents[parent] / name
        try:
            info = real.lstat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        link = str(real.readlink()) if stat.S_ISLNK(info.st_mode) else ""
        found[path] = Found(
            _kind(info.st_mode), stat.S_IMODE(info.st_mode), info.st_size, int(info.st_mtime), link
        )
    return found


def walk(root: Root, install_dir: str) -> Iterator[str]:
    """Files and links below the install dir, relative to it."""
    base = root.resolve(install_dir)
    for directory, dirs, names in os.walk(base):
        links = [name for name in dirs if Path(directory, name).is_symlink()]
        for name in sorted((*names, *links)):
            yield str(Path(directory, name).relative_to(base))


def _to_remove_one_day(root: Root, install_dir: str) -> tuple[str, ...]:
    above = (install_dir[:at] for at, char in enumerate(install_dir) if char == "/" and at)
    shared = dirs_of_others(root, install_dir).intersection(above)
    return (*sorted(shared), *missing_dirs(root, install_dir))


def _sha256(path: Path) -> str:
    """Of a file of any size, a piece at a time."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _kind(mode: int) -> Literal["file", "link", "dir", "other"]:
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISLNK(mode):
        return "link"
    return "dir" if stat.S_ISDIR(mode) else "other"


def _inputs(signature: str, settings: Settings) -> str:
    more = mapping.components(settings)
    text = "\n".join((__version__, signature, settings.arch, drop_ins.inputs(settings), *more))
    return hashlib.sha256(text.encode()).hexdigest()


def _no_payload() -> Payload:
    raise LookupError("these facts were gathered without reading the payload")
