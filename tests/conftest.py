"""What every test gets: a scratch root, and a guard against commands and connections nobody faked."""

from __future__ import annotations

import ipaddress
import socket
import sys
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kata_node.checks import facts
from kata_node.host.files import Root

if TYPE_CHECKING:
    from dispatcher.fake_api_server import FakeApiServer, FakeClock

COMMANDS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "pty.spawn")
LOOKUPS = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr")
SENDS = ("socket.connect", "socket.sendto", "socket.sendmsg")
WATCHED = frozenset((*COMMANDS, *LOOKUPS, *SENDS))
"""Audit events of the interpreter: nothing in Python gets round them, whatever name it was imported by."""


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """In memory a runtime that is away does not come back by itself."""
    monkeypatch.setattr(facts, "RESTART_GRACE_PERIOD", 0)


@dataclass
class Guard:
    """What the test that is running may do, and what it tried beyond that."""

    commands: bool
    """Whether it may start programs."""
    offences: list[str] = field(default_factory=list)

    def watch(self, event: str, args: tuple[Any, ...]) -> None:
        offence = self._offence(event, args)
        if offence:
            self.offences.append(offence)
            # No `except Exception` of the code under test takes this for an error of the node.
            pytest.fail(offence)

    def _offence(self, event: str, args: tuple[Any, ...]) -> str:
        if event in COMMANDS:
            what = "" if self.commands else f"start {args[1] if len(args) > 1 else args[0]!r}"
        elif event in LOOKUPS:
            what = "" if _is_here(args[0]) else f"look up {args[0]!r}"
        else:
            what = "" if _stays_here(*args[:2]) else f"connect to {args[1]!r}"
        if not what:
            return ""
        hint = "fake it, or mark the test with @pytest.mark.commands" if event in COMMANDS else "fake it"
        return f"this test would {what}, for real; {hint}"


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
    """Remember whether the test itself passed, for the guard."""
    report = yield
    if report.when == "call":
        item.stash[_passed] = report.passed
    return report


@pytest.fixture(autouse=True)
def guard(request: pytest.FixtureRequest) -> Iterator[Guard | None]:
    """Commands not faked explode, and so do connections to anything but this machine.

    A test marked ``commands`` may start programs, one marked ``node`` may do anything.
    """
    global _guard
    if request.node.get_closest_marker("node"):
        yield None
        return
    _guard = Guard(commands=request.node.get_closest_marker("commands") is not None)
    try:
        yield _guard
        if _guard.offences and request.node.stash.get(_passed, False):
            pytest.fail("swallowed by the code under test: " + "; ".join(_guard.offences))
    finally:
        _guard = None


@pytest.fixture
def root(tmp_path: Path) -> Root:
    """A host's file system, empty, in a scratch directory."""
    return Root(tmp_path)


@pytest.fixture
def time() -> FakeClock:
    """The clock of the dispatcher's tests."""
    from dispatcher.fake_api_server import FakeClock

    return FakeClock()


@pytest.fixture
def api(time: FakeClock) -> Iterator[FakeApiServer]:
    """The small API server that the dispatcher's tests have, by that clock."""
    from dispatcher.fake_api_server import FakeApiServer

    with FakeApiServer(time) as api:
        yield api
