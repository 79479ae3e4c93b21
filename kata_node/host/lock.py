"""The node's lock: one run at a time changes the node, for all installations together."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import platform
import time
from collections.abc import Iterator
from typing import Any

from kata_node import signals
from kata_node.errors import HostError, LockedError
from kata_node.host.files import Root, host_error

LOCK_PATH = "/run/kata-node/lock"
"""In /run, which a reboot empties. All installations and prefixes use the same lock."""

LOCK_DIR, RUN_DIR = "/run/kata-node", "/run"

POLL = 0.1  # seconds between two tries
LOG_INTERVAL = 30.0  # seconds between two log lines that name the holder
MAX_RACES = 100
"""How many times in a row another run may remove the directory before the file is created in it."""

log = logging.getLogger(__name__)


@contextlib.contextmanager
def hold(root: Root, stage: str, timeout: float) -> Iterator[None]:
    """Hold the node's lock for ``stage``; wait for it up to ``timeout`` seconds.

    Raises :class:`LockedError`, which names the holder, after the timeout. The kernel releases the lock
    of a killed process, so a leftover lock file does not block. The file and its directory are removed
    with the lock, and so is ``/run`` in a root that had none.
    """
    fd, made_run = _acquire(root, timeout)
    try:
        holder = {
            "stage": stage,
            "pid": os.getpid(),
            "host": platform.node(),
            "since": int(time.time()),
            "made_run": made_run,
        }
        with contextlib.suppress(OSError):  # on a full /run the lock works without the holder's name
            os.ftruncate(fd, 0)
            os.pwrite(fd, json.dumps(holder).encode(), 0)
        yield
    finally:
        _release(root, fd, made_run)


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
            holder = _read_holder(fd)
            # The last holder removes the /run that the first one created, even if the first was killed.
            made_run |= made or holder.get("made_run") is True
            if locked and _is_current_file(root, fd):
                cleanup.pop_all()
                return fd, made_run
        if locked:
            continue  # the last holder has already removed this file
        now = time.monotonic()
        if now >= deadline:
            raise LockedError(
                f"{_holder_name(holder)} holds the node's lock; gave up after {timeout:.0f} s",
                where=LOCK_PATH,
                hint="wait until that run finishes, or raise --lock-timeout; a killed run releases the lock",
            )
        next_log = _log_wait(holder, now, next_log)
        with signals.interruptible():
            time.sleep(min(POLL, deadline - now))


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
        try:
            made_run |= RUN_DIR in root.make_dirs(LOCK_DIR)
            return _create_lock_file(root), made_run
        except HostError as error:
            races += 1  # the last holder has just removed the directory
            if races == MAX_RACES or not isinstance(error.__cause__, FileNotFoundError):
                raise


def _create_lock_file(root: Root) -> int:
    try:
        return os.open(root.resolve(LOCK_PATH), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise host_error(LOCK_PATH, error) from error


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


def _holder_name(holder: dict[str, Any]) -> str:
    match holder:
        case {"stage": str(stage), "pid": int(pid), "host": str(host), "since": int(since)}:
            return f"{stage} (pid {pid} on {host}, for {int(time.time()) - since} s)"
        case _:
            return "another run"
