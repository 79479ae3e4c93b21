"""Notice that files change, without a thread, a connection or a poll.

The kernel sends SIGIO when an entry of a watched directory changes (dnotify, ``F_NOTIFY`` of fcntl(2)). The
daemon waits for signals anyway. inotify would need a library with ctypes, which adds a tenth to the memory of
this process, and tells more than is needed: the files are compared by their stat anyway, because directories
of a runtime change with each pod.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal

SIGNAL = signal.SIGIO

FALLBACK_INTERVAL = 60.0
"""Seconds between two looks if the kernel was built without dnotify, or ``fs.dir-notify-enable`` is 0."""

_EVENTS = (
    fcntl.DN_CREATE
    | fcntl.DN_DELETE
    | fcntl.DN_RENAME
    | fcntl.DN_MODIFY
    | fcntl.DN_ATTRIB
    | fcntl.DN_MULTISHOT
)

_Stamp = tuple[int, int, int, int] | None


class FileWatch:
    """Watches files, which need not exist. The process must block :data:`SIGNAL`, and wait for it."""

    def __init__(self) -> None:
        self.paths: tuple[str, ...] = ()
        self._stamps: list[_Stamp] = []
        self._dirs: dict[tuple[str, int, int], int] = {}
        self.interval: float | None = None
        """Seconds after which to look without a signal; ``None`` if the kernel sends signals."""

    def begin(self, paths: tuple[str, ...]) -> None:
        """Watch ``paths`` from now on, and take their present state as the state without a change."""
        self.paths = paths
        self._watch_dirs()
        self._stamps = [_stamp(path) for path in paths]

    def has_changed(self) -> bool:
        """Return whether a path differs from its state at :meth:`begin`."""
        if {_identity(path) for path in map(_nearest_dir, self.paths)} != set(self._dirs):
            self._watch_dirs()  # a directory was made, or replaced
        return [_stamp(path) for path in self.paths] != self._stamps

    def _watch_dirs(self) -> None:
        wanted = {_identity(path) for path in map(_nearest_dir, self.paths)}
        for gone in set(self._dirs) - wanted:
            os.close(self._dirs.pop(gone))
        self.interval = None
        for key in wanted - set(self._dirs):
            try:
                descriptor = os.open(key[0], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError:
                self.interval = FALLBACK_INTERVAL
                continue
            try:
                fcntl.fcntl(descriptor, fcntl.F_NOTIFY, _EVENTS)
            except OSError:
                os.close(descriptor)
                self.interval = FALLBACK_INTERVAL
            else:
                self._dirs[key] = descriptor


def _stamp(path: str) -> _Stamp:
    with contextlib.suppress(OSError):
        found = os.lstat(path)
        return found.st_ino, found.st_mtime_ns, found.st_size, found.st_mode
    return None


def _nearest_dir(path: str) -> str:
    """Return the lowest directory above ``path`` that exists."""
    while (path := os.path.dirname(path)) != "/" and not os.path.isdir(path):
        pass
    return path


def _identity(path: str) -> tuple[str, int, int]:
    """Return what tells a directory from another one that has its path later."""
    with contextlib.suppress(OSError):
        found = os.stat(path)
        return path, found.st_dev, found.st_ino
    return path, 0, 0
