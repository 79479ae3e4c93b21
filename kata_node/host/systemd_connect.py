"""Reaching the host's systemd: on its own private socket, or else on the system bus.

A systemd that re-executes itself, as every upgrade of it has it do, leaves both for a moment.
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

PATIENCE = 5.0  # seconds for a systemd that is there to answer again
PAUSE = 0.05  # seconds between two tries

_NOT_MOUNTED = "a container needs the host's /run/systemd and /run/dbus mounted below --host-root"
_NO_SYSTEMD = "on a host that systemd does not run, use --offline"
_NO_ANSWER = "systemd did not answer: see whether it is being upgraded, then run again"

log = logging.getLogger(__name__)


def connect(root: Root, deadline: float) -> Connection:
    """Connect to the systemd of the host at ``root``; for a few seconds try again where a socket is there.

    Raises :class:`SystemdError`, naming both sockets and what is wrong with each, when neither leads to
    systemd.
    """
    retry_until = min(deadline, time.monotonic() + PATIENCE)
    while True:
        failures: dict[str, OSError | DBusError] = {}
        for path, is_bus in ((PRIVATE_SOCKET, False), (BUS_SOCKET, True)):
            now = time.monotonic()
            # A socket that hangs must leave time for the other.
            attempt_deadline = deadline if is_bus else now + (deadline - now) / 2
            try:
                connection = Connection.open(root, path, attempt_deadline, is_bus=is_bus)
            except (OSError, DBusError) as error:
                failures[path] = error
            else:
                log.debug("systemd answers on %s", path)
                return connection
        may_come_back = any(isinstance(each, ConnectionError | TimeoutError) for each in failures.values())
        if not may_come_back or not pause_before_retry(retry_until):
            raise _unreachable(failures)


def pause_before_retry(retry_until: float) -> bool:
    """Wait a moment before trying again; at once ``False`` when that would be past ``until``."""
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
        # In another pid namespace than the host's, the private socket takes a client and never answers it.
        hints = [_NO_ANSWER, *([_NOT_MOUNTED] if any(missing) else [])]
    return SystemdError(
        f"it answers neither on {tried[0]} nor on {tried[1]}", where="systemd", hint="; ".join(hints)
    )
