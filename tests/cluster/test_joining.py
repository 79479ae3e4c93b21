"""A node with a real kubelet in a cluster: what the Node object shows of an installation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from cluster.control_plane import Cluster
from cluster.joined_node import JoinedNode
from cluster.lost_handlers import nodes_report_handlers
from node.cache import CHECKOUT
from node.commands import wait_until
from node.debian_node import Node
from node.images import archive, layer
from node.installation import HANDLERS, PAYLOAD, VALUES, fake_kvm, make_payload, outcomes
from node.node_records import running

ACCOUNT = "system:serviceaccount:default:kata-node"
SHARED_LABEL = "katacontainers.io/kata-runtime"


def seen(joined: JoinedNode) -> Any:
    """Return the Node object."""
    return json.loads(joined.cluster.kubectl("get", "node", joined.node.name, "--output=json").stdout)


def reported(joined: JoinedNode) -> set[str]:
    """Return the handlers that the kubelet reports, without the empty default one."""
    return {each["name"] for each in seen(joined)["status"]["runtimeHandlers"]} - {""}


def test_a_joined_node_reports_its_machine_id_and_its_kubelet(shared_node: JoinedNode) -> None:
    info = seen(shared_node)["status"]["nodeInfo"]
    assert info["machineID"] == (shared_node.node.root / "etc/machine-id").read_text().strip()
    assert info["kubeletVersion"] == shared_node.cluster.kubernetes


@nodes_report_handlers
def test_a_joined_node_reports_its_handlers(shared_node: JoinedNode) -> None:
    assert reported(shared_node) == {"runc"}


@nodes_report_handlers
def test_the_kubelet_reports_the_handlers_and_the_node_is_labeled_until_the_revert(
    joined: JoinedNode, tmp_path: Path
) -> None:
    cluster, node = joined.cluster, joined.node
    cluster.kubectl("create", "serviceaccount", "kata-node")
    cluster.kubectl("create", "clusterrole", "kata-node", "--verb=get,patch", "--resource=nodes")
    bind = ("--clusterrole=kata-node", "--serviceaccount=default:kata-node")
    cluster.kubectl("create", "clusterrolebinding", "kata-node", *bind)
    env = {
        "KUBECONFIG": joined.kubeconfig(ACCOUNT),
        "NODE_NAME": node.name,
        "KATA_NODE_LABEL_STABLE_FOR": "1",
    }

    fake_kvm(node).mount(make_payload(tmp_path / "payload"), PAYLOAD)
    done = node.kata_node("install", "--output", "json", config=VALUES, payload=PAYLOAD, env=env, check=True)
    assert set(outcomes(done).values()) == {"done"}
    assert seen(joined)["metadata"]["labels"][SHARED_LABEL] == "true"
    wait_until(lambda: reported(joined) == {"runc", *HANDLERS}, "the kubelet has reported the handlers")

    node.kata_node("revert", config=VALUES, env=env, check=True)
    assert SHARED_LABEL not in seen(joined)["metadata"]["labels"]
    wait_until(lambda: reported(joined) == {"runc"}, "the kubelet has reported that they are gone")


def test_testcluster_starts_a_cluster_with_a_real_node_and_loads_images(
    needs_nodes: None, tmp_path: Path
) -> None:
    name, worker = f"person-{os.getpid()}", f"worker-{os.getpid()}"

    def testcluster(*args: str) -> str:
        command = [sys.executable, str(CHECKOUT / "scripts/testcluster"), *args, "--name", name]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    image = archive(tmp_path / "some.tar", ["localhost/some:test"], layer({"some": b""}, {}), {})
    try:
        assert f"{worker}: joined {name}" in testcluster("up", "--real-node", worker)
        assert f"{worker}: has {image}" in testcluster("load", str(image))
        assert (
            "localhost/some:test"
            in Node.attach(worker).run(["ctr", "--namespace=k8s.io", "images", "ls"]).stdout
        )
        ready = Cluster.attach(name).kubectl("get", "node", worker).stdout
        assert " Ready " in ready
    finally:
        stopped = testcluster("down")
    assert f"{worker}: stopped" in stopped
    assert worker not in [record.name for record in running()]
