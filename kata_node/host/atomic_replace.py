"""Replace files atomically, so that a power cut leaves either the previous or the new content.

Paths are real paths. All functions raise :class:`OSError`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import posixpath
from collections.abc import Iterator, Mapping
from pathlib import Path

_MAX_NAME = 255  # bytes, in all usual file systems


def temp_sibling(path: Path) -> Path:
    """Return the temporary path for the new content of ``path``: beside it, or beside its drop-in directory.

    CRI-O and Kata read every file in a drop-in directory, with any name. The temporary path depends only
    on ``path``, so a later run overwrites the leftover of an interrupted one. A name that would be too long
    for a file system becomes its digest.
    """
    return sibling(path, "tmp")


def sibling(path: Path, kind: str) -> Path:
    """Return the hidden path of a file of kata-node that belongs to ``path``; see :func:`temp_sibling`."""
    return Path(sibling_path(str(path), kind))


def sibling_path(path: str, kind: str = "tmp") -> str:
    """Return the same as :func:`sibling`, as text. A relative ``path`` gives a relative one."""
    directory, name = posixpath.split(path)
    if directory.endswith(".d"):
        directory, last = posixpath.split(directory)
        name = f"{last}.{name}"
    hidden = f".{name}.kata-node-{kind}"
    if len(os.fsencode(hidden)) > _MAX_NAME:
        hidden = f".{hashlib.sha256(os.fsencode(name)).hexdigest()}.kata-node-{kind}"
    return posixpath.join(directory, hidden)


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


def write_new(
    path: Path,
    content: bytes,
    mode: int,
    *,
    owner: tuple[int, int] | None = None,
    mtime: int | None = None,
    attributes: Mapping[str, bytes] | None = None,
) -> None:
    """Create the real path ``path`` and force it to the disk. Raises :class:`OSError`, also if it exists."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(content)
        finish(fd, mode, owner=owner, mtime=mtime, attributes=attributes)
    finally:
        os.close(fd)


def finish(
    fd: int,
    mode: int,
    *,
    owner: tuple[int, int] | None = None,
    mtime: int | None = None,
    attributes: Mapping[str, bytes] | None = None,
    sync: bool = True,
) -> None:
    """Set owner, mode, extended attributes and mtime (in seconds) of a new file; force it to the disk.

    With ``sync=False`` the caller forces it to the disk.
    """
    if owner is not None:
        info = os.fstat(fd)
        if owner != (info.st_uid, info.st_gid):
            os.fchown(fd, *owner)
    os.fchmod(fd, mode)  # after chown, which clears setuid bits
    for name, value in (attributes or {}).items():  # after chmod, which changes the mask of an ACL
        with _ignored(*_UNSUPPORTED_ERRNOS):
            os.setxattr(fd, name, value)
    if mtime is not None:
        os.utime(fd, (mtime, mtime))
    if sync:
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
