"""Run a daemon in its own process. Its children are replaced by a program that the test controls.

with daemon(tmp_path) as it:
    install = it.child("install")    # the child waits until the test ends it
    it.terminate()
    install.ends(0)
"""

from __future__ import annotations

import contextlib
import json
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import IO

WAIT_TIMEOUT = 300.0
"""Seconds after which what does not come never comes."""

CHILD = """
import json, os, signal, socket, sys
asks = {asks!r}
if sys.argv[-1] == "wanted" and asks:
    os.execve(asks[0][0], asks[0], asks[1])
if sys.argv[-1] == "verify":
    with open({answer!r}) as file, open({answer!r} + ".asked", "a") as asked:
        print(file.read())
        asked.write("once\\n")
    sys.exit()
with socket.socket(socket.AF_UNIX) as test:
    test.connect({path!r})
    told = test.makefile("rw")
    told.write(json.dumps([sys.argv[-1], os.getpid(), os.getsid(0) == os.getpid()]) + "\\n")
    told.flush()
    while True:
        try:
            code, message = json.loads(told.readline())
            break
        except KeyboardInterrupt:
            told.write('"interrupted"\\n')
            told.flush()
    if message is not None and os.path.isfile({log!r}):
        with open({log!r}, "w") as file:
            json.dump(message, file)
    if code < 0:
        os.kill(os.getpid(), -code)
    sys.exit(code)
"""

DAEMON = """
import json, socket, sys
from kata_node import log
from kata_node.daemon import daemon, delays
program, termination_log, pauses, fallback_env, descriptor, modes = json.loads(sys.argv[1])
daemon.block_signals()
log.configure_logging("info")
listener = socket.socket(fileno=descriptor)
pauses = delays.RetryDelays(**pauses)
running = daemon.Daemon(program, termination_log, listener, fallback_env, pauses, **modes)
sys.exit(running.run())
"""

AT_ONCE = {"first": 0, "first_after_rollback": 0, "settle": 0}
NEVER_AGAIN = dict.fromkeys(
    ("first", "longest", "longest_of_revert", "first_after_rollback", "longest_after_rollback"), 10_000
)


def failure(
    stage: str, what: str, where: str = "", hint: str = "", *, unfit: bool = False
) -> dict[str, object]:
    """Return the termination message of a failed stage."""
    error = {"what": what, "where": where, "hint": hint} | ({"unfit": True} if unfit else {})
    return {"stage": stage, "outcome": "failed", "error": error}


@dataclass
class ChildProcess:
    """A child of the daemon. It waits until the test tells it how to end."""

    subcommand: str
    pid: int
    in_a_session_of_its_own: bool
    connection: socket.socket

    def ends(self, code: int, message: object = None) -> None:
        """End it with this exit code, or by signal -N. ``message`` is its termination message."""
        self.connection.sendall(json.dumps([code, message]).encode() + b"\n")
        self.connection.close()

    def is_interrupted(self) -> None:
        """Wait until the child gets SIGINT."""
        assert self.connection.recv(100) == b'"interrupted"\n'


