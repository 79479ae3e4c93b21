"""The node's lock: one run at a time changes the node, for all installations together.

Whoever can open the lock file can hold the lock. So only root, or the user who owns the root directory, can
open it: the directory has the mode 0700 and the file 0600.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import signal
import stat
import time
from collections.abc import Iterator
from typing import Any

from msgspec import Struct

from kata_node import signals
from kata_node.errors import HostError, IneligibleNodeError, LockedError
from kata_node.host.files import Root, host_error
from kata_node.host.host_errors import host_errors
from kata_node.host.ownership import is_trusted_owner
from kata_node.text import foreign_words

LOCK_PATH = "/run/kata-node/lock"
"""In /run, which a reboot empties. All installations and prefixes use the same lock."""

LOCK_DIR, RUN_DIR = "/run/kata-node", "/run"

POLL = 0.1  # seconds between two tries
READER_POLL = 0.001  # a reader has the lock for less than that
LOG_INTERVAL = 30.0  # seconds between two log lines that name the holder
_LATEST = 1 << 40
"""In seconds since 1970, the year 36812. A later time is not from a run, and cannot be shown as a date."""
READER_TIMEOUT = 2.0
"""Seconds to wait, after the timeout, for a program that only looks whether a run holds the lock."""
MAX_RACES = 100
"""How many times in a row another run may remove the directory before the file is created in it."""

log = logging.getLogger(__name__)


@contextlib.contextmanager
def hold(root: Root, command: str, timeout: float) -> Iterator[None]:
    """Hold the node's lock for ``command``; wait for it up to ``timeout`` seconds.

    Raises :class:`LockedError`, which names the holder, after the timeout. The kernel releases the lock
    of a killed process, so a leftover lock file does not block. The file and its directory are removed
    with the lock, and so is ``/run`` in a root that had none.
    """
    fd, made_run = _acquire(root, timeout)
    try:
        holder = {
            "stage": command,  # the key of earlier releases, which may wait for this run
            "pid": os.getpid(),
            "host": os.uname().nodename,
            "since": int(time.time()),
            "made_run": made_run,
        }
        with contextlib.suppress(OSError):  # on a full /run the lock works without the holder's name
            os.ftruncate(fd, 0)
            os.pwrite(fd, json.dumps(holder).encode(), 0)
        yield
    finally:
        _release(root, fd, made_run)


class Holder(Struct, frozen=True):
    """The run that holds the lock. A run on a full disk cannot say who it is: then all is empty."""

    command: str = ""
    pid: int = 0
    """In the pid namespace of the run, which in a container is not that of the node."""
    host: str = ""
    """The name of the host or of the pod."""
    since: int = 0
    """Seconds since 1970."""


def find_holder(root: Root) -> Holder | None:
    """Return the run that holds the lock; ``None`` if no run holds it, or this user cannot see that."""
    found = _current_holder(root)
    return None if found is None else _parse_holder(found) or Holder()


def is_held(root: Root) -> bool:
    """Return whether a run holds the lock; ``False`` if the lock file cannot be read."""
    return _current_holder(root) is not None


def wait_until_free(root: Root, deadline: float) -> bool:
    """Wait while a run holds the lock. Return ``False`` if one still holds it at ``deadline``.

    ``deadline`` is a value of :func:`time.monotonic`.
    """
    next_log = 0.0
    while (holder := _current_holder(root)) is not None:
        now = time.monotonic()
        if now >= deadline:
            return False
        next_log = _log_wait(holder, now, next_log)
        with signals.interruptible():
            time.sleep(min(POLL, deadline - now))
    return True


def _current_holder(root: Root) -> dict[str, Any] | None:
    """Return the content of the lock file while a run holds the lock, else ``None``."""
    with contextlib.ExitStack() as cleanup, contextlib.suppress(OSError, HostError):
        fd = os.open(root.resolve(LOCK_PATH), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        cleanup.callback(os.close, fd)
        try:
            # A shared lock excludes only a run. A killed run leaves the file, but not the lock.
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _read_holder(fd)
    return None


def _acquire(root: Root, timeout: float) -> tuple[int, bool]:
    """Return the locked file, and whether this run or an earlier holder created ``/run`` for it."""
    deadline = time.monotonic() + timeout
    next_log = 0.0
    made_run = False
    while True:
        with contextlib.ExitStack() as cleanup:
            fd, made = _open_lock_file(root)
            cleanup.callback(os.close, fd)
            locked = _try_lock(fd)
            is_run = not locked and not _has_only_readers(fd)
            holder = _read_holder(fd)
            # The last holder removes the /run that the first one created, even if the first was killed.
            made_run |= made or holder.get("made_run") is True
            if locked and _is_current_file(root, fd):
                cleanup.pop_all()
                return fd, made_run
        if locked:
            continue  # the last holder has already removed this file
        now = time.monotonic()
        if now >= (deadline if is_run else deadline + READER_TIMEOUT):
            raise LockedError(
                f"{_holder_name(holder)} holds the node's lock; gave up after {timeout:.0f} s",
                where=LOCK_PATH,
                hint="wait until that run finishes, or raise --lock-timeout; a killed run releases the lock",
            )
        if is_run:
            next_log = _log_wait(holder, now, next_log)
        with signals.interruptible():
            time.sleep(min(POLL, deadline - now) if is_run else READER_POLL)


def _log_wait(holder: dict[str, Any], now: float, next_log: float) -> float:
    """Log that this run waits, unless ``next_log`` is in the future; return the time of the next line."""
    if now < next_log:
        return next_log
    log.info("waiting for the lock held by %s", _holder_name(holder))
    return now + LOG_INTERVAL


def _open_lock_file(root: Root) -> tuple[int, bool]:
    """Open the lock file, and create it if it is missing; return it and whether ``/run`` was created."""
    made_run = False
    races = 0
    while True:
        for path in (LOCK_DIR, LOCK_PATH):
            if root.read_link(path) is not None:
                raise _unusable("this path is a symlink, which kata-node does not follow", path)
        try:
            made_run |= RUN_DIR in root.make_dirs(LOCK_DIR, mode=0o700)
            directory = _open_lock_dir(root)
            try:
                return _open_in(directory), made_run
            finally:
                os.close(directory)
        except HostError as error:
            races += 1  # the last holder has just removed the directory
            if races == MAX_RACES or not isinstance(error.__cause__, FileNotFoundError):
                raise


def _open_lock_dir(root: Root) -> int:
    """Open the directory of the lock, and close it to other users.

    The kubelet and earlier releases make it with the mode 0755.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    with host_errors(LOCK_DIR):
        fd = os.open(root.resolve(LOCK_DIR, follow_last=False), flags)
        with _closed_on_error(fd):
            info = os.fstat(fd)
            _require_trusted_owner(LOCK_DIR, info)
            if stat.S_IMODE(info.st_mode) != 0o700:
                os.fchmod(fd, 0o700)
        return fd


