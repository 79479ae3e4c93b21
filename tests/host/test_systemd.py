from __future__ import annotations

import logging
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
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

from host.unix_server import UnixServer, listen
from kata_node.errors import SystemdError
from kata_node.host import systemd_connect
from kata_node.host.files import Root
from kata_node.host.journal import journal_command
from kata_node.host.systemd import ExecEnvironment, JobError, Systemd, Unit, UnitProcess
from kata_node.host.systemd_connect import BUS_SOCKET, PATIENCE, PRIVATE_SOCKET

PLENTY = 60.0  # seconds; never waited for in full
UNIT = "org.freedesktop.systemd1.Unit"
SERVICE = "org.freedesktop.systemd1.Service"
MANAGER = DBusAddress("/org/freedesktop/systemd1", interface="org.freedesktop.systemd1.Manager")
BUS = DBusAddress("/org/freedesktop/DBus", "org.freedesktop.DBus", "org.freedesktop.DBus")
ITSELF = ":1.0"  # systemd's name on the bus
INVOCATION = bytes(range(16))
LATER = bytes(reversed(INVOCATION))
JOB = "/org/freedesktop/systemd1/job/1801"
NO_REPLY = ("org.freedesktop.DBus.Error.NoReply", "Message recipient disconnected")

SETTLED: dict[str, dict[str, tuple[str, object]]] = {
    UNIT: {
        "Id": ("s", "containerd.service"),
        "LoadState": ("s", "loaded"),
        "ActiveState": ("s", "active"),
        "SubState": ("s", "running"),
        "InvocationID": ("ay", INVOCATION),
        "NeedDaemonReload": ("b", False),
        "ConditionResult": ("b", True),
        "ActiveEnterTimestamp": ("t", 1795369238677169),
        "Names": ("as", ["containerd.service"]),
        "Job": ("(uo)", (0, "/")),
    },
    SERVICE: {
        "Result": ("s", "success"),
        "MainPID": ("u", 77),
        "ExecStart": (
            "a(sasbttttuii)",
            [
                ("/usr/bin/containerd", ["/usr/bin/containerd", "-l", "info"], False, 1, 2, 3, 4, 77, 0, 0),
                ("/bin/true", ["/bin/true"], False, 0, 0, 0, 0, 0, 0, 0),
            ],
        ),
        "ExecStartEx": (
            "a(sasasttttuii)",
            [("/usr/bin/containerd", ["/usr/bin/containerd"], ["no-env-expand"], 1, 2, 3, 4, 77, 0, 0)],
        ),
        "Environment": ("as", ["A=b c"]),
        "EnvironmentFiles": ("a(sb)", [("/etc/default/containerd", True)]),
        "UnsetEnvironment": ("as", ["B"]),
        "PassEnvironment": ("as", ["C"]),
        "WorkingDirectory": ("s", "!/srv"),
        "RootDirectory": ("s", ""),
        "RootImage": ("s", ""),
    },
}


