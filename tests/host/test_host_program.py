"""Programs of the node that systemd runs: the request, the output that comes back, and the end."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jeepney import (  # type: ignore[import-untyped]
    DBusAddress,
    HeaderFields,
    Message,
    Parser,
    new_error,
    new_method_return,
    new_signal,
)

from host.unix_server import UnixServer
from kata_node.errors import SystemdError
from kata_node.host import host_program
from kata_node.host.files import Root
from kata_node.host.host_program import HostProgram, ProgramOutput
from kata_node.host.systemd import Systemd
from kata_node.host.systemd_connect import PRIVATE_SOCKET

JOB = "/org/freedesktop/systemd1/job/7"
MANAGER = DBusAddress("/org/freedesktop/systemd1", interface="org.freedesktop.systemd1.Manager")


class Manager:
    """A fake systemd that gives the pipe of a transient unit to ``program``, which closes it."""

    def __init__(self, base: Path) -> None:
        self.program: Callable[[int], None] = os.close
        self.agrees, self.refuses, self.result = True, "", "done"
        self.requests: list[tuple[str, tuple[Any, ...]]] = []
        self.left_open: list[int] = []
        self.peer = UnixServer(base / PRIVATE_SOCKET[1:], self.serve)

    def serve(self, connection: socket.socket) -> None:
        received = b""
        while b"BEGIN\r\n" not in received:
            received += connection.recv(4096)
        wants = b"NEGOTIATE_UNIX_FD\r\n" in received
        answer = b"AGREE_UNIX_FD\r\n" if self.agrees else b"ERROR no\r\n"
        connection.sendall(b"OK 0123\r\n" + (answer if wants else b""))
        parser, serial = Parser(), 0
        while True:
            data, descriptors, _, _ = socket.recv_fds(connection, 65536, 4)
            if not data:
                return
            for message in _parsed(parser, data, descriptors):
                for reply in self.replies(message, descriptors):
                    serial += 1
                    connection.sendall(reply.serialise(serial))

    def replies(self, message: Message, descriptors: list[int]) -> Iterator[Message]:
        member = message.header.fields[HeaderFields.member]
        self.requests.append((member, tuple(message.body)))
        if member == "Get":
            yield new_method_return(message, "v", (("s", "262"),))
        elif member == "StartTransientUnit":
            writer, spare = descriptors
            os.close(spare)
            if self.refuses:
                os.close(writer)
                yield new_error(message, "org.freedesktop.DBus.Error.PropertyReadOnly", "s", (self.refuses,))
                return
            yield new_method_return(message, "o", (JOB,))
            self.program(writer)
            yield new_signal(MANAGER, "JobRemoved", "uoss", (7, JOB, "x.service", self.result))
        elif member == "StopUnit":
            for descriptor in self.left_open:
                os.close(descriptor)
            yield new_method_return(message, "o", (JOB,))
        else:
            yield new_method_return(message)

    @property
    def properties(self) -> dict[str, Any]:
        (found,) = (body for member, body in self.requests if member == "StartTransientUnit")
        return {name: value for name, (_, value) in found[2]}


def _parsed(parser: Parser, data: bytes, descriptors: list[int]) -> list[Message]:
    parser.add_data(data, fds=[*descriptors])
    return list(iter(parser.get_next_message, None))


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    found = Manager(tmp_path)
    yield found
    found.peer.close()


def run(tmp_path: Path, program: HostProgram) -> ProgramOutput:
    with Systemd.connect(Root(tmp_path)) as systemd:
        return systemd.run_program(program)


def writing(text: bytes) -> Callable[[int], None]:
    def write(writer: int) -> None:
        os.write(writer, text)
        os.close(writer)

    return write


def test_the_output_and_the_result_of_a_program_come_back(tmp_path: Path, manager: Manager) -> None:
    manager.program, manager.result = writing(b"one\ntwo \xff\n"), "failed"
    found = run(tmp_path, HostProgram(("/usr/bin/journalctl", "-n", "3"), 5))
    assert found == ProgramOutput("one\ntwo \ufffd\n", ended=True, result="failed")
    assert manager.properties["ExecStart"] == [
        ("/usr/bin/journalctl", ["/usr/bin/journalctl", "-n", "3"], False)
    ]


def test_a_program_cannot_change_the_node_and_leaves_no_unit(tmp_path: Path, manager: Manager) -> None:
    run(tmp_path, HostProgram(("/bin/x",), 5))
    properties = manager.properties
    assert properties["ProtectSystem"] == "strict"
    assert properties["PrivateNetwork"]
    assert properties["CollectMode"] == "inactive-or-failed"
    assert 5_000_000 < properties["TimeoutStartUSec"] < 20_000_000


def test_a_program_sees_only_the_given_paths(tmp_path: Path, manager: Manager) -> None:
    run(tmp_path, HostProgram(("/bin/x",), 5, visible=("/usr", "/etc"), environment=("A=b",)))
    properties = manager.properties
    assert properties["TemporaryFileSystem"] == [("/", "")]
    assert [bind[:3] for bind in properties["BindReadOnlyPaths"]] == [
        ("/usr", "/usr", True),
        ("/etc", "/etc", True),
    ]
    assert properties["Environment"] == ["A=b"]


@pytest.mark.parametrize(
    ("program", "text"),
    [
        (HostProgram(("/bin/x",), 60, until="booted"), b"it has booted"),
        (HostProgram(("/bin/x",), 0.01), b""),
    ],
    ids=["seen", "timeout"],
)
def test_a_program_that_does_not_end_is_stopped(
    tmp_path: Path, manager: Manager, program: HostProgram, text: bytes
) -> None:
    def write_and_stay(writer: int) -> None:
        os.write(writer, text)
        manager.left_open.append(writer)

    manager.program = write_and_stay
    found = run(tmp_path, program)
    assert (found.ended, found.text) == (False, text.decode())
    assert manager.requests[-1][0] == "StopUnit"


def test_an_endless_output_is_cut(tmp_path: Path, manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_program, "OUTPUT_LIMIT", 100)
    monkeypatch.setattr(host_program, "_READ_BYTES", 40)
    manager.program = writing(b"x" * 1000)
    assert len(run(tmp_path, HostProgram(("/bin/x",), 60)).text) < 200


@pytest.mark.parametrize("refusal", ["a property", "descriptors"])
def test_a_systemd_that_is_too_old_is_an_error_of_ours(
    tmp_path: Path, manager: Manager, refusal: str
) -> None:
    manager.refuses = "Unknown property" if refusal == "a property" else ""
    manager.agrees = refusal == "a property"
    with pytest.raises(SystemdError) as caught:
        run(tmp_path, HostProgram(("/bin/x",), 5))
    assert ("Unknown property" if refusal == "a property" else "no file descriptors") in str(caught.value)
