"""The process of a DaemonSet pod. It installs Kata, waits, and reverts if Kata is no longer wanted.

If the values want Kata absent, it reverts at once, and waits.

This process stays on the node, so it loads few modules. It runs ``install``, ``wanted`` and ``revert`` as
child processes, which free their memory when they end.

Each child has a session of its own, so that a signal to the daemon does not interrupt a transaction. The
daemon waits for its child during the grace period of the pod. If the child is killed after that, the next
run completes its work or rolls it back.

The daemon can be process 1 of a container. The kernel does not deliver a signal to process 1 that it
neither handles nor blocks, so the daemon blocks its signals from the start and waits for them. Process 1
also inherits orphans, so the daemon reaps processes that it did not start.
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
from kata_node.daemon.child_process import STOP_SIGNALS, ChildProcess, start_child
from kata_node.daemon.delays import RepairLimit, RetryDelays
from kata_node.daemon.failure import failure_reason, says_unfit
from kata_node.daemon.health import HealthState, ProbeServer
from kata_node.daemon.verification import NOT_SERVED, OUTPUT_LIMIT, SERVED, UNKNOWN, Verification
from kata_node.daemon.watch import SIGNAL, FileWatch
from kata_node.errors import IneligibleNodeError, KataNodeError, UsageError

DONE, UNFIT, USAGE = 0, IneligibleNodeError.exit_code, UsageError.exit_code

NOT_WANTED = 10
"""The exit code of ``wanted`` that leads to a revert. No other code does, and no signal."""

HANDLED_SIGNALS = (*STOP_SIGNALS, signal.SIGCHLD, SIGNAL)

PATIENCE = 3
"""Answers in a row that nobody knows whether the node serves, until the pod is no longer ready."""

_QUESTIONS = ("wanted", "verify")
"""The commands that leave the termination message of the last install or revert as it is."""

log = logging.getLogger("kata_node.daemon.daemon")  # __name__ is "__main__" in the daemon's process


def block_signals() -> None:
    """Block the signals that :class:`Daemon` waits for. They stay blocked across ``exec``."""
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED_SIGNALS)


class Daemon:
    """The daemon. Create it in the main thread, after :func:`block_signals`.

    ``program`` is the command of the children, without the subcommand. A child writes its error to the
    file ``termination_log``, if that file exists. ``fallback_env`` has the variables for a revert when the
    settings are wrong; when it is empty, such a revert fails. ``unfit_is_ready`` says whether the pod is
    ready on a node that cannot run Kata. ``absent`` says that Kata is not wanted on any node.
    """

    def __init__(
        self,
        program: Sequence[str],
        termination_log: str,
        listener: socket.socket,
        fallback_env: Mapping[str, str],
        pauses: RetryDelays | None = None,
        *,
        unfit_is_ready: bool = False,
        absent: bool = False,
    ) -> None:
        self._program = program
        self._termination_log = termination_log
        self._fallback_env = fallback_env
        self._unfit_is_ready = unfit_is_ready
        self._absent = absent
        self._pauses = pauses or RetryDelays()
        self._state = HealthState(False, "starting")
        self._children: dict[int, ChildProcess] = {}
        self._install: ChildProcess | None = None
        self._stopping = False
        self._watch = FileWatch()
        self._probes = ProbeServer(listener, lambda: self._state)

    def run(self) -> int:
        """Install, wait for a signal to stop, revert if necessary, and return the exit code."""
        self._probes.start()
        if self._absent:
            return self._remove()
        if self._install_with_retries():
            self._keep_serving()
        self._wait_until(lambda: self._stopping)
        return self._shut_down()

    def _keep_serving(self) -> None:
        """Repair what others change, until a signal to stop arrives or an install cannot succeed."""
        limit, unknown, accepted = RepairLimit(self._pauses), 0, ""
        while not self._stopping:
            self._watch.begin(self._watch.paths)
            found = self._verify()
            if found.state != UNKNOWN and found.paths != self._watch.paths:
                self._watch.begin(found.paths)
                continue  # what changed before the watch is seen by the next question
            unknown = unknown + 1 if found.state == UNKNOWN else 0
            if found.state == NOT_SERVED or unknown >= PATIENCE:
                self._set_state(NOT_SERVED)
            if found.state == UNKNOWN:
                self._wait_for_change(self._pauses.after(1, unknown))
            elif self._state.ready and (found.state == SERVED or found.reason == accepted):
                self._wait_for_change()
            elif delay := 0 if found.state == SERVED else limit.delay(time.monotonic()):
                self._set_state(
                    f"{found.state}, repaired {_times(limit.repairs)}, and changed again",
                    ready=self._state.ready,
                )
                log.warning(
                    "%s: %s; this was repaired %s, and something changes it again: find that program; "
                    "the next repair follows in %.0f s",
                    *(found.state, found.reason, _times(limit.repairs), delay),
                )
                self._wait_for_change(delay)
            else:
                if found.state != SERVED:
                    limit.repaired(time.monotonic())
                    log.warning("%s: %s; installing again", found.state, found.reason)
                if not self._install_with_retries():
                    return
                accepted = found.reason  # what an install leaves is not repaired again, until it differs

    def _verify(self) -> Verification:
        """Ask whether the node serves. If it does not, the child withdraws the labels of the Node."""
        output = os.memfd_create("verify")
        try:
            child = self._start("verify", output=output)
            self._wait_until(lambda: self._stopping or child.code is not None)
            return Verification.parse(os.pread(output, OUTPUT_LIMIT, 0))
        finally:
            os.close(output)

    def _wait_for_change(self, seconds: float | None = None) -> None:
        """Wait until a watched file has changed and the change is complete, or for ``seconds``."""

        def is_over() -> bool:
            return self._stopping or self._watch.has_changed()

        self._wait_until(is_over, self._watch.interval if seconds is None else seconds)
        while seconds is None and not is_over():  # the kernel sends no signal
            self._wait_until(is_over, self._watch.interval)
        if self._watch.has_changed():
            self._wait_until(lambda: self._stopping, self._pauses.settle)

    def _install_with_retries(self) -> bool:
        """Run ``install`` until it succeeds, a retry cannot help, or a signal to stop arrives.

        Return whether it succeeded.
        """
        tries = 0
        self._handle_signals(0)
        while not self._stopping:
            tries += 1
            self._set_state("installing" if tries == 1 else f"installing, try {tries}")
            child = self._install = self._start("install")
            self._wait_until(lambda: self._stopping or not self._install_running)
            if child.code in (None, DONE, UNFIT, USAGE):
                self._report_install(child)
                return child.code == DONE
            pause = self._pauses.after(child.code or 1, tries)
            why = self._why_failed(child)
            self._set_state(f"not installed, tried {_times(tries)}")
            log.warning("the install failed; retrying in %.0f s: %s", pause, why)
            self._wait_until(lambda: self._stopping, pause)
        return False

    def _report_install(self, child: ChildProcess) -> None:
        if child.code == DONE:
            self._set_state("installed", ready=True)
            log.info("installed; waiting for the signal to stop")
        elif child.code is not None:
            # The pod stays: an older installation may be on the node, and this pod has to revert it.
            why = self._why_failed(child)
            if child.code == UNFIT and says_unfit(self._termination_log):
                # A pod that is never ready would block every rolling update of the DaemonSet.
                self._set_state("unfit", ready=self._unfit_is_ready)
                log.warning("this node is unfit, so Kata is not installed: %s", why)
                return
            self._set_state("not installed, no retry")
            log.error("the install failed; no retry on this node until the pod is replaced: %s", why)

    def _shut_down(self) -> int:
        """Revert if ``wanted`` says that Kata is not wanted here, and return the exit code.

        Any other answer leaves the node as it is. A failed revert is retried until the pod is killed.
        """
        self._set_state("stopping")
        tries = 0
        while True:
            answer = self._ask_wanted()
            if answer == DONE:
                return DONE
            if answer != NOT_WANTED and not tries:
                log.error(
                    "cannot find out whether Kata is still wanted on this node, so Kata stays; "
                    "if it is not wanted, run `kata-node revert` on this node"
                )
                return 1
            if self._install_running:
                self._end_install(signal.SIGINT)
            tries += 1
            code = self._try_revert(tries)
            if code in (DONE, UNFIT, USAGE):
                return code
            self._wait_until(lambda: False, self._pauses.after(code, tries, reverting=True))

    def _remove(self) -> int:
        """Revert, wait for a signal to stop, and return the exit code of the last revert."""
        tries, code = 0, DONE
        self._handle_signals(0)
        while not self._stopping:
            tries += 1
            code = self._try_revert(tries)
            pause = None if code in (DONE, UNFIT, USAGE) else self._pauses.after(code, tries, reverting=True)
            self._wait_until(lambda: self._stopping, pause)
        return code

    def _try_revert(self, tries: int) -> int:
        """Run ``revert``, the try number ``tries``; report a failure, and return the exit code."""
        self._set_state("reverting" if tries == 1 else f"reverting, try {tries}")
        child = self._revert()
        code = child.code or DONE
        if code == DONE:
            self._set_state("reverted", ready=self._absent)
            log.info("reverted")
            return code
        why = self._why_failed(child)
        self._set_state(f"not reverted, tried {_times(tries)}")
        if code in (UNFIT, USAGE):
            log.error("the revert failed; run `kata-node revert` on this node: %s", why)
        else:
            log.error(
                "the revert failed; retrying in %.0f s; if the pod ends before that, run `kata-node revert` "
                "on this node: %s",
                self._pauses.after(code, tries, reverting=True),
                why,
            )
        return code

    def _ask_wanted(self) -> int | None:
        """Return the exit code of ``wanted``. Unless it says no, first wait for a running install to end."""
        answer = self._run("wanted").code
        if answer == NOT_WANTED or not self._install_running:
            return answer
        # The next pod could continue a killed install, but a complete one is better. Ask again after it: the
        # DaemonSet can be deleted during the wait, and the kubelet sends no second signal.
        self._end_install()
        return self._run("wanted").code

    def _revert(self) -> ChildProcess:
        """Run ``revert``. If the settings are wrong, run it again with ``fallback_env``."""
        child = self._run("revert")
        if child.code == USAGE and self._fallback_env:
            log.warning(
                "reverting by prefix and suffix alone: %s",
                self._why_failed(child),
            )
            child = self._run("revert", self._fallback_env)
        return child

    def _end_install(self, number: signal.Signals | None = None) -> None:
        assert self._install is not None
        log.info("waiting for the running install to end")
        if number is not None:  # an interrupted install rolls back its current stage
            os.kill(self._install.pid, number)
        self._wait_until(lambda: not self._install_running)

    @property
    def _install_running(self) -> bool:
        return self._install is not None and self._install.code is None

    def _run(self, subcommand: str, variables: Mapping[str, str] | None = None) -> ChildProcess:
        child = self._start(subcommand, variables)
        self._wait_until(lambda: child.code is not None)
        return child

    def _start(
        self, subcommand: str, variables: Mapping[str, str] | None = None, output: int | None = None
    ) -> ChildProcess:
        """Start a child. ``output`` is the descriptor of its stdout, by default that of the daemon."""
        if subcommand not in _QUESTIONS:
            with contextlib.suppress(OSError):
                os.truncate(self._termination_log, 0)
        child = start_child([*self._program, subcommand], variables or {}, output)
        self._children[child.pid] = child
        return child

    def _wait_until(self, done: Callable[[], bool], seconds: float | None = None) -> None:
        """Handle signals until ``done()`` is true, or for ``seconds``."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while not done():
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return
            self._handle_signals(left)

    def _handle_signals(self, seconds: float | None) -> None:
        """Wait for a signal, at most ``seconds``, and handle it. ``None`` waits without a limit."""
        if seconds is None:
            number = signal.sigwait(HANDLED_SIGNALS)
        else:
            info = signal.sigtimedwait(HANDLED_SIGNALS, seconds)
            if info is None:
                return
            number = signal.Signals(info.si_signo)
        if number in STOP_SIGNALS:
            log.info(
                "%s again; already stopping" if self._stopping else "%s; stopping",
                signal.Signals(number).name,
            )
            self._stopping = True
        self._reap()

    def _reap(self) -> None:
        """Reap every process that has ended. One SIGCHLD can stand for several processes."""
        with contextlib.suppress(ChildProcessError):  # no child is left
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                child = self._children.pop(ended[0], None)
                if child is not None:  # otherwise it is an orphan that process 1 inherited
                    child.code = os.waitstatus_to_exitcode(ended[1])

    def _why_failed(self, child: ChildProcess) -> str:
        return failure_reason(self._termination_log, child.code or 0)

    def _set_state(self, text: str, *, ready: bool = False) -> None:
        self._state = HealthState(ready, text)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def daemon_command(
    listener: socket.socket,
    log_level: str,
    termination_log: str,
    fallback_env: Mapping[str, str],
    *,
    unfit_is_ready: bool = False,
    absent: bool = False,
) -> tuple[str, ...]:
    """Return the command of the daemon, which replaces the process that read the options.

    A new program is free of the modules that reading the options needs. The children read the options from
    their environment. The command inherits ``listener``.
    """
    listener.set_inheritable(True)
    modes = ("report" if unfit_is_ready else "fail", "absent" if absent else "present")
    arguments = (*modes, str(listener.fileno()), log_level, termination_log, json.dumps(fallback_env))
    return (*_python("kata_node.daemon.daemon"), *arguments)


def _python(module: str) -> tuple[str, ...]:
    # -P keeps Python from importing a kata_node directory in the working directory of the pod.
    return (sys.executable, "-P", "-m", module)


def main(arguments: Sequence[str]) -> int:
    """Run the daemon with the arguments of :func:`daemon_command`, and return the exit code."""
    unfit, desired, descriptor, log_level, termination_log, fallback_env = arguments
    block_signals()
    logs.configure_logging(log_level)
    listener = socket.socket(fileno=int(descriptor))
    listener.set_inheritable(False)
    try:
        program, fallback = _python("kata_node"), json.loads(fallback_env)
        ready, absent = unfit == "report", desired == "absent"
        it = Daemon(program, termination_log, listener, fallback, unfit_is_ready=ready, absent=absent)
        return it.run()
    except KataNodeError as error:
        log.error("%s", error)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
