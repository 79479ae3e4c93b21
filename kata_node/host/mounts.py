"""Find out which mount a path is on, and whether it is a mount point. Paths are real paths."""

from __future__ import annotations

import os
import re
from pathlib import Path

from kata_node.host import kernel


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
        return _mount_id(fd)
    finally:
        os.close(fd)


def mounted_directory(path: Path) -> str:
    """Return which path of its file system is mounted at ``path``; ``""`` if ``path`` is no mount point.

    For a directory of the node in a container, this is where symlinks on the node lead to, as far as they
    stay on the root file system.
    """
    for line in reversed(kernel.read("/proc/self/mountinfo").splitlines()):
        fields = line.split(" ")
        if fields[4] == str(path):
            return fields[3]
    return ""


def file_system(fd: int) -> str:
    """Return the type of the file system of an open file, such as ``ext4``; ``""`` if it is not known.

    It is not known for a mount of another mount namespace.
    """
    wanted = _mount_id(fd)
    for line in kernel.read("/proc/self/mountinfo").splitlines():
        fields = line.split(" ")
        if wanted and fields[0] == wanted:
            return fields[fields.index("-") + 1]
    return ""


def _mount_id(fd: int) -> str:
    found = re.search(r"^mnt_id:\s*(\d+)$", kernel.read(f"/proc/self/fdinfo/{fd}"), re.MULTILINE)
    return found[1] if found else ""
