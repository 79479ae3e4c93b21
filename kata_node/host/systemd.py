"""A client of the node's systemd: read, start, restart, reload and stop units, without ``systemctl``.

It uses D-Bus, for which root needs no capability and no polkit rule.
"""

from __future__ import annotations

import contextlib
import logging
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Self, TypeVar

from msgspec import Struct

from kata_node.errors import SystemdError
from kata_node.host import systemd_calls as calls
from kata_node.host import systemd_connect
from kata_node.host.dbus import Connection, DBusError
from kata_node.host.files import Root
from kata_node.host.journal import journal_command
from kata_node.host.sockets import describe_os_error

if TYPE_CHECKING:
    from kata_node.host.host_program import HostProgram, ProgramOutput

_NOT_APPLICABLE = "org.freedesktop.systemd1.JobTypeNotApplicable"
_DENIED = (
    "org.freedesktop.DBus.Error.AccessDenied",
    "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired",
)

_JOB_RESULTS = {
    "failed": "systemd {verb}ed the unit but it did not become active",
    "timeout": "systemd {verb}ed the unit but it did not become active in the time that systemd allows",
    "dependency": "systemd cannot {verb} the unit because a unit that it needs did not start",
    "canceled": "another request to systemd canceled the {verb} of the unit",
    "condition": "the unit is stopped because this node does not meet a condition in its unit file",
}

_RELOAD_RESULTS = {
    "failed": "the ExecReload command of the unit failed",
    "invalid": "systemd cannot reload the unit because it is not running",
    "timeout": "the ExecReload command of the unit did not finish in the time that systemd allows",
    "canceled": "another request to systemd canceled the reload of the unit",
}

T = TypeVar("T")
log = logging.getLogger(__name__)


class ExecEnvironment(Struct, frozen=True):
    """The settings of a service that decide what its ``ExecStart`` means; see systemd.exec(5)."""

    assignments: tuple[str, ...] = ()
    """``Environment``, as ``NAME=value``, without quotes and specifiers."""
    files: tuple[tuple[str, bool], ...] = ()
    """``EnvironmentFile``: path or glob, and whether it may be missing."""
    unset: tuple[str, ...] = ()
    passed: tuple[str, ...] = ()
    """``PassEnvironment``: the names of variables that systemd itself was started with."""
    working_directory: str = ""
    root: str = ""
    """``RootDirectory`` or ``RootImage``; empty if the service sees the root of the node."""
    expands: bool = True
    """Whether systemd expands variables. The prefix ``:`` of the command turns that off."""


class UnitProcess(Struct, frozen=True):
    """A process of a unit, as systemd sees it."""

    pid: int
    """In the node's pid namespace."""
    command_line: str
    """The arguments as one line, quoted like in a shell. systemd before 248 does not quote them."""


class Unit(Struct, frozen=True):
    """The state of a unit, in the words of ``systemctl show``."""

    name: str
    """Its real name, even if it was requested by an alias."""
    load_state: str
    """``loaded``, ``masked``, ``error``, ``bad-setting``."""
    active_state: str
    """``active``, ``reloading``, ``inactive``, ``failed``, ``activating``, ``deactivating``."""
    sub_state: str
    """For services: ``running``, ``dead``, ``auto-restart``, …"""
    result: str
    """For services, how they last ended: ``success``, ``exit-code``, ``start-limit-hit``, …; else empty."""
    invocation_id: str
    """32 hexadecimal digits, new at every activation; empty if the unit never started."""
    main_pid: int
    """In the node's pid namespace; 0 if no process runs."""
    argv: tuple[str, ...]
    """For services, the first ``ExecStart`` of the unit file as systemd has loaded it; else empty."""
    need_daemon_reload: bool
    """Whether its unit file changed after systemd read it."""
    active_enter_usec: int
    """The time of its last activation, in microseconds since 1970; 0 if there was none."""
    exec_environment: ExecEnvironment | None = None
    """What systemd expands ``argv`` with and where it runs it; ``None`` if that is not known."""
    main_start_usec: int = 0
    """For services, the time at which the main process started, in microseconds since 1970; else 0."""
    main_start_monotonic_usec: int = 0
    """The same by :func:`time.monotonic`, which no correction of the clock changes."""
    files: tuple[str, ...] = ()
    """The unit file and its drop-ins."""


class JobError(SystemdError):
    """A job of systemd for a unit failed.

    ``result`` is systemd's word for the result of the job (``failed``, ``timeout``, ``dependency``,
    ``canceled``, …), or ``condition``.
    """

    def __init__(self, what: str, *, result: str, where: str, hint: str) -> None:
        super().__init__(what, where=where, hint=hint)
        self.result = result


