"""Run a program of the node in the node's own namespaces, as a short-lived unit of its systemd.

A container does not see the node's programs and journal. systemd starts the program and gives it the end of a
pipe, so that the output comes back without a file. Nothing of the unit stays: systemd removes it when the
program ends, and ends a program that outlives its time even if this process is killed.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING

from msgspec import Struct

from kata_node.host.files import Root

if TYPE_CHECKING:
    from kata_node.host.dbus import Connection

OUTPUT_LIMIT = 1 << 20
"""Bytes of output to keep. A program that writes more is stopped."""
STOP_TIMEOUT = 2.0
"""Seconds that a program gets to end after SIGTERM. Then systemd kills it."""
_READ_BYTES = 65536
_RECURSIVE = 16384  # MS_REC: with the file systems that are mounted below

# Programs that only read the node: no write outside of their own /tmp, no network, no kernel modules.
_READ_ONLY: tuple[tuple[str, tuple[str, object]], ...] = (
    ("PrivateNetwork", ("b", True)),
    ("PrivateDevices", ("b", True)),
    ("ProtectControlGroups", ("b", True)),
    ("ProtectKernelModules", ("b", True)),
    ("ProtectKernelTunables", ("b", True)),
)


class HostProgram(Struct, frozen=True):
    """A program to run. It can read the node, and change nothing on it."""

    argv: tuple[str, ...]
    """The command line; the first item is an absolute path of the node."""
    timeout: float
    """Seconds after which it is stopped."""
    visible: tuple[str, ...] | None = None
    """The paths of the node that it sees, read-only. Everything else is an empty directory, in which it can
    write and which goes away with it. ``None``: it sees the whole node, read-only."""
    environment: tuple[str, ...] = ()
    """Variables as ``NAME=value``."""
    until: str = ""
    """Text in the output after which it is stopped, for a program that does not end by itself."""


class ProgramOutput(Struct, frozen=True):
    """What a program did."""

    text: str
    """stdout and stderr together."""
    ended: bool
    """Whether it ended by itself. A program that could not be started has ended, without a text."""
    result: str = ""
    """systemd's word for the end: ``done``, or ``failed`` for an exit code other than 0; empty if unknown."""


def run(root: Root, program: HostProgram, timeout: float) -> ProgramOutput:
    """Run ``program`` and return its output. ``timeout``, in seconds, is for all calls to systemd.

    Raises :class:`DBusError` when systemd refuses, for example because it is too old, :class:`OSError` and
    :class:`~kata_node.errors.SystemdError` when it cannot be reached.
    """
    from kata_node.host.systemd_connect import connect

    connection = connect(root, time.monotonic() + timeout, passes_descriptors=True)
    try:
        return _run(connection, program, timeout)
    finally:
        connection.close()


def _run(connection: Connection, program: HostProgram, timeout: float) -> ProgramOutput:
    import secrets

    from kata_node.host.dbus import DBusError

    unit = f"kata-node-{secrets.token_hex(6)}.service"
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        try:
            deadline = time.monotonic() + timeout
            connection.subscribe(deadline)
            (job,) = connection.call_manager(
                "StartTransientUnit",
                "ssa(sv)a(sa(sv))",
                (unit, "fail", _properties(program, writer), []),
                deadline=deadline,
            )
        finally:
            os.close(writer)
        output = bytearray()
        ended = _read(reader, output, time.monotonic() + program.timeout, program.until.encode())
        if not ended:
            with contextlib.suppress(DBusError):  # it has just ended
                connection.call_manager(
                    "StopUnit", "ss", (unit, "replace"), deadline=time.monotonic() + timeout
                )
            _read(reader, output, time.monotonic() + 2 * STOP_TIMEOUT, b"")
        result = ""
        if ended:
            with contextlib.suppress(TimeoutError):
                result = connection.job_result(job, time.monotonic() + timeout)
        return ProgramOutput(output.decode(errors="replace"), ended, result)
    finally:
        os.close(reader)


def _properties(program: HostProgram, writer: int) -> list[tuple[str, tuple[str, object]]]:
    if program.visible is None:
        mounts: list[tuple[str, tuple[str, object]]] = [("ProtectSystem", ("s", "strict"))]
    else:
        # True: a missing path is no error.
        binds = [(path, path, True, _RECURSIVE) for path in program.visible]
        mounts = [("TemporaryFileSystem", ("a(ss)", [("/", "")])), ("BindReadOnlyPaths", ("a(ssbt)", binds))]
    return [
        ("Description", ("s", f"kata-node: {program.argv[0]}")),
        # The job of this type ends with the program, and its result shows the exit code.
        ("Type", ("s", "oneshot")),
        ("ExecStart", ("a(sasb)", [(program.argv[0], list(program.argv), False)])),
        ("Environment", ("as", list(program.environment))),
        ("StandardOutputFileDescriptor", ("h", writer)),
        ("StandardErrorFileDescriptor", ("h", writer)),
        # In case this process cannot stop it.
        ("TimeoutStartUSec", ("t", int((program.timeout + 2 * STOP_TIMEOUT) * 1e6))),
        ("TimeoutStopUSec", ("t", int(STOP_TIMEOUT * 1e6))),
        ("CollectMode", ("s", "inactive-or-failed")),
        *_READ_ONLY,
        *mounts,
    ]


def _read(reader: int, output: bytearray, deadline: float, until: bytes) -> bool:
    """Add what comes out of the pipe to ``output``; return whether that was all.

    Otherwise the deadline has passed, ``until`` is in the output, or the output is too long.
    """
    import select

    poll = select.poll()  # select() takes no descriptor above 1023
    poll.register(reader, select.POLLIN)
    while len(output) < OUTPUT_LIMIT:
        remaining = deadline - time.monotonic()
        if remaining <= 0 or not poll.poll(remaining * 1000):
            return False
        data = os.read(reader, _READ_BYTES)
        if not data:
            return True
        # The text may be split between two reads.
        since = max(0, len(output) - len(until))
        output += data
        if until and until in output[since:]:
            return False
    return False
