"""Startup taints on a real API server: which are lifted, when, and what becomes of those that stay."""

from __future__ import annotations

import json

import pytest
from node.commands import wait_until

from cluster.faulty_proxy import Fault
from cluster.stage_runner import OURS, Scene

STARTING = "example.com/starting"
TAINTS = [
    {"key": STARTING, "effect": "NoSchedule", "value": "kata"},
    {"key": STARTING, "effect": "NoExecute", "timeAdded": "2026-01-01T00:00:00Z"},
    {"key": "example.com/mine", "value": "a", "effect": "NoSchedule"},
]


@pytest.fixture
def scene(scene: Scene) -> Scene:
    scene.register()
    taint(scene, TAINTS)
    return scene


def taint(scene: Scene, taints: list[dict[str, str]]) -> None:
    patch = {"spec": {"taints": taints}}
    scene.hand.do("PATCH", f"/api/v1/nodes/{scene.name}", patch, "application/merge-patch+json")


def taints(scene: Scene) -> list[dict[str, str]]:
    """Those of the Node but for the one the API server itself gives to every new Node."""
    there = scene.hand.node(scene.name)["spec"].get("taints", [])
    return [each for each in there if not each["key"].startswith("node.kubernetes.io/")]


def values(scene: Scene, *startup: str) -> str:
    path = scene.directory / "values.yaml"
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
def test_startup_taints_are_lifted_and_others_stay_as_they_are(
    scene: Scene, startup: list[str], left: list[dict[str, str]]
) -> None:
    scene.run("label", values(scene, *startup)).succeeded()
    assert (taints(scene), scene.labels) == (left, OURS)
    assert scene.run("label", values(scene, *startup)).succeeded().outcome == "skipped"


def test_a_taint_is_lifted_from_a_node_that_is_labelled_already(scene: Scene) -> None:
    scene.run("label").succeeded()
    assert taints(scene) == TAINTS
    assert scene.run("label", values(scene, STARTING)).succeeded().outcome == "done"
    assert taints(scene) == TAINTS[2:]


def test_no_taint_is_lifted_before_the_labels_have_held(scene: Scene) -> None:
    running = scene.start("label", "--label-stable-for=3", values(scene, STARTING))
    wait_until(lambda: scene.labels == OURS, "it is labelled")
    scene.hand.label(scene.name, dict.fromkeys(OURS))
    wait_until(lambda: scene.labels == OURS, "it is labelled again")
    assert taints(scene) == TAINTS
    assert running.wait().returncode == 0
    assert taints(scene) == TAINTS[2:]


def test_a_taint_that_somebody_adds_at_the_same_moment_is_not_lost(scene: Scene) -> None:
    late = {"key": "example.com/late", "effect": "NoSchedule"}
    scene.run("label").succeeded()
    scene.road.meet(Fault(first=lambda: taint(scene, [*TAINTS, late])), method="PATCH")
    scene.run("label", values(scene, STARTING)).succeeded()
    assert taints(scene) == [TAINTS[2], late]
    assert scene.road.count("PATCH", 409) == 1


def test_a_taint_that_must_not_be_lifted_is_a_warning(scene: Scene) -> None:
    scene.road.meet(Fault(status=403), method="PATCH", after=1)
    done = scene.run("label", values(scene, STARTING)).succeeded()
    # The one that was refused stays, and keeps no other.
    assert (done.outcome, scene.labels, taints(scene)) == ("done", OURS, [TAINTS[0], TAINTS[2]])
    (note,) = json.loads(done.done.stdout)["stages"][-1]["notes"]
    assert f"this could not be done: lift the startup taint {STARTING}:NoSchedule" in note
    assert "as ordered" in note
