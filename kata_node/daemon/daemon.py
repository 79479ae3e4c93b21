"""The pod of a DaemonSet: it installs, waits, and in the end reverts if Kata is no longer wanted there.

This process is all that stays on the node, so it does none of the work and loads next to nothing.
``install``, ``wanted`` and ``revert`` run as children, and what memory they took is gone with them.

A child is in a session of its own: what ends the daemon ends no transaction. The daemon waits for it, as
long as the pod's grace period lets it; what is killed even so is completed or taken back by the next run.

It can be the first process of a container. The kernel keeps from such a one every signal that it does not
handle, unless it is blocked, so these are blocked from the start and waited for; and it takes note of the
end of processes that are no children of its own.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from kata_node import log as logs
from kata_node.daemon.health import HealthState, ProbeServer
from kata_node.errors import IneligibleNodeError, KataNodeError, RolledBackError, UsageError

DONE, UNFIT, USAGE = 0, IneligibleNodeError.exit_code, UsageError.exit_code

NOT_WANTED = 10
"""The exit code of ``wanted`` that has Kata taken away. No other code does, nor a child that was killed."""

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
HANDLED_SIGNALS = (*STOP_SIGNALS, signal.SIGCHLD)

_EXIT_CODE_TEXTS = {
    1: "it failed",
    RolledBackError.exit_code: "it failed and was put back",
    5: "another run holds the node's lock",
    UNFIT: "this node cannot run it",
    USAGE: "the options or the settings are wrong",
}

log = logging.getLogger("kata_node.daemon.daemon")  # where it is the program that is run, its name is another


# Plain classes: the module that makes dataclasses would be a quarter of the memory of this process.


class RetryDelays:
    """Seconds before the next try, and the most that doubling makes of them.

    What was put back has restarted the runtime twice, so that waits longer. A pod that reverts is waited
    for, and what keeps it, pods on Kata above all, may be gone any moment.
    """

    def __init__(
        self,
        *,
        first: float = 10,
        longest: float = 300,
        longest_of_revert: float = 60,
        first_after_rollback: float = 60,
        longest_after_rollback: float = 1800,
    ) -> None:
        self._usual = first, longest
        self._revert = first, longest_of_revert
        self._rollback = first_after_rollback, longest_after_rollback

    def after(self, code: int, tries: int, *, reverting: bool = False) -> float:
        """Before that is tried again which has ended with ``code``, the ``tries``-th time in a row."""
        first, longest = self._revert if reverting else self._usual
        if code == RolledBackError.exit_code:
            first, longest = self._rollback
        return min(longest, first * 2.0 ** min(tries - 1, 20))


class ChildProcess:
    """A process that was started: ``code`` is ``None`` while it runs, and -N if signal N ended it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.code: int | None = None


def block_signals() -> None:
    """From now on signals wait for :class:`Daemon`, also if another program takes this one's place first."""
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED_SIGNALS)


