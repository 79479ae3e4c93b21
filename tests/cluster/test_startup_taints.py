"""Startup taints on a real API server: which are removed, when, and what happens to other taints."""

from __future__ import annotations

import json

import pytest

from cluster.faulty_proxy import Fault
from cluster.stage_runner import LABELED, StageRunner
from node.commands import wait_until

STARTING = "example.com/starting"
TAINTS = [
    {"key": STARTING, "effect": "NoSchedule", "value": "kata"},
    {"key": STARTING, "effect": "NoExecute", "timeAdded": "2026-01-01T00:00:00Z"},
    {"key": "example.com/mine", "value": "a", "effect": "NoSchedule"},
]


@pytest.fixture
def stage_runner(stage_runner: StageRunner) -> StageRunner:
    stage_runner.register()
    taint(stage_runner, TAINTS)
    return stage_runner


def taint(stage_runner: StageRunner, taints: list[dict[str, str]]) -> None:
    patch = {"spec": {"taints": taints}}
    stage_runner.node_writer.do(
        "PATCH", f"/api/v1/nodes/{stage_runner.name}", patch, "application/merge-patch+json"
    )


def taints(stage_runner: StageRunner) -> list[dict[str, str]]:
    """Return the taints of the Node without the one that the API server adds to every new Node."""
    there = stage_runner.node_writer.node(stage_runner.name)["spec"].get("taints", [])
    return [each for each in there if not each["key"].startswith("node.kubernetes.io/")]


def values(stage_runner: StageRunner, *startup: str) -> str:
    path = stage_runner.directory / "values.yaml"
    path.write_text(f"startupTaints: {json.dumps(startup)}\n")
    return f"--config={path}"


@pytest.mark.parametrize(
    ("startup", "left"),
    [
        pytest.param([STARTING], TAINTS[2:], id="by key, whatever the effect"),
        pytest.param([f"{STARTING}:NoExecute"], [TAINTS[0], TAINTS[2]], id="by key and effect"),
        pytest.param([f"{STARTING}:NoSchedule", "example.com/mine"], TAINTS[1:2], id="two"),
        pytest.param(["example.com"], TAINTS, id="another key"),
    ],
)
def test_startup_taints_are_removed_and_other_taints_stay(
    stage_runner: StageRunner, startup: list[str], left: list[dict[str, str]]
) -> None:
    stage_runner.run("label", values(stage_runner, *startup)).succeeded()
    assert (taints(stage_runner), stage_runner.labels) == (left, LABELED)
    assert stage_runner.run("label", values(stage_runner, *startup)).succeeded().outcome == "skipped"


def test_a_taint_is_removed_from_a_node_that_already_has_its_labels(stage_runner: StageRunner) -> None:
    stage_runner.run("label").succeeded()
    assert taints(stage_runner) == TAINTS
    assert stage_runner.run("label", values(stage_runner, STARTING)).succeeded().outcome == "done"
    assert taints(stage_runner) == TAINTS[2:]


def test_no_taint_is_removed_before_the_labels_are_stable(stage_runner: StageRunner) -> None:
    running = stage_runner.start("label", "--label-stable-for=3", values(stage_runner, STARTING))
    wait_until(lambda: stage_runner.labels == LABELED, "the Node is labeled")
    stage_runner.node_writer.label(stage_runner.name, dict.fromkeys(LABELED))
    wait_until(lambda: stage_runner.labels == LABELED, "the Node is labeled again")
    assert taints(stage_runner) == TAINTS
    assert running.wait().returncode == 0
    assert taints(stage_runner) == TAINTS[2:]


def test_a_taint_that_is_added_at_the_same_time_is_not_lost(stage_runner: StageRunner) -> None:
    late = {"key": "example.com/late", "effect": "NoSchedule"}
    stage_runner.run("label").succeeded()
    stage_runner.proxy.inject(Fault(first=lambda: taint(stage_runner, [*TAINTS, late])), method="PATCH")
    stage_runner.run("label", values(stage_runner, STARTING)).succeeded()
    assert taints(stage_runner) == [TAINTS[2], late]
    assert stage_runner.proxy.count("PATCH", 409) == 1


def test_a_taint_that_may_not_be_removed_is_a_warning(stage_runner: StageRunner) -> None:
    stage_runner.proxy.inject(Fault(status=403), method="PATCH", after=1)
    done = stage_runner.run("label", values(stage_runner, STARTING)).succeeded()
    # The refused taint stays, and does not prevent the removal of others.
    assert (done.outcome, stage_runner.labels, taints(stage_runner)) == (
        "done",
        LABELED,
        [TAINTS[0], TAINTS[2]],
    )
    (note,) = json.loads(done.done.stdout)["stages"][-1]["notes"]
    assert f"could not remove the startup taint {STARTING}:NoSchedule" in note
    assert "injected fault" in note
