"""Connect to the node's systemd: on its private socket, or else on the system bus.

While systemd re-executes itself, which every upgrade of it does, both are unavailable for a moment.
"""

from __future__ import annotations

import logging
import os
import time

from kata_node.errors import SystemdError
from kata_node.host.dbus import Connection, DBusError
from kata_node.host.files import Root
from kata_node.host.sockets import describe_os_error

PRIVATE_SOCKET = "/run/systemd/private"
BUS_SOCKET = "/run/dbus/system_bus_socket"

PATIENCE = 5.0  # seconds to wait for a systemd that is restarting
PAUSE = 0.05  # seconds between two attempts

_NOT_MOUNTED = "in a container, mount the node's /run/systemd and /run/dbus below --host-root"
_NO_SYSTEMD = "use --offline if systemd does not run on this node"
_NO_ANSWER = "wait until an upgrade of systemd is finished, then run again"

log = logging.getLogger(__name__)


def connect(root: Root, deadline: float, *, passes_descriptors: bool = False) -> Connection:
    """Connect to the systemd of the node at ``root``; retry for a few seconds while a socket exists.

    For ``passes_descriptors`` see :meth:`Connection.open`.
    Raises :class:`SystemdError`, which names both sockets and the error of each, when both fail.
    """
    retry_until = min(deadline, time.monotonic() + PATIENCE)
    while True:
        failures: dict[str, OSError | DBusError] = {}
        for path, is_bus in ((PRIVATE_SOCKET, False), (BUS_SOCKET, True)):
            now = time.monotonic()
            # The first socket gets half of the time, in case it hangs.
            attempt_deadline = deadline if is_bus else now + (deadline - now) / 2
            try:
                connection = Connection.open(
                    root, path, attempt_deadline, is_bus=is_bus, passes_descriptors=passes_descriptors
                )
            except (OSError, DBusError) as error:
                failures[path] = error
            else:
                log.debug("systemd answers on %s", path)
                return connection
        may_come_back = any(isinstance(each, ConnectionError | TimeoutError) for each in failures.values())
        if not may_come_back or not pause_before_retry(retry_until):
            raise _unreachable(failures)


def pause_before_retry(retry_until: float) -> bool:
    """Wait before the next attempt; return ``False`` at once if it would be after ``retry_until``."""
    if time.monotonic() + PAUSE >= retry_until:
        return False
    time.sleep(PAUSE)
    return True


def _unreachable(failures: dict[str, OSError | DBusError]) -> SystemdError:
    tried = [
        f"{path} ({describe_os_error(failure) if isinstance(failure, OSError) else failure})"
        for path, failure in failures.items()
    ]
    missing = [isinstance(failure, FileNotFoundError | NotADirectoryError) for failure in failures.values()]
    if os.geteuid() != 0 and any(isinstance(failure, PermissionError) for failure in failures.values()):
        hints = ["run as root"]
    elif all(missing):
        hints = [_NOT_MOUNTED, _NO_SYSTEMD]
    else:
        # In a pid namespace other than the node's, the private socket accepts a client but does not answer.
        hints = [_NO_ANSWER, *([_NOT_MOUNTED] if any(missing) else [])]
    return SystemdError(
        f"systemd answers neither on {tried[0]} nor on {tried[1]}", where="systemd", hint="; ".join(hints)
    )
