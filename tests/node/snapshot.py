"""Snapshots of directories of a node, and the differences between two of them."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path


@dataclass(frozen=True)
class Entry:
    """The attributes of one file, directory, symlink or other node of the file system."""

    kind: str  # "file", "dir", "link", or "other" (socket, device, pipe)
    mode: int  # permission bits
    uid: int
    gid: int
    size: int  # bytes, files only
    sha256: str  # hex, files only
    link: str  # target as stored, symlinks only
    mtime_ns: int


Snapshot = Mapping[str, Entry]
"""Host path -> attributes. A requested directory that does not exist has no entry."""


def take(root: Path, directories: Iterable[str]) -> Snapshot:
    """Return a snapshot of the host paths ``directories`` below ``root``, recursively; follows no symlink."""
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
    """Return the differences, one line a path: ``+ /a`` new, ``- /a`` removed, ``~ /a: mode 644 -> 600``.

    Modification times are compared only with ``times``: a directory's time also changes when a file in it
    is replaced with the same content.
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


def changes_by_a_refused_run(before: Snapshot, after: Snapshot) -> list[str]:
    """Return the differences, times included, except the record of that run beside the receipt."""
    return [
        line
        for line in changes(before, after, times=True)
        if "/.kata-node/last-run.json" not in line
        and "/.kata-node/.last-run.json." not in line
        and not re.fullmatch(r"~ \S+/\.kata-node: mtime_ns \d+ -> \d+", line)
    ]


def _shown(name: str, value: object) -> str:
    return f"{value:o}" if name == "mode" else str(value)