class Daemon:
    """The life of such a pod. Made in the main thread, after :func:`block_signals`.

    ``program`` is run with the word for what it is to do added, and leaves what went wrong in the file
    ``termination_log``, if there is one. ``by_name`` are variables with which it reverts even where its
    settings are wrong; without any it cannot.
    """

    def __init__(
        self,
        program: Sequence[str],
        termination_log: str,
        listener: socket.socket,
        fallback_env: Mapping[str, str],
        pauses: RetryDelays | None = None,
    ) -> None:
        self._program = program
        self._termination_log = termination_log
        self._fallback_env = fallback_env
        self._pauses = pauses or RetryDelays()
        self._state = HealthState(False, "starting")
        self._children: dict[int, ChildProcess] = {}
        self._install: ChildProcess | None = None
        self._stopping = False
        self._probes = ProbeServer(listener, lambda: self._state)

    def run(self) -> int:
        """Live it, and return the exit code."""
        self._probes.start()
        self._install_with_retries()
        self._wait_until(lambda: self._stopping)
        return self._shut_down()

    def _install_with_retries(self) -> None:
        """Until it is there, cannot be, or the pod is to go."""
        tries = 0
        self._handle_signals(0)
        while not self._stopping:
            tries += 1
            self._set_state("installing" if tries == 1 else f"installing, try {tries}")
            child = self._install = self._start("install")
            self._wait_until(lambda: self._stopping or not self._install_running)
            if child.code in (None, DONE, UNFIT, USAGE):
                self._report_install(child)
                return
            pause = self._pauses.after(child.code or 1, tries)
            why = self._failure_reason(child)
            self._set_state(f"not installed, tried {'once' if tries == 1 else f'{tries} times'}: {why}")
            log.warning("the install is tried again in %.0f s: %s", pause, why)
            self._wait_until(lambda: self._stopping, pause)

    def _report_install(self, child: ChildProcess) -> None:
        if child.code == DONE:
            self._set_state("installed", ready=True)
            log.info("installed; waiting for the pod to end")
        elif child.code is not None:
            # It does not end over this: Kata may be here of old, and then somebody has to take it away.
            why = self._failure_reason(child)
            self._set_state(f"not installed, and not to be: {why}")
            log.error("nothing more is tried on this node until the pod is made anew: %s", why)

    def _shut_down(self) -> int:
        """Revert if it is clear that Kata is not wanted here any more. All else leaves the node as it is.

        A revert that fails is tried again for as long as the pod is let live.
        """
        self._set_state("ending")
        tries = 0
        while True:
            answer = self._ask_wanted()
            if answer == DONE:
                return DONE
            if answer != NOT_WANTED and not tries:
                log.error(
                    "whether Kata is still wanted on this node could not be found out, so it stays; if it is "
                    "not, run `kata-node revert` here"
                )
                return 1
            if self._install_running:
                self._end_install(signal.SIGINT)
            tries += 1
            self._set_state("reverting" if tries == 1 else f"reverting, try {tries}")
            child = self._revert()
            code = child.code or DONE
            if code == DONE:
                return DONE
            why = self._failure_reason(child)
            if code in (UNFIT, USAGE):
                log.error("not everything was taken away; run `kata-node revert` on this node: %s", why)
                return code
            pause = self._pauses.after(code, tries, reverting=True)
            self._set_state(f"not reverted, tried {tries} times: {why}")
            log.error(
                "not everything was taken away; that is tried again in %.0f s, and if the pod is ended "
                "before, run `kata-node revert` on this node: %s",
                pause,
                why,
            )
            self._wait_until(lambda: False, pause)

    def _ask_wanted(self) -> int | None:
        """Whether Kata is wanted, once no install is under way that would leave it here."""
        answer = self._run("wanted").code
        if answer == NOT_WANTED or not self._install_running:
            return answer
        # Whoever comes next goes on from where this one stops; it is spared that where there is time. The
        # DaemonSet can be deleted meanwhile, and no other signal tells of that.
        self._end_install()
        return self._run("wanted").code

    def _revert(self) -> ChildProcess:
        """Where the settings are wrong now: revert what is known of this installation without them."""
        child = self._run("revert")
        if child.code == USAGE and self._fallback_env:
            log.warning("reverting by the name of this installation alone: %s", self._failure_reason(child))
            child = self._run("revert", self._fallback_env)
        return child

    def _end_install(self, number: signal.Signals | None = None) -> None:
        assert self._install is not None
        log.info("waiting for the install under way to end")
        if number is not None:  # it puts back what it has begun
            os.kill(self._install.pid, number)
        self._wait_until(lambda: not self._install_running)

    @property
    def _install_running(self) -> bool:
        return self._install is not None and self._install.code is None

    def _run(self, subcommand: str, variables: Mapping[str, str] | None = None) -> ChildProcess:
        child = self._start(subcommand, variables)
        self._wait_until(lambda: child.code is not None)
        return child

    def _start(self, subcommand: str, variables: Mapping[str, str] | None = None) -> ChildProcess:
        if subcommand != "wanted":  # which changes nothing that the pod's status should tell
            with contextlib.suppress(OSError):
                os.truncate(self._termination_log, 0)
        command = [*self._program, subcommand]
        # Ignored signals would stay so in the child: a shell's `&` ignores SIGINT, Python SIGPIPE.
        reset = (*STOP_SIGNALS, signal.SIGPIPE)
        env = {**os.environ, **(variables or {})}
        try:
            pid = os.posix_spawn(command[0], command, env, setsid=True, setsigmask=(), setsigdef=reset)
        except OSError as error:
            raise KataNodeError(
                f"the program cannot be started: {error.strerror}", where=command[0], hint="run it again"
            ) from error
        child = self._children[pid] = ChildProcess(pid)
        return child

    def _wait_until(self, done: Callable[[], bool], seconds: float | None = None) -> None:
        """Take note of signals until ``done``, or until so many seconds have passed."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while not done():
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return
            self._handle_signals(left)

    def _handle_signals(self, seconds: float | None) -> None:
        """Wait for a signal, and take note of what it tells; ``None`` is for as long as it takes."""
        if seconds is None:
            number = signal.sigwait(HANDLED_SIGNALS)
        else:
            info = signal.sigtimedwait(HANDLED_SIGNALS, seconds)
            if info is None:
                return
            number = signal.Signals(info.si_signo)
        if number != signal.SIGCHLD:
            log.info(
                "%s, a second one" if self._stopping else "%s: the pod is to go", signal.Signals(number).name
            )
            self._stopping = True
        self._reap()

    def _reap(self) -> None:
        """Take note of every process that has ended: one signal may stand for several."""
        with contextlib.suppress(ChildProcessError):  # there is none
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                child = self._children.pop(ended[0], None)
                if child is not None:  # else an orphan that the first process of a container inherits
                    child.code = os.waitstatus_to_exitcode(ended[1])

    def _set_state(self, text: str, *, ready: bool = False) -> None:
        self._state = HealthState(ready, text)

    def _failure_reason(self, child: ChildProcess) -> str:
        """What a child left for the pod's status, else what its exit code means."""
        try:
            with open(self._termination_log, "rb") as file:
                message = json.loads(file.read())
            error = message["error"]
            place = f" ({error['where']})" if error["where"] else ""
            hint = f"; {error['hint']}" if error["hint"] else ""
            return f"{message['stage']}: {error['what']}{place}{hint}"
        except (OSError, ValueError, LookupError, TypeError):
            return _describe_exit_code(child.code or 0)


