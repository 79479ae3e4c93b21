"""The temporary files that become many placed files, by their paths below one host directory."""

from __future__ import annotations

import contextlib
import os
import posixpath
import stat
from collections.abc import Iterator

from kata_node.host.atomic_replace import finish, sibling_path
from kata_node.host.host_errors import host_error, host_errors
from kata_node.host.open_dirs import OpenDirs, by_directory
from kata_node.host.spool import link


class TempFiles:
    """Makes the temporary files, and renames or removes all of them.

    A method gets the directories that its thread has open. Raises :class:`HostError`.
    """

    def __init__(self, base: str, *, synced_later: int | None = None) -> None:
        """``synced_later`` is the device (``st_dev``) whose files the caller forces to the disk itself."""
        self._base = base
        self._synced_later = synced_later
        self._paths: list[str] = []

    @contextlib.contextmanager
    def new_file(self, dirs: OpenDirs, path: str, mode: int, mtime: int) -> Iterator[int]:
        """Yield a new file for ``path``, open for writing; at the end force it to the disk.

        A file of the device that the caller forces to the disk later is not.
        """
        with host_errors(f"{self._base}/{path}"):
            directory, name = self._add(dirs, path)
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            try:
                fd = os.open(name, flags, 0o600, dir_fd=directory)
            except FileExistsError:  # of an interrupted run
                os.unlink(name, dir_fd=directory)
                fd = os.open(name, flags, 0o600, dir_fd=directory)
            try:
                yield fd
                # Another file system can be mounted on a directory below the base.
                sync = self._synced_later is None or os.fstat(fd).st_dev != self._synced_later
                finish(fd, mode, mtime=mtime, sync=sync)
            finally:
                os.close(fd)

    def adopt(self, dirs: OpenDirs, path: str, fd: int, mode: int, mtime: int) -> bool:
        """Make the unnamed file ``fd`` the one for ``path``; return whether the kernel did.

        It is always forced to the disk here. It may have been written before the caller opened what it
        forces at once, and only this descriptor is sure to report the errors since then.
        """
        with host_errors(f"{self._base}/{path}"):
            directory, name = self._add(dirs, path)
            with contextlib.suppress(FileNotFoundError):  # of an interrupted run
                os.unlink(name, dir_fd=directory)
            if not link(fd, directory, name):
                self._paths.remove(path)
                return False
            parent = os.fstat(directory)
            # The group that a file made in this directory has.
            group = parent.st_gid if parent.st_mode & stat.S_ISGID else os.getegid()
            finish(fd, mode, owner=(os.geteuid(), group), mtime=mtime)
            return True

    def new_link(self, dirs: OpenDirs, path: str, target: str) -> None:
        """Make a symlink for ``path``."""
        with host_errors(f"{self._base}/{path}"):
            directory, name = self._add(dirs, path)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=directory)
            os.symlink(target, name, dir_fd=directory)

    def _add(self, dirs: OpenDirs, path: str) -> tuple[int, str]:
        self._paths.append(path)
        return _find(dirs, path)

    @contextlib.contextmanager
    def reading(self, dirs: OpenDirs, path: str) -> Iterator[int]:
        """Yield the file for ``path``, open for reading."""
        with host_errors(f"{self._base}/{path}"):
            directory, name = _find(dirs, path)
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
            try:
                yield fd
            finally:
                os.close(fd)

    def rename(self, dirs: OpenDirs) -> set[str]:
        """Rename all of them to their paths, and return the directories of these paths."""
        changed: set[str] = set()
        with dirs.again() as temp_dirs:
            for directory, names in by_directory(self._paths):
                changed.add(directory)
                for name in names:
                    path = posixpath.join(directory, name)
                    try:
                        source, temp = _find(temp_dirs, path)
                        os.rename(temp, name, src_dir_fd=source, dst_dir_fd=dirs.open(directory))
                    except OSError as error:
                        raise host_error(f"{self._base}/{path}", error) from error
        return changed

    def remove(self, dirs: OpenDirs) -> None:
        """Remove those that are left, as far as possible."""
        for path in self._paths:
            with contextlib.suppress(OSError):
                directory, name = _find(dirs, path)
                os.unlink(name, dir_fd=directory)


def _find(dirs: OpenDirs, path: str) -> tuple[int, str]:
    """Return the open directory and the name of the temporary file for ``path``."""
    directory, name = posixpath.split(sibling_path(path))
    return dirs.open(directory), name
