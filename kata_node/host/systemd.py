"""The host's systemd: what a unit is doing, and restarting it. No ``systemctl`` is needed.

It is reached over D-Bus, for which root needs no capability and no polkit.
"""

from __future__ import annotations

import contextlib
import logging
import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Self, TypeVar

from kata_node.errors import SystemdError
from kata_node.host import systemd_calls as calls
from kata_node.host import systemd_connect
from kata_node.host.dbus import Connection, DBusError
from kata_node.host.files import Root
from kata_node.host.journal import journal_command
from kata_node.host.sockets import describe_os_error

_NOT_APPLICABLE = "org.freedesktop.systemd1.JobTypeNotApplicable"
_DENIED = (
    "org.freedesktop.DBus.Error.AccessDenied",
    "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired",
)

_JOB_RESULTS = {
    "failed": "it was {verb}ed but did not come up",
    "timeout": "it was {verb}ed but did not come up in the time systemd gives it",
    "dependency": "it could not be {verb}ed, because a unit that it needs did not start",
    "canceled": "its {verb} was canceled by another request to systemd",
    "condition": "it is stopped now, because its unit file has a condition that this host does not meet",
}

_RELOAD_RESULTS = {
    "failed": "the command that makes it take in its configuration failed",
    "invalid": "it does not run, so it cannot be reloaded",
    "timeout": "it did not take in its configuration in the time systemd gives it",
    "canceled": "its reload was canceled by another request to systemd",
}

T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Unit:
    """A unit at one moment, in systemd's own words (``systemctl show``)."""

    name: str
    """Its real name, when it was asked for by an alias."""
    load_state: str
    """``loaded``, ``masked``, ``error``, ``bad-setting``."""
    active_state: str
    """``active``, ``reloading``, ``inactive``, ``failed``, ``activating``, ``deactivating``."""
    sub_state: str
    """Of services: ``running``, ``dead``, ``auto-restart``, …"""
    result: str
    """How a service last ended: ``success``, ``exit-code``, ``start-limit-hit``, …; empty of other units."""
    invocation_id: str
    """32 hexadecimal digits, new at every activation; empty when it never started."""
    main_pid: int
    """In the host's pid namespace; 0 when nothing runs."""
    argv: tuple[str, ...]
    """The first ``ExecStart``, as the unit file has it now; empty of other units than services."""
    need_daemon_reload: bool
    """Whether its unit file changed since systemd read it."""
    active_enter_usec: int
    """When it was last activated, in microseconds since 1970; 0 when never."""


class JobError(SystemdError):
    """The unit did not come up; ``result`` says how systemd's job ended.

    In systemd's words (``failed``, ``timeout``, ``dependency``, ``canceled``, …), and ``condition``.
    """

    def __init__(self, what: str, *, result: str, where: str, hint: str) -> None:
        super().__init__(what, where=where, hint=hint)
        self.result = result


