"""A release whose dispatcher labels the Nodes, on a real API server: no pod on a node has a token."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.control_plane import Cluster
from cluster.fake_kubelet import failed
from cluster.helm_chart import MERGE, admin, unbound
from cluster.labeller import refusal
from cluster.simulated_release import HANDLERS, SHARED_LABEL, SimulatedRelease
from kata_node.cluster.labels import SETTER_ANNOTATION
from kata_node.kube import node_status

NODES = ("teal-1", "teal-2")
MARK = "kata-deploy.katacontainers.io/teal"
STARTUP = "example.org/kata"
VALUES: dict[str, Any] = {
    "deploymentMode": "job",
    "env": {"multiInstallSuffix": "teal"},
    "job": {"waitForNodesSeconds": 0, "nodeSettleSeconds": 0, "nodes": list(NODES), "backoffLimit": 0},
    "shims": {"disableAll": True, "qemu": {"enabled": True}},
    "startupTaints": [STARTUP],
}


@pytest.fixture(scope="module")
def machines(workers: Cluster) -> Cluster:
    """A cluster with two more Nodes, which are Ready and report a handler of the release."""
    for name in NODES:
        info = {"containerRuntimeVersion": "containerd://2.3.4", "machineID": "0" * 32}
        ready = [{"type": "Ready", "status": "True"}]
        handlers = [{"name": each} for each in ("", "runc", *HANDLERS)]
        status = {"nodeInfo": info, "conditions": ready, "runtimeHandlers": handlers}
        workers.node(name, labels={"kubernetes.io/os": "linux"}, status=status)
        taints = [
            {"key": STARTUP, "effect": "NoSchedule"},
            {"key": "example.org/gpu", "effect": "NoSchedule"},
        ]
        assert admin(workers).patch(name, {"spec": {"taints": taints}}).status == 200
    return workers


@pytest.fixture(scope="module")
def limited(machines: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatedRelease]:
    """An installed release whose policies limit the token of its dispatcher."""
    values = {**VALUES, "rbac": {"labelsBy": "dispatcher"}}
    with SimulatedRelease(machines, "teal-limited", tmp_path_factory.mktemp("teal"), values) as release:
        release.helm("install")
        yield release
        release.helm("uninstall", "--no-hooks")
        for name in NODES:
            metadata = {"labels": {SHARED_LABEL: None, MARK: None}, "annotations": None}
            assert admin(machines).patch(name, {"metadata": metadata}).status == 200


def node(release: SimulatedRelease, name: str) -> Any:
    return admin(release.cluster).node(name)


def labels(release: SimulatedRelease) -> list[tuple[str | None, str | None]]:
    found = [node(release, name)["metadata"]["labels"] for name in NODES]
    return [(each.get(SHARED_LABEL), each.get(MARK)) for each in found]


def reasons(release: SimulatedRelease, name: str) -> list[str]:
    which = f"--field-selector=involvedObject.name={name}"
    read = release.cluster.kubectl("get", "events", "--namespace=default", which, "--output=json")
    found = [each for each in json.loads(read.stdout)["items"] if each["message"].startswith("teal: ")]
    return [each["reason"] for each in sorted(found, key=lambda each: each["firstTimestamp"])]


def outcome(release: SimulatedRelease, name: str) -> node_status.NodeStatus:
    found = node_status.read(node(release, name)["metadata"]["annotations"], "teal")
    assert found is not None
    return found


def test_the_dispatcher_labels_the_nodes_and_no_pod_on_a_node_has_a_token(limited: SimulatedRelease) -> None:
    assert labels(limited) == [("true", "true")] * 2
    for name in NODES:
        found = node(limited, name)
        record = outcome(limited, name)
        assert (record.outcome, record.kata_version, record.handlers) == ("installed", "4.1.0", HANDLERS)
        assert record.machine_id == "0" * 32
        assert found["metadata"]["annotations"][SETTER_ANNOTATION] == "kata-node"
        assert {each["key"] for each in found["spec"]["taints"]} >= {"example.org/gpu"}
        assert STARTUP not in {each["key"] for each in found["spec"]["taints"]}
        assert reasons(limited, name)[-1:] == ["KataInstalled"]
    # The pods as the API server has completed them.
    pods = limited.items("pods", "--selector=app.kubernetes.io/component=node-job")
    assert {each["spec"]["nodeName"] for each in pods} == set(NODES)
    assert [each["name"] for each in pods[0]["spec"]["initContainers"]] == ["host-check", "artifacts"]
    assert not [each for each in pods if 'serviceAccountToken"' in json.dumps(each["spec"])]


# --- what a token can do ----------------------------------------------------------------------------


def label(**values: str | None) -> dict[str, Any]:
    return {"metadata": {"labels": {{"own": MARK}.get(key, key): value for key, value in values.items()}}}


ONLY_LABELS = "change only the labels"
FORBIDDEN = {
    "a role": (label(**{"node-role.kubernetes.io/control-plane": ""}), ONLY_LABELS),
    "another label": (label(own="true", **{"example.org/zone": "b"}), ONLY_LABELS),
    "another installation": (label(**{"kata-deploy.katacontainers.io/red": "true"}), ONLY_LABELS),
    "another value": (label(own="maybe"), "to true or false"),
    "an annotation": ({"metadata": {"annotations": {"a.b/c": "d"}}}, "change only the annotation"),
    "a finalizer": ({"metadata": {"finalizers": ["a.b/c"]}}, "only labels and annotations"),
    "cordoned": ({"spec": {"unschedulable": True}}, "only the taints"),
    "a new taint": (
        {"spec": {"taints": [{"key": "x", "effect": "NoExecute"}]}},
        "may not add or change taints",
    ),
    "no taints": ({"spec": {"taints": []}}, "only the taints of a Node that startupTaints lists"),
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_the_dispatcher_may_change_nothing_but_the_labels_of_its_installation(
    limited: SimulatedRelease, what: str
) -> None:
    change, says = FORBIDDEN[what]
    caller = unbound(limited.cluster, limited.namespace, "kata-deploy-teal-dispatcher")
    assert says in refusal(caller.patch("teal-1", change))


def test_the_account_of_the_node_jobs_has_no_rights(limited: SimulatedRelease) -> None:
    caller = unbound(limited.cluster, limited.namespace, "kata-deploy-teal-labeller")
    for method, path, body in (
        ("GET", "/api/v1/nodes/teal-1", None),
        ("PATCH", "/api/v1/nodes/teal-1", label(own="true")),
        ("POST", "/api/v1/namespaces/default/events", {"metadata": {"name": "x"}}),
        ("GET", f"/api/v1/namespaces/{limited.namespace}/secrets", None),
    ):
        answer = caller.call(method, path, body, kind=MERGE if method == "PATCH" else "application/json")
        assert (answer.status, "kata-deploy-teal-labeller" in answer.message) == (403, True), answer


def test_without_policies_a_failed_node_keeps_its_label_and_an_uninstall_removes_all(
    machines: Cluster, limited: SimulatedRelease, tmp_path: Path
) -> None:
    # The release with policies is another installation on the same Nodes.
    rbac = {"admissionPolicy": "never"}
    values = {
        **VALUES,
        "env": {"multiInstallSuffix": "coral"},
        "rbac": rbac,
        "runtimeClasses": {"enabled": False},
    }
    own = MARK.replace("teal", "coral")
    with SimulatedRelease(machines, "coral", tmp_path, values) as release:
        release.answers["teal-1"] = [failed("artifacts", 4, "no space")]
        release.helm("install", check=False)
        found = [node(release, name)["metadata"] for name in NODES]
        assert [each["labels"].get(own) for each in found] == ["false", "true"]
        record = node_status.read(found[0]["annotations"], "coral")
        assert record is not None
        assert (record.outcome, "no space" in record.reason) == ("rolled-back", True)
        release.helm("uninstall")
        assert ("cleanup", "teal-1") in release.history
        for name in NODES:
            metadata = node(release, name)["metadata"]
            keys = (*metadata["labels"], *metadata["annotations"])
            assert [each for each in keys if each.endswith("/coral")] == []
    # The other installation keeps what it has.
    assert labels(limited) == [("true", "true")] * 2
    assert [outcome(limited, name).outcome for name in NODES] == ["installed"] * 2
