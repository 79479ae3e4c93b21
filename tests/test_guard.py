"""The guard of conftest.py, which keeps tests from changing the machine that they run on."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import Guard

ELSEWHERE = "192.0.2.1"  # an address reserved for documentation


def connect(family: int, kind: int, address: object) -> Callable[[], object]:
    def go() -> None:
        with socket.socket(family, kind) as client:
            client.connect(address)  # type: ignore[arg-type]

    return go


def send(address: tuple[str, int]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.sendto(b"", address)


@pytest.mark.parametrize(
    ("act", "says"),
    [
        pytest.param(lambda: subprocess.run(["true"], check=False), "start ['true']", id="subprocess"),
        pytest.param(lambda: subprocess.getoutput("true"), "start", id="shell"),
        pytest.param(lambda: os.system("true"), "start b'true'", id="os.system"),
        pytest.param(lambda: os.execv("/bin/true", ["true"]), "start ['true']", id="os.exec"),
        pytest.param(
            lambda: os.posix_spawn("/bin/true", ["true"], {}), "start ['true']", id="os.posix_spawn"
        ),
        pytest.param(
            connect(socket.AF_INET, socket.SOCK_STREAM, (ELSEWHERE, 443)),
            f"connect to ('{ELSEWHERE}'",
            id="tcp",
        ),
        pytest.param(
            connect(socket.AF_INET6, socket.SOCK_DGRAM, ("2001:db8::1", 53)), "connect to", id="udp over ipv6"
        ),
        pytest.param(lambda: send((ELSEWHERE, 53)), "connect to", id="datagram without a connection"),
        pytest.param(connect(socket.AF_NETLINK, socket.SOCK_RAW, (0, 0)), "connect to", id="netlink"),
        pytest.param(
            lambda: socket.create_connection(("registry.example", 443)),
            "look up 'registry.example'",
            id="name",
        ),
    ],
)
def test_a_command_or_connection_without_a_fake_fails_the_test(
    guard: Guard, act: Callable[[], object], says: str
) -> None:
    with pytest.raises(pytest.fail.Exception) as caught, contextlib.suppress(Exception):
        act()
    assert says in str(caught.value)
    assert len(guard.violations) == 1
    guard.violations.clear()


def test_threads_are_guarded(guard: Guard) -> None:
    raised: list[BaseException] = []

    def work() -> None:
        try:
            send((ELSEWHERE, 53))
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert [type(error) for error in raised] == [pytest.fail.Exception]
    guard.violations.clear()


def test_sockets_on_this_machine_work(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(("localhost", server.getsockname()[1])).close()
    with socket.socket(socket.AF_UNIX) as unix, contextlib.suppress(FileNotFoundError):
        unix.connect(str(tmp_path / "nobody"))


@pytest.mark.commands
def test_a_marked_test_may_start_programs() -> None:
    assert subprocess.run([sys.executable, "-c", "raise SystemExit(7)"], check=False).returncode == 7


@pytest.mark.commands
def test_a_violation_that_the_code_swallows_fails_the_test(tmp_path: Path) -> None:
    test = tmp_path / "test_it.py"
    test.write_text(
        "import os\n"
        "def test_swallowed():\n"
        "    try:\n"
        "        os.system('true')\n"
        "    except BaseException:\n"
        "        pass\n"
        "def test_next():\n"
        "    pass\n"
    )
    (tmp_path / "conftest.py").write_text(Path(__file__).with_name("conftest.py").read_text())
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", tmp_path, test],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert "the code under test swallowed: this test would start b'true'" in run.stdout
    assert "2 passed, 1 error" in run.stdout
