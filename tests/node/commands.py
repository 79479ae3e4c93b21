"""Start a command in a node, read its output while it runs, kill it at a chosen moment, wait for it."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO

from node.cache import NodeError
from node.node_records import Process

POLL_INTERVAL = 0.005  # seconds between two checks of an awaited condition
WAIT_TIMEOUT = 300.0
"""Seconds after which a wait fails.

It only ends waits for something that hangs. A busy machine can be ten times slower, so no test depends on
how long anything takes.
"""

CommandResult = subprocess.CompletedProcess[str]


class CommandFailed(NodeError):  # noqa: N818 - what happened, not a kind of error
    """A command that had to succeed failed; the message holds its exit code and output."""

    def __init__(self, done: CommandResult) -> None:
        super().__init__(describe_result(done))
        self.done = done


def describe_result(done: CommandResult) -> str:
    """Return a command, its exit code and its output as text."""
    text = f"$ {shlex.join(done.args)}\nexit code {done.returncode}"
    for title, output in (("stdout", done.stdout), ("stderr", done.stderr)):
        if output:
            text += f"\n{title}:\n{output.rstrip()}"
    return text


def checked(done: CommandResult, *, check: bool) -> CommandResult:
    """Return ``done``; raises :class:`CommandFailed` if ``check`` is set and the exit code is not 0."""
    if check and done.returncode:
        raise CommandFailed(done)
    return done


class RunningCommand:
    """A command that the command prefix ``entering`` starts in a node, ``depth`` processes below itself.

    ``args`` is the command without the prefix. Output goes to unnamed files, so the command never waits
    for a reader.
    """

    def __init__(
        self,
        entering: Sequence[str],
        args: Sequence[str],
        *,
        env: Mapping[str, str],
        text: str | None = None,
        depth: int = 1,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self.args = list(args)
        self._depth = depth
        self._when_done: list[Callable[[CommandResult], None]] = []
        self._done: CommandResult | None = None
        self._stdout, self._stderr = (tempfile.TemporaryFile() for _ in range(2))  # noqa: SIM115 - closed in wait()
        with tempfile.TemporaryFile() as stdin:
            stdin.write((text or "").encode())
            stdin.seek(0)
            self._process = subprocess.Popen(
                [*entering, *args],
                stdin=stdin,
                stdout=self._stdout,
                stderr=self._stderr,
                env=dict(env),
                cwd="/",
                pass_fds=tuple(pass_fds),
            )

    def when_done(self, tell: Callable[[CommandResult], None]) -> None:
        """Call ``tell`` with the result when :meth:`wait` has it."""
        self._when_done.append(tell)

    @property
    def process(self) -> Process:
        """The process of the command, with its pid on the machine; raises :class:`NodeError` if it ended."""
        while self._process.poll() is None:
            found = [Process.of(self._process.pid)]
            for _ in range(self._depth):
                found = [child for one in found for child in one.children()]
            if found:
                return found[0]
            time.sleep(POLL_INTERVAL)
        raise NodeError(f"the command ended before its process was found:\n{describe_result(self.wait())}")

    def kill(self, number: int = signal.SIGKILL) -> CommandResult:
        """Kill the command and wait for its end; raises :class:`NodeError` if it has already ended."""
        if not self.process.signal(number):
            raise NodeError(f"the command ended before it was killed:\n{describe_result(self.wait())}")
        return self.wait()

    @property
    def stdout(self) -> str:
        """Its standard output so far."""
        return _text(self._stdout)

    @property
    def stderr(self) -> str:
        """Its standard error so far."""
        return _text(self._stderr)

    def wait(self, timeout: float = WAIT_TIMEOUT) -> CommandResult:
        """Wait for the end, and return the exit code (negative for a signal) and the output.

        After ``timeout`` seconds the command is killed and :class:`NodeError` is raised.
        """
        if self._done is None:
            try:
                code = self._process.wait(timeout)
                late = False
            except subprocess.TimeoutExpired:
                self._abandon()
                code, late = self._process.wait(WAIT_TIMEOUT), True
            self._done = CommandResult(self.args, code, self.stdout, self.stderr)
            self._stdout.close()
            self._stderr.close()
            for tell in self._when_done:
                tell(self._done)
            if late:
                what = f"the command ran for more than {timeout:.0f} s and was killed"
                raise NodeError(f"{what}\n{describe_result(self._done)}")
        return self._done

    def _abandon(self) -> None:
        # The process that entered the node ends with the command. If only that process were killed, the
        # command would keep running.
        with contextlib.suppress(NodeError):
            self.process.signal(signal.SIGKILL)
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(30)
        finally:
            self._process.kill()

    def close(self) -> None:
        """Kill the command if it still runs."""
        if self._done is None:
            if self._process.poll() is None:
                self._abandon()
            self.wait()


def _text(file: IO[bytes]) -> str:
    return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode(errors="replace")


def wait_until(
    condition: Callable[[], bool], what: str, *, timeout: float = WAIT_TIMEOUT, pause: float = POLL_INTERVAL
) -> None:
    """Return as soon as ``condition()`` holds; raise :class:`NodeError` after ``timeout`` seconds.

    ``what`` states the condition for the error. ``pause`` is the time between two checks, in seconds.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise NodeError(f"after {timeout:.0f} s it is still not true that {what}")
        time.sleep(pause)