class Systemd:
    """A connection to the host's systemd; a context manager that closes it.

    Restarting the container runtime does not disturb it. When systemd itself is re-executed, or the
    bus restarts, every call connects again and goes on, within the time it has.
    """

    def __init__(self, root: Root, timeout: float) -> None:
        self._root = root
        self._timeout = timeout
        self._connection: Connection | None = None

    @classmethod
    def connect(cls, root: Root, timeout: float = 10) -> Self:
        """Connect to the systemd of the host at ``root``.

        ``timeout``, in seconds, is for connecting and for each later read. Raises :class:`SystemdError`,
        as every call does, when systemd cannot be reached.
        """
        systemd = cls(root, timeout)
        systemd._connected(time.monotonic() + timeout)
        return systemd

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def unit(self, name: str) -> Unit | None:
        """The unit ``name``, with its suffix (``containerd.service``); ``None`` when there is none."""
        with self._systemd_errors(name, f"systemd did not answer within {self._timeout:g} s"):
            deadline = time.monotonic() + self._timeout
            return self._with_reconnect(lambda connection: _read_unit(connection, name, deadline), deadline)

    def restart(self, name: str, timeout: float) -> None:
        """Restart the unit ``name``, or start it, and wait until systemd says that it has started.

        A start limit it ran into before is forgotten first. ``timeout``, in seconds, is for all of it.
        Raises :class:`JobError` when the unit did not come up, and :class:`SystemdError` when the time is up,
        systemd refuses, or it goes away and does not come back.
        """
        self._run_start_job("restart", "RestartUnit", name, timeout)

    def reload(self, name: str, timeout: float) -> None:
        """Have the running unit ``name`` take in its configuration anew, by its ``ExecReload``.

        That is done when systemd has run the command: where it only sends a signal, the service may not
        have acted on it yet. ``timeout``, in seconds, is for all of it. Raises :class:`JobError` when the
        command failed or the unit does not run, and :class:`SystemdError` when the unit has no such
        command, and as :meth:`restart` does.
        """
        deadline = time.monotonic() + timeout
        with self._systemd_errors(
            name, f"it was not reloaded within {timeout:g} s; systemd may still be at it"
        ):
            unit = shlex.quote(name)
            log.info("systemctl reload %s", unit)
            # Unlike a restart it does no harm twice.
            result = self._with_reconnect(
                lambda connection: calls.run_job(connection, "ReloadUnit", name, deadline), deadline
            )
        if result != "done":
            raise JobError(
                f"{_RELOAD_RESULTS.get(result, 'systemd could not reload it')} ({result})",
                result=result,
                where=name,
                hint=f"run `{journal_command(name)}` on the node to see why",
            )

    def start(self, name: str, timeout: float) -> None:
        """Start the unit ``name``, unless it runs, and wait until systemd says that it has started.

        Otherwise as :meth:`restart`, which raises the same.
        """
        self._run_start_job("start", "StartUnit", name, timeout)

    def stop(self, name: str, timeout: float) -> None:
        """Stop the unit ``name`` and wait until it is down; one that there is none of is down.

        ``timeout`` is in seconds. Raises :class:`JobError` when it could not be stopped, and
        :class:`SystemdError` as :meth:`restart` does.
        """
        deadline = time.monotonic() + timeout
        with self._systemd_errors(
            name, f"it was not stopped within {timeout:g} s; systemd may still be at it"
        ):
            unit = shlex.quote(name)
            log.info("systemctl stop %s", unit)
            try:
                result = self._with_reconnect(
                    lambda connection: calls.run_job(connection, "StopUnit", name, deadline), deadline
                )
            except DBusError as error:
                if error.name == calls.NO_SUCH_UNIT:
                    return
                raise
        if result != "done":
            raise JobError(
                f"systemd could not stop it ({result})",
                result=result,
                where=name,
                hint=f"see `systemctl status {unit}` on the node",
            )

    def daemon_reload(self, timeout: float) -> None:
        """Have systemd read its unit files anew. ``timeout`` is in seconds; raises :class:`SystemdError`."""
        deadline = time.monotonic() + timeout
        with self._systemd_errors("systemd", f"it did not read its unit files anew within {timeout:g} s"):
            log.info("systemctl daemon-reload")

            def reload(connection: Connection) -> None:
                connection.call_manager("Reload", None, (), deadline=deadline)

            self._with_reconnect(reload, deadline)

    def _run_start_job(self, verb: str, member: str, name: str, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        with self._systemd_errors(
            name, f"it was not {verb}ed within {timeout:g} s; systemd may still be at it"
        ):
            unit = shlex.quote(name)
            log.info("systemctl reset-failed %s; systemctl %s %s", unit, verb, unit)
            before = self._with_reconnect(
                lambda connection: calls.reset_failed(connection, name, deadline), deadline
            )
            requested = False

            def start_unit(connection: Connection) -> str:
                nonlocal requested
                # A connection that broke leaves open whether systemd read the request.
                if requested and (result := calls.job_outcome(connection, name, before, deadline)):
                    return result
                requested = True
                return calls.run_job(connection, member, name, deadline)

            result = self._with_reconnect(start_unit, deadline)
            found = self._with_reconnect(
                lambda connection: calls.properties(connection, name, deadline), deadline
            )
        if result == "done" and not found["ConditionResult"]:
            result = "condition"  # for systemd, not to start such a unit is the job well done
        if result != "done":
            words = dict.fromkeys((result, found.get("Result", "success")))
            words.pop("success", None)
            reason = _JOB_RESULTS.get(result, "systemd could not {verb} it")
            raise JobError(
                f"{reason.format(verb=verb)} ({', '.join(words)})",
                result=result,
                where=name,
                hint=f"run `{journal_command(name)}` on the node to see why",
            )

    def _with_reconnect(self, ask: Callable[[Connection], T], deadline: float) -> T:
        """Ask something that may be asked twice: again, on a new connection, whenever one breaks."""
        while True:
            try:
                return ask(self._connected(deadline))
            except ConnectionError as error:
                log.debug("connecting to systemd again: %s", describe_os_error(error))
                self.close()
                if not systemd_connect.pause_before_retry(deadline):
                    raise

    def _connected(self, deadline: float) -> Connection:
        if self._connection is None:
            self._connection = systemd_connect.connect(self._root, deadline)
        return self._connection

    @contextlib.contextmanager
    def _systemd_errors(self, name: str, timeout_message: str) -> Iterator[None]:
        """Turn what the connection raises into errors about the unit ``name``."""
        try:
            yield
        except DBusError as error:
            raise _refused_error(name, error) from error
        except TimeoutError as error:
            self.close()  # a message may have been cut in the middle
            raise SystemdError(
                timeout_message,
                where=name,
                hint=f"see `systemctl status {shlex.quote(name)}` and `systemctl list-jobs` on the node",
            ) from error
        except OSError as error:
            self.close()
            raise SystemdError(
                f"the connection to systemd broke: {describe_os_error(error)}",
                where=name,
                hint="systemd or the bus restarted just now; run again",
            ) from error


def _read_unit(connection: Connection, name: str, deadline: float) -> Unit | None:
    try:
        properties = calls.properties(connection, name, deadline)
    except DBusError as error:
        if error.name == calls.NO_SUCH_UNIT:
            return None
        raise
    if properties["LoadState"] == "not-found":
        return None
    commands = properties.get("ExecStart", [])
    return Unit(
        name=properties["Id"],
        load_state=properties["LoadState"],
        active_state=properties["ActiveState"],
        sub_state=properties["SubState"],
        result=properties.get("Result", ""),
        invocation_id=properties["InvocationID"].hex(),
        main_pid=properties.get("MainPID", 0),
        argv=tuple(commands[0][1]) if commands else (),
        need_daemon_reload=properties["NeedDaemonReload"],
        active_enter_usec=properties["ActiveEnterTimestamp"],
    )


def _refused_error(name: str, error: DBusError) -> SystemdError:
    if error.name == calls.NO_SUCH_UNIT:
        hint = "look for its name with `systemctl list-unit-files`"
    elif error.name == _NOT_APPLICABLE:
        hint = "its unit file has no ExecReload=; restart it instead"
    elif error.name in _DENIED:
        hint = "run as root"
    else:
        hint = f"see `systemctl status {shlex.quote(name)}` on the node"
    return SystemdError(f"systemd refused: {error.text or error.name}", where=name, hint=hint)
