"""Replace files atomically, so that a power cut leaves either the previous or the new content.

Paths are real paths. All functions raise :class:`OSError`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

_MAX_NAME = 255  # bytes, in all usual file systems


def temp_sibling(path: Path) -> Path:
    """Return the temporary path for the new content of ``path``: beside it, or beside its drop-in directory.

    CRI-O and Kata read every file in a drop-in directory, with any name. The temporary path depends only
    on ``path``, so a later run overwrites the leftover of an interrupted one. A name that would be too long
    for a file system becomes its digest.
    """
    directory, name = path.parent, path.name
    if directory.name.endswith(".d"):
        directory, name = directory.parent, f"{directory.name}.{name}"
    temp = f".{name}.kata-node-tmp"
    if len(os.fsencode(temp)) > _MAX_NAME:
        temp = f".{hashlib.sha256(os.fsencode(name)).hexdigest()}.kata-node-tmp"
    return directory / temp


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path, and rename it to ``path`` at the end. On an error it is removed."""
    temp = temp_sibling(path)
    try:
        temp.unlink(missing_ok=True)
        yield temp
        temp.rename(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temp.unlink()
        raise
    fsync_dir(path.parent)


def finish(fd: int, mode: int, *, owner: tuple[int, int] | None = None, mtime: int | None = None) -> None:
    """Set the owner, mode and mtime (in seconds) of a new file, and force it to the disk."""
    info = os.fstat(fd)
    if owner is not None and owner != (info.st_uid, info.st_gid):
        os.fchown(fd, *owner)
    os.fchmod(fd, mode)  # after chown, which clears setuid bits
    if mtime is not None:
        os.utime(fd, (mtime, mtime))
    os.fsync(fd)


def fsync_dir(path: Path) -> None:
    """Force a directory to the disk, so that a rename in it survives a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
