"""Fixtures for all tests: an empty root, and a guard against commands and connections without a fake."""

from __future__ import annotations

import ipaddress
import signal
import socket
import sys
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kata_node import signals
from kata_node.checks import facts, hardware
from kata_node.host import spool
from kata_node.host.files import Root

if TYPE_CHECKING:
    from dispatcher.fake_api_server import FakeApiServer, FakeClock

COMMANDS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "pty.spawn")
LOOKUPS = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr")
SENDS = ("socket.connect", "socket.sendto", "socket.sendmsg")
WATCHED = frozenset((*COMMANDS, *LOOKUPS, *SENDS))
"""Audit events of the interpreter. Python code cannot bypass them, whatever name it imports."""


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the grace period to 0, because a fake runtime that is down does not come back by itself."""
    monkeypatch.setattr(facts, "RESTART_GRACE_PERIOD", 0)


@pytest.fixture(autouse=True)
def _files_as_devices() -> Iterator[None]:
    """Take any file for a device: only root can make one."""
    with pytest.MonkeyPatch.context() as patched:  # a test may undo its own patches
        patched.setattr(
            hardware, "device_state", lambda root, path: "there" if root.exists(path) else "missing"
        )
        yield


@pytest.fixture(autouse=True)
def _any_free_space(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a spool use the disk of this machine, however full it is."""
    monkeypatch.setattr(spool, "LEFT_FREE", 0.0)


@pytest.fixture
def handled_signals(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Handle signals in this process as kata-node does, and forget the received ones after the test."""
    for name in ("_remembered", "_has_raised", "_section"):
        monkeypatch.setattr(signals, name, getattr(signals, name))
    # A shell starts a program in the background with some of them ignored.
    before = {number: signal.signal(number, signal.SIG_DFL) for number in signals.STOP_SIGNALS}
    signals.handle_signals()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@dataclass
class Guard:
    """What the current test may do, and its violations."""

    commands: bool
    """Whether the test may start programs."""
    violations: list[str] = field(default_factory=list)

    def watch(self, event: str, args: tuple[Any, ...]) -> None:
        violation = self._violation(event, args)
        if violation:
            self.violations.append(violation)
            # This is not an Exception, so the code under test does not catch it as an error of the node.
            pytest.fail(violation)

    def _violation(self, event: str, args: tuple[Any, ...]) -> str:
        if event in COMMANDS:
            what = "" if self.commands else f"start {args[1] if len(args) > 1 else args[0]!r}"
        elif event in LOOKUPS:
            what = "" if _is_here(args[0]) else f"look up {args[0]!r}"
        else:
            what = "" if _stays_here(*args[:2]) else f"connect to {args[1]!r}"
        if not what:
            return ""
        hint = "fake it, or mark the test with @pytest.mark.commands" if event in COMMANDS else "fake it"
        return f"this test would {what} for real; {hint}"


def _stays_here(sender: socket.socket, address: Any) -> bool:
    if sender.family == socket.AF_UNIX:
        return True
    return sender.family in (socket.AF_INET, socket.AF_INET6) and (address is None or _is_here(address[0]))


def _is_here(host: str | bytes | None) -> bool:
    name = host.decode() if isinstance(host, bytes) else host or "localhost"
    try:
        return ipaddress.ip_address(name.partition("%")[0]).is_loopback
    except ValueError:
        return name in ("localhost", socket.gethostname())


_guard: Guard | None = None
_passed = pytest.StashKey[bool]()


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if _guard is not None and event in WATCHED:
        _guard.watch(event, args)


sys.addaudithook(_audit)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Store whether the test itself passed, for the guard."""
    report = yield
    if report.when == "call":
        item.stash[_passed] = report.passed
    return report


@pytest.fixture(autouse=True)
def guard(request: pytest.FixtureRequest) -> Iterator[Guard | None]:
    """Fail a test that starts a command without a fake, or connects to another machine.

    A test with the mark ``commands`` may start programs. A test with the mark ``node`` may do anything.
    """
    global _guard
    if request.node.get_closest_marker("node"):
        yield None
        return
    _guard = Guard(commands=request.node.get_closest_marker("commands") is not None)
    try:
        yield _guard
        if _guard.violations and request.node.stash.get(_passed, False):
            pytest.fail("the code under test swallowed: " + "; ".join(_guard.violations))
    finally:
        _guard = None


@pytest.fixture
def root(tmp_path: Path) -> Root:
    """An empty file system of a node, in a temporary directory."""
    return Root(tmp_path)


@pytest.fixture
def time() -> FakeClock:
    """The clock of the dispatcher's tests."""
    from dispatcher.fake_api_server import FakeClock

    return FakeClock()


@pytest.fixture
def api(time: FakeClock) -> Iterator[FakeApiServer]:
    """The fake API server of the dispatcher's tests, with the clock ``time``."""
    from dispatcher.fake_api_server import FakeApiServer

    with FakeApiServer(time) as api:
        yield api


@pytest.fixture
def opened_archives(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the archives that the test opens, each as often as it is opened."""
    from kata_node.host.archive import Archive

    names: list[str] = []
    real = Archive.__init__

    def init(self: Archive, path: Path) -> None:
        names.append(path.name)
        real(self, path)

    monkeypatch.setattr(Archive, "__init__", init)
    return names
