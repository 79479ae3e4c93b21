"""The temporary files that become many placed files, by their paths below one host directory.

In an existing directory each file gets a temporary name of its own. A new directory gets a temporary name
itself, and its files have their final names from the start: one rename serves all of them.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import stat
from collections.abc import Iterator

from kata_node.host.atomic_replace import finish, sibling_path
from kata_node.host.host_errors import host_error, host_errors
from kata_node.host.open_dirs import OpenDirs, by_directory
from kata_node.host.real_paths import remove_tree
from kata_node.host.sparse_copy import write_all
from kata_node.host.spool import link


class TempFiles:
    """Makes the temporary files and directories, and renames or removes all of them.

    A method gets the directories that its thread has open. Raises :class:`HostError`.
    """

    def __init__(self, base: str, *, synced_later: int | None = None) -> None:
        """``synced_later`` is the device (``st_dev``) whose files the caller forces to the disk itself."""
        self._base = base
        self._synced_later = synced_later
        self._paths: dict[str, None] = {}
        """Files and links with a temporary name of their own."""
        self._new_dirs: dict[str, str] = {}
        """New directories, parents first, and where they are until the rename."""

    def new_dir(self, dirs: OpenDirs, path: str, mode: int) -> None:
        """Make a directory for ``path``, after its parents. Until the rename the owner can write it."""
        with host_errors(f"{self._base}/{path}"):
            temp = self._temp(path)
            directory, name = self._find(dirs, path)
            if not self.is_in_new_dir(path):
                self._remove_leftover(directory, temp)
            self._new_dirs[path] = temp
            os.mkdir(name, 0o700, dir_fd=directory)
            os.fchmod(dirs.open(temp), mode | 0o700)  # the umask limits the mode of mkdir

    def is_in_new_dir(self, path: str) -> bool:
        """Return whether the directory of ``path`` is a new one."""
        return path.rpartition("/")[0] in self._new_dirs

    @contextlib.contextmanager
    def new_file(self, dirs: OpenDirs, path: str, mode: int, mtime: int) -> Iterator[int]:
        """Yield a new file for ``path``, open for writing; at the end force it to the disk.

        A file of the device that the caller forces to the disk later is not.
        """
        with host_errors(f"{self._base}/{path}"):
            fd = self._create(dirs, path)
            try:
                yield fd
                finish(fd, mode, mtime=mtime, sync=not self._is_synced_later(fd))
            finally:
                os.close(fd)

    def write(self, dirs: OpenDirs, path: str, mode: int, mtime: int, content: bytes) -> None:
        """Make a file like :meth:`new_file` with a small content."""
        try:  # not host_errors and new_file, which take as long as the kernel for a small file
            fd = self._create(dirs, path)
            try:
                write_all(fd, 0, memoryview(content))
                finish(fd, mode, mtime=mtime, sync=not self._is_synced_later(fd))
            finally:
                os.close(fd)
        except OSError as error:
            raise host_error(f"{self._base}/{path}", error) from error

    def adopt(self, dirs: OpenDirs, path: str, fd: int, mode: int, mtime: int) -> bool:
        """Make the unnamed file ``fd`` the one for ``path``; return whether the kernel did.

        It is always forced to the disk here. It may have been written before the caller opened what it
        forces at once, and only this descriptor is sure to report the errors since then.
        """
        with host_errors(f"{self._base}/{path}"):
            directory, name = self._add(dirs, path)
            self._remove_leftover(directory, self._temp(path))
            if not link(fd, directory, name):
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
            self._remove_leftover(directory, self._temp(path))
            os.symlink(target, name, dir_fd=directory)

    @contextlib.contextmanager
    def reading(self, dirs: OpenDirs, path: str) -> Iterator[int]:
        """Yield the file for ``path``, open for reading."""
        with host_errors(f"{self._base}/{path}"):
            directory, name = self._find(dirs, path)
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
            try:
                yield fd
            finally:
                os.close(fd)

    def force_dirs(self, dirs: OpenDirs, *, files_are_forced: bool) -> None:
        """Force new directories to the disk, before a rename shows what is in them.

        With ``files_are_forced`` the caller has forced those of its device together with the files.
        """
        for path, temp in self._new_dirs.items():
            with host_errors(f"{self._base}/{path}"):
                fd = dirs.open(temp)
                if not (files_are_forced and self._is_synced_later(fd)):
                    os.fsync(fd)

    def rename(self, dirs: OpenDirs) -> set[str]:
        """Rename all of them to their paths, and return the directories of these paths."""
        paths = [path for path in self._new_dirs if not self.is_in_new_dir(path)]
        changed: set[str] = set()
        with dirs.again() as temp_dirs:
            for directory, names in by_directory([*paths, *self._paths]):
                changed.add(directory)
                for name in names:
                    path = posixpath.join(directory, name)
                    try:
                        source, temp = self._find(temp_dirs, path)
                        os.rename(temp, name, src_dir_fd=source, dst_dir_fd=dirs.open(directory))
                    except OSError as error:
                        raise host_error(f"{self._base}/{path}", error) from error
        return changed

    def remove(self, dirs: OpenDirs) -> None:
        """Remove those that are left, as far as possible."""
        for path in (*self._paths, *self._new_dirs):
            if not self.is_in_new_dir(path):
                with contextlib.suppress(OSError):
                    directory, name = self._find(dirs, path)
                    remove_tree(name, directory)

    def _create(self, dirs: OpenDirs, path: str) -> int:
        directory, name = self._add(dirs, path)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            return os.open(name, flags, 0o600, dir_fd=directory)
        except FileExistsError:
            self._remove_leftover(directory, self._temp(path))
            return os.open(name, flags, 0o600, dir_fd=directory)

    def _remove_leftover(self, directory: int, temp: str) -> None:
        """Remove what an interrupted run left at the temporary path ``temp`` in the open ``directory``."""
        with host_errors(f"{self._base}/{temp}"):
            remove_tree(posixpath.basename(temp), directory)

    def _is_synced_later(self, fd: int) -> bool:
        # Another file system can be mounted on a directory below the base.
        return self._synced_later is not None and os.fstat(fd).st_dev == self._synced_later

    def _add(self, dirs: OpenDirs, path: str) -> tuple[int, str]:
        if not self.is_in_new_dir(path):
            self._paths[path] = None
        return self._find(dirs, path)

    def _find(self, dirs: OpenDirs, path: str) -> tuple[int, str]:
        """Return the open directory and the name in it of what becomes ``path``."""
        parent, name = posixpath.split(self._temp(path))
        return dirs.open(parent), name

    def _temp(self, path: str) -> str:
        parent, _, name = path.rpartition("/")
        new_dir = self._new_dirs.get(parent)
        return sibling_path(path) if new_dir is None else f"{new_dir}/{name}"