def _open_in(directory: int) -> int:
    """Open or create the lock file in the open ``directory``."""
    name = LOCK_PATH.removeprefix(f"{LOCK_DIR}/")
    with host_errors(LOCK_PATH):
        _remove_abandoned_file(name, directory)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(name, flags, 0o600, dir_fd=directory)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            raise _unusable("this path is a socket", LOCK_PATH) from error
        with _closed_on_error(fd):
            info = os.fstat(fd)
            _require_trusted_owner(LOCK_PATH, info)
            if not stat.S_ISREG(info.st_mode) or info.st_nlink > 1:
                raise _unusable("this path is not a file that kata-node made", LOCK_PATH)
        return fd


def _remove_abandoned_file(name: str, directory: int) -> None:
    """Remove the lock file of an earlier release that was killed.

    Every user could open that file to read, and keep it locked. A running kata-node has it open for
    writing, and then the kernel gives no read lease.
    """
    try:
        info = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if not stat.S_ISREG(info.st_mode) or not stat.S_IMODE(info.st_mode) & 0o077:
            return
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        return
    try:
        # A process that opens the file now waits, and the kernel sends this signal, which has no effect.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        os.unlink(name, dir_fd=directory)
    except OSError as error:
        log.debug("the lock file of another release may be in use: %s", error)
    finally:
        os.close(fd)


@contextlib.contextmanager
def _closed_on_error(fd: int) -> Iterator[None]:
    try:
        yield
    except BaseException:
        os.close(fd)
        raise


def _require_trusted_owner(path: str, info: os.stat_result) -> None:
    if not is_trusted_owner(info.st_uid):
        raise _unusable(f"this path belongs to the user {info.st_uid}, who can block every run", path)


def _unusable(what: str, path: str) -> IneligibleNodeError:
    return IneligibleNodeError(what, where=path, hint=f"remove it: `rm -r {path}`")


def _release(root: Root, fd: int, made_run: bool) -> None:
    """Remove the lock file, then unlock it. In the other order another run's lock file could be removed.

    Errors are suppressed: they must not hide an error of the stage, and a leftover file does not block.
    """
    try:
        with contextlib.suppress(OSError, HostError):
            if _is_current_file(root, fd):  # false if the file was removed and another run created a new one
                root.resolve(LOCK_PATH).unlink()
    finally:
        os.close(fd)
    with contextlib.suppress(HostError):
        # The directory is kept if another run has already created its lock file in it.
        if root.remove_dir(LOCK_DIR) and made_run:
            root.remove_dir(RUN_DIR)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise host_error(LOCK_PATH, error) from error
    return True


def _has_only_readers(fd: int) -> bool:
    """Return whether no run holds the lock that was just refused: ``status`` shares it for a moment."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    fcntl.flock(fd, fcntl.LOCK_UN)
    return True


def _is_current_file(root: Root, fd: int) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(root.resolve(LOCK_PATH)))
    except (FileNotFoundError, NotADirectoryError):
        return False


def _read_holder(fd: int) -> dict[str, Any]:
    """Return the content of the lock file; empty while the holder writes it."""
    try:
        data = json.loads(os.pread(fd, 4096, 0))
    except (ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def _parse_holder(holder: dict[str, Any]) -> Holder | None:
    match holder:
        case {"stage": str(command), "pid": int(pid), "host": str(host), "since": int(since)}:
            if 0 <= since < _LATEST:
                return Holder(foreign_words(command), pid, foreign_words(host), since)
            return None
        case _:
            return None


def _holder_name(holder: dict[str, Any]) -> str:
    if found := _parse_holder(holder):
        return f"{found.command} (pid {found.pid} on {found.host}, for {int(time.time()) - found.since} s)"
    return "another run"
