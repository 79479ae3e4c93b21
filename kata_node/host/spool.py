"""Files without a name, for content that is read before it is known where it goes.

An archive without a manifest tells its files only while it is decompressed. So that this happens once, the
content goes into unnamed files (``O_TMPFILE``) on the file system of the install dir, and placing gives them
their names. Until then nobody sees them, and they end with this process, however it ends.

All of it is an attempt: where it does not work, the archive is decompressed again when it is placed.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import posixpath
import resource
import threading
from collections.abc import Callable, Iterable, Iterator

from kata_node.host.files import Root
from kata_node.host.open_dirs import OpenDirs
from kata_node.host.sparse_copy import SparseWriter

MAX_FILES = 4096
SPARE_DESCRIPTORS = 128
"""Descriptors that are left for everything else."""
LEFT_FREE = 0.15
"""The part of the file system that stays free: the kubelet evicts pods when there is less."""

Content = tuple[str, int]
"""The sha256 and the size of a file."""

log = logging.getLogger(__name__)


class Spool:
    """Unnamed files on the host. Threads may share it."""

    def __init__(self, dirs: OpenDirs, below: str, is_known: Callable[[str, int, int], bool]) -> None:
        """``below`` is the install dir, relative to the base of ``dirs``. This object closes ``dirs``.

        See :meth:`open` for ``is_known``.
        """
        self._dirs = dirs
        self._below = below
        self._is_known = is_known
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._most = min(MAX_FILES, limit - SPARE_DESCRIPTORS) if limit > 0 else MAX_FILES
        self._lock = threading.Lock()
        self._open = 0
        self._promised = 0
        """Bytes of files that are being written."""
        self._refused: set[str] = set()
        """Components of archives that will be decompressed again."""
        self._kept: dict[Content, int] = {}

    @classmethod
    def open(cls, root: Root, install_dir: str, is_known: Callable[[str, int, int], bool]) -> Spool | None:
        """Return a spool for files below ``install_dir``; ``None`` if its file system has no unnamed files.

        ``is_known`` says of a path, size and mtime (in seconds) that the host most likely has this file.
        """
        wanted = root.resolve(install_dir)
        existing = wanted
        while not existing.is_dir() and existing != root.base:
            existing = existing.parent
        dirs = OpenDirs(root, root.host_path(existing))
        spool = cls(dirs, str(wanted.relative_to(existing)), is_known)
        try:
            os.close(spool._unnamed(""))
        except OSError as error:
            log.debug("no unnamed files in %s: %s", existing, error.strerror)
            return None
        return spool

    def __del__(self) -> None:
        self.discard()
        self._dirs.close()

    def create(self, component: str, path: str, size: int, mtime: int) -> SpoolFile | None:
        """Return a new file for ``path`` of an archive; ``None`` if it is known, or if there is no space.

        Without space for one file of an archive there is none for the others, because the archive has to be
        decompressed again for all of them.
        """
        if component in self._refused or self._is_known(path, size, mtime):
            return None
        with self._lock:
            if self._open >= self._most or (fd := self._unnamed_with_space(path, size)) is None:
                self._refused.add(component)
                return None
            self._open += 1
            self._promised += size
        return SpoolFile(self, fd, size)

    def has(self, contents: Iterable[Content]) -> bool:
        """Return whether there is a file for each of ``contents``."""
        return all(content in self._kept for content in contents)

    def take(self, content: Content) -> int:
        """Return the descriptor of a file; the caller closes it."""
        fd = self._kept.pop(content)
        self._release()
        return fd

    def discard(self) -> None:
        """Give up all files."""
        for content in tuple(self._kept):
            os.close(self.take(content))

    def _end(self, fd: int, size: int, sha256: str) -> None:
        """Keep a file under its content; without a digest, or if there is one already, give it up."""
        with self._lock:
            self._promised -= size
        if not sha256 or self._kept.setdefault((sha256, size), fd) != fd:
            os.close(fd)
            self._release()

    def _release(self) -> None:
        with self._lock:
            self._open -= 1

    def _unnamed_with_space(self, path: str, size: int) -> int | None:
        try:
            fd = self._unnamed(path)
        except OSError as error:
            log.debug("no unnamed file for %s: %s", path, error.strerror)
            return None
        try:
            space = os.fstatvfs(fd)
            free = space.f_bavail * space.f_frsize - self._promised - size
            if free >= LEFT_FREE * space.f_blocks * space.f_frsize:
                return fd
        except OSError as error:
            log.debug("the free space is not known: %s", error.strerror)
        os.close(fd)
        return None

    def _unnamed(self, path: str) -> int:
        """Open a file in the nearest directory that exists, so that SELinux labels it as one made there."""
        directory = posixpath.normpath(posixpath.join(self._below, posixpath.dirname(path)))
        while directory not in ("", ".") and self._dirs.find(directory) is None:
            directory = posixpath.dirname(directory)
        found = self._dirs.open("" if directory == "." else directory)
        return os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=found)


class SpoolFile:
    """A new unnamed file. If it cannot be written, it gives up without an error."""

    def __init__(self, spool: Spool, fd: int, size: int) -> None:
        self._spool = spool
        self._fd: int | None = fd
        self._size = size
        with self._gives_up():
            self._writer = SparseWriter(fd, size, lambda _: None)

    def write(self, offset: int, piece: bytes | memoryview) -> None:
        """Write the next bytes."""
        if self._fd is not None:
            with self._gives_up():
                self._writer.write(offset, piece)

    def keep(self, sha256: str) -> None:
        """End the file, and keep it under its content."""
        if self._fd is not None:
            with self._gives_up():
                self._writer.finish()
        self._end(sha256)

    def close(self) -> None:
        """Give up the file, unless it is kept."""
        self._end("")

    def _end(self, sha256: str) -> None:
        if self._fd is not None:
            fd, self._fd = self._fd, None
            self._spool._end(fd, self._size, sha256)

    @contextlib.contextmanager
    def _gives_up(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            log.info("an archive will be decompressed twice: %s", error.strerror)
            self.close()


NOT_LINKABLE = (
    errno.EXDEV,  # another file system is mounted below the install dir
    errno.ENOENT,  # no /proc
    errno.EPERM,
    errno.EACCES,
    errno.EOPNOTSUPP,
    errno.ENOSYS,
)


def link(fd: int, directory: int, name: str) -> bool:
    """Give an unnamed file its name; return whether the kernel did."""
    try:
        os.link(f"/proc/self/fd/{fd}", name, dst_dir_fd=directory, follow_symlinks=True)
    except OSError as error:
        if error.errno not in NOT_LINKABLE:
            raise
        return False
    return True
