"""Somebody removes the drop-ins of a node and restarts its runtime; the labels stay."""

from __future__ import annotations

import json

import pytest

from cluster import programs
from cluster.joined_node import JoinedNode
from kata_node.kube.node_status import NodeStatus, annotation, encode
from node.commands import wait_until
from node.installation import HANDLERS, UNIT

REPORTS_HANDLERS = programs.kubernetes_release() >= (1, 31)
"""Whether the kubelet reports its handlers, and the API server keeps them in the Node."""

nodes_report_handlers = pytest.mark.skipif(
    not REPORTS_HANDLERS, reason="Kubernetes before 1.31 has no status.runtimeHandlers of a Node"
)


def reported_handlers(joined: JoinedNode) -> set[str]:
    """Return the handlers that the Node reports."""
    node = json.loads(joined.cluster.kubectl("get", "node", joined.node.name, "--output=json").stdout)
    return {each.get("name", "") for each in node["status"].get("runtimeHandlers") or ()}


def record(joined: JoinedNode) -> None:
    """Write the record of an install, as its last stage does."""
    machine_id = (joined.node.root / "etc/machine-id").read_text().strip()
    status = NodeStatus("installed", machine_id=machine_id, handlers=tuple(sorted(HANDLERS)))
    change = f"{annotation('default')}={encode(status)}"
    joined.cluster.kubectl("annotate", "node", joined.node.name, change, "--overwrite")


def lose_handlers(joined: JoinedNode) -> None:
    """Remove the drop-ins, and restart the runtime."""
    node = joined.node
    node.run(["sh", "-c", "rm /opt/kata/containerd/config.d/*"])
    node.run(["systemctl", "restart", UNIT])
    wait_until(lambda: node.cri_handlers() == ("runc",), "the runtime serves no Kata handler")
