"""What `kubectl describe node` shows of the stages, on a real API server."""

from __future__ import annotations

import json

import pytest

from cluster.faulty_proxy import Fault
from cluster.stage_runner import StageRunner


@pytest.fixture
def stage_runner(stage_runner: StageRunner) -> StageRunner:
    stage_runner.register()
    return stage_runner


def described(stage_runner: StageRunner) -> str:
    text = stage_runner.cluster.kubectl("describe", "node", stage_runner.name).stdout
    return text[text.index("Events:") :]


def test_the_node_tells_when_it_was_claimed_labelled_and_let_go(stage_runner: StageRunner) -> None:
    for stage in ("claim", "label", "unlabel", "unclaim"):
        stage_runner.run(stage).succeeded()
    events = described(stage_runner)
    reasons = ("KataInstalling", "KataInstalled", "KataRemoving", "KataRemoved")
    assert [reason for reason in reasons if f"  {reason} " not in events] == []
    assert "kata-node" in events
    assert "Warning" not in events


def test_a_stage_that_fails_leaves_its_reason_on_the_node(stage_runner: StageRunner) -> None:
    stage_runner.node_writer.report(stage_runner.name, runtimeHandlers=[{"name": "runc"}])
    stage_runner.run("label", "--label-timeout=1").failed()
    events = described(stage_runner)
    assert "Warning  KataInstallFailed" in events
    assert "does not report kata-qemu" in events


def test_the_last_container_tells_of_what_the_others_did(stage_runner: StageRunner) -> None:
    reports = stage_runner.directory / "reports"
    reports.mkdir()
    (reports / "cri.json").write_text('{"stage": "cri", "outcome": "done", "summary": "served at last"}')
    stage_runner.run("label", f"--reports={reports}").succeeded()
    assert "default: served at last; Node" in described(stage_runner)


def test_that_there_was_nothing_to_do_is_told_when_all_stages_say_so(stage_runner: StageRunner) -> None:
    stage_runner.run("label").succeeded()
    reports = stage_runner.directory / "reports"
    reports.mkdir()
    for stage in ("claim", "artifacts", "cri"):
        skipped = {"stage": stage, "outcome": "skipped", "summary": "there already"}
        (reports / f"{stage}.json").write_text(json.dumps(skipped))
    stage_runner.run("label", f"--reports={reports}").succeeded()
    assert "KataUnchanged" in described(stage_runner)


@pytest.mark.parametrize("answer", [403, 500, 0], ids=["no right", "trouble", "no answer"])
def test_an_event_that_is_refused_fails_nothing_and_is_asked_for_once(
    stage_runner: StageRunner, answer: int
) -> None:
    stage_runner.proxy.inject(Fault(status=answer, cut=not answer), method="POST")
    done = stage_runner.run("label").succeeded()
    assert stage_runner.proxy.count("POST") == 1
    assert "no Event KataInstalled was recorded" in done.log
    assert "Events:              <none>" in described(stage_runner)
