"""Read small files without waiting: a FIFO, a device or a huge file is refused. Paths are real paths."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path

MAX_SIZE = 32 << 20
"""Bytes. The largest file that is read whole is the status file of dpkg, a few MiB."""

_NULL_DEVICE = os.makedev(1, 3)
_KINDS = (
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
)


class NotPlainFileError(OSError):
    """A path is neither a regular file nor a directory, or the file is too large."""

    hint = "replace it by a regular file, or remove it"


def read_bounded(path: Path, max_size: int = MAX_SIZE) -> tuple[bytes, os.stat_result]:
    """Return the content and the status of the regular file at ``path``.

    The null device counts as an empty file: administrators mask drop-ins with links to it. Raises
    :class:`NotPlainFileError` for other special files and for a file of more than ``max_size`` bytes, and
    :class:`OSError`.
    """
    info = path.stat()  # before open, because opening a device can have an effect
    if stat.S_ISCHR(info.st_mode) and info.st_rdev == _NULL_DEVICE:
        return b"", info
    require_plain_file(info)
    with open_plain(path) as file:
        info = os.fstat(file.fileno())
        content = b"" if info.st_size > max_size else file.read(max_size + 1)
    if info.st_size > max_size or len(content) > max_size:
        raise NotPlainFileError(errno.EFBIG, f"the file is larger than {max_size} bytes")
    return content, info


@contextlib.contextmanager
def open_plain(path: Path, *, follow_last: bool = True) -> Iterator[BufferedReader]:
    """Open the regular file at ``path`` to read, without waiting for anything. Raises :class:`OSError`.

    With ``follow_last=False`` a symlink is an error.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    with open(os.open(path, flags if follow_last else flags | os.O_NOFOLLOW), "rb") as file:
        require_plain_file(os.fstat(file.fileno()))
        yield file


def file_digest(path: Path) -> str:
    """Return the sha256 of the regular file at ``path``, which is no symlink. Raises :class:`OSError`."""
    with open_plain(path, follow_last=False) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_plain_file(info: os.stat_result) -> None:
    """Raise :class:`OSError` unless ``info`` is the status of a regular file."""
    if stat.S_ISDIR(info.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    for is_kind, name in _KINDS:
        if is_kind(info.st_mode):
            raise NotPlainFileError(errno.EINVAL, f"{name} is where a file is needed")
