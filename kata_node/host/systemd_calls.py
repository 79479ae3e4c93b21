"""Calls to systemd over one connection; see org.freedesktop.systemd1(5).

Each function raises the errors of :meth:`Connection.call`. All except :func:`run_job` can be repeated
without a different effect.
"""

from __future__ import annotations

from typing import Any

from kata_node.host.dbus import MANAGER, MANAGER_PATH, Connection, DBusError

NO_SUCH_UNIT = "org.freedesktop.systemd1.NoSuchUnit"

_UNKNOWN_METHOD = "org.freedesktop.DBus.Error.UnknownMethod"
_UNIT = "org.freedesktop.systemd1.Unit"
_SERVICE = "org.freedesktop.systemd1.Service"


def properties(connection: Connection, name: str, deadline: float) -> dict[str, Any]:
    """Return all properties of a unit; for a service also those of a service."""
    # Unlike GetUnit, LoadUnit also finds a unit that never ran, and gives an object path for any name.
    (path,) = connection.call_manager("LoadUnit", "s", (name,), deadline=deadline)
    found = connection.properties(path, _UNIT, deadline)
    if found["LoadState"] != "not-found" and found["Id"].endswith(".service"):
        found |= connection.properties(path, _SERVICE, deadline)
    return found


def unit_processes(connection: Connection, name: str, deadline: float) -> list[tuple[int, str]]:
    """Return pid and command line of every process of a unit; none for a unit that is not loaded."""
    try:
        (found,) = connection.call_manager("GetUnitProcesses", "s", (name,), deadline=deadline)
    except DBusError as error:
        if error.name in (NO_SUCH_UNIT, _UNKNOWN_METHOD):  # systemd 229 and older
            return []
        raise
    return [(pid, command_line) for _cgroup, pid, command_line in found]


def manager_environment(connection: Connection, deadline: float) -> tuple[str, ...]:
    """Return the variables that systemd gives to every unit."""
    return tuple(connection.properties(MANAGER_PATH, MANAGER, deadline)["Environment"])


def run_job(connection: Connection, member: str, name: str, deadline: float) -> str:
    """Create a job for a unit with the manager's method ``member``, wait for it, and return its result."""
    connection.subscribe(deadline)
    (job,) = connection.call_manager(member, "ss", (name, "replace"), deadline=deadline)
    return connection.job_result(job, deadline)


def reset_failed(connection: Connection, name: str, deadline: float) -> bytes:
    """Reset the start limit of a unit; return the id of its latest invocation."""
    try:
        connection.call_manager("ResetFailedUnit", "s", (name,), deadline=deadline)
    except DBusError as error:
        if error.name != NO_SUCH_UNIT:  # not loaded yet: nothing to reset
            raise
    found: bytes = properties(connection, name, deadline)["InvocationID"]
    return found


def job_outcome(connection: Connection, name: str, before: bytes, deadline: float) -> str:
    """Return the result of a start or restart job according to the unit; empty when there was no such job.

    It is used when the connection broke after the request. systemd keeps its jobs when it re-executes
    itself, so this function waits for an existing job. ``before`` is the invocation before the request.
    """
    connection.subscribe(deadline)
    found = properties(connection, name, deadline)
    number, job = found["Job"]
    if number:
        result = connection.job_result(job, deadline)
        if result != "done":
            return result
        found = properties(connection, name, deadline)
    if found["InvocationID"] == before:
        return ""
    # A service that did not become active may wait, without a job, for an automatic restart.
    return "failed" if found["ActiveState"] in ("failed", "activating", "deactivating") else "done"