@dataclass
class Manager:
    """A fake systemd behind one socket, as strict as the real one about the order of messages."""

    is_bus: bool = False
    units: dict[str, dict[str, dict[str, tuple[str, object]]]] = field(
        default_factory=lambda: {"containerd.service": SETTLED}
    )
    refuses: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Member -> the name and text of the error in its reply."""
    hangs_up_at: list[str] = field(default_factory=list)
    """Members whose call closes the connection without a reply, each once."""
    hangs_up_after: list[str] = field(default_factory=list)
    """Members whose call closes the connection after the reply, each once."""
    leaves: list[tuple[str, str]] = field(default_factory=list)
    """Members after whose reply a signal says that systemd left the bus, and its sender; each once."""
    changes: list[dict[str, tuple[str, object]]] = field(default_factory=list)
    """Changed properties of a unit, one set for each read; the last one stays."""
    result: str = "done"
    """The result of jobs; empty for jobs that never end."""
    forged: list[tuple[str, str, str]] = field(default_factory=list)
    """Sender, job and result of forged signals, sent before the real one."""
    removed_first: bool = False
    """Whether the signal about the end of the job comes before the reply to the call."""
    greets: bool = False
    """Whether a signal follows the OK of the authentication directly."""
    piece: int = 1 << 20
    """Bytes to send at once."""
    calls: list[str] = field(default_factory=list)
    """The members that were called, with their string arguments."""

    def serve(self, connection: socket.socket) -> None:
        if not self.authenticate(connection):
            return
        Client(self, connection).serve()

    def authenticate(self, connection: socket.socket) -> bool:
        received = b""
        while b"BEGIN\r\n" not in received:
            data = connection.recv(4096)
            if not data:
                return False
            received += data
        auth, _, rest = received.partition(b"BEGIN\r\n")
        if rest:  # the real systemd does not answer this
            connection.recv(1)
            return False
        assert auth == b"\0AUTH EXTERNAL %s\r\n" % str(os.geteuid()).encode().hex().encode()
        greeting = new_signal(MANAGER, "StartupFinished", "t", (1,)).serialise(7) if self.greets else b""
        connection.sendall(b"OK 0123456789abcdef0123456789abcdef\r\n" + greeting)
        return True


class Client:
    """One connection to a :class:`Manager`, seen from its side."""

    def __init__(self, manager: Manager, connection: socket.socket) -> None:
        self.manager = manager
        self.connection = connection
        self.serial = 100
        self.named = not manager.is_bus
        self.matches = not manager.is_bus
        self.told_of_owners = False
        self.subscribed = not manager.is_bus

    def serve(self) -> None:
        parser = Parser()
        while data := self.connection.recv(4096):
            for message in parser.feed(data):
                fields = message.header.fields
                member = fields[HeaderFields.member]
                strings = [text for text in message.body if isinstance(text, str)]
                self.manager.calls.append(" ".join([member, *strings]))
                if member in self.manager.hangs_up_at:
                    self.manager.hangs_up_at.remove(member)
                    return
                if not self.named and member != "Hello":
                    return  # like dbus-daemon
                if member in self.manager.refuses:
                    self.send(
                        new_error(
                            message, self.manager.refuses[member][0], "s", self.manager.refuses[member][1:]
                        )
                    )
                else:
                    getattr(self, member)(message, fields[HeaderFields.path], *message.body)

    def send(self, message: Message, sender: str = ITSELF) -> None:
        if self.manager.is_bus:
            message.header.fields[HeaderFields.sender] = sender
        self.serial += 1
        data = message.serialise(self.serial)
        for start in range(0, len(data), self.manager.piece):
            self.connection.sendall(data[start : start + self.manager.piece])

    def answer(self, call: Message, signature: str | None = None, *values: Any) -> None:
        self.send(new_method_return(call, signature, values))

    def removed(self, job: str, result: str, sender: str = ITSELF) -> None:
        if self.matches and self.subscribed:
            self.send(
                new_signal(MANAGER, "JobRemoved", "uoss", (1, job, "containerd.service", result)), sender
            )

    def Hello(self, call: Message, path: str) -> None:  # noqa: N802
        assert self.manager.is_bus, "the private socket has no Hello"
        self.named = True
        self.answer(call, "s", ":1.42")

    def AddMatch(self, call: Message, path: str, rule: str) -> None:  # noqa: N802
        assert self.manager.is_bus
        self.matches |= "member='JobRemoved'" in rule
        self.told_of_owners |= "member='NameOwnerChanged',arg0='org.freedesktop.systemd1'" in rule
        self.answer(call)

    def Subscribe(self, call: Message, path: str) -> None:  # noqa: N802
        self.subscribed = True
        self.answer(call)

    def Get(self, call: Message, path: str, interface: str, name: str) -> None:  # noqa: N802
        self.answer(call, "v", ("s", "262"))

    def LoadUnit(self, call: Message, path: str, name: str) -> None:  # noqa: N802
        escaped = re.sub("[^A-Za-z0-9]", lambda found: f"_{ord(found[0]):02x}", name)
        self.answer(call, "o", f"/org/freedesktop/systemd1/unit/{escaped}")

    def GetUnitProcesses(self, call: Message, path: str, name: str) -> None:  # noqa: N802
        if name in self.manager.units:
            self.answer(call, "a(sus)", [("/system.slice", 77, "/usr/bin/containerd -l info")])
        else:
            self.send(new_error(call, "org.freedesktop.systemd1.NoSuchUnit", "s", (name,)))

    def GetAll(self, call: Message, path: str, interface: str) -> None:  # noqa: N802
        if path == MANAGER.object_path:
            self.answer(call, "a{sv}", {"Environment": ("as", ["LANG=C.UTF-8"])})
            return
        name = re.sub("_(..)", lambda found: chr(int(found[1], 16)), path.rpartition("/")[2])
        unit = self.manager.units.get(name)
        if unit is None:
            unit = {UNIT: SETTLED[UNIT] | {"Id": ("s", name), "LoadState": ("s", "not-found")}}
        changes = self.manager.changes
        if interface != UNIT or not changes:
            self.answer(call, "a{sv}", unit[interface])
            return
        changed = changes.pop(0) if len(changes) > 1 else changes[0]
        self.answer(call, "a{sv}", unit[interface] | changed)
        if "Job" in changed and self.manager.result:
            self.removed(JOB, self.manager.result)

    def ResetFailedUnit(self, call: Message, path: str, name: str) -> None:  # noqa: N802
        self.answer(call)

    def ReloadUnit(self, call: Message, path: str, name: str, mode: str) -> None:  # noqa: N802
        self.RestartUnit(call, path, name, mode)

    def StartUnit(self, call: Message, path: str, name: str, mode: str) -> None:  # noqa: N802
        self.RestartUnit(call, path, name, mode)

    def StopUnit(self, call: Message, path: str, name: str, mode: str) -> None:  # noqa: N802
        self.RestartUnit(call, path, name, mode)

    def Reload(self, call: Message, path: str) -> None:  # noqa: N802
        self.answer(call)

    def RestartUnit(self, call: Message, path: str, name: str, mode: str) -> None:  # noqa: N802
        member = call.header.fields[HeaderFields.member]
        self.removed("/org/freedesktop/systemd1/job/1800", "failed")
        for sender, other, result in self.manager.forged:
            self.removed(other, result, sender)
        if self.manager.removed_first:
            self.removed(JOB, self.manager.result)
            self.removed("/org/freedesktop/systemd1/job/1802", "failed")
        self.answer(call, "o", JOB)
        if member in self.manager.hangs_up_after:
            self.manager.hangs_up_after.remove(member)
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        for leaving in [each for each in self.manager.leaves if each[0] == member and self.told_of_owners]:
            self.manager.leaves.remove(leaving)
            lost = new_signal(BUS, "NameOwnerChanged", "sss", ("org.freedesktop.systemd1", ITSELF, ""))
            self.send(lost, leaving[1])
            if leaving[1] == BUS.bus_name:
                return
        if self.manager.result and not self.manager.removed_first:
            self.removed(JOB, self.manager.result)


class Clock:
    """A fake clock: a sleep returns at once and moves the clock forward."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.slept = 0.0
        self.at_sleep: list[Callable[[], object]] = []
        """Functions to call at the next sleeps, one at each."""
        real = time.monotonic
        monkeypatch.setattr(time, "monotonic", lambda: real() + self.slept)
        monkeypatch.setattr(time, "sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.slept += seconds
        if self.at_sleep:
            self.at_sleep.pop(0)()


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


class Host:
    """A root of a node with the sockets that a test adds."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.root = Root(base)
        self.peers: list[UnixServer] = []

    def add(self, path: str, serve: Callable[[socket.socket], None]) -> None:
        self.peers.append(UnixServer(self.base / path[1:], serve))

    def private(self, **behavior: Any) -> Manager:
        manager = Manager(**behavior)
        self.add(PRIVATE_SOCKET, manager.serve)
        return manager

    def bus(self, **behavior: Any) -> Manager:
        manager = Manager(is_bus=True, **behavior)
        self.add(BUS_SOCKET, manager.serve)
        return manager

    def either(self, kind: str, **behavior: Any) -> Manager:
        return self.bus(**behavior) if kind == "bus" else self.private(**behavior)

    def close(self) -> None:
        for peer in self.peers:
            peer.close()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    yield host
    host.close()


both = pytest.mark.parametrize("kind", ["private", "bus"])


@both
def test_a_unit_is_read_with_all_its_properties(host: Host, kind: str) -> None:
    host.either(kind)
    with Systemd.connect(host.root) as systemd:
        assert systemd.unit("containerd.service") == Unit(
            name="containerd.service",
            load_state="loaded",
            active_state="active",
            sub_state="running",
            result="success",
            invocation_id="000102030405060708090a0b0c0d0e0f",
            main_pid=77,
            argv=("/usr/bin/containerd", "-l", "info"),
            need_daemon_reload=False,
            active_enter_usec=1795369238677169,
            exec_environment=ExecEnvironment(
                assignments=("A=b c",),
                files=(("/etc/default/containerd", True),),
                unset=("B",),
                passed=("C",),
                working_directory="/srv",
                root="",
                expands=False,
            ),
        )


@both
def test_the_processes_of_a_unit_and_the_variables_of_all_units_are_read(host: Host, kind: str) -> None:
    host.either(kind)
    with Systemd.connect(host.root) as systemd:
        assert systemd.processes("containerd.service") == (UnitProcess(77, "/usr/bin/containerd -l info"),)
        assert systemd.processes("nothing.service") == ()
        assert systemd.environment() == ("LANG=C.UTF-8",)


def test_a_unit_that_never_ran_has_no_invocation(host: Host) -> None:
    unit = SETTLED[UNIT] | {"InvocationID": ("ay", b""), "ActiveEnterTimestamp": ("t", 0)}
    service = {"Result": ("s", "success"), "MainPID": ("u", 0), "ExecStart": ("a(sasbttttuii)", [])}
    host.private(units={"containerd.service": {UNIT: unit, SERVICE: service}})
    with Systemd.connect(host.root) as systemd:
        found = systemd.unit("containerd.service")
    assert found is not None
    assert (found.invocation_id, found.main_pid, found.argv, found.active_enter_usec) == ("", 0, (), 0)


def test_a_target_is_read_without_the_properties_of_a_service(host: Host) -> None:
    target = {UNIT: SETTLED[UNIT] | {"Id": ("s", "multi-user.target")}}
    host.private(units={"multi-user.target": target})
    with Systemd.connect(host.root) as systemd:
        found = systemd.unit("multi-user.target")
    assert found is not None
    assert (found.name, found.active_state, found.main_pid, found.argv) == (
        "multi-user.target",
        "active",
        0,
        (),
    )


@pytest.mark.parametrize(
    "refuses",
    [
        pytest.param({}, id="load-state-not-found"),
        pytest.param({"LoadUnit": ("org.freedesktop.systemd1.NoSuchUnit", "not loaded")}, id="no-such-unit"),
    ],
)
def test_a_unit_that_does_not_exist_is_none(host: Host, refuses: dict[str, tuple[str, str]]) -> None:
    host.private(refuses=refuses)
    with Systemd.connect(host.root) as systemd:
        assert systemd.unit("k3s.service") is None


def test_the_private_socket_is_preferred_and_gets_no_hello(host: Host) -> None:
    private, bus = host.private(), host.bus()
    with Systemd.connect(host.root) as systemd:
        systemd.unit("containerd.service")
    assert private.calls[0].startswith("Get ")
    assert bus.calls == []


def hangs_up(connection: socket.socket) -> None:
    """Accept a client, then close at its first call, like systemd with a client in another pid namespace."""
    Manager().authenticate(connection)
    connection.recv(4096)


def keeps_silent(connection: socket.socket) -> None:
    while connection.recv(4096):
        pass


def rejects(connection: socket.socket) -> None:
    connection.recv(4096)
    connection.sendall(b"REJECTED EXTERNAL\r\n")


@pytest.mark.parametrize(
    ("serve", "what"),
    [
        pytest.param(hangs_up, "the peer closed the connection", id="hangs-up-on-a-foreign-pid-namespace"),
        pytest.param(keeps_silent, "timed out", id="never-answers"),
        pytest.param(rejects, 'does not admit this user ("REJECTED EXTERNAL")', id="rejects-the-user"),
        pytest.param("dead", "Connection refused", id="nobody-listens"),
        pytest.param("missing", "No such file or directory", id="not-mounted"),
    ],
)
def test_the_system_bus_is_used_when_the_private_socket_fails(
    host: Host, serve: Callable[[socket.socket], None] | str, what: str
) -> None:
    if callable(serve):
        host.add(PRIVATE_SOCKET, serve)
    elif serve == "dead":
        listen(host.base / PRIVATE_SOCKET[1:]).close()
    with pytest.raises(SystemdError) as caught:
        Systemd.connect(host.root, timeout=0.4 if serve is keeps_silent else PLENTY)
    assert f"{PRIVATE_SOCKET} (" in caught.value.what
    assert what in caught.value.what
    assert f"{BUS_SOCKET} (No such file or directory)" in caught.value.what
    host.bus()
    # Half of the time is for the private socket.
    with Systemd.connect(host.root, timeout=4 if serve is keeps_silent else PLENTY) as systemd:
        assert systemd.unit("containerd.service") is not None


def test_a_node_without_systemd_gets_a_hint(host: Host) -> None:
    with pytest.raises(SystemdError) as caught:
        Systemd.connect(host.root)
    assert caught.value.where == "systemd"
    assert "--offline" in caught.value.hint
    assert "/run/systemd" in caught.value.hint


def test_a_node_without_systemd_fails_at_once(host: Host, clock: Clock) -> None:
    with pytest.raises(SystemdError):
        Systemd.connect(host.root)
    assert clock.slept == 0


def nobody_listens(host: Host, path: str) -> Callable[[], None]:
    """Create a socket without a listener; return a function that removes it."""
    listen(host.base / path[1:]).close()
    return (host.base / path[1:]).unlink


@both
def test_a_refused_connection_is_retried(host: Host, kind: str, clock: Clock) -> None:
    clear = nobody_listens(host, BUS_SOCKET if kind == "bus" else PRIVATE_SOCKET)
    clock.at_sleep = [lambda: None, clear, lambda: host.either(kind)]
    if kind == "bus":  # without any socket there is no retry
        nobody_listens(host, PRIVATE_SOCKET)
    else:
        nobody_listens(host, BUS_SOCKET)
    with Systemd.connect(host.root) as systemd:
        assert systemd.unit("containerd.service") is not None


@both
def test_a_closed_connection_is_retried(host: Host, kind: str) -> None:
    manager = host.either(kind, hangs_up_at=["Get"] * 3)
    with Systemd.connect(host.root):
        pass
    assert len([call for call in manager.calls if call.startswith("Get ")]) == 4


def test_a_systemd_that_leaves_the_bus_is_retried(host: Host, clock: Clock) -> None:
    manager = host.bus(refuses={"Get": NO_REPLY})
    clock.at_sleep = [lambda: None, manager.refuses.clear]
    with Systemd.connect(host.root) as systemd:
        assert systemd.unit("containerd.service") is not None


@pytest.mark.parametrize(
    ("timeout", "least", "most"),
    [
        pytest.param(60, 0.8 * PATIENCE, PATIENCE, id="for-a-few-seconds"),
        pytest.param(1, 0.5, 1, id="never-past-the-deadline"),
    ],
)
def test_a_systemd_that_does_not_come_back_is_an_error(
    host: Host, clock: Clock, timeout: float, least: float, most: float
) -> None:
    nobody_listens(host, PRIVATE_SOCKET)
    host.bus(refuses={"Get": NO_REPLY})
    with pytest.raises(SystemdError) as caught:
        Systemd.connect(host.root, timeout)
    assert least <= clock.slept <= most
    assert "wait until an upgrade of systemd is finished" in caught.value.hint
    assert "mount" not in caught.value.hint
    assert "--offline" not in caught.value.hint


def test_a_private_socket_that_does_not_answer_gives_a_hint_about_the_bus(host: Host) -> None:
    host.add(PRIVATE_SOCKET, hangs_up)
    with pytest.raises(SystemdError) as caught:
        Systemd.connect(host.root)
    assert "upgrade of systemd" in caught.value.hint
    assert "mount the node's /run/systemd and /run/dbus below --host-root" in caught.value.hint


def test_a_user_without_permission_fails_at_once(host: Host, clock: Clock) -> None:
    host.add(PRIVATE_SOCKET, rejects)
    host.bus(refuses={"Get": ("org.freedesktop.DBus.Error.AccessDenied", "No.")})
    with pytest.raises(SystemdError, match="AccessDenied"):
        Systemd.connect(host.root)
    assert clock.slept == 0


def test_a_bus_without_systemd_is_an_error(host: Host) -> None:
    unknown = ("org.freedesktop.DBus.Error.ServiceUnknown", "The name is not activatable")
    host.bus(refuses={"Get": unknown})
    with pytest.raises(SystemdError, match="The name is not activatable"):
        Systemd.connect(host.root)


@both
def test_a_restart_resets_the_start_limit_and_waits_for_its_job(host: Host, kind: str) -> None:
    manager = host.either(kind)
    with Systemd.connect(host.root) as systemd:
        manager.calls.clear()
        systemd.restart("containerd.service", timeout=PLENTY)
    members = [call for call in manager.calls if not call.startswith(("AddMatch", "LoadUnit", "GetAll"))]
    assert members == [
        "ResetFailedUnit containerd.service",
        "Subscribe",
        "RestartUnit containerd.service replace",
    ]


@both
def test_a_second_restart_keeps_the_subscription(host: Host, kind: str) -> None:
    manager = host.either(kind)
    with Systemd.connect(host.root) as systemd:
        systemd.restart("containerd.service", timeout=PLENTY)
        systemd.restart("containerd.service", timeout=PLENTY)
    assert manager.calls.count("Subscribe") == 1


@both
def test_a_job_that_ends_before_the_reply_is_not_missed(host: Host, kind: str) -> None:
    host.either(kind, removed_first=True)
    with Systemd.connect(host.root) as systemd:
        systemd.restart("containerd.service", timeout=PLENTY)


def test_a_forged_signal_about_a_job_is_ignored(host: Host) -> None:
    host.bus(result="failed", forged=[(":1.99", "/org/freedesktop/systemd1/job/1801", "done")])
    with Systemd.connect(host.root) as systemd, pytest.raises(JobError):
        systemd.restart("containerd.service", timeout=PLENTY)


@pytest.mark.parametrize(
    ("result", "service_result", "what"),
    [
        pytest.param("failed", "exit-code", "did not become active (failed, exit-code)", id="failed"),
        pytest.param("failed", "timeout", "did not become active (failed, timeout)", id="start-timeout"),
        pytest.param("timeout", "timeout", "in the time that systemd allows (timeout)", id="job-timeout"),
        pytest.param(
            "dependency", "success", "a unit that it needs did not start (dependency)", id="dependency"
        ),
        pytest.param("canceled", "success", "canceled the restart of the unit (canceled)", id="canceled"),
        pytest.param("frozen", "success", "systemd cannot restart the unit (frozen)", id="unheard-of"),
    ],
)
def test_a_failed_restart_reports_the_result_of_its_job(
    host: Host, result: str, service_result: str, what: str
) -> None:
    service = SETTLED[SERVICE] | {"Result": ("s", service_result)}
    host.private(result=result, units={"containerd.service": {UNIT: SETTLED[UNIT], SERVICE: service}})
    with Systemd.connect(host.root) as systemd, pytest.raises(JobError) as caught:
        systemd.restart("containerd.service", timeout=PLENTY)
    assert caught.value.result == result
    assert caught.value.what.endswith(what)
    assert caught.value.where == "containerd.service"
    assert journal_command("containerd.service") in caught.value.hint


def test_a_restart_of_a_unit_with_an_unmet_condition_fails(host: Host) -> None:
    unit = SETTLED[UNIT] | {"ConditionResult": ("b", False), "ActiveState": ("s", "inactive")}
    host.private(units={"containerd.service": {UNIT: unit, SERVICE: SETTLED[SERVICE]}})
    with Systemd.connect(host.root) as systemd, pytest.raises(JobError) as caught:
        systemd.restart("containerd.service", timeout=PLENTY)
    assert caught.value.result == "condition"


@both
def test_a_restart_that_takes_too_long_is_an_error_and_the_next_call_works(host: Host, kind: str) -> None:
    host.either(kind, result="")
    with Systemd.connect(host.root) as systemd:
        with pytest.raises(SystemdError, match=r"did not restart the unit within 0.1 s") as caught:
            systemd.restart("containerd.service", timeout=0.1)
        assert not isinstance(caught.value, JobError)
        assert "systemctl status containerd.service" in caught.value.hint
        assert systemd.unit("containerd.service") is not None


def test_a_unit_that_was_never_loaded_is_restarted(host: Host) -> None:
    manager = host.private(refuses={"ResetFailedUnit": ("org.freedesktop.systemd1.NoSuchUnit", "not loaded")})
    with Systemd.connect(host.root) as systemd:
        systemd.restart("containerd.service", timeout=PLENTY)
    assert "RestartUnit containerd.service replace" in manager.calls


@pytest.mark.parametrize(
    ("member", "name", "hint"),
    [
        pytest.param(
            "RestartUnit", "org.freedesktop.systemd1.NoSuchUnit", "list-unit-files", id="no-such-unit"
        ),
        pytest.param("RestartUnit", "org.freedesktop.systemd1.UnitMasked", "systemctl status", id="masked"),
        pytest.param(
            "ResetFailedUnit", "org.freedesktop.DBus.Error.AccessDenied", "run as root", id="denied"
        ),
        pytest.param(
            "ResetFailedUnit",
            "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired",
            "run as root",
            id="polkit-would-ask",
        ),
    ],
)
def test_a_refused_restart_gives_the_reason_and_a_hint(host: Host, member: str, name: str, hint: str) -> None:
    host.bus(refuses={member: (name, "Words of systemd.")})
    with Systemd.connect(host.root) as systemd, pytest.raises(SystemdError) as caught:
        systemd.restart("containerd.service", timeout=PLENTY)
    assert "Words of systemd." in caught.value.what
    assert hint in caught.value.hint


def test_an_invalid_unit_name_is_an_error(host: Host) -> None:
    host.private(refuses={"LoadUnit": ("org.freedesktop.DBus.Error.InvalidArgs", "not valid.")})
    with Systemd.connect(host.root) as systemd, pytest.raises(SystemdError, match="not valid"):
        systemd.unit("containerd")


@pytest.mark.parametrize("member", ["LoadUnit", "GetAll"])
@both
def test_a_read_connects_again_when_systemd_was_re_executed(host: Host, kind: str, member: str) -> None:
    manager = host.either(kind)
    with Systemd.connect(host.root) as systemd:
        manager.hangs_up_at.append(member)
        assert systemd.unit("containerd.service") is not None


def test_a_read_connects_again_when_systemd_leaves_the_bus_during_a_call(host: Host, clock: Clock) -> None:
    manager = host.bus(refuses={"LoadUnit": NO_REPLY})
    clock.at_sleep = [manager.refuses.clear]
    with Systemd.connect(host.root) as systemd:
        assert systemd.unit("containerd.service") is not None
    assert len([call for call in manager.calls if call == "Hello"]) == 2


@both
def test_a_read_connects_again_several_times(host: Host, kind: str) -> None:
    manager = host.either(kind)
    with Systemd.connect(host.root) as systemd:
        manager.hangs_up_at += ["LoadUnit", "GetAll", "Get", "LoadUnit", "LoadUnit"]
        assert systemd.unit("containerd.service") is not None


def test_a_read_that_never_succeeds_ends_within_its_timeout(
    host: Host, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The long pause leaves enough time for the last attempt on a slow machine. Without it the error would
    # be another one, about the timeout.
    monkeypatch.setattr(systemd_connect, "PAUSE", 30)
    host.private().hangs_up_at += ["LoadUnit"] * 5
    broke = pytest.raises(SystemdError, match="the connection to systemd broke")
    with Systemd.connect(host.root, timeout=100) as systemd, broke as caught:
        systemd.unit("containerd.service")
    assert clock.slept == 90
    assert "run again" in caught.value.hint


@both
@pytest.mark.parametrize("restarts_before", [0, 1])
def test_a_restart_on_a_broken_connection_connects_again(host: Host, kind: str, restarts_before: int) -> None:
    manager = host.either(kind)
    with Systemd.connect(host.root) as systemd:
        for _ in range(restarts_before):
            systemd.restart("containerd.service", timeout=PLENTY)
        manager.hangs_up_at.append("ResetFailedUnit")
        systemd.restart("containerd.service", timeout=PLENTY)


NOW, RUNS = {"Job": ("(uo)", (1801, JOB))}, {"InvocationID": ("ay", LATER)}
FAILED = RUNS | {"ActiveState": ("s", "failed")}
AGAIN = RUNS | {"ActiveState": ("s", "activating"), "SubState": ("s", "auto-restart")}


@both
@pytest.mark.parametrize(
    "breaks",
    [
        pytest.param("hangs_up_at", id="before-the-reply"),
        pytest.param("hangs_up_after", id="before-the-job-is-done"),
    ],
)
@pytest.mark.parametrize(
    ("changes", "requests"),
    [
        pytest.param([{}, {}], 2, id="the-request-was-lost"),
        pytest.param([{}, NOW, RUNS], 1, id="the-job-is-still-there"),
        pytest.param([{}, RUNS], 1, id="the-job-was-done-meanwhile"),
        pytest.param([{}, NOW, {}], 2, id="the-job-was-another-one"),
    ],
)
def test_a_restart_is_not_repeated_when_systemd_re_executes_itself(
    host: Host, kind: str, breaks: str, changes: list[Any], requests: int
) -> None:
    manager = host.either(kind, changes=list(changes), **{breaks: ["RestartUnit"]})
    with Systemd.connect(host.root) as systemd:
        systemd.restart("containerd.service", timeout=PLENTY)
    assert manager.calls.count("RestartUnit containerd.service replace") == requests
    assert manager.changes == changes[-1:]


@both
def test_a_restart_survives_several_re_executions_of_systemd(host: Host, kind: str, clock: Clock) -> None:
    manager = host.either(kind, changes=[{}, NOW, RUNS], hangs_up_after=["RestartUnit"])
    clock.at_sleep = [lambda: manager.hangs_up_at.extend(["Get", "Subscribe", "LoadUnit", "GetAll"])]
    with Systemd.connect(host.root) as systemd:
        systemd.restart("containerd.service", timeout=PLENTY)
    assert manager.calls.count("RestartUnit containerd.service replace") == 1
    assert manager.hangs_up_at == []


@both
@pytest.mark.parametrize(
    ("changes", "result"),
    [
        pytest.param([{}, FAILED], "failed", id="failed"),
        pytest.param([{}, AGAIN], "failed", id="failed-and-tried-again-by-systemd"),
        pytest.param([{}, NOW, FAILED], "dependency", id="the-job-is-still-there"),
    ],
)
def test_a_restart_that_fails_while_systemd_is_re_executed_is_an_error(
    host: Host, kind: str, changes: list[Any], result: str
) -> None:
    manager = host.either(kind, changes=list(changes), hangs_up_after=["RestartUnit"], result="dependency")
    with Systemd.connect(host.root) as systemd, pytest.raises(JobError) as caught:
        systemd.restart("containerd.service", timeout=PLENTY)
    assert caught.value.result == result
    assert manager.calls.count("RestartUnit containerd.service replace") == 1


def test_the_wait_for_a_job_after_a_re_execution_is_limited_by_the_timeout(host: Host) -> None:
    host.private(changes=[{}, NOW], hangs_up_after=["RestartUnit"], result="")
    slow = pytest.raises(SystemdError, match=r"did not restart the unit within 0.2 s")
    with Systemd.connect(host.root) as systemd, slow:
        systemd.restart("containerd.service", timeout=0.2)


@pytest.mark.parametrize("act", ["restart", "reload", "stop"])
def test_a_job_is_not_lost_when_systemd_leaves_the_bus(host: Host, act: str) -> None:
    member = f"{act.title()}Unit"
    manager = host.bus(leaves=[(member, "org.freedesktop.DBus")])
    with Systemd.connect(host.root) as systemd:
        getattr(systemd, act)("containerd.service", timeout=PLENTY)
    assert manager.calls.count(f"{member} containerd.service replace") == 2
    assert manager.leaves == []


def test_a_forged_signal_that_systemd_left_the_bus_is_ignored(host: Host) -> None:
    manager = host.bus(leaves=[("RestartUnit", ":1.99")])
    with Systemd.connect(host.root) as systemd:
        systemd.restart("containerd.service", timeout=PLENTY)
    assert manager.calls.count("Hello") == 1
    assert manager.leaves == []


@both
@pytest.mark.parametrize("act", ["reload", "stop"])
@pytest.mark.parametrize("breaks", ["hangs_up_at", "hangs_up_after"])
def test_a_reload_or_stop_is_repeated_when_systemd_is_re_executed(
    host: Host, kind: str, act: str, breaks: str
) -> None:
    member = f"{act.title()}Unit"
    manager = host.either(kind, **{breaks: [member]})
    with Systemd.connect(host.root) as systemd:
        getattr(systemd, act)("crio.service", timeout=PLENTY)
    assert manager.calls.count(f"{member} crio.service replace") == 2


def test_a_restart_is_logged_as_a_systemctl_command(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    host.private(units={r"odd\x2dname.service": SETTLED})
    with caplog.at_level(logging.INFO, "kata_node"), Systemd.connect(host.root) as systemd:
        systemd.restart(r"odd\x2dname.service", timeout=PLENTY)
    assert caplog.messages == [
        r"systemctl reset-failed 'odd\x2dname.service'; systemctl restart 'odd\x2dname.service'"
    ]


@both
def test_a_reload_waits_for_its_job_and_restarts_nothing(host: Host, kind: str) -> None:
    manager = host.either(kind)
    with Systemd.connect(host.root) as systemd:
        manager.calls.clear()
        systemd.reload("crio.service", timeout=PLENTY)
        systemd.reload("crio.service", timeout=PLENTY)
    members = [call for call in manager.calls if not call.startswith("AddMatch")]
    assert members == ["Subscribe", *["ReloadUnit crio.service replace"] * 2]


@pytest.mark.parametrize(
    ("result", "what"),
    [
        pytest.param("failed", "the ExecReload command of the unit failed (failed)", id="the-command-failed"),
        pytest.param("invalid", "because it is not running (invalid)", id="not-running"),
        pytest.param("timeout", "in the time that systemd allows (timeout)", id="timeout"),
        pytest.param("canceled", "canceled the reload of the unit (canceled)", id="canceled"),
        pytest.param("frozen", "systemd cannot reload the unit (frozen)", id="unheard-of"),
    ],
)
def test_a_failed_reload_reports_the_result_of_its_job(host: Host, result: str, what: str) -> None:
    host.private(result=result)
    with Systemd.connect(host.root) as systemd, pytest.raises(JobError) as caught:
        systemd.reload("crio.service", timeout=PLENTY)
    assert caught.value.result == result
    assert caught.value.what.endswith(what)
    assert caught.value.where == "crio.service"
    assert journal_command("crio.service") in caught.value.hint


def test_a_unit_without_a_reload_command_gets_the_hint_to_restart_it(host: Host) -> None:
    words = "Job type reload is not applicable for unit crio.service."
    host.private(refuses={"ReloadUnit": ("org.freedesktop.systemd1.JobTypeNotApplicable", words)})
    with Systemd.connect(host.root) as systemd, pytest.raises(SystemdError) as caught:
        systemd.reload("crio.service", timeout=PLENTY)
    assert not isinstance(caught.value, JobError)
    assert words in caught.value.what
    assert "ExecReload" in caught.value.hint
    assert "restart the unit instead" in caught.value.hint


def test_a_reload_that_takes_too_long_is_an_error(host: Host) -> None:
    host.private(result="")
    slow = pytest.raises(SystemdError, match=r"did not reload the unit within 0.1 s")
    with Systemd.connect(host.root) as systemd, slow:
        systemd.reload("crio.service", timeout=0.1)


@both
def test_a_reload_on_a_broken_connection_connects_again(host: Host, kind: str) -> None:
    manager = host.either(kind)
    with Systemd.connect(host.root) as systemd:
        systemd.reload("crio.service", timeout=PLENTY)
        manager.hangs_up_at.append("ReloadUnit")
        systemd.reload("crio.service", timeout=PLENTY)


def test_a_reload_is_logged_as_a_systemctl_command(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    host.private()
    with caplog.at_level(logging.INFO, "kata_node"), Systemd.connect(host.root) as systemd:
        systemd.reload("crio.service", timeout=PLENTY)
    assert caplog.messages == ["systemctl reload crio.service"]


@both
def test_reading_a_unit_logs_nothing_and_changes_nothing(
    host: Host, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    manager = host.either(kind)
    with caplog.at_level(logging.INFO, "kata_node"), Systemd.connect(host.root) as systemd:
        systemd.unit("containerd.service")
    assert caplog.messages == []
    assert {call.split()[0] for call in manager.calls} <= {"Hello", "Get", "LoadUnit", "GetAll"}


@pytest.mark.parametrize(
    "behavior",
    [
        pytest.param({"piece": 1}, id="a-byte-at-a-time"),
        pytest.param({"greets": True}, id="a-signal-right-behind-the-OK"),
        pytest.param({"greets": True, "piece": 3}, id="both"),
    ],
)
def test_messages_are_parsed_in_chunks_of_any_size(host: Host, behavior: dict[str, Any]) -> None:
    host.private(**behavior)
    with Systemd.connect(host.root) as systemd:
        systemd.restart("containerd.service", timeout=PLENTY)
        assert systemd.unit("containerd.service") is not None


def test_the_path_of_the_root_may_be_longer_than_a_socket_address(tmp_path: Path) -> None:
    deep = Host(tmp_path / ("d" * 100) / ("e" * 100))
    deep.private()
    try:
        with Systemd.connect(deep.root) as systemd:
            assert systemd.unit("containerd.service") is not None
    finally:
        deep.close()


OURS = {"mine.service": {**SETTLED, UNIT: SETTLED[UNIT] | {"Id": ("s", "mine.service")}}}


@both
def test_start_and_stop_wait_for_their_jobs(host: Host, kind: str) -> None:
    manager = host.either(kind, units=OURS)
    with Systemd.connect(host.root) as systemd:
        manager.calls.clear()
        systemd.start("mine.service", timeout=PLENTY)
        systemd.stop("mine.service", timeout=PLENTY)
    members = [call for call in manager.calls if not call.startswith(("AddMatch", "LoadUnit", "GetAll"))]
    assert members == [
        "ResetFailedUnit mine.service",
        "Subscribe",
        "StartUnit mine.service replace",
        "StopUnit mine.service replace",
    ]


@pytest.mark.parametrize(
    ("act", "what"),
    [
        pytest.param("start", "systemd started the unit but it did not become active (failed)", id="start"),
        pytest.param("stop", "systemd cannot stop the unit (failed)", id="stop"),
    ],
)
def test_a_failed_start_or_stop_names_the_unit(host: Host, act: str, what: str) -> None:
    host.private(result="failed", units=OURS)
    with Systemd.connect(host.root) as systemd, pytest.raises(JobError) as caught:
        getattr(systemd, act)("mine.service", timeout=PLENTY)
    assert (caught.value.what, caught.value.where, caught.value.result) == (what, "mine.service", "failed")
    assert "mine.service" in caught.value.hint


@pytest.mark.parametrize("act", ["start", "stop"])
def test_a_start_or_stop_that_takes_too_long_is_an_error(host: Host, act: str) -> None:
    host.private(result="", units=OURS)
    slow = pytest.raises(SystemdError, match=r"within 0.1 s")
    with Systemd.connect(host.root) as systemd, slow:
        getattr(systemd, act)("mine.service", timeout=0.1)


def test_a_start_of_a_unit_with_an_unmet_condition_fails(host: Host) -> None:
    unmet = {"mine.service": {**SETTLED, UNIT: SETTLED[UNIT] | {"ConditionResult": ("b", False)}}}
    host.private(units=unmet)
    with Systemd.connect(host.root) as systemd, pytest.raises(JobError) as caught:
        systemd.start("mine.service", timeout=PLENTY)
    assert caught.value.result == "condition"


def test_a_unit_that_does_not_exist_counts_as_stopped(host: Host) -> None:
    gone = ("org.freedesktop.systemd1.NoSuchUnit", "Unit mine.service not loaded.")
    manager = host.private(refuses={"StopUnit": gone})
    with Systemd.connect(host.root) as systemd:
        systemd.stop("mine.service", timeout=PLENTY)
    assert "StopUnit mine.service replace" in manager.calls


def test_a_stop_that_is_refused_is_an_error(host: Host) -> None:
    host.private(refuses={"StopUnit": ("org.freedesktop.DBus.Error.AccessDenied", "Permission denied")})
    with Systemd.connect(host.root) as systemd, pytest.raises(SystemdError, match="Permission denied"):
        systemd.stop("mine.service", timeout=PLENTY)


@both
def test_a_daemon_reload_on_a_broken_connection_connects_again(host: Host, kind: str) -> None:
    manager = host.either(kind)
    with Systemd.connect(host.root) as systemd:
        systemd.daemon_reload(timeout=PLENTY)
        manager.hangs_up_at.append("Reload")
        systemd.daemon_reload(timeout=PLENTY)
    assert manager.calls.count("Reload") == 3


def test_start_stop_and_daemon_reload_are_logged_as_systemctl_commands(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    host.private(units=OURS)
    with caplog.at_level(logging.INFO, "kata_node"), Systemd.connect(host.root) as systemd:
        systemd.daemon_reload(timeout=PLENTY)
        systemd.start("mine.service", timeout=PLENTY)
        systemd.stop("mine.service", timeout=PLENTY)
    assert caplog.messages == [
        "systemctl daemon-reload",
        "systemctl reset-failed mine.service; systemctl start mine.service",
        "systemctl stop mine.service",
    ]


def test_each_call_is_logged_with_its_duration(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "kata_node")
    host.private()
    with Systemd.connect(host.root, timeout=PLENTY) as systemd:
        systemd.unit("containerd.service")
    assert re.search(
        r"D-Bus call LoadUnit containerd\.service of /org/freedesktop/systemd1: done in \d+ ms", caplog.text
    )


def test_words_of_systemd_are_quoted(host: Host) -> None:
    host.private(refuses={"RestartUnit": ("org.example.No", 'no"\x1b[2J\n  hint: trust me\u202e')})
    with Systemd.connect(host.root, timeout=PLENTY) as systemd, pytest.raises(SystemdError) as caught:
        systemd.restart("containerd.service", PLENTY)
    said = r"""systemd refused the request: "no'\x1b[2J hint: trust me\u202e" (org.example.No)"""
    assert caught.value.what == said
