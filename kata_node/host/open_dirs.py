"""Directories opened for work on many files: each is resolved once, and its files are reached by name.

A directory is opened one component at a time, from the descriptor of its parent, and no component may be a
symlink. So a symlink that somebody plants meanwhile leads no write elsewhere.
"""

from __future__ import annotations

import copy
import errno
import os
import posixpath
from collections.abc import Iterable, Iterator

from kata_node.host.files import Root
from kata_node.host.host_errors import host_errors

NOT_A_DIR_ERRNOS = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
"""Errors of :meth:`OpenDirs.open`: no directory has this path, or a symlink is on the way."""

_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class OpenDirs:
    """Opens directories below the host directory ``base``, which may be behind symlinks of the node.

    The directories that lead to the last opened one stay open. So visiting paths in the order of
    :func:`by_directory` opens each directory once, and no more descriptors are open than a path has levels.
    An object is for one thread. All methods raise :class:`OSError`.
    """

    def __init__(self, root: Root, base: str) -> None:
        self._root = root
        self._base = root.resolve(base)
        self._path: str | None = None
        """The last opened path; then its names, and the descriptors from the base to it."""
        self._names: list[str] = []
        self._fds: list[int] = []

    def again(self) -> OpenDirs:
        """Return another object for the same base, for another thread. The base must be open."""
        other = copy.copy(self)
        other._path, other._names, other._fds = None, [], [os.dup(self._fds[0])]
        return other

    def __enter__(self) -> OpenDirs:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all descriptors."""
        self._path = None
        self._names.clear()
        while self._fds:
            os.close(self._fds.pop())

    def open(self, path: str) -> int:
        """Return a descriptor of the directory ``path`` below the base; it is valid until the next call."""
        if path == self._path:
            return self._fds[-1]
        self._path = None
        if not self._fds:
            self._fds.append(self._open_base())
        names = path.split("/") if path else []
        if not {"", ".", ".."}.isdisjoint(names):
            raise ValueError(f"not a path below a directory: {path!r}")
        shared = len(posixpath.commonprefix([names, self._names]))
        while len(self._names) > shared:
            self._names.pop()
            os.close(self._fds.pop())
        for name in names[shared:]:
            self._fds.append(os.open(name, _FLAGS, dir_fd=self._fds[-1]))
            self._names.append(name)
        self._path = path
        return self._fds[-1]

    def find(self, path: str) -> int | None:
        """Return a descriptor like :meth:`open`; ``None`` if no directory has this path without symlinks."""
        try:
            return self.open(path)
        except OSError as error:
            if error.errno not in NOT_A_DIR_ERRNOS:
                raise
            return None

    def _open_base(self) -> int:
        """Open the base; what leads to it need not be readable."""
        fd = os.open(self._root.base, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        for name in (*self._base.relative_to(self._root.base).parts, "."):
            parent = fd
            try:
                fd = os.open(name, _FLAGS if name == "." else _FLAGS | os.O_PATH, dir_fd=parent)
            finally:
                os.close(parent)
        return fd


def by_directory(paths: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield each directory of ``paths`` with the names in it, parents first."""
    names: dict[str, list[str]] = {}
    for path in paths:
        parent, _, name = path.rpartition("/")
        names.setdefault(parent, []).append(name)
    yield from sorted(names.items(), key=lambda item: item[0].split("/"))


def parents_of(paths: Iterable[str]) -> set[str]:
    """Return all directories above ``paths``, below the base."""
    found: set[str] = set()
    for path in paths:
        while (path := posixpath.dirname(path)) and path not in found:
            found.add(path)
    return found


def stat_below(root: Root, base: str, paths: Iterable[str]) -> Iterator[tuple[str, os.stat_result | None]]:
    """Yield each of ``paths`` below the host directory ``base`` with its status; ``None`` if it is missing.

    Symlinks are not followed; what is behind one counts as missing. Raises :class:`HostError`.
    """
    with OpenDirs(root, base) as dirs:
        for directory, names in by_directory(paths):
            with host_errors(posixpath.join(base, directory).rstrip("/")):
                fd = dirs.find(directory)
            for name in names:
                path = posixpath.join(directory, name)
                with host_errors(f"{base}/{path}"):
                    info = None if fd is None else lstat_at(fd, name)
                yield path, info


def lstat_at(directory: int, name: str) -> os.stat_result | None:
    """Return the status of a name in an open directory; ``None`` when it is missing."""
    try:
        return os.lstat(name, dir_fd=directory)
    except FileNotFoundError:
        return None


def names_in(directory: int, *, directories: bool) -> set[str]:
    """Return the names in an open directory: those of directories, or those of everything else."""
    with os.scandir(directory) as entries:
        return {entry.name for entry in entries if entry.is_dir(follow_symlinks=False) == directories}
