"""The image on a real node: one Job installs, a pod of the RuntimeClass runs, and one Job reverts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from cluster.jobs import Job, container, job
from cluster.joined_node import JoinedNode
from cluster.stage_jobs import INSTALL, REVERT, prepare, stages_job
from cluster.stage_runner import without_records
from kata_node.payload.index import write_manifest
from node.commands import wait_until
from node.debian_node import Node
from node.installation import HANDLERS, PAYLOAD, UNIT, VALUES, fake_kvm, make_payload
from node.snapshot import changes

SHARED_LABEL = "katacontainers.io/kata-runtime"
INSTALLATION_LABEL = "kata-deploy.katacontainers.io/default"
SHIM = "/opt/kata/bin/containerd-shim-kata-v2"
WATCHED = ("/etc", "/opt")

# No VM can start here. The payload's shim is a copy of runc's shim, which needs the runtime type of runc.
AS_RUNC = """\
version = 2
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.kata-qemu]
runtime_type = "io.containerd.runc.v2"
"""

RUNTIME_CLASS = {
    "apiVersion": "node.k8s.io/v1",
    "kind": "RuntimeClass",
    "metadata": {"name": "kata-qemu"},
    "handler": "kata-qemu",
}


def payload_that_runs(node: Node, directory: Path) -> Path:
    """Make a sample payload with a copy of the node's runc shim, which starts containers instead of VMs."""
    make_payload(directory)
    shutil.copy(node.root / "usr/bin/containerd-shim-runc-v2", directory / SHIM.lstrip("/"))
    (directory / "manifest.json").unlink()  # the size of the shim changed
    write_manifest(directory)
    return directory


def bring(joined: JoinedNode, image: Path, payload: Path) -> None:
    """Import the image into a node and mount a payload at :data:`PAYLOAD`, because the image has none."""
    joined.import_image(image)
    fake_kvm(joined.node).mount(payload_that_runs(joined.node, payload), PAYLOAD)


def labels(joined: JoinedNode) -> dict[str, str]:
    """Return the Kata labels of the Node."""
    node: Any = json.loads(joined.cluster.kubectl("get", "node", joined.node.name, "--output=json").stdout)
    return without_records(node["metadata"]["labels"])


def events(joined: JoinedNode) -> list[str]:
    """Return the reasons of kata-node's Events on the Node, oldest first."""
    done = joined.cluster.kubectl(
        "get", "events", "--field-selector=involvedObject.kind=Node", "--output=json"
    )
    found = sorted(json.loads(done.stdout)["items"], key=lambda event: event["metadata"]["creationTimestamp"])
    return [event["reason"] for event in found if event["reason"].startswith("Kata")]


def test_one_job_installs_kata_pods_run_on_it_and_another_job_reverts(
    joined: JoinedNode, image: Path, tmp_path: Path
) -> None:
    cluster, node = joined.cluster, joined.node
    bring(joined, image, tmp_path / "payload")
    prepare(cluster, {**VALUES, "containerd": {"userDropIn": AS_RUNC}})
    cluster.kubectl("apply", "--filename=-", text=json.dumps(RUNTIME_CLASS))
    before, invocation = node.snapshot(*WATCHED), node.unit(UNIT).invocation

    # The Job survives the restart of containerd.
    installed = Job.create(joined, stages_job("install", INSTALL)).wait()
    assert list(installed.states()) == list(INSTALL)
    assert node.activations(UNIT) == 2
    assert node.unit(UNIT).invocation != invocation
    assert set(HANDLERS) <= set(node.cri_handlers())
    assert labels(joined) == {SHARED_LABEL: "true", INSTALLATION_LABEL: "true"}
    assert events(joined) == ["KataInstalled"]
    message = json.loads(installed.states()["cri"]["message"])
    assert (message["stage"], message["outcome"]) == ("cri", "done")

    again = Job.create(joined, stages_job("again", INSTALL)).wait()
    outcomes = {name: json.loads(state["message"])["outcome"] for name, state in again.states().items()}
    assert set(outcomes.values()) == {"done", "skipped"}
    assert {outcomes["claim"], outcomes["artifacts"], outcomes["cri"], outcomes["label"]} == {"skipped"}

    guest = {
        "runtimeClassName": "kata-qemu",
        "nodeSelector": {SHARED_LABEL: "true"},
        "terminationGracePeriodSeconds": 0,
    }
    guest_job = job("guest", {**guest, "containers": [container("guest", "sleep", "infinity")]})
    Job.create(joined, guest_job).running()
    assert node.run(["pgrep", "--full", SHIM]).stdout

    refused = Job.create(joined, stages_job("too-early", REVERT))
    assert refused.ended() == "Failed"
    assert "guest" in refused.states()["revert-cri"]["message"]
    assert set(HANDLERS) <= set(node.cri_handlers())

    cluster.kubectl("delete", "job", "guest", "--wait", "--cascade=foreground")
    wait_until(lambda: not node.run(["pgrep", "--full", SHIM], check=False).stdout, "the shim has ended")
    Job.create(joined, stages_job("revert", REVERT)).wait()
    assert changes(before, node.snapshot(*WATCHED)) == []
    assert labels(joined) == {}
    assert events(joined)[-1] == "KataRemoved"
    assert node.cri_handlers() == ("runc",)
