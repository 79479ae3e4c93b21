"""Find out whether a directory is a mount point. Paths are real paths."""

from __future__ import annotations

import os
from pathlib import Path


def is_mount_point(path: Path) -> bool:
    """Return whether something is mounted at the directory ``path``, also of the same file system.

    A bind mount of the same file system has the same device number as its parent, but another mount id.
    Raises :class:`OSError`.
    """
    return os.path.ismount(path) or _mount_id(path, os.O_NOFOLLOW) != _mount_id(path.parent)


def _mount_id(path: Path, flags: int = 0) -> str:
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC | flags)
    try:
        with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
            return next(line for line in file if line.startswith("mnt_id:"))
    finally:
        os.close(fd)
