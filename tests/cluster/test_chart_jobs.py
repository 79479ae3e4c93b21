"""The Jobs that the chart renders, on a real node with their mounts, rights, accounts and settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from cluster.chart_objects import job_for
from cluster.helm_chart import CHART
from cluster.jobs import Job, container, job
from cluster.joined_node import JoinedNode
from cluster.test_stages import (
    AS_RUNC,
    INSTALLATION_LABEL,
    SHARED_LABEL,
    SHIM,
    WATCHED,
    bring,
    events,
    labels,
)
from kata_node.kube import node_status
from node.commands import wait_until
from node.images import KATA_NODE
from node.installation import PAYLOAD, UNIT, VALUES
from node.snapshot import changes

NAMESPACE = "kata-system"
REFERENCE, _, TAG = KATA_NODE.rpartition(":")
RELEASE: dict[str, Any] = {
    "deploymentMode": "job",
    "image": {"reference": REFERENCE, "tag": TAG},
    "nodeImage": None,
    "imagePullPolicy": "Never",
    "snapshotter": {"setup": []},
    "shims": {"disableAll": True, **VALUES["shims"]},
    "containerd": {"userDropIn": AS_RUNC},
    "startupTaints": ["example.org/kata"],
    # No test starts a VM, so there is no overhead.
    "runtimeClasses": {"overheadEnabled": False},
}


def release(joined: JoinedNode, image: Path, directory: Path) -> None:
    """Apply the release's objects without its hooks."""
    bring(joined, image, directory / "payload")
    where = (f"--namespace={NAMESPACE}", "--create-namespace", "--no-hooks", "--values=-")
    joined.cluster.helm("install", "kata", str(CHART), *where, text=json.dumps(RELEASE))


def dispatcher_configs(joined: JoinedNode, file: str, runtime: str = "") -> Job:
    """Create the node Job that the dispatcher creates, from the template in the release's ConfigMap.

    The template is the one for ``runtime``, by default the container runtime of the Node.
    """
    where = f"--namespace={NAMESPACE}"
    read = joined.cluster.kubectl("get", "configmap", "kata-deploy-dispatcher", where, "--output=json")
    config = yaml.safe_load(json.loads(read.stdout)["data"][file])
    node: Any = json.loads(joined.cluster.kubectl("get", "node", joined.node.name, "--output=json").stdout)
    info = node["status"]["nodeInfo"]
    runtime = runtime or info["containerRuntimeVersion"].partition("://")[0]
    text = json.dumps(job_for(config, runtime)).replace("@MACHINE_ID@", info["machineID"])
    manifest = json.loads(text)
    manifest["metadata"]["name"] = f"{config['namePrefix']}-{joined.node.name}"
    manifest["spec"]["backoffLimit"] = 0
    # The test image contains no payload.
    pod = manifest["spec"]["template"]["spec"]
    pod["volumes"].append({"name": "payload", "hostPath": {"path": PAYLOAD, "type": "Directory"}})
    for each in (*pod["initContainers"], *pod["containers"]):
        each["volumeMounts"].append({"name": "payload", "mountPath": "/opt/kata-payload", "readOnly": True})
    return Job.create(joined, manifest, namespace=NAMESPACE)


def test_the_jobs_of_a_release_install_kata_and_an_uninstall_leaves_nothing(
    joined: JoinedNode, image: Path, tmp_path: Path
) -> None:
    cluster, node = joined.cluster, joined.node
    release(joined, image, tmp_path)
    cluster.kubectl("taint", "node", node.name, "example.org/kata=booting:NoSchedule")
    before = node.snapshot(*WATCHED)

    installed = dispatcher_configs(joined, "install.yaml").wait()
    assert list(installed.states()) == ["host-check", "claim", "artifacts", "cri", "label"]
    assert node.activations(UNIT) == 2
    assert labels(joined) == {SHARED_LABEL: "true", INSTALLATION_LABEL: "true"}
    assert events(joined) == ["KataInstalled"]
    metadata = json.loads(cluster.kubectl("get", "node", node.name, "--output=json").stdout)["metadata"]
    record = node_status.read(metadata["annotations"], "default")
    assert record is not None
    # The container of label has no payload: it knows the version from the reports of the other containers.
    assert record.outcome == "installed"
    assert "kata-qemu" in record.handlers
    assert record.kata_version
    assert record.machine_id
    assert record.settings
    assert metadata["labels"][node_status.version_label("default")] == record.kata_version
    spec = json.loads(cluster.kubectl("get", "node", node.name, "--output=json").stdout)["spec"]
    assert "example.org/kata" not in json.dumps(spec)

    # The pod uses the chart's RuntimeClass with its node selector.
    guest = {"runtimeClassName": "kata-qemu", "terminationGracePeriodSeconds": 0}
    guest_job = job("guest", {**guest, "containers": [container("guest", "sleep", "infinity")]})
    Job.create(joined, guest_job).running()
    cluster.kubectl("delete", "job", "guest", "--wait", "--cascade=foreground")
    wait_until(lambda: not node.run(["pgrep", "--full", SHIM], check=False).stdout, "the shim has ended")

    dispatcher_configs(joined, "cleanup.yaml").wait()
    assert changes(before, node.snapshot(*WATCHED)) == []
    assert labels(joined) == {}
    metadata = json.loads(cluster.kubectl("get", "node", node.name, "--output=json").stdout)["metadata"]
    left = (*metadata["labels"], *metadata["annotations"])
    assert [each for each in left if each.startswith(("status.kata", "version.kata", "outcome.kata"))] == []
    assert events(joined)[-1] == "KataRemoved"
    assert node.cri_handlers() == ("runc",)


def test_a_job_for_another_runtime_than_the_nodes_fails_with_the_reason(
    joined: JoinedNode, image: Path, tmp_path: Path
) -> None:
    node = joined.node
    release(joined, image, tmp_path)
    before = node.snapshot(*WATCHED)
    wrong = dispatcher_configs(joined, "install.yaml", "cri-o")
    assert wrong.ended() == "Failed"
    # host-check leaves its report to claim, because the node does not serve.
    ended = wrong.states()["claim"]
    assert ended["exitCode"] == 1  # retried: the runtime may be starting
    assert "/run/containerd/containerd.sock: there is no CRI socket" in ended["message"]
    # The kubelet creates the directories that a pod mounts.
    assert changes(before, node.snapshot(*WATCHED)) == ["+ /etc/crio", "+ /opt/kata"]
    assert [list(node.root.joinpath(name).iterdir()) for name in ("etc/crio", "opt/kata")] == [[], []]
    assert labels(joined) == {}
