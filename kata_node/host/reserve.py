"""Replace files in a way that can be undone, and repeated, on a full disk.

A file can have a reserve: a hidden file beside it. During a change of the runtime's configuration it is the
previous file itself, under a second name. To restore it is one rename, which needs no block and no inode.
Where a hard link is not possible, it is a copy. The reserve of the receipt is allocated when the receipt is
written, and becomes the next receipt when the disk has no space for a new file.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from kata_node.errors import HostError, NoSpaceError
from kata_node.host.atomic_replace import (
    extended_attributes,
    finish,
    fsync_dir,
    replacing,
    sibling,
    write_new,
)
from kata_node.host.files import FileState, Root, read_real
from kata_node.host.host_errors import host_errors


def reserve_of(path: Path) -> Path:
    """Return the real path of the reserve of the file at the real path ``path``."""
    return sibling(path, "reserve")


def read(root: Root, path: str) -> FileState | None:
    """Return the state of the reserve of ``path``; ``None`` when it has none."""
    with host_errors(path):
        return _read(reserve_of(root.resolve(path)))


def replace(
    root: Root,
    path: str,
    content: bytes,
    *,
    mode: int,
    owner: tuple[int, int] | None = None,
    previous: FileState | None = None,
    use_reserve: bool = False,
) -> None:
    """Replace or create ``path`` like :meth:`Root.write`, with ``previous`` as its reserve.

    ``previous`` is what a rollback restores; with ``None`` the reserve does not change. With ``use_reserve``
    an earlier reserve becomes the new file when the disk has no space for one. Raises :class:`HostError`, and
    :class:`NoSpaceError` before ``path`` changes.
    """
    real = root.resolve(path)
    try:
        with host_errors(path), replacing(real) as temp:
            write_new(temp, content, mode, owner=owner, attributes=extended_attributes(real))
            if previous is not None:
                _keep(real, previous)
    except NoSpaceError:
        if not use_reserve:
            raise
        with host_errors(path):
            if not _use_reserve(real, content, mode, owner, previous):
                raise


def overwrite(root: Root, path: str, content: bytes, *, mode: int, owner: tuple[int, int]) -> None:
    """Write ``content`` into the existing file at ``path``, in the blocks that it has.

    This is the last resort on a full disk, because a power cut during it can leave both contents mixed. Until
    the end the file has the new content and a comment of the previous length. Raises :class:`NoSpaceError`
    before anything changes if the blocks do not suffice, and :class:`HostError` if the file has other names.
    """
    real = root.resolve(path)
    with host_errors(path):
        reserve = reserve_of(real)
        if reserve.exists() and reserve.samefile(real):
            reserve.unlink()
        fd = os.open(real, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            info = os.fstat(fd)
            if info.st_nlink != 1:
                raise HostError(
                    "there is no space for a new file, and this one has other hard links",
                    where=path,
                    hint="free some space on this file system, then run again",
                )
            if len(content) > info.st_size:
                os.posix_fallocate(fd, 0, len(content))
            _overwrite(fd, content + b"#" * (info.st_size - len(content)))
            os.ftruncate(fd, len(content))
            finish(fd, mode, owner=owner)
        finally:
            os.close(fd)


def remove(root: Root, path: str, *, previous: FileState | None = None) -> None:
    """Remove the file at ``path``, with symlinks followed. If it is ``previous``, keep it as its reserve."""
    real = root.resolve(path)
    with host_errors(path):
        if previous is not None and _read(real) == previous:
            # A directory for drop-ins can be a mount of its own. Its reserve would be on another one.
            with contextlib.suppress(OSError):
                real.rename(reserve_of(real))
                _sync(real)
    root.remove(path, follow_last=True)


def restore(root: Root, path: str, state: FileState) -> None:
    """Give ``path`` its previous ``state`` back: by a rename if the reserve has it, else by a write."""
    real = root.resolve(path)
    with contextlib.suppress(OSError):
        if _read(reserve_of(real)) == state:
            reserve_of(real).rename(real)
            _sync(real)
            return
    owner = (state.uid, state.gid)
    try:
        root.write(path, state.content, mode=state.mode, owner=owner)
    except NoSpaceError:
        if not root.exists(path):
            raise
        overwrite(root, path, state.content, mode=state.mode, owner=owner)


def forget(root: Root, path: str) -> None:
    """Remove the reserve of ``path``."""
    missing = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
    with host_errors(path), contextlib.suppress(*missing):
        reserve = reserve_of(root.resolve(path))
        reserve.unlink()
        fsync_dir(reserve.parent)


def allocate(root: Root, path: str, size: int) -> None:
    """Make the reserve of ``path`` at least ``size`` bytes long, if the disk has the space."""
    with contextlib.suppress(OSError):
        reserve = reserve_of(root.resolve(path))
        with contextlib.suppress(FileNotFoundError):
            if reserve.lstat().st_nlink != 1:  # another file would grow
                reserve.unlink()
        fd = os.open(reserve, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        found = os.fstat(fd).st_size
        try:
            if found < size:
                os.posix_fallocate(fd, 0, size)
        except OSError:
            if not found:
                reserve.unlink()
        finally:
            os.close(fd)


def _keep(real: Path, previous: FileState) -> None:
    """Make ``previous`` the reserve of ``real``: a link if ``real`` has this state, else a copy."""
    reserve = reserve_of(real)
    if _read(reserve) == previous:
        return
    if reserve.is_dir() and not reserve.is_symlink():  # not ours: go on without a reserve
        return
    reserve.unlink(missing_ok=True)
    if _read(real) == previous:
        with contextlib.suppress(OSError):
            os.link(real, reserve, follow_symlinks=False)
            return
    owner = (previous.uid, previous.gid)
    write_new(reserve, previous.content, previous.mode, owner=owner, attributes=extended_attributes(real))


def _use_reserve(
    real: Path, content: bytes, mode: int, owner: tuple[int, int] | None, previous: FileState | None
) -> bool:
    """Make the reserve of ``real`` the new file; return whether that was possible.

    The only copy of ``previous``, and a file with other names, is not overwritten.
    """
    reserve = reserve_of(real)
    found = _read(reserve)
    if found is None:
        return False
    is_last_copy = found == previous and _read(real) != previous
    if found.content != content and (is_last_copy or reserve.stat().st_nlink != 1):
        return False
    fd = os.open(reserve, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if found.content != content:
            _overwrite(fd, content)
            os.ftruncate(fd, len(content))
        finish(fd, mode, owner=owner, attributes=extended_attributes(real))
    finally:
        os.close(fd)
    reserve.rename(real)
    _sync(real)
    return True


def _overwrite(fd: int, content: bytes) -> None:
    """Write ``content`` over the allocated blocks. To truncate the file first would free them."""
    written = 0
    while written < len(content):
        written += os.pwrite(fd, content[written:], written)


def _read(real: Path) -> FileState | None:
    """Return the state of a file; ``None`` when there is no regular file."""
    return read_real(real) if real.is_file() and not real.is_symlink() else None


def _sync(real: Path) -> None:
    for directory in {real.parent, reserve_of(real).parent}:
        fsync_dir(directory)
