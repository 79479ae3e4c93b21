"""What is at a real path, and directories made and removed there. All functions raise :class:`OSError`."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path

from kata_node.host.atomic_replace import fsync_dir

_DIR_IN_USE_ERRNOS = (errno.ENOENT, errno.ENOTDIR, errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY)


def stat_of(real: Path) -> os.stat_result | None:
    """Return the status of ``real``, which is not followed; ``None`` when it is missing."""
    try:
        return os.lstat(real)
    except (FileNotFoundError, NotADirectoryError):
        return None


def is_dir(real: Path) -> bool:
    """Return whether ``real`` is a directory, and not a symlink to one."""
    info = stat_of(real)
    return info is not None and stat.S_ISDIR(info.st_mode)


def link_target(real: Path | str) -> str | None:
    """Return the target of the symlink ``real``; ``None`` when it is not a symlink."""
    try:
        return os.readlink(real)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOENT, errno.ENOTDIR):  # EINVAL: not a symlink
            return None
        raise


def make_dir(real: Path, mode: int) -> bool:
    """Create one directory; return ``False`` when another process has just created it."""
    try:
        real.mkdir(mode)
    except FileExistsError:
        info = os.lstat(real)  # raises if it is already gone, like mkdir without a parent
        if stat.S_ISDIR(info.st_mode):
            return False
        raise NotADirectoryError(errno.ENOTDIR, "a file is where a directory is needed") from None
    try:
        real.chmod(mode)  # the umask limits the mode of mkdir
        fsync_dir(real.parent)
    except OSError:
        with contextlib.suppress(OSError):
            real.rmdir()
        raise
    return True


def remove_empty_dir(real: Path) -> bool:
    """Remove a directory if it is empty and nothing is mounted on it; return whether it was removed."""
    try:
        real.rmdir()
    except OSError as error:
        if error.errno not in _DIR_IN_USE_ERRNOS:
            raise
        return False
    return True


def remove_tree(name: str, dir_fd: int) -> None:
    """Remove a file, a symlink, or a directory with all that is in it, if there is one.

    No symlink is followed. Another file system that is mounted on a directory stays, which is an error.
    """
    try:
        os.unlink(name, dir_fd=dir_fd)
    except FileNotFoundError:
        return
    except IsADirectoryError:
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
        try:
            if os.fstat(fd).st_dev != os.fstat(dir_fd).st_dev:
                raise OSError(errno.EBUSY, "another file system is mounted on it") from None
            for each in os.listdir(fd):
                remove_tree(each, fd)
        finally:
            os.close(fd)
        os.rmdir(name, dir_fd=dir_fd)
