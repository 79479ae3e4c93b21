"""Pods on handlers that are to be taken away: refused for, waited for, or left to their fate."""

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
from pipeline.harness import Killed, errors, exit_code, make_node, run, small_payload, snapshot
from stages import artifacts, cri, remove_artifacts, revert_cri

CRI = (artifacts, cri)
BACK = (revert_cri, remove_artifacts)
CLH = "/opt/kata/share/defaults/kata-containers/runtimes/clh/configuration-clh.toml"
WEB, DB, CACHE = Pod("shop", "web", "kata-qemu"), Pod("shop", "db", "runc"), Pod("shop", "cache", "kata-clh")


class Clock:
    """Time that passes only by waiting, and what happens in it: ``events`` by the second they come at."""

    def __init__(self) -> None:
        self.now = 0.0
        self.events: dict[float, object] = {}

    def monotonic(self) -> float:
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


@pytest.fixture(scope="module")
def payload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_payload(tmp_path_factory.mktemp("payload"))


@pytest.fixture
def node(tmp_path: Path, payload: Path) -> FakeNode:
    """A node that serves kata-qemu and kata-clh, with no pod on them."""
    node = make_node(tmp_path / "host")
    assert errors(run(node, CRI, payload, shims="qemu,clh")) == []
    return node


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What is logged, which otherwise goes to stderr alone."""
    logger = logging.getLogger("kata_node")
    before, logger.propagate = logger.propagate, True
    with caplog.at_level(logging.INFO, "kata_node"):
        yield caplog
    logger.propagate = before


def notes(reports: list[StageReport]) -> list[str]:
    return [note for report in reports for note in report.notes]


def waits(said: pytest.LogCaptureFixture) -> list[str]:
    return [line for line in said.messages if "waiting" in line]


def kata(node: FakeNode) -> list[str]:
    return [name for name in node.handlers or () if name.startswith("kata-")]


def test_a_revert_under_a_pod_is_refused_with_its_name_and_changes_nothing(
    node: FakeNode, payload: Path
) -> None:
    node.pods = (DB, WEB)
    before, restarts = snapshot(node), node.restarts
    reports = run(node, BACK, payload)
    assert exit_code(reports) == 1
    (error,) = [report.error for report in reports if report.error]
    assert error.what == "1 pod runs on a handler that would be removed: shop/web (kata-qemu)"
    assert all(way in error.hint for way in ("kubectl drain", "--wait-for-pods", "--ignore-pods"))
    assert (snapshot(node), node.restarts) == (before, restarts)
    node.pods = (DB,)
    assert errors(run(node, BACK, payload)) == []


def test_an_update_that_drops_the_shim_under_a_pod_is_refused_and_keeps_its_files(
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


def test_an_update_that_drops_nothing_asks_nobody_and_disturbs_no_pod(node: FakeNode, payload: Path) -> None:
    node.pods = (CACHE, WEB)
    assert errors(run(node, CRI, payload, shims="qemu,clh")) == []
    assert errors(run(node, CRI, payload, shims="qemu,clh", user_drop_in="# mine\n")) == []
    assert node.lists == 0


def test_a_pod_that_ends_while_it_is_waited_for_is_in_the_way_no_longer(
    node: FakeNode, payload: Path, clock: Clock, said: pytest.LogCaptureFixture
) -> None:
    node.pods = (WEB,)
    clock.events = {90.0: lambda: setattr(node, "pods", ())}
    assert errors(run(node, BACK, payload, wait_for_pods=600)) == []
    assert clock.now == 90
    assert kata(node) == []
    assert waits(said) == [
        f"1 pod runs on a handler that would be removed: shop/web (kata-qemu); waiting for at most {left} s"
        for left in (600, 570, 540)
    ]


def test_who_is_waited_for_is_said_anew_when_it_changes(
    node: FakeNode, payload: Path, clock: Clock, said: pytest.LogCaptureFixture
) -> None:
    node.pods = (CACHE, WEB)
    clock.events = {5.0: lambda: setattr(node, "pods", (CACHE,)), 8.0: lambda: setattr(node, "pods", ())}
    assert errors(run(node, BACK, payload, wait_for_pods=600)) == []
    assert [line.partition(":")[0] for line in waits(said)] == [
        "2 pods run on handlers that would be removed",
        "1 pod runs on a handler that would be removed",
    ]


def test_when_the_time_is_up_it_is_refused_as_ever(node: FakeNode, payload: Path, clock: Clock) -> None:
    node.pods = (WEB,)
    before = snapshot(node)
    reports = run(node, BACK, payload, wait_for_pods=2.5)
    assert (exit_code(reports), clock.now, snapshot(node)) == (1, 2.5, before)


def test_others_may_work_on_the_node_while_it_waits(node: FakeNode, payload: Path, clock: Clock) -> None:
    node.pods = (WEB,)

    def another_installation() -> None:
        # Elsewhere it would take the lock; here it finishes within the wait.
        assert errors(run(node, CRI, payload, multi_install_suffix="b", lock_timeout=0)) == []
        node.pods = ()

    clock.events = {3.0: another_installation}
    assert errors(run(node, BACK, payload, wait_for_pods=600)) == []
    assert kata(node) == ["kata-qemu-b"]


def test_somebody_who_is_at_it_when_the_wait_is_over_comes_first(
    node: FakeNode, payload: Path, clock: Clock
) -> None:
    node.pods = (WEB,)
    others = lock.hold(node.root, "of another", 0)
    clock.events = {1.0: others.__enter__}
    reports = run(node, BACK, payload, wait_for_pods=600, lock_timeout=0)
    others.__exit__(None, None, None)
    assert exit_code(reports) == LockedError.exit_code
    assert kata(node) == ["kata-clh", "kata-qemu"]


def test_pods_that_are_to_be_ignored_are_named_with_what_becomes_of_them(
    node: FakeNode, payload: Path
) -> None:
    node.pods = (DB, WEB)
    reports = run(node, BACK, payload, ignore_pods=True)
    assert errors(reports) == []
    assert kata(node) == []
    (note,) = notes(reports)
    assert "shop/web (kata-qemu)" in note
    assert "Terminating" in note
    assert "db" not in note


def test_pods_can_be_given_time_and_then_be_ignored(node: FakeNode, payload: Path, clock: Clock) -> None:
    node.pods = (WEB,)
    assert errors(run(node, BACK, payload, wait_for_pods=20, ignore_pods=True)) == []
    assert (clock.now, kata(node)) == (20, [])


def test_a_dry_run_names_the_pods_in_the_way_and_fails_for_none(
    node: FakeNode, payload: Path, clock: Clock
) -> None:
    node.pods = (WEB,)
    before = snapshot(node)
    planned = run(node, BACK, payload, dry_run=True, wait_for_pods=60)
    assert [report.outcome for report in planned] == ["planned", "planned"]
    assert notes(planned) == [
        "in the way: 1 pod runs on a handler that would be removed: shop/web (kata-qemu)"
    ]
    assert (snapshot(node), clock.now) == (before, 0)


def test_a_runtime_that_answers_nothing_can_still_be_reverted_and_the_report_says_what_is_unknown(
    node: FakeNode, payload: Path
) -> None:
    node.pods, node.handlers = (WEB,), None
    node.root.write(MAIN, b"# mended\nversion = 3\n")
    reports = run(node, BACK, payload)
    assert errors(reports) == []
    assert "the runtime did not answer, so it is unknown which pods run on kata-clh, kata-qemu" in notes(
        reports
    )


def test_a_runtime_that_serves_but_does_not_list_its_pods_loses_nothing_unless_told_to(
    node: FakeNode, payload: Path
) -> None:
    node.list_fails = True
    before, restarts = snapshot(node), node.restarts
    reports = run(node, BACK, payload)
    assert exit_code(reports) == 1
    assert "ListPodSandbox" in str(errors(reports)[0])
    assert "--ignore-pods" in str(errors(reports)[0])
    assert (snapshot(node), node.restarts) == (before, restarts)
    reports = run(node, BACK, payload, ignore_pods=True)
    assert errors(reports) == []
    assert notes(reports) == [
        "the runtime did not answer, so it is unknown which pods run on kata-clh, kata-qemu"
    ]


def test_offline_nobody_is_asked(node: FakeNode, payload: Path) -> None:
    node.pods = (WEB,)
    reports = run(node, BACK, payload, offline=True)
    assert (errors(reports), notes(reports), node.lists) == ([], [], 0)


def test_pods_whose_handler_a_killed_run_took_away_hold_up_nobody(node: FakeNode, payload: Path) -> None:
    """They cannot be helped any more, and the node has to come to an end with it."""

    def die() -> None:
        raise Killed

    node.on_restart = die
    with pytest.raises(Killed):
        run(node, BACK, payload)
    node.on_restart = lambda: None
    node.pods = (WEB,)
    receipt = receipts.load(node.root, "/opt/kata")
    assert receipt is not None
    assert receipt.cri is not None
    assert (receipt.cri.state, kata(node)) == ("unloading", [])
    assert errors(run(node, BACK, payload)) == []


def test_what_a_killed_run_did_not_get_to_take_away_is_kept_for_the_pods_on_it(
    node: FakeNode, payload: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(FakeNode, "restart", die)
        with pytest.raises(Killed):
            run(node, BACK, payload)
    node.pods = (WEB,)
    assert exit_code(run(node, BACK, payload)) == 1
    assert kata(node) == ["kata-clh", "kata-qemu"]
    # And they are served again by whoever decides to install after all.
    assert errors(run(node, CRI, payload, shims="qemu,clh")) == []


def test_of_a_lost_record_the_settings_tell_whose_pods_are_ours(node: FakeNode, payload: Path) -> None:
    node.root.remove("/opt/kata/.kata-node/receipt.json")
    node.pods = (WEB,)
    assert exit_code(run(node, (revert_cri,), payload, shims="qemu,clh")) == 1
    node.pods = ()
    assert errors(run(node, (revert_cri,), payload, shims="qemu,clh")) == []
    assert kata(node) == []


def test_the_files_alone_cannot_be_taken_from_under_a_pod(node: FakeNode, payload: Path) -> None:
    node.pods = (WEB,)
    before = snapshot(node)
    assert exit_code(run(node, (remove_artifacts,), payload, ignore_pods=True)) == 1
    assert snapshot(node) == before


def test_ten_pods_are_named_and_the_rest_are_counted() -> None:
    crowd = BlockingPods(tuple(Pod("shop", f"web-{at}", "kata-qemu") for at in range(12)))
    assert str(crowd).startswith("12 pods run on handlers that would be removed: shop/web-0 (kata-qemu), ")
    assert str(crowd).endswith("shop/web-9 (kata-qemu) and 2 more")


def test_a_runtime_that_is_away_for_a_moment_has_not_lost_its_pods(
    node: FakeNode, payload: Path, clock: Clock
) -> None:
    node.pods = (WEB,)

    def away(what: bool) -> None:
        node.state = "activating" if what else "active"

    clock.events = {
        5: lambda: away(True),
        9: lambda: away(False),
        12: lambda: setattr(node, "cri_hangs", True),
    }
    clock.events[15] = lambda: setattr(node, "cri_hangs", False)
    reports = run(node, BACK, payload, wait_for_pods=30)
    assert (exit_code(reports), clock.now) == (1, 30)
    assert "after 30 s of waiting, 1 pod runs" in reports[-1].summary
    assert "to wait longer" in str(reports[-1].error)
    assert kata(node) == ["kata-clh", "kata-qemu"]


def test_a_runtime_that_is_up_and_does_not_answer_is_feared_to_have_pods(
    node: FakeNode, payload: Path
) -> None:
    before, node.cri_hangs = snapshot(node), True
    reports = run(node, BACK, payload)
    assert exit_code(reports) == 1
    assert "--ignore-pods" in str(reports[-1].error)
    node.cri_hangs = False
    assert snapshot(node) == before


def test_with_its_record_lost_every_handler_that_goes_is_asked_about(node: FakeNode, payload: Path) -> None:
    node.pods = (CACHE,)
    (node.root.base / "opt/kata/.kata-node/receipt.json").unlink()
    reports = run(node, (revert_cri,), payload)  # whose settings name kata-qemu alone
    assert exit_code(reports) == 1
    assert "shop/cache (kata-clh)" in reports[-1].summary
