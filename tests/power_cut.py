"""A disk that loses power: what no fsync or syncfs forced to it may be lost.

The content of a file is lost unless the file was forced. A change of a directory (a new name, a rename, a
removal) is lost unless the directory was forced after it. File systems differ in what survives of the rest.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from kata_node.host import barrier

_open, _rename, _unlink, _rmdir = os.open, os.rename, os.unlink, os.rmdir
_mkdir, _link = os.mkdir, os.link
_REAL = SimpleNamespace(mkdir=os.mkdir, symlink=os.symlink, link=os.link)

Survival = Literal["kept", "lost", "mixed"]
SURVIVALS: tuple[Survival, ...] = ("kept", "lost", "mixed")
"""Changes of directories that were not forced: all survive, none, or only those of every second directory."""


class PowerCut(BaseException):
    """No code catches it, and no change of the disk succeeds after it."""


@dataclass(frozen=True)
class _Change:
    """A change of a directory that is not on the disk yet."""

    directory: str
    undo: Callable[[], object]


class Disk:
    """The disk below ``base``. ``attic`` is a directory on the same file system, for what was removed."""

    def __init__(self, base: Path, attic: Path) -> None:
        self._base = base
        self._attic = attic
        attic.mkdir()
        self._attic_names = map(str, itertools.count())
        self._changes: list[_Change] = []
        self._forced = self._inodes()
        self._limit = 0
        self._lock = threading.RLock()
        self.operations: list[str] = []

    @contextlib.contextmanager
    def power(self, operations: int) -> Iterator[None]:
        """Cut the power, and raise :class:`PowerCut`, after this number of changes and forced writes."""
        with pytest.MonkeyPatch.context() as patch:
            self._patch(patch, operations)
            yield

    def come_back(self, survival: Survival) -> None:
        """Make the disk what it is after the power cut."""
        directories = sorted({change.directory for change in self._changes})
        lost = {"kept": [], "lost": directories, "mixed": directories[::2]}[survival]
        for change in reversed(self._changes):
            if change.directory in lost:
                with contextlib.suppress(FileNotFoundError):
                    change.undo()
        for path in self._base.rglob("*"):
            info = path.lstat()
            if path.is_file() and not path.is_symlink() and info.st_ino not in self._forced:
                path.write_bytes(bytes(info.st_size))
                os.utime(path, ns=(info.st_mtime_ns, info.st_mtime_ns))

    def _inodes(self) -> set[int]:
        return {path.lstat().st_ino for path in self._base.rglob("*")}

    def _patch(self, patch: pytest.MonkeyPatch, limit: int) -> None:
        self._limit = limit
        for name in ("open", "fsync", "rename", "unlink", "rmdir"):
            patch.setattr(os, name, getattr(self, f"_{name}"))
        for name in ("mkdir", "symlink", "link"):
            patch.setattr(os, name, partial(self._make, name))
        patch.setattr(barrier, "_syncfs", self._syncfs)

    def _count(self, operation: str) -> None:
        if len(self.operations) >= self._limit:
            raise PowerCut
        self.operations.append(operation)

    def _changed(self, path: str, undo: Callable[[], object]) -> None:
        self._changes.append(_Change(os.path.dirname(path), undo))

    def _keep(self, path: str) -> Callable[[], object]:
        """Keep what is at ``path``, and return what puts it back."""
        if not os.path.lexists(path):
            return lambda: None
        kept = self._attic / next(self._attic_names)
        _link(path, kept, follow_symlinks=False)
        return lambda: _rename(kept, path)

    def _open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        where = _absolute(path, dir_fd)
        if not flags & os.O_CREAT or os.path.lexists(where) or not where.startswith(f"{self._base}/"):
            return _open(path, flags, mode, dir_fd=dir_fd)
        with self._lock:
            self._count("create")
            fd = _open(path, flags, mode, dir_fd=dir_fd)
            self._changed(where, lambda: _unlink(where))
        return fd

    def _make(self, name: str, *arguments: Any, **more: Any) -> None:
        directory = more.get("dst_dir_fd" if name == "link" else "dir_fd")
        where = _absolute(arguments[0] if name == "mkdir" else arguments[1], directory)
        with self._lock:
            self._count(name)
            getattr(_REAL, name)(*arguments, **more)
            self._changed(where, lambda: shutil.rmtree(where) if name == "mkdir" else _unlink(where))

    def _unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        where = _absolute(path, dir_fd)
        with self._lock:
            if not os.path.lexists(where):
                raise FileNotFoundError(where)
            self._count("unlink")
            put_back = self._keep(where)
            _unlink(path, dir_fd=dir_fd)
            self._changed(where, put_back)

    def _rmdir(self, path: Any, *, dir_fd: int | None = None) -> None:
        where = _absolute(path, dir_fd)
        with self._lock:
            self._count("rmdir")
            _rmdir(path, dir_fd=dir_fd)
            self._changed(where, lambda: _mkdir(where))

    def _rename(
        self, path: Any, target: Any, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None
    ) -> None:
        source, where = _absolute(path, src_dir_fd), _absolute(target, dst_dir_fd)
        with self._lock:
            self._count("rename")
            self._require_forced(source)
            put_back = self._keep(where)
            _rename(path, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

            def undo() -> None:
                _rename(where, source)
                put_back()

            self._changed(where, undo)

    def _require_forced(self, directory: str) -> None:
        """Fail if what is in a directory that gets another name may be lost."""
        pending = [
            each.directory for each in self._changes if f"{each.directory}/".startswith(f"{directory}/")
        ]
        unforced = [path for path in Path(directory).rglob("*") if path.is_file() and not path.is_symlink()]
        unforced = [path for path in unforced if path.lstat().st_ino not in self._forced]
        assert not pending, f"renamed before its directories are on the disk: {pending}"
        assert not unforced, f"renamed before its files are on the disk: {unforced}"

    def _fsync(self, fd: int) -> None:
        with self._lock:
            self._count("fsync")
            self._forced.add(os.fstat(fd).st_ino)
            directory = os.readlink(f"/proc/self/fd/{fd}")
            self._changes = [change for change in self._changes if change.directory != directory]

    def _syncfs(self, _: int) -> None:
        with self._lock:
            self._count("syncfs")
            self._forced |= self._inodes()
            self._changes.clear()


def _absolute(path: Any, dir_fd: int | None) -> str:
    directory = os.getcwd() if dir_fd is None else os.readlink(f"/proc/self/fd/{dir_fd}")
    return os.path.join(directory, os.fspath(path))