@dataclass
class DaemonProcess:
    """A running daemon."""

    process: subprocess.Popen[str]
    children: socket.socket
    port: int
    log: Path
    lines: queue.SimpleQueue[str]
    answer: Path
    open: list[ChildProcess] = field(default_factory=list)

    def child(self, subcommand: str) -> ChildProcess:
        """Return the next child. It must run ``subcommand``."""
        connection = self._accept()
        connection.settimeout(WAIT_TIMEOUT)
        told, pid, leads = json.loads(connection.recv(1000))
        child = ChildProcess(told, pid, leads, connection)
        self.open.append(child)
        assert child.subcommand == subcommand
        return child

    def verify_says(self, state: str, reason: str = "", *watch: Path) -> None:
        """Set what each child ``verify`` says from now on. The test does not play these children."""
        new = self.answer.with_suffix(".new")
        new.write_text(json.dumps({"state": state, "reason": reason, "watch": [str(each) for each in watch]}))
        new.replace(self.answer)

    @property
    def questions(self) -> int:
        """How many children ``verify`` have run."""
        return len(Path(f"{self.answer}.asked").read_text().splitlines())

    def _accept(self) -> socket.socket:
        """Return the next connection of a child. Fail at once if the daemon has ended."""
        deadline = time.monotonic() + WAIT_TIMEOUT
        while True:
            with contextlib.suppress(TimeoutError):
                return self.children.accept()[0]
            code = self.process.poll()
            assert code is None, f"the daemon has ended with {code} and starts no more children"
            assert time.monotonic() < deadline, "the daemon starts no more children"

    def get(self, path: str) -> tuple[int, str]:
        """Return the status and the body that a probe gets."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=WAIT_TIMEOUT)
        with contextlib.closing(connection):
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode().rstrip("\n")

    def says(self, text: str) -> None:
        """Wait until the daemon logs ``text``."""
        while text not in self.line():
            pass

    def line(self) -> str:
        """Return the next line of the log."""
        line = self.lines.get(timeout=WAIT_TIMEOUT)
        if line:
            return line
        raise AssertionError("the daemon has ended")

    def terminate(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send the signal with which the kubelet ends a pod."""
        self.process.send_signal(number)

    def exit_code(self) -> int:
        """Wait for the end of the daemon. Fail if it started a child that the test does not expect."""
        code = self.process.wait(WAIT_TIMEOUT)
        self.children.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            unexpected, _ = self.children.accept()
            raise AssertionError(f"an unexpected child: {unexpected.recv(1000)!r}")
        return code


@contextlib.contextmanager
def daemon(
    directory: Path,
    pauses: object = None,
    wrapped: Sequence[str] = (),
    *,
    termination_log: bool = True,
    fallback_env: Mapping[str, str] | None = None,
    unfit_is_ready: bool = True,
    absent: bool = False,
    asks: tuple[Sequence[str], Mapping[str, str]] | None = None,
) -> Iterator[DaemonProcess]:
    """Start a daemon, and yield it. ``wrapped`` is a command that runs the daemon's command.

    ``fallback_env`` has the variables for a revert when the settings are wrong. ``asks`` is a command with
    its environment that replaces the child ``wanted``.
    """
    path, log = directory / "children", directory / "termination-log"
    answer = directory / "verify.json"
    if termination_log:
        log.touch()
    program = directory / "program"
    program.write_text(
        f"#!{sys.executable} -IS\n"
        + CHILD.format(path=str(path), log=str(log), answer=str(answer), asks=asks)
    )
    program.chmod(0o755)
    answer.write_text(json.dumps({"state": "served", "reason": "", "watch": []}))
    with contextlib.ExitStack() as stack:
        children = stack.enter_context(socket.socket(socket.AF_UNIX))
        children.bind(str(path))
        children.listen()
        children.settimeout(WAIT_TIMEOUT)
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        pauses = AT_ONCE if pauses is None else pauses
        given = [[str(program)], str(log), pauses, dict(fallback_env or {}), listener.fileno()]
        given.append({"unfit_is_ready": unfit_is_ready, "absent": absent})
        process = stack.enter_context(
            subprocess.Popen(
                [*wrapped, sys.executable, "-P", "-c", DAEMON, json.dumps(given)],
                stderr=subprocess.PIPE,
                text=True,
                pass_fds=[listener.fileno()],
            )
        )
        assert process.stderr is not None
        lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        reader = threading.Thread(target=_read, args=(process.stderr, lines))
        reader.start()
        running = DaemonProcess(process, children, listener.getsockname()[1], log, lines, answer)
        try:
            yield running
        finally:
            process.kill()
            children.close()
            for child in running.open:
                child.connection.close()  # a child that still waits ends now
            reader.join()


def _read(log: IO[str], lines: queue.SimpleQueue[str]) -> None:
    for line in log:
        sys.stderr.write(line)  # pytest shows it if the test fails
        lines.put(line)
    lines.put("")
