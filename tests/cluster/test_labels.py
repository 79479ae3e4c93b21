"""label on a real API server: what it waits for, what it changes, and how it holds that against others."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from cluster.control_plane import Cluster
from cluster.faulty_proxy import FOR_EVER, Fault
from cluster.node_writers import Hand, Writer
from cluster.stage_runner import CLAIMED, MARK, OURS, SHARED, Scene


def ready(status: str, message: str = "") -> list[dict[str, str]]:
    return [
        {"type": "DiskPressure", "status": "False"},
        {"type": "Ready", "status": status, "reason": "Kubelet", "message": message},
    ]


def reported(*names: str) -> list[dict[str, Any]]:
    return [{"name": name, "features": {"recursiveReadOnlyMounts": True}} for name in names]


def held(scene: Scene) -> float:
    """Seconds between the last change and the last look."""
    asked = [each for each in scene.road.requests if "/nodes/" in each.path]
    return asked[-1].at - max(each.at for each in asked if each.method == "PATCH")


# --- what is waited for -----------------------------------------------------------------------------


def test_a_ready_node_is_labelled_and_a_second_run_asks_once_and_writes_nothing(scene: Scene) -> None:
    scene.register()
    scene.run("label").succeeded()
    assert scene.labels == OURS
    before, asked = scene.version, scene.road.count("GET")
    again = scene.run("label").succeeded()
    assert again.outcome == "skipped"
    assert scene.version == before
    assert scene.road.count("GET") == asked + 1


def test_a_node_is_labelled_when_it_has_become_ready_and_not_before(scene: Scene) -> None:
    scene.register(conditions=ready("False", "container runtime network not ready"))
    seen: list[dict[str, str]] = []

    def comes_up() -> None:
        seen.append(scene.labels)
        scene.hand.report(scene.name, conditions=ready("True"))

    scene.road.meet(Fault(first=comes_up), method="GET", after=3)
    done = scene.run("label").succeeded()
    assert seen == [{}]
    assert scene.labels == OURS
    assert "it is not Ready (container runtime network not ready)" in done.log


@pytest.mark.parametrize(
    ("status", "says"),
    [
        pytest.param("False", "cni plugin not initialized", id="the kubelet says why"),
        pytest.param("Unknown", "Kubelet stopped posting node status.", id="the kubelet is away"),
    ],
)
def test_a_node_that_does_not_become_ready_is_not_labelled(scene: Scene, status: str, says: str) -> None:
    scene.register(conditions=ready(status, says))
    failed = scene.run("label", "--label-timeout=2").failed()
    assert f"after 2 s the Node is not Ready ({says})" in failed.text
    assert "kubelet" in failed.error["hint"]
    assert scene.road.count("PATCH") == 0


@pytest.mark.parametrize("handlers", [pytest.param(None, id="absent"), pytest.param([], id="empty")])
def test_a_kubelet_that_reports_no_handlers_at_all_is_not_waited_for(scene: Scene, handlers: object) -> None:
    scene.register(runtimeHandlers=handlers)
    scene.run("label").succeeded()
    assert scene.labels == OURS


def test_handlers_of_ours_that_are_not_reported_yet_are_waited_for(scene: Scene) -> None:
    scene.register(runtimeHandlers=[{"name": ""}, *reported("runc", "kata-clh")])
    seen: list[dict[str, str]] = []

    def catches_up() -> None:
        seen.append(scene.labels)
        scene.hand.report(scene.name, runtimeHandlers=reported("", "runc", "kata-clh", "kata-qemu"))

    scene.road.meet(Fault(first=catches_up), method="GET", after=3)
    done = scene.run("label", "--shims=qemu,clh").succeeded()
    assert seen == [{}]
    assert scene.labels == OURS
    assert "it does not report kata-qemu (it reports runc, kata-clh)" in done.log


def test_a_node_that_never_reports_our_handlers_is_not_labelled(scene: Scene) -> None:
    scene.register(runtimeHandlers=reported("", "runc"))
    failed = scene.run("label", "--shims=qemu,clh", "--label-timeout=2").failed()
    assert "after 2 s the Node does not report kata-clh, kata-qemu (it reports runc)" in failed.text
    assert "restarted" in failed.error["hint"]
    assert scene.road.count("PATCH") == 0


def test_an_instance_waits_for_the_handlers_that_have_its_suffix(scene: Scene) -> None:
    scene.register(runtimeHandlers=reported("kata-qemu"))
    failed = scene.run("label", "--label-timeout=2", instance="blue").failed()
    assert "does not report kata-qemu-blue (it reports kata-qemu)" in failed.text
    scene.hand.report(scene.name, runtimeHandlers=reported("kata-qemu-blue"))
    scene.run("label", instance="blue").succeeded()
    assert scene.labels == {SHARED: "true", f"{MARK}blue": "true"}


# --- labels that hold -------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [1, 3])
def test_labels_that_are_put_back_are_set_again_and_have_to_hold_anew(scene: Scene, times: int) -> None:
    scene.register(CLAIMED)
    put_back = Fault(then=lambda: scene.hand.label(scene.name, CLAIMED))
    scene.road.meet(put_back, method="PATCH", times=times)
    done = scene.run("label", "--label-stable-for=0.8").succeeded()
    assert scene.labels == OURS
    assert scene.road.count("PATCH") == times + 1
    assert done.log.count("was undone; changing it again") == times
    assert held(scene) >= 0.8


def test_labels_wiped_late_in_the_window_begin_a_whole_one(scene: Scene) -> None:
    scene.register()

    def registers_anew() -> None:  # of all labels only what the kubelet itself knows is left
        scene.hand.label(scene.name, dict.fromkeys(scene.labels))

    # Three looks before the change, one that finds the labels kept, and then the one that finds them gone.
    scene.road.meet(Fault(first=registers_anew), method="GET", after=4)
    scene.run("label", "--label-stable-for=2.5").succeeded()
    assert scene.labels == OURS
    assert scene.road.count("PATCH") == 2
    assert held(scene) >= 2.5


def test_labels_put_back_for_ever_are_a_failure_that_says_so(scene: Scene) -> None:
    scene.register(CLAIMED)
    put_back = Fault(then=lambda: scene.hand.label(scene.name, CLAIMED))
    scene.road.meet(put_back, method="PATCH", times=FOR_EVER)
    failed = scene.run("label", "--label-stable-for=1", "--label-timeout=3").failed()
    assert "did not stay as set for 1 s within 3 s: they were undone" in failed.text
    assert "managedFields" in failed.error["hint"]
    assert scene.labels == CLAIMED


# --- others who write -------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [1, 4])
def test_a_node_that_changes_between_the_look_and_the_change_is_looked_at_again(
    scene: Scene, times: int
) -> None:
    scene.register()
    beat = itertools.count()
    someone = Fault(first=lambda: scene.hand.label(scene.name, {"example.org/beat": str(next(beat))}))
    scene.road.meet(someone, method="PATCH", times=times)
    scene.run("label").succeeded()
    assert scene.labels == OURS
    assert scene.hand.node(scene.name)["metadata"]["labels"]["example.org/beat"] == str(times - 1)
    assert (scene.road.count("PATCH", 409), scene.road.count("PATCH", 200)) == (times, 1)


def test_a_node_that_changes_before_every_change_is_a_failure_that_says_so(scene: Scene) -> None:
    scene.register()
    beat = itertools.count()
    someone = Fault(first=lambda: scene.hand.label(scene.name, {"example.org/beat": str(next(beat))}))
    scene.road.meet(someone, method="PATCH", times=FOR_EVER)
    failed = scene.run("label", "--label-timeout=2").failed()
    assert "they were undone 0 times, and" in failed.text
    assert "changes met a conflict" in failed.text
    assert scene.labels == {}


def test_a_node_that_is_written_to_all_the_time_is_labelled_all_the_same(
    scene: Scene, cluster: Cluster
) -> None:
    scene.register()
    beat, hand = itertools.count(), Hand(cluster)
    with Writer(
        lambda: hand.report(scene.name, images=[{"names": [f"image-{next(beat)}"]}]), pause=0.01
    ) as writer:
        scene.run("label", "--label-stable-for=1").succeeded()
    hand.close()
    assert scene.labels == OURS
    assert writer.acts > 20


def test_a_node_with_hundreds_of_labels_and_a_long_status_loses_nothing_of_it(scene: Scene) -> None:
    others = {f"feature.node.kubernetes.io/cpu-{n}.{'x' * 40}": f"{'v' * 60}{n}" for n in range(350)}
    images = [
        {"names": [f"registry.example.org/{'team' * 20}/image-{n}@sha256:{n:064x}"], "sizeBytes": n}
        for n in range(1200)
    ]
    scene.register({**others}, images=images)
    notes = {f"example.org/note-{n}": "a" * 1000 for n in range(200)}
    path = f"/api/v1/nodes/{scene.name}"
    scene.hand.do("PATCH", path, {"metadata": {"annotations": notes}}, "application/merge-patch+json")
    before = scene.hand.node(scene.name)
    assert len(json.dumps(before)) > 400_000  # more than the API server sends uncompressed
    scene.run("label").succeeded()
    after = scene.hand.node(scene.name)
    assert after["metadata"]["labels"] == {**before["metadata"]["labels"], **OURS}
    assert after["metadata"]["annotations"] == before["metadata"]["annotations"]
    assert {**after, "metadata": {}} == {**before, "metadata": {}}
