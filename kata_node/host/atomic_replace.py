"""Replace files atomically, so that a power cut leaves either the previous or the new content.

Paths are real paths. All functions raise :class:`OSError`.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Mapping
from pathlib import Path


def temp_sibling(path: Path) -> Path:
    """Return the temporary path for the new content of ``path``: beside it, or beside its drop-in directory.

    CRI-O and Kata read every file in a drop-in directory, with any name. The temporary path depends only
    on ``path``, so a later run overwrites the leftover of an interrupted one.
    """
    return sibling(path, "tmp")


def sibling(path: Path, kind: str) -> Path:
    """Return the hidden path of a file of kata-node that belongs to ``path``; see :func:`temp_sibling`."""
    directory = path.parent
    if directory.name.endswith(".d"):
        return directory.with_name(f".{directory.name}.{path.name}.kata-node-{kind}")
    return path.with_name(f".{path.name}.kata-node-{kind}")


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


def finish(
    fd: int,
    mode: int,
    *,
    owner: tuple[int, int] | None = None,
    mtime: int | None = None,
    attributes: Mapping[str, bytes] | None = None,
) -> None:
    """Set owner, mode, extended attributes and mtime (in seconds) of a new file; force it to the disk."""
    info = os.fstat(fd)
    if owner is not None and owner != (info.st_uid, info.st_gid):
        os.fchown(fd, *owner)
    os.fchmod(fd, mode)  # after chown, which clears setuid bits
    for name, value in (attributes or {}).items():  # after chmod, which changes the mask of an ACL
        with _ignored(*_UNSUPPORTED_ERRNOS):
            os.setxattr(fd, name, value)
    if mtime is not None:
        os.utime(fd, (mtime, mtime))
    os.fsync(fd)


_UNSUPPORTED_ERRNOS = (errno.ENOTSUP, errno.EPERM, errno.EACCES)
_OF_THE_CONTENT = ("security.ima", "security.evm")
"""Attributes that hold only for the content of a file."""


def extended_attributes(path: Path) -> dict[str, bytes]:
    """Return the extended attributes of a file, ACLs among them, as far as another content can have them.

    A missing file, or a file system without attributes, has none. ``path`` is not followed.
    """
    found: dict[str, bytes] = {}
    with _ignored(errno.ENOENT, errno.ENOTDIR, *_UNSUPPORTED_ERRNOS):
        for name in os.listxattr(path, follow_symlinks=False):
            if name not in _OF_THE_CONTENT:
                with _ignored(errno.ENODATA, *_UNSUPPORTED_ERRNOS):
                    found[name] = os.getxattr(path, name, follow_symlinks=False)
    return found


@contextlib.contextmanager
def _ignored(*errnos: int) -> Iterator[None]:
    """Ignore an :class:`OSError` with one of ``errnos``."""
    try:
        yield
    except OSError as error:
        if error.errno not in errnos:
            raise


def fsync_dir(path: Path) -> None:
    """Force a directory to the disk, so that a rename in it survives a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
