"""Pods on handlers that a run would remove: the run is refused, waits for them, or ignores them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes import MAIN, FakeNode
from kata_node import pipeline
from kata_node.errors import LockedError
from kata_node.host import lock
from kata_node.host.cri_sandboxes import Pod
from kata_node.plan import receipt as receipts
from kata_node.plan.blocking_pods import BlockingPods
from kata_node.plan.report import StageReport
from kata_node.runtime import restart
from pipeline.harness import Killed, errors, exit_code, make_node, run, snapshot
from stages import artifacts, check_pods, cri, remove_artifacts, revert_cri

CRI = (artifacts, cri)
REVERT_CRI = (revert_cri, remove_artifacts)
CLH = "/opt/kata/share/defaults/kata-containers/runtimes/clh/configuration-clh.toml"
WEB, DB, CACHE = Pod("shop", "web", "kata-qemu"), Pod("shop", "db", "runc"), Pod("shop", "cache", "kata-clh")


class Clock:
    """A clock that only advances by ``sleep``. ``events`` are called at their time, in seconds."""

    def __init__(self) -> None:
        self.now = 0.0
        self.events: dict[float, object] = {}

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        before, self.now = self.now, self.now + seconds
        for at, event in self.events.items():
            if before < at <= self.now:
                assert callable(event)
                event()


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(pipeline, "time", clock)
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    monkeypatch.setattr(restart, "POLL", 0.001)
    monkeypatch.setattr(restart, "PATIENCE", 0.01)
    return clock


@pytest.fixture
def node(tmp_path: Path, payload: Path) -> FakeNode:
    """A node that serves kata-qemu and kata-clh, without pods."""
    node = make_node(tmp_path / "host")
    assert errors(run(node, CRI, payload, shims="qemu,clh")) == []
    return node


@pytest.fixture
def log_messages(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """The log messages of kata_node. They do not reach caplog without propagation."""
    logger = logging.getLogger("kata_node")
    before, logger.propagate = logger.propagate, True
    with caplog.at_level(logging.INFO, "kata_node"):
        yield caplog
    logger.propagate = before


def notes(reports: list[StageReport]) -> list[str]:
    return [note for report in reports for note in report.notes]


def waits(log_messages: pytest.LogCaptureFixture) -> list[str]:
    return [line for line in log_messages.messages if "waiting" in line]


def kata(node: FakeNode) -> list[str]:
    return [name for name in node.handlers or () if name.startswith("kata-")]


def test_the_stage_check_pods_says_what_would_block_a_revert_and_changes_nothing(
    node: FakeNode, payload: Path
) -> None:
    before, restarts = snapshot(node), node.restarts
    (free,) = run(node, (check_pods,), payload)
    assert (free.outcome, free.error) == ("skipped", None)
    node.pods = (DB, WEB)
    (blocked,) = run(node, (check_pods,), payload)
    assert blocked.error
    assert blocked.error.pods_run
    assert "shop/web (kata-qemu)" in blocked.error.what
    assert (snapshot(node), node.restarts) == (before, restarts)
    assert errors(run(node, (check_pods,), payload, ignore_pods=True)) == []


def test_a_revert_is_refused_while_a_pod_runs_on_a_handler(node: FakeNode, payload: Path) -> None:
    node.pods = (DB, WEB)
    before, restarts = snapshot(node), node.restarts
    reports = run(node, REVERT_CRI, payload)
    assert exit_code(reports) == 1
    (error,) = [report.error for report in reports if report.error]
    assert error.what == "1 pod runs on a handler that would be removed: shop/web (kata-qemu)"
    assert all(way in error.hint for way in ("kubectl drain", "--wait-for-pods", "--ignore-pods"))
    assert (snapshot(node), node.restarts) == (before, restarts)
    node.pods = (DB,)
    assert errors(run(node, REVERT_CRI, payload)) == []


def test_an_update_that_disables_the_shim_of_a_pod_is_refused_and_keeps_its_files(
    node: FakeNode, payload: Path
) -> None:
    node.pods = (CACHE, WEB)
    config, restarts = snapshot(node, "etc"), node.restarts
    reports = run(node, CRI, payload, shims="qemu")
    assert exit_code(reports) == 1
    assert str(errors(reports)[0]).startswith(
        "1 pod runs on a handler that would be removed: shop/cache (kata-clh)\n"
    )
    assert (snapshot(node, "etc"), node.restarts, kata(node)) == (config, restarts, ["kata-clh", "kata-qemu"])
    assert node.root.exists(CLH)
    node.pods = (WEB,)
    assert errors(run(node, CRI, payload, shims="qemu")) == []
    assert kata(node) == ["kata-qemu"]
    assert not node.root.exists(CLH)


def test_an_update_that_removes_no_handler_does_not_list_pods(node: FakeNode, payload: Path) -> None:
    node.pods = (CACHE, WEB)
    assert errors(run(node, CRI, payload, shims="qemu,clh")) == []
    assert errors(run(node, CRI, payload, shims="qemu,clh", user_drop_in="# mine\n")) == []
    assert node.lists == 0


def test_the_run_continues_when_the_pod_ends_during_the_wait(
    node: FakeNode, payload: Path, clock: Clock, log_messages: pytest.LogCaptureFixture
) -> None:
    node.pods = (WEB,)
    clock.events = {90.0: lambda: setattr(node, "pods", ())}
    assert errors(run(node, REVERT_CRI, payload, wait_for_pods=600)) == []
    assert clock.now == 90
    assert kata(node) == []
    assert waits(log_messages) == [
        f"1 pod runs on a handler that would be removed: shop/web (kata-qemu); waiting at most {left} s"
        for left in (600, 570, 540)
    ]


def test_the_wait_is_logged_again_when_the_pods_change(
    node: FakeNode, payload: Path, clock: Clock, log_messages: pytest.LogCaptureFixture
) -> None:
    node.pods = (CACHE, WEB)
    clock.events = {5.0: lambda: setattr(node, "pods", (CACHE,)), 8.0: lambda: setattr(node, "pods", ())}
    assert errors(run(node, REVERT_CRI, payload, wait_for_pods=600)) == []
    assert [line.partition(":")[0] for line in waits(log_messages)] == [
        "2 pods run on handlers that would be removed",
        "1 pod runs on a handler that would be removed",
    ]


def test_the_run_is_refused_when_the_wait_ends(node: FakeNode, payload: Path, clock: Clock) -> None:
    node.pods = (WEB,)
    before = snapshot(node)
    reports = run(node, REVERT_CRI, payload, wait_for_pods=2.5)
    assert (exit_code(reports), clock.now, snapshot(node)) == (1, 2.5, before)


def test_another_run_can_work_on_the_node_during_the_wait(
    node: FakeNode, payload: Path, clock: Clock
) -> None:
    node.pods = (WEB,)

    def another_installation() -> None:
        # This run takes the lock, and ends within the wait.
        assert errors(run(node, CRI, payload, multi_install_suffix="b", lock_timeout=0)) == []
        node.pods = ()

    clock.events = {3.0: another_installation}
    assert errors(run(node, REVERT_CRI, payload, wait_for_pods=600)) == []
    assert kata(node) == ["kata-qemu-b"]


def test_the_run_fails_if_another_run_holds_the_lock_after_the_wait(
    node: FakeNode, payload: Path, clock: Clock
) -> None:
    node.pods = (WEB,)
    others = lock.hold(node.root, "of another", 0)
    clock.events = {1.0: others.__enter__}
    reports = run(node, REVERT_CRI, payload, wait_for_pods=600, lock_timeout=0)
    others.__exit__(None, None, None)
    assert exit_code(reports) == LockedError.exit_code
    assert kata(node) == ["kata-clh", "kata-qemu"]


def test_ignored_pods_are_named_with_the_consequences_for_them(node: FakeNode, payload: Path) -> None:
    node.pods = (DB, WEB)
    reports = run(node, REVERT_CRI, payload, ignore_pods=True)
    assert errors(reports) == []
    assert kata(node) == []
    (note,) = notes(reports)
    assert "shop/web (kata-qemu)" in note
    assert "Terminating" in note
    assert "db" not in note


def test_pods_can_be_ignored_after_a_wait(node: FakeNode, payload: Path, clock: Clock) -> None:
    node.pods = (WEB,)
    assert errors(run(node, REVERT_CRI, payload, wait_for_pods=20, ignore_pods=True)) == []
    assert (clock.now, kata(node)) == (20, [])


def test_a_dry_run_notes_blocking_pods_and_does_not_fail(node: FakeNode, payload: Path, clock: Clock) -> None:
    node.pods = (WEB,)
    before = snapshot(node)
    planned = run(node, REVERT_CRI, payload, dry_run=True, wait_for_pods=60)
    assert [report.outcome for report in planned] == ["planned", "planned"]
    assert notes(planned) == [
        "would be blocked: 1 pod runs on a handler that would be removed: shop/web (kata-qemu)"
    ]
    assert (snapshot(node), clock.now) == (before, 0)


def test_a_runtime_that_is_down_can_be_reverted_and_a_note_says_that_pods_are_unknown(
    node: FakeNode, payload: Path
) -> None:
    node.pods, node.handlers = (WEB,), None
    node.root.write(MAIN, b"# mended\nversion = 3\n")
    reports = run(node, REVERT_CRI, payload)
    assert errors(reports) == []
    assert "the runtime did not answer, so it is unknown which pods run on kata-clh, kata-qemu" in notes(
        reports
    )


def test_a_runtime_that_cannot_list_its_pods_is_only_reverted_with_ignore_pods(
    node: FakeNode, payload: Path
) -> None:
    node.list_fails = True
    before, restarts = snapshot(node), node.restarts
    reports = run(node, REVERT_CRI, payload)
    assert exit_code(reports) == 1
    assert "ListPodSandbox" in str(errors(reports)[0])
    assert "--ignore-pods" in str(errors(reports)[0])
    assert (snapshot(node), node.restarts) == (before, restarts)
    reports = run(node, REVERT_CRI, payload, ignore_pods=True)
    assert errors(reports) == []
    assert notes(reports) == [
        "the runtime did not answer, so it is unknown which pods run on kata-clh, kata-qemu"
    ]


def test_offline_the_pods_are_not_listed(node: FakeNode, payload: Path) -> None:
    node.pods = (WEB,)
    reports = run(node, REVERT_CRI, payload, offline=True)
    assert (errors(reports), notes(reports), node.lists) == ([], [], 0)


def test_pods_on_a_handler_that_a_killed_run_removed_do_not_block(node: FakeNode, payload: Path) -> None:
    """The runtime does not serve their handler any more. Waiting for them would not help."""

    def die() -> None:
        raise Killed

    node.on_restart = die
    with pytest.raises(Killed):
        run(node, REVERT_CRI, payload)
    node.on_restart = lambda: None
    node.pods = (WEB,)
    receipt = receipts.load(node.root, "/opt/kata")
    assert receipt is not None
    assert receipt.cri is not None
    assert (receipt.cri.state, kata(node)) == ("unloading", [])
    assert errors(run(node, REVERT_CRI, payload)) == []


def test_pods_on_a_handler_that_a_killed_run_did_not_remove_block(
    node: FakeNode, payload: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(FakeNode, "restart", die)
        with pytest.raises(Killed):
            run(node, REVERT_CRI, payload)
    node.pods = (WEB,)
    assert exit_code(run(node, REVERT_CRI, payload)) == 1
    assert kata(node) == ["kata-clh", "kata-qemu"]
    # An install keeps the handlers of the pods.
    assert errors(run(node, CRI, payload, shims="qemu,clh")) == []


def test_without_a_receipt_pods_on_the_handlers_of_the_settings_block(node: FakeNode, payload: Path) -> None:
    node.root.remove("/opt/kata/.kata-node/receipt.json")
    node.pods = (WEB,)
    assert exit_code(run(node, (revert_cri,), payload, shims="qemu,clh")) == 1
    node.pods = ()
    assert errors(run(node, (revert_cri,), payload, shims="qemu,clh")) == []
    assert kata(node) == []


def test_the_files_are_not_removed_while_the_runtime_is_configured_to_use_them(
    node: FakeNode, payload: Path
) -> None:
    node.pods = (WEB,)
    before = snapshot(node)
    assert exit_code(run(node, (remove_artifacts,), payload, ignore_pods=True)) == 1
    assert snapshot(node) == before


def test_ten_pods_are_named_and_the_others_are_counted() -> None:
    crowd = BlockingPods(tuple(Pod("shop", f"web-{at}", "kata-qemu") for at in range(12)))
    assert str(crowd).startswith("12 pods run on handlers that would be removed: shop/web-0 (kata-qemu), ")
    assert str(crowd).endswith("shop/web-9 (kata-qemu) and 2 more")


def test_pods_still_block_while_the_runtime_is_down_for_a_moment(
    node: FakeNode, payload: Path, clock: Clock
) -> None:
    node.pods = (WEB,)

    def set_down(down: bool) -> None:
        node.state = "activating" if down else "active"

    clock.events = {
        5: lambda: set_down(True),
        9: lambda: set_down(False),
        12: lambda: setattr(node, "cri_hangs", True),
    }
    clock.events[15] = lambda: setattr(node, "cri_hangs", False)
    reports = run(node, REVERT_CRI, payload, wait_for_pods=30)
    assert (exit_code(reports), clock.now) == (1, 30)
    assert "after 30 s of waiting, 1 pod runs" in reports[-1].summary
    assert "to wait longer" in str(reports[-1].error)
    assert kata(node) == ["kata-clh", "kata-qemu"]


def test_a_running_runtime_that_does_not_answer_is_not_reverted(node: FakeNode, payload: Path) -> None:
    before, node.cri_hangs = snapshot(node), True
    reports = run(node, REVERT_CRI, payload)
    assert exit_code(reports) == 1
    assert "--ignore-pods" in str(reports[-1].error)
    node.cri_hangs = False
    assert snapshot(node) == before


def test_without_a_receipt_pods_on_all_handlers_in_the_files_block(node: FakeNode, payload: Path) -> None:
    node.pods = (CACHE,)
    (node.root.base / "opt/kata/.kata-node/receipt.json").unlink()
    reports = run(node, (revert_cri,), payload)  # the settings of this run only have kata-qemu
    assert exit_code(reports) == 1
    assert "shop/cache (kata-clh)" in reports[-1].summary
