"""Signals during a run: what waits or reads ends at once, what changes the node finishes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fakes import MAIN, FakeNode
from kata_node import pipeline, signals
from kata_node.host import lock
from kata_node.host.cri_sandboxes import Pod
from kata_node.plan.report import StageReport
from kata_node.runtime import restart
from pipeline.harness import (
    CONFIG,
    INSTALL,
    REVERT,
    errors,
    exit_code,
    make_node,
    outcomes,
    run,
    snapshot,
)
from stages import artifacts, cri, revert_cri

POLITE = (signal.SIGTERM, signal.SIGHUP)
ALL = (*POLITE, signal.SIGINT)


@pytest.fixture
def node(tmp_path: Path) -> FakeNode:
    return make_node(tmp_path / "host")


@pytest.fixture(autouse=True)
def _quick(handled_signals: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    monkeypatch.setattr(restart, "POLL", 0.001)
    monkeypatch.setattr(restart, "PATIENCE", 0.01)


def send(number: signal.Signals) -> Callable[..., None]:
    """Return a function that sends a signal to this process. Python handles it before it returns."""
    return lambda *_: os.kill(os.getpid(), number)


def only_error(reports: list[StageReport]) -> tuple[str, int]:
    (error,) = [report.error for report in reports if report.error]
    return error.what, error.exit_code


def stopped(number: signal.Signals) -> tuple[str, int]:
    return ("interrupted" if number == signal.SIGINT else f"stopped by {number.name}"), 1


class SignalClock:
    """Time that stands still, with a sleep in which a signal arrives."""

    def __init__(self, number: signal.Signals) -> None:
        self._send = send(number)
        self.slept = 0

    @staticmethod
    def monotonic() -> float:
        return 0.0

    @staticmethod
    def time() -> float:
        return 0.0

    def sleep(self, seconds: float) -> None:
        self.slept += 1
        assert self.slept == 1, "the run continues to wait"
        self._send()


# --- waits ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", ALL, ids=lambda number: number.name)
def test_a_wait_for_the_lock_ends_and_nothing_changes(
    node: FakeNode, payload: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    with lock.hold(node.root, "cri", 0):
        before = snapshot(node)
        monkeypatch.setattr(lock, "time", SignalClock(number))
        reports = run(node, INSTALL[2:], payload, lock_timeout=300)
        assert only_error(reports) == stopped(number)
        assert [report.stage for report in reports] == ["artifacts"]
        assert snapshot(node) == before


@pytest.mark.parametrize("number", ALL, ids=lambda number: number.name)
def test_a_wait_for_pods_ends_and_nothing_changes(
    node: FakeNode, payload: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    assert errors(run(node, INSTALL, payload)) == []
    node.pods = (Pod("shop", "web", "kata-qemu"),)
    before, restarts = snapshot(node), node.restarts
    monkeypatch.setattr(pipeline, "time", SignalClock(number))
    reports = run(node, (revert_cri,), payload, wait_for_pods=300)
    assert only_error(reports) == stopped(number)
    assert (snapshot(node), node.restarts) == (before, restarts)


@pytest.mark.parametrize("number", ALL, ids=lambda number: number.name)
def test_reading_ends_before_anything_changes(
    node: FakeNode, payload: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    before = snapshot(node)
    monkeypatch.setattr("stages.artifacts.gather_facts", send(number))
    assert only_error(run(node, (artifacts,), payload)) == stopped(number)
    assert snapshot(node) == before


def test_a_signal_before_the_run_ends_it_at_its_first_stage(node: FakeNode, payload: Path) -> None:
    with signals.held():
        send(signal.SIGTERM)()
    assert outcomes(run(node, INSTALL, payload))[0].startswith("host-check failed stopped by SIGTERM")


# --- changes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", POLITE, ids=lambda number: number.name)
def test_a_restart_is_seen_through_and_no_further_stage_begins(
    node: FakeNode, payload: Path, number: signal.Signals
) -> None:
    node.on_restart = send(number)
    reports = run(node, INSTALL, payload)
    assert [(report.stage, report.outcome) for report in reports][2:] == [
        ("artifacts", "done"),
        ("cri", "done"),
        ("label", "failed"),
    ]
    assert only_error(reports) == stopped(number)
    assert (node.handlers, node.restarts) == (("kata-qemu", "runc"), 1)


@pytest.mark.parametrize("number", POLITE, ids=lambda number: number.name)
def test_a_single_stage_that_gets_a_signal_during_its_restart_is_done(
    node: FakeNode, payload: Path, number: signal.Signals
) -> None:
    assert errors(run(node, (artifacts,), payload)) == []
    node.on_restart = send(number)
    assert errors(run(node, (cri,), payload)) == []
    assert node.handlers == ("kata-qemu", "runc")


def test_a_stage_that_gets_sigterm_at_its_first_write_writes_everything(
    node: FakeNode, payload: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = type(node.root).write

    def write(*args: object, **kwargs: object) -> object:
        send(signal.SIGTERM)()
        send(signal.SIGTERM)()
        return real(*args, **kwargs)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(type(node.root), "write", write)
        assert errors(run(node, (artifacts,), payload)) == []
    monkeypatch.setattr(signals, "_remembered", None)
    assert [report.outcome for report in run(node, (artifacts,), payload)] == ["skipped"]


def test_ctrl_c_during_a_restart_rolls_back_and_a_second_one_does_not_disturb_that(
    node: FakeNode, payload: Path
) -> None:
    node.on_restart = send(signal.SIGINT)  # also at the restart of the rollback
    before = snapshot(node, "etc")
    reports = run(node, INSTALL, payload)
    assert exit_code(reports) == 4, reports
    assert (node.handlers, node.restarts) == (("runc",), 2)
    assert snapshot(node, "etc") == before
    assert node.root.read(MAIN) == CONFIG


def test_sigterm_during_a_rollback_does_not_disturb_it(node: FakeNode, payload: Path) -> None:
    node.refusals = 1
    node.on_restart = send(signal.SIGTERM)
    before = snapshot(node, "etc")
    reports = run(node, INSTALL, payload)
    assert exit_code(reports) == 4, reports
    assert snapshot(node, "etc") == before
    assert node.handlers == ("runc",)


def test_a_stopped_install_is_completed_by_the_next_one_and_can_be_reverted(
    node: FakeNode, payload: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(node)
    node.on_restart = send(signal.SIGTERM)
    assert exit_code(run(node, INSTALL, payload)) == 1
    node.on_restart = lambda: None
    monkeypatch.setattr(signals, "_remembered", None)
    monkeypatch.setattr(signals, "_has_raised", False)
    assert errors(run(node, INSTALL, payload)) == []
    assert errors(run(node, REVERT, payload)) == []
    assert snapshot(node) == before


# --- host-check beside another run --------------------------------------------------------------------


def test_host_check_waits_for_the_run_that_restarts_the_runtime(
    node: FakeNode, payload: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.state = "activating"
    other = lock.hold(node.root, "cri", 0)
    other.__enter__()

    class Clock(SignalClock):
        def sleep(self, seconds: float) -> None:
            self.slept += 1
            if self.slept == 3:
                node.state = "active"
                other.__exit__(None, None, None)

    clock = Clock(signal.SIGTERM)
    monkeypatch.setattr(lock, "time", clock)
    reports = run(node, INSTALL[:1], payload, lock_timeout=300)
    assert errors(reports) == []
    assert clock.slept == 3


def test_host_check_fails_if_the_other_run_does_not_end(node: FakeNode, payload: Path) -> None:
    node.state = "activating"
    with lock.hold(node.root, "cri", 0):
        assert exit_code(run(node, INSTALL[:1], payload, lock_timeout=0)) == 1


def test_host_check_does_not_wait_for_a_run_that_disturbs_no_check(node: FakeNode, payload: Path) -> None:
    with lock.hold(node.root, "artifacts", 0):
        assert errors(run(node, INSTALL[:1], payload, lock_timeout=300)) == []


def test_host_check_does_not_wait_for_a_killed_run(node: FakeNode, payload: Path) -> None:
    node.state = "activating"
    path = node.root.resolve(lock.LOCK_PATH)
    path.parent.mkdir()
    path.write_text('{"stage": "cri", "pid": 1, "host": "n1", "since": 1}')
    assert exit_code(run(node, INSTALL[:1], payload, lock_timeout=300)) == 1


def test_host_check_that_waits_for_another_run_ends_on_sigterm(
    node: FakeNode, payload: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.state = "activating"
    with lock.hold(node.root, "cri", 0):
        monkeypatch.setattr(lock, "time", SignalClock(signal.SIGTERM))
        reports = run(node, INSTALL[:1], payload, lock_timeout=300)
    assert only_error(reports) == stopped(signal.SIGTERM)


# --- the process --------------------------------------------------------------------------------------


@pytest.mark.commands
@pytest.mark.parametrize("number", POLITE, ids=lambda number: number.name)
def test_the_program_ends_with_exit_code_1_while_it_waits(
    node: FakeNode, payload: Path, number: signal.Signals
) -> None:
    with lock.hold(node.root, "cri", 0), start(node, payload) as process:
        wait_until_it_waits(process)
        process.send_signal(number)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"failed   stopped by {number.name}" in out
    assert "hint: run the same command again" in out


@pytest.mark.commands
def test_a_signal_that_the_process_was_started_to_ignore_stays_ignored(node: FakeNode, payload: Path) -> None:
    with lock.hold(node.root, "cri", 0):
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            process = start(node, payload)
        finally:
            signal.signal(signal.SIGHUP, before)
        with process:
            wait_until_it_waits(process)
            process.send_signal(signal.SIGHUP)
            process.send_signal(signal.SIGTERM)
            out, _ = process.communicate(timeout=60)
    assert "stopped by SIGTERM" in out


def start(node: FakeNode, payload: Path) -> subprocess.Popen[str]:
    where = ("--host-root", str(node.root.base), "--payload", str(payload))
    offline = ("--offline", "--runtime", "containerd://2.1.9")
    return subprocess.Popen(
        [sys.executable, "-m", "kata_node", "stage", "artifacts", *where, *offline, "--lock-timeout", "300"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until_it_waits(process: subprocess.Popen[str]) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if "waiting for the lock" in line:
            return
    raise AssertionError(process.communicate())