class Systemd:
    """A connection to the node's systemd, and a context manager that closes it.

    A restart of the container runtime does not affect the connection. When systemd re-executes itself
    or the bus restarts, a call connects again and continues, within its timeout.
    """

    def __init__(self, root: Root, timeout: float) -> None:
        self._root = root
        self._timeout = timeout
        self._connection: Connection | None = None

    @classmethod
    def connect(cls, root: Root, timeout: float = 10) -> Self:
        """Connect to the systemd of the node at ``root``.

        ``timeout``, in seconds, applies to the connection and to each call of :meth:`unit`. Raises
        :class:`SystemdError`, like every call, when systemd cannot be reached.
        """
        systemd = cls(root, timeout)
        systemd._connected(time.monotonic() + timeout)
        return systemd

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def unit(self, name: str) -> Unit | None:
        """Return the unit ``name`` (``containerd.service``); ``None`` when there is no such unit."""
        with self._systemd_errors(name, f"systemd did not answer within {self._timeout:g} s"):
            deadline = time.monotonic() + self._timeout
            return self._with_reconnect(lambda connection: _read_unit(connection, name, deadline), deadline)

    def processes(self, name: str) -> tuple[UnitProcess, ...]:
        """Return the processes of the unit ``name``; none if it does not run."""
        with self._systemd_errors(name, f"systemd did not answer within {self._timeout:g} s"):
            deadline = time.monotonic() + self._timeout
            found = self._with_reconnect(
                lambda connection: calls.unit_processes(connection, name, deadline), deadline
            )
        return tuple(UnitProcess(pid, command_line) for pid, command_line in found)

    def environment(self) -> tuple[str, ...]:
        """Return the variables that systemd gives to every unit, as ``NAME=value``."""
        with self._systemd_errors("systemd", f"systemd did not answer within {self._timeout:g} s"):
            deadline = time.monotonic() + self._timeout
            return self._with_reconnect(
                lambda connection: calls.manager_environment(connection, deadline), deadline
            )

    def run_program(self, program: HostProgram) -> ProgramOutput:
        """Run a program of the node and return its output; see :mod:`kata_node.host.host_program`."""
        from kata_node.host import host_program

        with self._systemd_errors("systemd", f"systemd did not answer within {self._timeout:g} s"):
            return host_program.run(self._root, program, self._timeout)

    def restart(self, name: str, timeout: float) -> None:
        """Restart the unit ``name``, or start it, and wait until systemd reports that it has started.

        A start limit that the unit has hit is reset first. ``timeout``, in seconds, applies to the whole
        call. Raises :class:`JobError` when the unit did not become active, and :class:`SystemdError` after
        the timeout, when systemd refuses, or when the connection is lost and not restored.
        """
        self._run_start_job("restart", "RestartUnit", name, timeout)

    def reload(self, name: str, timeout: float) -> None:
        """Make the running unit ``name`` load its configuration, by its ``ExecReload`` command.

        It returns when the command has ended. If the command only sends a signal, the unit may not have
        loaded the configuration yet. ``timeout``, in seconds, applies to the whole call. Raises
        :class:`JobError` when the command failed or the unit is not running, and :class:`SystemdError`
        when the unit has no such command, or for the reasons of :meth:`restart`.
        """
        deadline = time.monotonic() + timeout
        with self._systemd_errors(
            name, f"systemd did not reload the unit within {timeout:g} s and may still be working on it"
        ):
            unit = shlex.quote(name)
            log.info("systemctl reload %s", unit)
            # Unlike a restart, a reload can be repeated.
            result = self._with_reconnect(
                lambda connection: calls.run_job(connection, "ReloadUnit", name, deadline), deadline
            )
        if result != "done":
            raise JobError(
                f"{_RELOAD_RESULTS.get(result, 'systemd cannot reload the unit')} ({result})",
                result=result,
                where=name,
                hint=f"run `{journal_command(name)}` on the node to see why",
            )

    def start(self, name: str, timeout: float) -> None:
        """Start the unit ``name`` unless it is running, and wait until systemd reports that it has started.

        Timeout and errors are those of :meth:`restart`.
        """
        self._run_start_job("start", "StartUnit", name, timeout)

    def stop(self, name: str, timeout: float) -> None:
        """Stop the unit ``name`` and wait until it is stopped. A unit that does not exist counts as stopped.

        ``timeout`` is in seconds. Raises :class:`JobError` when systemd cannot stop the unit, and
        :class:`SystemdError` for the reasons of :meth:`restart`.
        """
        deadline = time.monotonic() + timeout
        with self._systemd_errors(
            name, f"systemd did not stop the unit within {timeout:g} s and may still be working on it"
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
                f"systemd cannot stop the unit ({result})",
                result=result,
                where=name,
                hint=f"run `systemctl status {unit}` on the node to see why",
            )

    def daemon_reload(self, timeout: float) -> None:
        """Make systemd read its unit files again. ``timeout`` is in seconds. Raises :class:`SystemdError`."""
        deadline = time.monotonic() + timeout
        with self._systemd_errors("systemd", f"systemd did not reload its unit files within {timeout:g} s"):
            log.info("systemctl daemon-reload")

            def reload(connection: Connection) -> None:
                connection.call_manager("Reload", None, (), deadline=deadline)

            self._with_reconnect(reload, deadline)

    def _run_start_job(self, verb: str, member: str, name: str, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        with self._systemd_errors(
            name, f"systemd did not {verb} the unit within {timeout:g} s and may still be working on it"
        ):
            unit = shlex.quote(name)
            log.info("systemctl reset-failed %s; systemctl %s %s", unit, verb, unit)
            before = self._with_reconnect(
                lambda connection: calls.reset_failed(connection, name, deadline), deadline
            )
            requested = False

            def start_unit(connection: Connection) -> str:
                nonlocal requested
                # After a broken connection it is not known whether systemd has read the request.
                if requested and (result := calls.job_outcome(connection, name, before, deadline)):
                    return result
                requested = True
                return calls.run_job(connection, member, name, deadline)

            result = self._with_reconnect(start_unit, deadline)
            found = self._with_reconnect(
                lambda connection: calls.properties(connection, name, deadline), deadline
            )
        if result == "done" and not found["ConditionResult"]:
            result = "condition"  # systemd reports "done" for a unit that it skipped because of a condition
        if result != "done":
            words = dict.fromkeys((result, found.get("Result", "success")))
            words.pop("success", None)
            reason = _JOB_RESULTS.get(result, "systemd cannot {verb} the unit")
            raise JobError(
                f"{reason.format(verb=verb)} ({', '.join(words)})",
                result=result,
                where=name,
                hint=f"run `{journal_command(name)}` on the node to see why",
            )

    def _with_reconnect(self, ask: Callable[[Connection], T], deadline: float) -> T:
        """Call ``ask``, and repeat it on a new connection when the connection breaks."""
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
        """Turn errors of the connection into :class:`SystemdError` about the unit ``name``."""
        try:
            yield
        except DBusError as error:
            raise _refused_error(name, error) from error
        except TimeoutError as error:
            self.close()  # a message may be incomplete
            raise SystemdError(
                timeout_message,
                where=name,
                hint=f"run `systemctl status {shlex.quote(name)}` and `systemctl list-jobs` on the node",
            ) from error
        except OSError as error:
            self.close()
            raise SystemdError(
                f"the connection to systemd broke: {describe_os_error(error)}",
                where=name,
                hint="run again; systemd or the bus has just restarted",
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
        main_start_usec=properties.get("ExecMainStartTimestamp", 0),
        main_start_monotonic_usec=properties.get("ExecMainStartTimestampMonotonic", 0),
        files=tuple(
            path for path in (properties.get("FragmentPath"), *properties.get("DropInPaths", ())) if path
        ),
        exec_environment=_exec_environment(properties) if commands else None,
    )


def _exec_environment(properties: Mapping[str, Any]) -> ExecEnvironment:
    flags = next((command[2] for command in properties.get("ExecStartEx", ())), ())
    return ExecEnvironment(
        assignments=tuple(properties.get("Environment", ())),
        files=tuple((path, optional) for path, optional in properties.get("EnvironmentFiles", ())),
        unset=tuple(properties.get("UnsetEnvironment", ())),
        passed=tuple(properties.get("PassEnvironment", ())),
        working_directory=properties.get("WorkingDirectory", "").lstrip("!"),
        root=properties.get("RootDirectory") or properties.get("RootImage", ""),
        expands="no-env-expand" not in flags,
    )


def _refused_error(name: str, error: DBusError) -> SystemdError:
    if error.name == calls.NO_SUCH_UNIT:
        hint = "run `systemctl list-unit-files` on the node to find its name"
    elif error.name == _NOT_APPLICABLE:
        hint = "restart the unit instead; its unit file has no ExecReload="
    elif error.name in _DENIED:
        hint = "run as root"
    else:
        hint = f"run `systemctl status {shlex.quote(name)}` on the node to see why"
    return SystemdError(f"systemd refused the request: {error}", where=name, hint=hint)
