"""One writer per node at a time, whichever instance it works on."""

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

from kata_node.errors import HostError, LockedError
from kata_node.host.files import Root, host_error

LOCK_PATH = "/run/kata-node/lock"
"""In /run, which a reboot empties, and the same for every instance and prefix."""

LOCK_DIR, RUN_DIR = "/run/kata-node", "/run"

POLL = 0.1  # seconds between two tries
LOG_INTERVAL = 30.0  # seconds between two lines that name the holder
MAX_RACES = 100
"""How often in a row other runs may take the directory away between making it and the file in it."""

log = logging.getLogger(__name__)


@contextlib.contextmanager
def hold(root: Root, stage: str, timeout: float) -> Iterator[None]:
    """Hold the node's lock for ``stage``; wait for it up to ``timeout`` seconds.

    Raises :class:`LockedError`, naming the holder, when the time is up. The kernel drops the lock
    of a killed process, so a lock file found without a holder is no obstacle. The file and its
    directory go with the lock, and so does ``/run`` in a root that had none.
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
        with contextlib.suppress(OSError):  # on a full /run it locks as well, only without a name
            os.ftruncate(fd, 0)
            os.pwrite(fd, json.dumps(holder).encode(), 0)
        yield
    finally:
        _release(root, fd, made_run)


def _acquire(root: Root, timeout: float) -> tuple[int, bool]:
    """The locked file, and whether ``/run`` was made for it, by this run or one it learnt of."""
    deadline = time.monotonic() + timeout
    next_log = 0.0
    made_run = False
    while True:
        with contextlib.ExitStack() as cleanup:
            fd, made = _open_lock_file(root)
            cleanup.callback(os.close, fd)
            locked = _try_lock(fd)
            holder = _read_holder(fd)
            # Whoever leaves last removes what the first had to make, even if that one was killed.
            made_run |= made or holder.get("made_run") is True
            if locked and _is_current_file(root, fd):
                cleanup.pop_all()
                return fd, made_run
        if locked:
            continue  # the last holder had removed this file already
        now = time.monotonic()
        if now >= deadline:
            raise LockedError(
                f"this node is being worked on by {_holder_name(holder)}; waited {timeout:.0f} s for it",
                where=LOCK_PATH,
                hint="wait for it to finish, or raise --lock-timeout; a killed run leaves no lock behind",
            )
        if now >= next_log:
            log.info("waiting for the lock held by %s", _holder_name(holder))
            next_log = now + LOG_INTERVAL
        time.sleep(min(POLL, deadline - now))


def _open_lock_file(root: Root) -> tuple[int, bool]:
    """The file, made if need be, and whether ``/run`` was made for it."""
    made_run = False
    races = 0
    while True:
        try:
            made_run |= RUN_DIR in root.make_dirs(LOCK_DIR)
            return _create_lock_file(root), made_run
        except HostError as error:
            races += 1  # the last holder just took the directory with it
            if races == MAX_RACES or not isinstance(error.__cause__, FileNotFoundError):
                raise


def _create_lock_file(root: Root) -> int:
    try:
        return os.open(root.resolve(LOCK_PATH), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise host_error(LOCK_PATH, error) from error


def _release(root: Root, fd: int, made_run: bool) -> None:
    """Remove the file while it is still locked, so that only who sees it gone can lock another.

    Nothing raised here may hide what the work itself raised: leftovers are no obstacle to anybody.
    """
    try:
        with contextlib.suppress(OSError, HostError):
            if _is_current_file(root, fd):  # not when somebody removed it, and another run has made its own
                root.resolve(LOCK_PATH).unlink()
    finally:
        os.close(fd)
    with contextlib.suppress(HostError):
        # Left where it is in use: another run may have made its lock file in it by now.
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
    """What the file tells of its holder; nothing while that one is writing it."""
    try:
        data = json.loads(os.pread(fd, 4096, 0))
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}


def _holder_name(holder: dict[str, Any]) -> str:
    match holder:
        case {"stage": str(stage), "pid": int(pid), "host": str(host), "since": int(since)}:
            return f"{stage} (pid {pid} on {host}, for {int(time.time()) - since} s)"
        case _:
            return "another run"
