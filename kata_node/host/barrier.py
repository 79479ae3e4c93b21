"""Forces many new files to the disk at once: one ``syncfs`` in place of an ``fsync`` for each file.

``syncfs`` also writes what other programs left dirty on the file system, and a node can have gigabytes of
that and a slow disk. So it is used for many files only, and only while little foreign data is dirty.
"""

from __future__ import annotations

import errno
import logging
import os

from kata_node.host import kernel
from kata_node.host.mounts import file_system

MIN_FILES = 256
"""For fewer files, an ``fsync`` for each is fast enough, and overlaps with the work on the other files."""
MAX_FOREIGN_DIRTY = 256 << 20
"""Bytes of other programs that may be dirty. To write them takes as long as some thousand ``fsync``."""

_REPORTS_ERRORS_SINCE = (5, 8)
"""The first kernel whose ``syncfs`` returns an error if data could not be written."""
_FILE_SYSTEMS = ("ext4", "xfs", "btrfs", "f2fs")
"""File systems whose ``syncfs`` is as strong as ``fsync``. That of FUSE, for example, is not."""
_REFUSED_ERRNOS = (errno.ENOSYS, errno.EPERM, errno.EINVAL, errno.EOPNOTSUPP)

log = logging.getLogger(__name__)


def is_possible(directory: int, files: int) -> bool:
    """Return whether :func:`sync_file_system` can take the place of an ``fsync`` of each of ``files`` files.

    ``directory`` is a descriptor on their file system. It must be open before the first write: ``syncfs``
    reports the errors since then.
    """
    return (
        files >= MIN_FILES
        and kernel.release() >= _REPORTS_ERRORS_SINCE
        and file_system(directory) in _FILE_SYSTEMS
    )


def sync_file_system(directory: int, own: int) -> bool:
    """Force the file system of ``directory`` to the disk; return whether that was done.

    It is not done if the kernel refuses it, or if many more bytes are dirty on this machine than the ``own``
    ones of the caller. Raises :class:`OSError` if data could not be written.
    """
    if (dirty := kernel.dirty_memory()) is None or dirty > own + MAX_FOREIGN_DIRTY:
        log.info("other programs have much data to write: forcing each file to the disk by itself")
        return False
    try:
        _syncfs(directory)
    except OSError as error:
        if error.errno not in _REFUSED_ERRNOS:
            raise
        return False
    return True


def _syncfs(fd: int) -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "syncfs"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if libc.syncfs(fd):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
