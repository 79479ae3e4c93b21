"""The image in the pod of a real DaemonSet, on a real node: installed, restarted, and taken off with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from node.installing import HANDLERS, PAYLOAD, UNIT, WATCHED, kata_handlers, make_payload, with_kvm
from node.machine import Node
from node.running import wait_until
from node.snapshot import changes

from cluster.joining import Joined
from cluster.stages import ACCOUNT, prepare, stages_job

NAME = "kata-deploy"
OURS = ("katacontainers.io/kata-runtime", "kata-deploy.katacontainers.io/default")
GRACE = 120
LIMIT = 20 * 1024
"""KiB in which it has to wait."""

MAY_LOOK = f"""\
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {{name: {NAME}}}
rules: [{{apiGroups: [apps], resources: [daemonsets], resourceNames: [{NAME}], verbs: [get]}}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {{name: {NAME}}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: Role, name: {NAME}}}
subjects: [{{kind: ServiceAccount, name: {ACCOUNT}, namespace: default}}]
"""


def daemonset(node: str) -> dict[str, Any]:
    """One of all that the stages mount, with the probes; pinned, for there is no scheduler."""
    spec = stages_job("all", ("host-check", "claim", "artifacts", "cri"))["spec"]["template"]["spec"]
    stages = [*spec.pop("initContainers"), *spec.pop("containers")]
    mounts = {mount["mountPath"]: mount for stage in stages for mount in stage["volumeMounts"]}
    variables = {variable["name"]: variable for stage in stages for variable in stage["env"]}
    del variables["KATA_NODE_REPORTS"]
    variables["KATA_NODE_DAEMONSET"] = {"name": "KATA_NODE_DAEMONSET", "value": f"default/{NAME}"}
    container = {
        **stages[0],
        "name": "kata",
        "args": ["daemon"],
        "env": [*variables.values()],
        "volumeMounts": [*mounts.values()],
        "livenessProbe": {"httpGet": {"path": "/healthz", "port": 8090}, "periodSeconds": 1},
        "readinessProbe": {"httpGet": {"path": "/readyz", "port": 8090}, "periodSeconds": 1},
    }
    pod = {**spec, "nodeName": node, "containers": [container], "terminationGracePeriodSeconds": GRACE}
    del pod["restartPolicy"]
    labels = {"app": NAME}
    template = {"metadata": {"labels": labels}, "spec": pod}
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": NAME},
        "spec": {"selector": {"matchLabels": labels}, "template": template},
    }


def pods(joined: Joined) -> list[Any]:
    listed = joined.cluster.kubectl("get", "pods", f"--selector=app={NAME}", "--output=json").stdout
    return list(json.loads(listed)["items"])


def labels(joined: Joined) -> dict[str, str]:
    node = json.loads(joined.cluster.kubectl("get", "node", joined.node.name, "--output=json").stdout)
    return {name: value for name, value in node["metadata"]["labels"].items() if name in OURS}


def memory(node: Node) -> int:
    """KiB of the one process that stays."""
    (pid,) = node.run(["pgrep", "--full", "kata_node"]).stdout.split()
    status = node.run(["cat", f"/proc/{pid}/status"]).stdout
    return int(status.partition("VmRSS:")[2].split()[0])


def test_kata_comes_with_the_pod_outlives_its_restart_and_goes_with_the_daemonset(
    joined: Joined, image: Path, tmp_path: Path
) -> None:
    cluster, node = joined.cluster, joined.node
    joined.import_image(image)
    with_kvm(node).mount(make_payload(tmp_path / "payload"), PAYLOAD)
    prepare(cluster)
    cluster.kubectl("apply", "--filename=-", text=MAY_LOOK)
    before = node.snapshot(*WATCHED)

    cluster.kubectl("apply", "--filename=-", text=json.dumps(daemonset(node.name)))
    cluster.kubectl("rollout", "status", f"daemonset/{NAME}", "--timeout=120s")
    assert kata_handlers(node) == HANDLERS
    assert labels(joined) == dict.fromkeys(OURS, "true")
    installed, invocation = node.snapshot(*WATCHED), node.unit(UNIT).invocation
    assert memory(node) < LIMIT
    (pod,) = pods(joined)

    cluster.kubectl("rollout", "restart", f"daemonset/{NAME}")
    cluster.kubectl("rollout", "status", f"daemonset/{NAME}", "--timeout=120s")
    wait_until(lambda: len(pods(joined)) == 1, "the first pod is gone", timeout=GRACE)
    assert pods(joined)[0]["metadata"]["uid"] != pod["metadata"]["uid"]
    assert changes(installed, node.snapshot(*WATCHED)) == []
    assert node.unit(UNIT).invocation == invocation
    assert labels(joined) == dict.fromkeys(OURS, "true")

    cluster.kubectl("delete", "daemonset", NAME, "--wait=false")
    wait_until(lambda: not pods(joined), "the pod has ended", timeout=GRACE)
    assert kata_handlers(node) == ()
    assert labels(joined) == {}
    assert changes(before, node.snapshot(*WATCHED)) == []
