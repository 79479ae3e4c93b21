"""label while the API server is in trouble: overloaded, restarted, silent, or its answers lost."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from node.commands import Running, wait_until

from cluster.control_plane import Cluster
from cluster.faulty_proxy import FOR_EVER, JSON, Fault, Road
from cluster.stage_runner import OURS, Outcome, Scene

HTML = {"Content-Type": "text/html"}

NOT_READY = [{"type": "Ready", "status": "False", "message": "starting"}]
READY = [{"type": "Ready", "status": "True"}]


# --- answers that are none --------------------------------------------------------------------------


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
def test_what_may_pass_is_tried_again(scene: Scene, fault: Fault) -> None:
    scene.register()
    scene.road.meet(fault, method="GET")
    scene.road.meet(fault, method="PATCH")
    scene.run("label").succeeded()
    assert scene.labels == OURS
    assert scene.road.count("PATCH") == 2


def test_the_time_that_an_overloaded_api_server_asks_for_is_given_to_it(scene: Scene) -> None:
    scene.register()
    scene.road.meet(Fault(429, {**JSON, "Retry-After": "2"}))
    scene.run("label").succeeded()
    refused, tried_again, *_ = scene.road.requests
    assert refused.status == 429
    assert tried_again.at - refused.at >= 2


def test_an_api_server_that_asks_for_more_time_than_there_is_is_not_asked_again(scene: Scene) -> None:
    scene.register()
    scene.road.meet(Fault(429, {**JSON, "Retry-After": "600"}), times=FOR_EVER)
    failed = scene.run("label", "--label-timeout=300").failed()
    assert "the API server answered 429: as ordered" in failed.text
    assert scene.road.count("GET") == 1


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(Fault(cut=True, carried_out=True), id="cut"),
        pytest.param(Fault(504, carried_out=True), id="timeout"),
    ],
)
def test_a_change_whose_answer_is_lost_is_found_made_and_not_made_twice(scene: Scene, answer: Fault) -> None:
    scene.register()
    scene.road.meet(answer, method="PATCH")
    scene.run("label").succeeded()
    assert scene.labels == OURS
    assert scene.road.count("PATCH", 200) == 0
    assert scene.road.count("PATCH", 409) == 1


def test_an_api_server_that_fails_for_good_is_told_with_its_own_words(scene: Scene) -> None:
    scene.register()
    scene.road.meet(Fault(503), times=FOR_EVER)
    failed = scene.run("label", "--label-timeout=2").failed()
    assert "the API server answered 503: as ordered (asked" in failed.text
    assert failed.error["where"] == f"node/{scene.name} at {scene.road.url}"
    assert scene.labels == {}


# --- silence ----------------------------------------------------------------------------------------


def test_an_api_server_that_does_not_speak_holds_nobody_beyond_the_deadline(
    cluster: Cluster, tmp_path: Path
) -> None:
    """Wherever it falls silent, and however slowly it speaks; one that thinks for long is waited for."""
    roads: dict[str, Callable[[Road], None]] = {
        "no handshake": Road.freeze,
        "no answer": lambda road: road.meet(Fault(stall=True), times=FOR_EVER),
        "a byte now and then": lambda road: road.meet(Fault(drip=0.3), times=FOR_EVER),
        # An admission webhook may take 30 s of its own.
        "a late answer": lambda road: road.meet(Fault(delay=11), method="PATCH"),
    }
    with ExitStack() as scenes:
        running: dict[str, tuple[Scene, Running]] = {}
        for title, spoil in roads.items():
            (tmp_path / title).mkdir()
            scene = scenes.enter_context(Scene(cluster, tmp_path / title))
            scene.register()
            spoil(scene.road)
            timeout = 60 if title == "a late answer" else 4
            running[title] = scene, scene.start("label", f"--label-timeout={timeout}")
        late, run = running.pop("a late answer")
        for title, (_, silent) in running.items():
            failed = Outcome.of(silent.wait(30)).failed()
            assert "gave no answer" in failed.text, title
        Outcome.of(run.wait()).succeeded()
        assert late.labels == OURS
        assert [each.status for each in late.road.requests if each.method == "PATCH"] == [200]


# --- restarts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kill", [pytest.param(False, id="drained"), pytest.param(True, id="killed")])
def test_an_api_server_that_is_restarted_is_outlived_at_every_moment(
    own_cluster: Cluster, tmp_path: Path, kill: bool
) -> None:
    for each in ("waits", "holds"):
        (tmp_path / each).mkdir()
    with Scene(own_cluster, tmp_path / "waits") as waits, Scene(own_cluster, tmp_path / "holds") as holds:
        waits.register(conditions=NOT_READY)
        holds.register()
        waiting = waits.start("label", "--label-timeout=60")
        holding = holds.start("label", "--label-timeout=60", "--label-stable-for=3")
        wait_until(lambda: holds.road.count("PATCH", 200) == 1, "the labels are set")
        wait_until(lambda: waits.road.count("GET", 200) > 1, "the Node is waited for")
        own_cluster.stop_apiserver(kill=kill)
        wait_until(lambda: all(each.road.count(status=0) > 1 for each in (waits, holds)), "both have noticed")
        own_cluster.start_apiserver()
        Outcome.of(holding.wait()).succeeded()
        waits.hand.report(waits.name, conditions=READY)
        Outcome.of(waiting.wait()).succeeded()
        assert waits.labels == holds.labels == OURS
