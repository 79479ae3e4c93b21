"""What is asked of systemd over one connection; see org.freedesktop.systemd1(5).

Each raises what the calls of :class:`Connection` raise, and all but :func:`run_job` change nothing that
doing it twice would not.
"""

from __future__ import annotations

from typing import Any

from kata_node.host.dbus import Connection, DBusError

NO_SUCH_UNIT = "org.freedesktop.systemd1.NoSuchUnit"

_UNIT = "org.freedesktop.systemd1.Unit"
_SERVICE = "org.freedesktop.systemd1.Service"


def properties(connection: Connection, name: str, deadline: float) -> dict[str, Any]:
    """Everything systemd tells of a unit, and of a service what it tells of those."""
    # Unlike GetUnit it also finds a unit that never ran, and it knows the object path of any name.
    (path,) = connection.call_manager("LoadUnit", "s", (name,), deadline=deadline)
    found = connection.properties(path, _UNIT, deadline)
    if found["LoadState"] != "not-found" and found["Id"].endswith(".service"):
        found |= connection.properties(path, _SERVICE, deadline)
    return found


def run_job(connection: Connection, member: str, name: str, deadline: float) -> str:
    """Have ``member`` of the manager make a job for a unit, and wait for its end: systemd's word for that."""
    connection.subscribe(deadline)
    (job,) = connection.call_manager(member, "ss", (name, "replace"), deadline=deadline)
    return connection.job_result(job, deadline)


def reset_failed(connection: Connection, name: str, deadline: float) -> bytes:
    """Forget that a unit ran into its start limit; return the id of its latest invocation."""
    try:
        connection.call_manager("ResetFailedUnit", "s", (name,), deadline=deadline)
    except DBusError as error:
        if error.name != NO_SUCH_UNIT:  # not loaded yet: nothing to forget
            raise
    found: bytes = properties(connection, name, deadline)["InvocationID"]
    return found


def job_outcome(connection: Connection, name: str, before: bytes, deadline: float) -> str:
    """How the job ended that was to start a unit anew, by the unit itself; empty when there was none.

    That is for a job asked for on a connection that broke. systemd keeps its jobs when it re-executes
    itself, so one that is still there is waited for. ``before`` is the invocation from before the request.
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
    # A service that did not come up waits, without a job, for systemd to try it again.
    return "failed" if found["ActiveState"] in ("failed", "activating", "deactivating") else "done"
