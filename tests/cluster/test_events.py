"""What `kubectl describe node` shows of the stages, on a real API server."""

from __future__ import annotations

import json

import pytest

from cluster.faulty_proxy import Fault
from cluster.stage_runner import Scene


@pytest.fixture
def scene(scene: Scene) -> Scene:
    scene.register()
    return scene


def described(scene: Scene) -> str:
    text = scene.cluster.kubectl("describe", "node", scene.name).stdout
    return text[text.index("Events:") :]


def test_the_node_tells_when_it_was_claimed_labelled_and_let_go(scene: Scene) -> None:
    for stage in ("claim", "label", "unlabel", "unclaim"):
        scene.run(stage).succeeded()
    events = described(scene)
    reasons = ("KataInstalling", "KataInstalled", "KataRemoving", "KataRemoved")
    assert [reason for reason in reasons if f"  {reason} " not in events] == []
    assert "kata-node" in events
    assert "Warning" not in events


def test_a_stage_that_fails_leaves_its_reason_on_the_node(scene: Scene) -> None:
    scene.hand.report(scene.name, runtimeHandlers=[{"name": "runc"}])
    scene.run("label", "--label-timeout=1").failed()
    events = described(scene)
    assert "Warning  KataInstallFailed" in events
    assert "does not report kata-qemu" in events


def test_the_last_container_tells_of_what_the_others_did(scene: Scene) -> None:
    reports = scene.directory / "reports"
    reports.mkdir()
    (reports / "cri.json").write_text('{"stage": "cri", "outcome": "done", "summary": "served at last"}')
    scene.run("label", f"--reports={reports}").succeeded()
    assert "default: served at last; Node" in described(scene)


def test_that_there_was_nothing_to_do_is_told_when_all_stages_say_so(scene: Scene) -> None:
    scene.run("label").succeeded()
    reports = scene.directory / "reports"
    reports.mkdir()
    for stage in ("claim", "artifacts", "cri"):
        skipped = {"stage": stage, "outcome": "skipped", "summary": "there already"}
        (reports / f"{stage}.json").write_text(json.dumps(skipped))
    scene.run("label", f"--reports={reports}").succeeded()
    assert "KataUnchanged" in described(scene)


@pytest.mark.parametrize("answer", [403, 500, 0], ids=["no right", "trouble", "no answer"])
def test_an_event_that_is_refused_fails_nothing_and_is_asked_for_once(scene: Scene, answer: int) -> None:
    scene.road.meet(Fault(status=answer, cut=not answer), method="POST")
    done = scene.run("label").succeeded()
    assert scene.road.count("POST") == 1
    assert "no Event KataInstalled was recorded" in done.log
    assert "Events:              <none>" in described(scene)
