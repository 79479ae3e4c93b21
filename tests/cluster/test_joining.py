"""A real kubelet on a real node, in a real cluster: how an installation looks from the API server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from node.installing import HANDLERS, PAYLOAD, VALUES, make_payload, outcomes, with_kvm
from node.running import wait_until

from cluster.joining import Joined

ACCOUNT = "system:serviceaccount:default:kata-node"
SHARED = "katacontainers.io/kata-runtime"


def seen(joined: Joined) -> Any:
    """The Node as the API server has it."""
    return json.loads(joined.cluster.kubectl("get", "node", joined.node.name, "--output=json").stdout)


def reported(joined: Joined) -> set[str]:
    """The handlers the kubelet has reported, but for the default one."""
    return {each["name"] for each in seen(joined)["status"]["runtimeHandlers"]} - {""}


def test_a_node_joins_as_the_machine_it_is(joined: Joined) -> None:
    info = seen(joined)["status"]["nodeInfo"]
    assert info["machineID"] == (joined.node.root / "etc/machine-id").read_text().strip()
    assert info["kubeletVersion"] == joined.cluster.kubernetes
    assert reported(joined) == {"runc"}


def test_an_installation_is_reported_by_the_kubelet_and_labelled_until_it_is_reverted(
    joined: Joined, tmp_path: Path
) -> None:
    cluster, node = joined.cluster, joined.node
    cluster.kubectl("create", "serviceaccount", "kata-node")
    cluster.kubectl("create", "clusterrole", "kata-node", "--verb=get,patch", "--resource=nodes")
    bind = ("--clusterrole=kata-node", "--serviceaccount=default:kata-node")
    cluster.kubectl("create", "clusterrolebinding", "kata-node", *bind)
    env = {"KUBECONFIG": joined.kubeconfig(ACCOUNT), "NODE_NAME": node.name}

    with_kvm(node).mount(make_payload(tmp_path / "payload"), PAYLOAD)
    done = node.kata_node("install", "--output", "json", config=VALUES, payload=PAYLOAD, env=env, check=True)
    assert set(outcomes(done).values()) == {"done"}
    assert seen(joined)["metadata"]["labels"][SHARED] == "true"
    wait_until(lambda: reported(joined) == {"runc", *HANDLERS}, "the kubelet has reported the handlers")

    node.kata_node("revert", config=VALUES, env=env, check=True)
    assert SHARED not in seen(joined)["metadata"]["labels"]
    wait_until(lambda: reported(joined) == {"runc"}, "the kubelet has reported that they are gone")
