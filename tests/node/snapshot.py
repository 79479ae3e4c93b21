"""Everything below some directories of a node, to tell later whether a byte of it changed."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path


@dataclass(frozen=True)
class Entry:
    """One file, directory, link or other thing, as it is."""

    kind: str  # "file", "dir", "link", or "other": a socket, a device, a pipe
    mode: int  # permission bits
    uid: int
    gid: int
    size: int  # bytes, files only
    sha256: str  # hex, files only
    link: str  # target as written, links only
    mtime_ns: int


Snapshot = Mapping[str, Entry]
"""Host path -> what is there. A directory that was asked for and is missing has no entry."""


def take(root: Path, directories: Iterable[str]) -> Snapshot:
    """Look at the host paths ``directories`` below ``root``, and at all below them, following no link."""
    found: dict[str, Entry] = {}
    todo = [directory.rstrip("/") for directory in directories]
    while todo:
        path = todo.pop()
        real = f"{root}{path}"
        if not os.path.lexists(real):
            continue
        found[path] = entry = _entry(real)
        if entry.kind == "dir":
            todo += [f"{path}/{name}" for name in os.listdir(real)]
    return dict(sorted(found.items()))


def _entry(real: str) -> Entry:
    info = os.lstat(real)
    common = {"mode": stat.S_IMODE(info.st_mode), "uid": info.st_uid, "gid": info.st_gid}
    plain = Entry(kind="other", size=0, sha256="", link="", mtime_ns=info.st_mtime_ns, **common)
    if stat.S_ISREG(info.st_mode):
        with open(real, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return replace(plain, kind="file", size=info.st_size, sha256=digest)
    if stat.S_ISLNK(info.st_mode):
        return replace(plain, kind="link", link=os.readlink(real))
    return replace(plain, kind="dir") if stat.S_ISDIR(info.st_mode) else plain


def changes(before: Snapshot, after: Snapshot, *, times: bool = False) -> list[str]:
    """What differs, a line for each path: ``+ /a`` new, ``- /a`` gone, ``~ /a: mode 644 -> 600`` changed.

    The modification times count only with ``times``: a directory's changes whenever a file is
    replaced in it, also by the same bytes.
    """
    lines = []
    for path in sorted(before.keys() | after.keys()):
        old, new = before.get(path), after.get(path)
        if old is None or new is None:
            lines.append(f"{'+' if old is None else '-'} {path}")
            continue
        fields = [name for name in Entry.__dataclass_fields__ if times or name != "mtime_ns"]
        differing = [
            f"{name} {_shown(name, getattr(old, name))} -> {_shown(name, getattr(new, name))}"
            for name in fields
            if getattr(old, name) != getattr(new, name)
        ]
        if differing:
            lines.append(f"~ {path}: {', '.join(differing)}")
    return lines


def _shown(name: str, value: object) -> str:
    return f"{value:o}" if name == "mode" else str(value)
