"""How new content takes the place of old: all of it at once, and so that a power cut cannot undo it.

Real paths, and what the operating system refuses is an :class:`OSError`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


def temp_sibling(path: Path) -> Path:
    """Where new content of ``path`` is prepared: beside it, or beside the drop-in directory it is in.

    Of such a directory others may read every file, whatever it is called: CRI-O does, and Kata. The name
    depends on nothing else, so what an interrupted run left is found and overwritten.
    """
    directory = path.parent
    if directory.name.endswith(".d"):
        return directory.with_name(f".{directory.name}.{path.name}.kata-node-tmp")
    return path.with_name(f".{path.name}.kata-node-tmp")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to prepare what then takes the place of ``path``; on failure nothing is left of it."""
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
    """Give the new file its owner, mode and time, then force it to the disk, before it is renamed."""
    info = os.fstat(fd)
    if owner is not None and owner != (info.st_uid, info.st_gid):
        os.fchown(fd, *owner)
    os.fchmod(fd, mode)  # after chown, which clears setuid bits
    if mtime is not None:
        os.utime(fd, (mtime, mtime))
    os.fsync(fd)


def fsync_dir(path: Path) -> None:
    """Force a directory's entries to the disk, so that a rename in it survives a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
