"""Find out which mount a path is on, and whether it is a mount point. Paths are real paths."""

from __future__ import annotations

import os
from pathlib import Path


def is_mount_point(path: Path) -> bool:
    """Return whether something is mounted at ``path``, also of the same file system.

    A bind mount of the same file system has the same device number as its parent, but another mount id.
    Raises :class:`OSError`.
    """
    return os.path.ismount(path) or mount_id(path) != mount_id(path.parent)


def mount_id(path: Path) -> str:
    """Return the number of the mount that a path is on; ``""`` if the kernel does not show it."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        lines = Path(f"/proc/self/fdinfo/{fd}").read_text(encoding="ascii").splitlines()
    except OSError:
        return ""
    finally:
        os.close(fd)
    return next((line for line in lines if line.startswith("mnt_id:")), "")
