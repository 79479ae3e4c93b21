"""label while the API server is overloaded, silent or restarted, or while its answers are lost."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from cluster.control_plane import Cluster
from cluster.faulty_proxy import JSON, UNLIMITED, Fault, FaultyProxy
from cluster.stage_runner import LABELED, Outcome, StageRunner
from node.commands import RunningCommand, wait_until

HTML = {"Content-Type": "text/html"}

NOT_READY = [{"type": "Ready", "status": "False", "message": "starting"}]
READY = [{"type": "Ready", "status": "True"}]


# --- errors and lost answers ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(Fault(429, {**JSON, "Retry-After": "1"}), id="overloaded"),
        pytest.param(Fault(500), id="internal error"),
        pytest.param(Fault(503), id="unavailable"),
        pytest.param(Fault(504), id="timeout of its own"),
        pytest.param(Fault(502, HTML, "<html>bad gateway"), id="page of a load balancer"),
        pytest.param(Fault(cut=True), id="connection cut"),
    ],
)
def test_transient_faults_are_retried(stage_runner: StageRunner, fault: Fault) -> None:
    stage_runner.register()
    stage_runner.proxy.inject(fault, method="GET")
    stage_runner.proxy.inject(fault, method="PATCH")
    stage_runner.run("label").succeeded()
    assert stage_runner.labels == LABELED
    assert stage_runner.proxy.count("PATCH") == 2


def test_the_retry_after_of_an_overloaded_api_server_is_respected(stage_runner: StageRunner) -> None:
    stage_runner.register()
    stage_runner.proxy.inject(Fault(429, {**JSON, "Retry-After": "2"}))
    stage_runner.run("label").succeeded()
    refused, tried_again, *_ = stage_runner.proxy.requests
    assert refused.status == 429
    assert tried_again.at - refused.at >= 2


def test_a_retry_after_beyond_the_timeout_is_not_waited_for(
    stage_runner: StageRunner,
) -> None:
    stage_runner.register()
    stage_runner.proxy.inject(Fault(429, {**JSON, "Retry-After": "6000"}), times=UNLIMITED)
    failed = stage_runner.run("label", "--label-timeout=3000").failed()
    assert 'the API server answered 429: "injected fault"' in failed.text
    assert stage_runner.proxy.count("GET") == 2  # the second one is to record the failure on the Node


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(Fault(cut=True, carried_out=True), id="cut"),
        pytest.param(Fault(504, carried_out=True), id="timeout"),
    ],
)
def test_a_change_with_a_lost_answer_is_not_made_twice(stage_runner: StageRunner, answer: Fault) -> None:
    stage_runner.register()
    stage_runner.proxy.inject(answer, method="PATCH")
    stage_runner.run("label").succeeded()
    assert stage_runner.labels == LABELED
    assert stage_runner.proxy.count("PATCH", 200) == 0
    assert stage_runner.proxy.count("PATCH", 409) == 1


def test_a_permanent_failure_of_the_api_server_is_reported_with_its_message(
    stage_runner: StageRunner,
) -> None:
    stage_runner.register()
    stage_runner.proxy.inject(Fault(503), times=UNLIMITED)
    failed = stage_runner.run("label", "--label-timeout=2").failed()
    assert 'the API server answered 503: "injected fault"' in failed.text
    assert failed.error["where"] == f"node/{stage_runner.name} at {stage_runner.proxy.url}"
    assert stage_runner.labels == {}


# --- a silent API server ----------------------------------------------------------------------------


def test_a_silent_api_server_is_not_waited_for_beyond_the_timeout(cluster: Cluster, tmp_path: Path) -> None:
    """It may stop at any point or answer very slowly. label waits for an answer that is only late."""
    faults: dict[str, Callable[[FaultyProxy], None]] = {
        "no handshake": FaultyProxy.freeze,
        "no answer": lambda proxy: proxy.inject(Fault(stall=True), times=UNLIMITED),
        "a byte now and then": lambda proxy: proxy.inject(Fault(drip=0.3), times=UNLIMITED),
        # An admission webhook alone may take 30 s.
        "a late answer": lambda proxy: proxy.inject(Fault(delay=11), method="PATCH"),
    }
    with ExitStack() as scenes:
        running: dict[str, tuple[StageRunner, RunningCommand]] = {}
        for title, spoil in faults.items():
            (tmp_path / title).mkdir()
            stage_runner = scenes.enter_context(StageRunner(cluster, tmp_path / title))
            stage_runner.register()
            spoil(stage_runner.proxy)
            timeout = 600 if title == "a late answer" else 4
            running[title] = stage_runner, stage_runner.start("label", f"--label-timeout={timeout}")
        late, run = running.pop("a late answer")
        for title, (_, silent) in running.items():
            failed = Outcome.of(silent.wait()).failed()
            assert "gave no answer" in failed.text, title
        Outcome.of(run.wait()).succeeded()
        assert late.labels == LABELED
        assert [each.status for each in late.proxy.requests if each.method == "PATCH"] == [200]


# --- restarts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kill", [pytest.param(False, id="drained"), pytest.param(True, id="killed")])
def test_label_survives_a_restart_of_the_api_server_at_every_moment(
    own_cluster: Cluster, tmp_path: Path, kill: bool
) -> None:
    for each in ("waits", "holds"):
        (tmp_path / each).mkdir()
    with (
        StageRunner(own_cluster, tmp_path / "waits") as waits,
        StageRunner(own_cluster, tmp_path / "holds") as holds,
    ):
        waits.register(conditions=NOT_READY)
        holds.register()
        waiting = waits.start("label", "--label-timeout=600")
        holding = holds.start("label", "--label-timeout=600", "--label-stable-for=3")
        wait_until(lambda: holds.proxy.count("PATCH", 200) == 1, "the labels are set")
        wait_until(lambda: waits.proxy.count("GET", 200) > 1, "the Node is waited for")
        own_cluster.stop_apiserver(kill=kill)
        wait_until(
            lambda: all(each.proxy.count(status=0) > 1 for each in (waits, holds)), "both have noticed"
        )
        own_cluster.start_apiserver()
        Outcome.of(holding.wait()).succeeded()
        waits.node_writer.report(waits.name, conditions=READY)
        Outcome.of(waiting.wait()).succeeded()
        assert waits.labels == holds.labels == LABELED
