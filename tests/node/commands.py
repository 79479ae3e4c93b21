"""A command in a node: started, watched, killed at a chosen moment, waited for."""

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

POLL_INTERVAL = 0.005  # seconds between two looks at something awaited
WAIT_TIMEOUT = 300.0
"""Seconds after which a wait fails whose end is certain on a machine that works.

It ends waits for what hangs. A busy machine makes everything ten times slower, and no test depends on
how long anything takes.
"""

CommandResult = subprocess.CompletedProcess[str]


class CommandFailed(NodeError):  # noqa: N818 - what happened, not a kind of error
    """A command that had to succeed did not; the message holds all it said."""

    def __init__(self, done: CommandResult) -> None:
        super().__init__(describe_result(done))
        self.done = done


def describe_result(done: CommandResult) -> str:
    """A command, its exit code and its output, to be read by a person."""
    text = f"$ {shlex.join(done.args)}\nexit code {done.returncode}"
    for title, output in (("stdout", done.stdout), ("stderr", done.stderr)):
        if output:
            text += f"\n{title}:\n{output.rstrip()}"
    return text


def checked(done: CommandResult, *, check: bool) -> CommandResult:
    """``done``; raises :class:`CommandFailed` when ``check`` and its exit code is not 0."""
    if check and done.returncode:
        raise CommandFailed(done)
    return done


class RunningCommand:
    """A command started by ``entering``, which puts it into a node ``depth`` processes further down.

    ``args`` is the command alone. Output goes to unnamed files: however much there is, nobody waits
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
        """Call ``tell`` with the result when the command has been waited for."""
        self._when_done.append(tell)

    @property
    def process(self) -> Process:
        """The command itself, as this machine numbers it; raises :class:`NodeError` when it has ended."""
        while self._process.poll() is None:
            found = [Process.of(self._process.pid)]
            for _ in range(self._depth):
                found = [child for one in found for child in one.children()]
            if found:
                return found[0]
            time.sleep(POLL_INTERVAL)
        raise NodeError(f"it ended before it could be looked at:\n{describe_result(self.wait())}")

    def kill(self, number: int = signal.SIGKILL) -> CommandResult:
        """Kill the command and wait for its end; raises :class:`NodeError` when it had already ended."""
        if not self.process.signal(number):
            raise NodeError(f"it ended before it could be killed:\n{describe_result(self.wait())}")
        return self.wait()

    @property
    def stdout(self) -> str:
        """What it has printed so far."""
        return _text(self._stdout)

    @property
    def stderr(self) -> str:
        """What it has logged so far."""
        return _text(self._stderr)

    def wait(self, timeout: float = WAIT_TIMEOUT) -> CommandResult:
        """Its exit code (negative: the signal that ended it) and output, once it has ended.

        Killed, and a :class:`NodeError` raised, when it takes longer than ``timeout`` seconds.
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
                raise NodeError(
                    f"it ran for more than {timeout:.0f} s and was killed\n{describe_result(self._done)}"
                )
        return self._done

    def _abandon(self) -> None:
        # The process that entered the node ends with the command; killed alone, it would leave it behind.
        with contextlib.suppress(NodeError):
            self.process.signal(signal.SIGKILL)
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(30)
        finally:
            self._process.kill()

    def close(self) -> None:
        """End it if it runs."""
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

    ``pause`` is in seconds between two looks.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise NodeError(f"after {timeout:.0f} s still not: {what}")
        time.sleep(pause)
