"""The Events of the stages in `kubectl describe node`, on a real API server."""

from __future__ import annotations

import json

import pytest

from cluster.faulty_proxy import Fault
from cluster.lost_handlers import nodes_report_handlers
from cluster.stage_runner import StageRunner


@pytest.fixture
def stage_runner(stage_runner: StageRunner) -> StageRunner:
    stage_runner.register()
    return stage_runner


def described(stage_runner: StageRunner) -> str:
    text = stage_runner.cluster.kubectl("describe", "node", stage_runner.name).stdout
    return text[text.index("Events:") :]


def test_the_node_has_an_event_for_the_install_and_one_for_the_revert(stage_runner: StageRunner) -> None:
    for stage in ("claim", "label", "unlabel", "unclaim"):
        stage_runner.run(stage).succeeded()
    events = described(stage_runner)
    reasons = ("KataInstalled", "KataRemoved")
    assert [reason for reason in reasons if f"  {reason} " not in events] == []
    assert "kata-node" in events
    assert "Warning" not in events


@nodes_report_handlers
def test_a_failed_stage_records_its_reason_as_an_event(stage_runner: StageRunner) -> None:
    stage_runner.node_writer.report(stage_runner.name, runtimeHandlers=[{"name": "runc"}])
    stage_runner.run("label", "--label-timeout=1").failed()
    events = described(stage_runner)
    assert "Warning  KataInstallFailed" in events
    assert "does not report kata-qemu" in events


def test_the_event_of_the_last_stage_summarizes_the_other_stages(stage_runner: StageRunner) -> None:
    reports = stage_runner.directory / "reports"
    reports.mkdir()
    (reports / "cri.json").write_text('{"stage": "cri", "outcome": "done", "summary": "served at last"}')
    stage_runner.run("label", f"--reports={reports}").succeeded()
    assert "default: served at last; Node" in described(stage_runner)


def test_the_event_says_unchanged_when_all_stages_were_skipped(stage_runner: StageRunner) -> None:
    stage_runner.run("label").succeeded()
    reports = stage_runner.directory / "reports"
    reports.mkdir()
    for stage in ("claim", "artifacts", "cri"):
        skipped = {"stage": stage, "outcome": "skipped", "summary": "there already"}
        (reports / f"{stage}.json").write_text(json.dumps(skipped))
    stage_runner.run("label", f"--reports={reports}").succeeded()
    assert "KataUnchanged" in described(stage_runner)


@pytest.mark.parametrize("answer", [403, 500, 0], ids=["no right", "trouble", "no answer"])
def test_a_refused_event_does_not_fail_the_stage_and_is_not_retried(
    stage_runner: StageRunner, answer: int
) -> None:
    stage_runner.proxy.inject(Fault(status=answer, cut=not answer), method="POST")
    done = stage_runner.run("label").succeeded()
    assert stage_runner.proxy.count("POST") == 1
    assert "cannot record the Event KataInstalled on Node" in done.log
    assert "Events:              <none>" in described(stage_runner)
