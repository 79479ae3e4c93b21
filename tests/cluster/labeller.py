"""The chart's ServiceAccount of the containers that label a Node, and requests with its rights."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cluster.control_plane import Cluster
from cluster.helm_chart import ApiCaller, ApiResponse, admin, apply, on_node, render
from node.commands import wait_until

SHARED_LABEL = "katacontainers.io/kata-runtime"
INSTALLATION_LABEL_PREFIX = "kata-deploy.katacontainers.io/"
TEMPLATES = ("labeller-rbac.yaml", "labeller-admission.yaml")

ANY_EFFECT = {"key": "example.org/kata", "value": "booting", "effect": "NoExecute"}
ONE_EFFECT = {"key": "example.org/agent", "effect": "NoSchedule"}
OTHER_EFFECT = {"key": "example.org/agent", "effect": "PreferNoSchedule"}
FOREIGN = {"key": "example.org/gpu", "value": "a100", "effect": "NoSchedule"}
STARTUP = ["example.org/kata", "example.org/agent:NoSchedule"]
TAINTS = [ANY_EFFECT, ONE_EFFECT, OTHER_EFFECT, FOREIGN]

EVENTS = "/api/v1/namespaces/default/events"


@dataclass(frozen=True)
class LabellerRelease:
    """The labeller's objects of one release of the chart in a cluster."""

    cluster: Cluster
    release: str
    namespace: str
    suffix: str = ""

    @property
    def account(self) -> str:
        """Its ServiceAccount."""
        return f"kata-deploy-{self.suffix}-labeller" if self.suffix else "kata-deploy-labeller"

    @property
    def installation_label(self) -> str:
        """The installation label of the release."""
        return INSTALLATION_LABEL_PREFIX + (self.suffix or "default")

    def apply(self) -> LabellerRelease:
        """Apply the objects, and wait until the API server enforces them."""
        if self.cluster.kubectl("get", "namespace", self.namespace, check=False).returncode:
            self.cluster.kubectl("create", "namespace", self.namespace)
        values = {"env": {"multiInstallSuffix": self.suffix}, "startupTaints": STARTUP}
        apply(self.cluster, render(self.cluster, self.release, self.namespace, values=values, only=TEMPLATES))
        node = worker(self.cluster)
        labeller = self.on(node)
        # The API server enforces each new role and policy only after a moment.
        wait_until(
            lambda: (
                labeller.call("GET", f"/api/v1/nodes/{node}").status == 200
                and "denied request" in labeller.patch(node, labels(a="b"), dry=True).message
                and "denied request" in labeller.call("POST", EVENTS, event("another"), dry=True).message
            ),
            f"the rules for {self.account} are in force",
        )
        return self

    def on(self, node: str) -> ApiCaller:
        """Return a client with the labeller's token of a pod on ``node``."""
        return on_node(self.cluster, self.namespace, self.account, node)


def worker(cluster: Cluster, **metadata: object) -> str:
    """Register a Node with the taints of these tests, and return its name."""
    name = f"least-{secrets.token_hex(4)}"
    cluster.node(name)
    administrator = admin(cluster)
    # A controller annotates each new Node; wait for it, so that later comparisons do not see it.
    wait_until(lambda: "annotations" in administrator.node(name)["metadata"], f"{name} has annotations")
    patch = {"metadata": metadata, "spec": {"taints": TAINTS}}
    assert administrator.patch(name, patch).status == 200
    return name


def event(node: str, **fields: object) -> dict[str, Any]:
    """Return an Event as kata-node records it about a Node; ``fields`` replace its fields."""
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"generateName": f"{node}.", "namespace": "default"},
        "involvedObject": {"apiVersion": "v1", "kind": "Node", "name": node, "uid": node},
        "type": "Normal",
        "reason": "KataInstalled",
        "message": "default: handlers kata-qemu served",
        "source": {"component": "kata-node", "host": node},
        "reportingComponent": "kata-node",
        "reportingInstance": "pod",
        **fields,
    }


def labels(**values: str | None) -> dict[str, Any]:
    """Return a patch of labels as kata-node sends it.

    ``shared`` stands for the shared label and ``own`` for the installation label.
    """
    keys = {"shared": SHARED_LABEL, "own": f"{INSTALLATION_LABEL_PREFIX}default"}
    return {"metadata": {"labels": {keys.get(key, key): value for key, value in values.items()}}}


def taints(*those: Mapping[str, str]) -> dict[str, Any]:
    """Return a patch of the whole list of taints, as kata-node sends it."""
    return {"spec": {"taints": list(those)}}


def refusal(answer: ApiResponse) -> str:
    """Return the reason of a refusal by an admission policy."""
    assert answer.status == 403, answer
    return answer.message.partition(" denied request: ")[2]