def _describe_exit_code(code: int) -> str:
    if code < 0:
        return f"it was ended by the signal {-code}"
    return _EXIT_CODE_TEXTS.get(code, f"it ended with the exit code {code}")


def daemon_command(
    listener: socket.socket, log_level: str, termination_log: str, fallback_env: Mapping[str, str]
) -> tuple[str, ...]:
    """What the process that read the options is to become: the daemon, with nothing of what that needed.

    The children get the options by their variables, in the environment that it is given.
    """
    listener.set_inheritable(True)
    given = (str(listener.fileno()), log_level, termination_log, json.dumps(fallback_env))
    return (*_python("kata_node.daemon.daemon"), *given)


def _python(module: str) -> tuple[str, ...]:
    # -P: not even a directory named kata_node where the pod happens to work is looked into.
    return (sys.executable, "-P", "-m", module)


def main(arguments: Sequence[str]) -> int:
    """Take up what :func:`command_line` says."""
    descriptor, log_level, termination_log, fallback_env = arguments
    block_signals()
    logs.configure_logging(log_level)
    listener = socket.socket(fileno=int(descriptor))
    listener.set_inheritable(False)
    try:
        return Daemon(_python("kata_node"), termination_log, listener, json.loads(fallback_env)).run()
    except KataNodeError as error:
        log.error("%s", error)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
