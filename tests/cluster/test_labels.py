"""label on a real API server: waiting for the Node, labels that stay stable, and other writers."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from cluster.control_plane import Cluster
from cluster.faulty_proxy import UNLIMITED, Fault
from cluster.lost_handlers import nodes_report_handlers
from cluster.node_writers import NodeWriter, RepeatingWriter
from cluster.stage_runner import CLAIMED, INSTALLATION_LABEL_PREFIX, LABELED, SHARED_LABEL, StageRunner


def ready(status: str, message: str = "") -> list[dict[str, str]]:
    return [
        {"type": "DiskPressure", "status": "False"},
        {"type": "Ready", "status": status, "reason": "Kubelet", "message": message},
    ]


def reported(*names: str) -> list[dict[str, Any]]:
    return [{"name": name, "features": {"recursiveReadOnlyMounts": True}} for name in names]


def held(stage_runner: StageRunner) -> float:
    """Return the seconds between the last write and the last read."""
    asked = [each for each in stage_runner.proxy.requests if "/nodes/" in each.path]
    return asked[-1].at - max(each.at for each in asked if each.method == "PATCH")


def test_the_record_follows_a_run_that_fails_and_one_that_succeeds(stage_runner: StageRunner) -> None:
    stage_runner.register(conditions=ready("False", "no network"), nodeInfo={"machineID": "ab" * 16})
    stage_runner.run("claim").succeeded()
    begun = stage_runner.record()
    assert begun is not None
    assert (begun.outcome, begun.machine_id) == ("installing", "ab" * 16)
    stage_runner.run("label", "--label-timeout=2").failed()
    failed = stage_runner.record()
    assert failed is not None
    assert failed.outcome == "failed"
    assert failed.reason.startswith(f"label: node/{stage_runner.name}: after 2 s the Node is not Ready")
    assert stage_runner.labels == CLAIMED
    stage_runner.node_writer.report(stage_runner.name, conditions=ready("True"))
    stage_runner.run("label").succeeded()
    served = stage_runner.record()
    assert served is not None
    assert (served.outcome, served.reason, served.handlers) == ("installed", "", ("kata-qemu",))
    assert served.settings == begun.settings
    version = stage_runner.version
    for stage in ("claim", "label"):
        assert stage_runner.run(stage).succeeded().outcome == "skipped"
    assert stage_runner.version == version, "an unchanged install writes nothing"
    stage_runner.run("unlabel").succeeded()
    removing = stage_runner.record()
    assert removing is not None
    assert (removing.outcome, removing.settings) == ("removing", served.settings)
    stage_runner.run("unclaim").succeeded()
    assert stage_runner.record() is None


# --- waiting for the Node ---------------------------------------------------------------------------


def test_a_ready_node_is_labeled_and_a_second_run_only_reads_it_once(
    stage_runner: StageRunner,
) -> None:
    stage_runner.register()
    stage_runner.run("label").succeeded()
    assert stage_runner.labels == LABELED
    before, asked = stage_runner.version, stage_runner.proxy.count("GET")
    again = stage_runner.run("label").succeeded()
    assert again.outcome == "skipped"
    assert stage_runner.version == before
    assert stage_runner.proxy.count("GET") == asked + 1


def test_a_node_is_labeled_only_after_it_is_ready(stage_runner: StageRunner) -> None:
    stage_runner.register(conditions=ready("False", "container runtime network not ready"))
    seen: list[dict[str, str]] = []

    def comes_up() -> None:
        seen.append(stage_runner.labels)
        stage_runner.node_writer.report(stage_runner.name, conditions=ready("True"))

    stage_runner.proxy.inject(Fault(first=comes_up), method="GET", after=1)
    done = stage_runner.run("label").succeeded()
    assert seen == [{}]
    assert stage_runner.labels == LABELED
    assert 'it is not Ready ("container runtime network not ready")' in done.log


@pytest.mark.parametrize(
    ("status", "says"),
    [
        pytest.param("False", "cni plugin not initialized", id="the kubelet says why"),
        pytest.param("Unknown", "Kubelet stopped posting node status.", id="the kubelet is away"),
    ],
)
def test_a_node_that_does_not_become_ready_is_not_labeled(
    stage_runner: StageRunner, status: str, says: str
) -> None:
    stage_runner.register(conditions=ready(status, says))
    failed = stage_runner.run("label", "--label-timeout=2").failed()
    assert f'after 2 s the Node is not Ready ("{says}")' in failed.text
    assert "kubelet" in failed.error["hint"]
    assert stage_runner.proxy.count("PATCH") == 0


@pytest.mark.parametrize("handlers", [pytest.param(None, id="absent"), pytest.param([], id="empty")])
def test_a_kubelet_that_does_not_report_handlers_is_not_waited_for(
    stage_runner: StageRunner, handlers: object
) -> None:
    stage_runner.register(runtimeHandlers=handlers)
    stage_runner.run("label").succeeded()
    assert stage_runner.labels == LABELED


@nodes_report_handlers
def test_label_waits_until_the_kubelet_reports_the_kata_handlers(stage_runner: StageRunner) -> None:
    stage_runner.register(runtimeHandlers=[{"name": ""}, *reported("runc", "kata-clh")])
    seen: list[dict[str, str]] = []

    def catches_up() -> None:
        seen.append(stage_runner.labels)
        stage_runner.node_writer.report(
            stage_runner.name, runtimeHandlers=reported("", "runc", "kata-clh", "kata-qemu")
        )

    stage_runner.proxy.inject(Fault(first=catches_up), method="GET", after=1)
    done = stage_runner.run("label", "--shims=qemu,clh").succeeded()
    assert seen == [{}]
    assert stage_runner.labels == LABELED
    assert "it does not report kata-qemu (it reports runc, kata-clh)" in done.log


@nodes_report_handlers
def test_a_node_that_never_reports_the_kata_handlers_is_not_labeled(stage_runner: StageRunner) -> None:
    stage_runner.register(runtimeHandlers=reported("", "runc"))
    failed = stage_runner.run("label", "--shims=qemu,clh", "--label-timeout=2").failed()
    assert "after 2 s the Node does not report kata-clh, kata-qemu (it reports runc)" in failed.text
    assert "restarted" in failed.error["hint"]
    assert stage_runner.proxy.count("PATCH") == 0


@nodes_report_handlers
def test_an_installation_waits_for_the_handlers_with_its_suffix(stage_runner: StageRunner) -> None:
    stage_runner.register(runtimeHandlers=reported("kata-qemu"))
    failed = stage_runner.run("label", "--label-timeout=2", instance="blue").failed()
    assert "does not report kata-qemu-blue (it reports kata-qemu)" in failed.text
    stage_runner.node_writer.report(stage_runner.name, runtimeHandlers=reported("kata-qemu-blue"))
    stage_runner.run("label", instance="blue").succeeded()
    assert stage_runner.labels == {SHARED_LABEL: "true", f"{INSTALLATION_LABEL_PREFIX}blue": "true"}


# --- labels that stay stable ------------------------------------------------------------------------


@pytest.mark.parametrize("times", [1, 3])
def test_overwritten_labels_are_set_again_and_the_stable_time_starts_again(
    stage_runner: StageRunner, times: int
) -> None:
    stage_runner.register(CLAIMED)
    put_back = Fault(then=lambda: stage_runner.node_writer.label(stage_runner.name, CLAIMED))
    stage_runner.proxy.inject(put_back, method="PATCH", times=times)
    done = stage_runner.run("label", "--label-stable-for=0.8").succeeded()
    assert stage_runner.labels == LABELED
    assert stage_runner.proxy.count("PATCH") == times + 1
    assert done.log.count("another writer undid the changes of Node") == times
    assert held(stage_runner) >= 0.8


def test_labels_that_are_removed_late_start_the_whole_stable_time_again(stage_runner: StageRunner) -> None:
    stage_runner.register()

    def remove_labels() -> None:  # a kubelet that registers again keeps only its own labels
        stage_runner.node_writer.label(stage_runner.name, dict.fromkeys(stage_runner.labels))

    # One read before the write, and then the one at the end of the stable time.
    stage_runner.proxy.inject(Fault(first=remove_labels), method="GET", after=1)
    stage_runner.run("label", "--label-stable-for=2.5").succeeded()
    assert stage_runner.labels == LABELED
    assert stage_runner.proxy.count("PATCH") == 2
    assert held(stage_runner) >= 2.5


def test_labels_that_are_always_overwritten_are_a_failure_with_the_reason(stage_runner: StageRunner) -> None:
    stage_runner.register(CLAIMED)
    put_back = Fault(then=lambda: stage_runner.node_writer.label(stage_runner.name, CLAIMED))
    stage_runner.proxy.inject(put_back, method="PATCH", times=UNLIMITED)
    failed = stage_runner.run("label", "--label-stable-for=1", "--label-timeout=3").failed()
    assert "did not stay unchanged for 1 s within 3 s: they were undone" in failed.text
    assert "managedFields" in failed.error["hint"]
    assert stage_runner.labels == CLAIMED


# --- other writers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [1, 4])
def test_a_node_that_changes_between_read_and_write_is_read_again(
    stage_runner: StageRunner, times: int
) -> None:
    stage_runner.register()
    beat = itertools.count()
    someone = Fault(
        first=lambda: stage_runner.node_writer.label(stage_runner.name, {"example.org/beat": str(next(beat))})
    )
    stage_runner.proxy.inject(someone, method="PATCH", times=times)
    stage_runner.run("label").succeeded()
    assert stage_runner.labels == LABELED
    assert stage_runner.node_writer.node(stage_runner.name)["metadata"]["labels"]["example.org/beat"] == str(
        times - 1
    )
    assert (stage_runner.proxy.count("PATCH", 409), stage_runner.proxy.count("PATCH", 200)) == (times, 1)


def test_a_node_that_changes_before_every_write_is_a_failure_with_the_reason(
    stage_runner: StageRunner,
) -> None:
    stage_runner.register()
    beat = itertools.count()
    someone = Fault(
        first=lambda: stage_runner.node_writer.label(stage_runner.name, {"example.org/beat": str(next(beat))})
    )
    stage_runner.proxy.inject(someone, method="PATCH", times=UNLIMITED)
    failed = stage_runner.run("label", "--label-timeout=2").failed()
    assert "they were undone 0 times, and" in failed.text
    assert "changes met a conflict" in failed.text
    assert stage_runner.labels == {}


def test_a_node_with_a_busy_writer_is_labeled(stage_runner: StageRunner, cluster: Cluster) -> None:
    stage_runner.register()
    beat, node_writer = itertools.count(), NodeWriter(cluster)
    with RepeatingWriter(
        lambda: node_writer.report(stage_runner.name, images=[{"names": [f"image-{next(beat)}"]}]), pause=0.01
    ) as writer:
        stage_runner.run("label", "--label-stable-for=1").succeeded()
    node_writer.close()
    assert stage_runner.labels == LABELED
    assert writer.acts > 20


def test_a_node_with_hundreds_of_labels_and_a_long_status_keeps_all_of_it(
    stage_runner: StageRunner,
) -> None:
    others = {f"feature.node.kubernetes.io/cpu-{n}.{'x' * 40}": f"{'v' * 60}{n}" for n in range(350)}
    images = [
        {"names": [f"registry.example.org/{'team' * 20}/image-{n}@sha256:{n:064x}"], "sizeBytes": n}
        for n in range(1200)
    ]
    stage_runner.register({**others}, images=images)
    notes = {f"example.org/note-{n}": "a" * 1000 for n in range(200)}
    path = f"/api/v1/nodes/{stage_runner.name}"
    stage_runner.node_writer.do(
        "PATCH", path, {"metadata": {"annotations": notes}}, "application/merge-patch+json"
    )
    before = stage_runner.node_writer.node(stage_runner.name)
    assert len(json.dumps(before)) > 400_000  # more than the API server sends uncompressed
    stage_runner.run("label").succeeded()
    after = stage_runner.node_writer.node(stage_runner.name)
    record = {
        "outcome.kata-deploy.katacontainers.io/default": "installed",
        "version.kata-deploy.katacontainers.io/default": "unknown",
    }
    assert after["metadata"]["labels"] == {**before["metadata"]["labels"], **LABELED, **record}
    setter = {"katacontainers.io/kata-runtime-set-by": "kata-node"}
    annotations = dict(after["metadata"]["annotations"])
    assert '"outcome":"installed"' in annotations.pop("status.kata-deploy.katacontainers.io/default")
    assert annotations == {**before["metadata"]["annotations"], **setter}
    assert {**after, "metadata": {}} == {**before, "metadata": {}}
