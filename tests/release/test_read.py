"""The releases as they are read: the DaemonSet, whose pods no dispatcher records."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

import pytest

from kata_node.errors import KubeError
from kata_node.kube.reader import Reader
from kata_node.release import text
from kata_node.release.model import ClusterStatus
from kata_node.release.read import Wanted, read_status

STATE = {
    "metadata": {"name": "kata-deploy-state.kata", "namespace": "ns"},
    "data": {"deploymentMode": "daemonset", "desiredState": "present"},
}
NODE_PODS = {"matchLabels": {"app.kubernetes.io/component": "node"}}
MARK = {"kata-deploy.katacontainers.io/default": "true", "katacontainers.io/kata-runtime": "true"}


def node(name: str, labels: Mapping[str, str]) -> dict[str, Any]:
    return {"metadata": {"name": name, "resourceVersion": "1", "labels": dict(labels)}}


def pod(node: str, *, ready: bool, affinity: bool = False, waiting: Any = None) -> dict[str, Any]:
    term = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}
    return {
        "metadata": {"name": f"kube-kata-{node}"},
        "spec": {"affinity": {"nodeAffinity": required}} if affinity else {"nodeName": node},
        "status": {
            "conditions": [{"type": "Ready", "status": str(ready)}],
            "containerStatuses": [{"state": {"waiting": waiting} if waiting else {"running": {}}}],
        },
    }


def daemonset(name: str, wanted: int, ready: int, selector: Mapping[str, Any] = NODE_PODS) -> dict[str, Any]:
    return {
        "metadata": {"name": name},
        "spec": {"selector": selector},
        "status": {"desiredNumberScheduled": wanted, "numberReady": ready},
    }


def status(lists: Mapping[str, list[Any]], wanted: Wanted | None = None) -> ClusterStatus:
    class Fake:
        def list(self, path: str, query: Mapping[str, str] | None = None) -> list[Any]:
            kind = path.rpartition("/")[2]
            if kind not in lists:
                raise KubeError("the API server answered 403")
            return lists[kind]

    return read_status(cast("Reader", Fake()), wanted or Wanted())


def test_a_pod_of_the_daemonset_that_cannot_start_is_told() -> None:
    """Nothing is on its Node yet, so the Nodes alone would look healthy."""
    waiting = {"reason": "ImagePullBackOff", "message": "no such\nimage"}
    found = status(
        {
            "configmaps": [STATE],
            "daemonsets": [daemonset("monitor", 9, 9, {}), daemonset("kata-deploy", 4, 1)],
            "pods": [
                pod("a", ready=True),
                pod("b", ready=False, waiting=waiting),
                pod("c", ready=False, affinity=True),
                pod("d", ready=False),
            ],
            "nodes": [node("a", MARK), node("b", {}), node("c", {}), node("d", MARK)],
        }
    )
    assert not found.is_healthy
    assert [(each.node, each.left) for each in found.rows] == [
        ("a", ""),
        ("b", "its pod kube-kata-b is not ready (ImagePullBackOff: no such image)"),
        ("c", "its pod kube-kata-c is not ready"),
        ("d", "its pod kube-kata-d is not ready"),
    ]
    assert text.to_text(found).startswith("release kata in ns: DaemonSet kata-deploy: 1 of 4 pods ready\n")


def test_a_daemonset_with_all_its_pods_ready_is_healthy_and_its_pods_are_not_read() -> None:
    found = status(
        {
            "configmaps": [STATE],
            "daemonsets": [daemonset("kata-deploy", 1, 1)],
            "nodes": [node("a", MARK), node("b", {})],
        }
    )
    assert found.is_healthy
    assert found.notes == ()


def test_a_daemonset_that_cannot_be_read_is_told_and_the_rest_is_shown() -> None:
    lists = {"configmaps": [STATE], "nodes": [node("a", MARK), node("b", {f"{next(iter(MARK))}x": "true"})]}
    found = status(lists, Wanted("kata", "ns"))
    assert [each.node for each in found.rows] == ["a"]
    shown = text.to_text(found)
    assert "release kata in ns: the DaemonSet cannot be read" in shown
    assert "note: the DaemonSet of the release kata is not known: the API server answered 403" in shown


@pytest.mark.parametrize(
    ("wanted", "told"),
    [pytest.param(Wanted(), True, id="all"), pytest.param(Wanted("kata"), False, id="one")],
)
def test_an_installation_that_no_release_has_is_told(wanted: Wanted, told: bool) -> None:
    """The state of the release was deleted, and another suffix applied."""
    old = {"kata-deploy.katacontainers.io/old": "true", "katacontainers.io/kata-runtime": "true"}
    state = {**STATE, "data": {"deploymentMode": "job"}}
    found = status({"configmaps": [state], "nodes": [node("a", MARK), node("b", old)]}, wanted)
    assert (
        any("no release has the installation old, which is on 1 node:" in each for each in found.notes)
        == told
    )


def test_the_release_that_installed_is_named_if_it_is_gone_or_another_one_is_there() -> None:
    record = json.dumps({"outcome": "installed", "release": "tenants/kata"})
    nodes = []
    for name, installation in (("a", "default"), ("b", "old")):
        label = f"kata-deploy.katacontainers.io/{installation}"
        nodes.append(node(name, {label: "true", "katacontainers.io/kata-runtime": "true"}))
        nodes[-1]["metadata"]["annotations"] = {f"status.{label}": record}
    found = status({"configmaps": [{**STATE, "data": {"deploymentMode": "job"}}], "nodes": nodes})
    assert "the release tenants/kata installed it" in found.rows[0].drift
    [note] = found.notes
    assert "install the chart with this suffix as the release tenants/kata, and uninstall it" in note
