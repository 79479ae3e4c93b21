"""The image in the pod of a real DaemonSet, on a real node: when Kata stays there, and when it goes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from node.commands import wait_until
from node.debian_node import Node
from node.installation import HANDLERS, PAYLOAD, UNIT, VALUES, WATCHED, fake_kvm, kata_handlers, make_payload
from node.snapshot import changes

from cluster.jobs import Job, container, job
from cluster.joined_node import JoinedNode
from cluster.stage_jobs import ACCOUNT, prepare, stages_job
from cluster.test_stages import AS_RUNC, RUNTIME_CLASS, events, payload_that_runs

NAME = "kata-deploy"
OURS = ("katacontainers.io/kata-runtime", "kata-deploy.katacontainers.io/default")
GRACE = 300
NODE_LABEL = "example.org/kata"
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


# A runtime that takes its containers with it, as that of some distributions does, once.
KILLS = """\
[Service]
ExecStartPre=/bin/sh -c 'echo "$$INVOCATION_ID" >>/run/starts; \
    test ! -e /run/kill-once || { rm /run/kill-once; pkill --signal KILL --full "[k]ata_node"; }'
"""


def daemonset(node: str, version: str) -> dict[str, Any]:
    """One of all that the stages mount, with the probes; pinned, for there is no scheduler.

    Another ``version`` of its pods is one with other values.
    """
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
    pod = {
        **spec,
        "nodeName": node,
        "nodeSelector": {NODE_LABEL: "yes"},
        "containers": [container],
        "terminationGracePeriodSeconds": GRACE,
    }
    del pod["restartPolicy"]
    labels = {"app": NAME}
    template = {"metadata": {"labels": labels, "annotations": {"version": version}}, "spec": pod}
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": NAME},
        "spec": {"selector": {"matchLabels": labels}, "template": template},
    }


def deploy(joined: JoinedNode, version: str = "1", **more: Any) -> None:
    """Apply it, with ``more`` on top of the values that all tests install."""
    prepare(joined.cluster, {**VALUES, **more})
    joined.cluster.kubectl("apply", "--filename=-", text=json.dumps(daemonset(joined.node.name, version)))


def rolled_out(joined: JoinedNode) -> None:
    """Wait until the one pod there is has installed."""
    joined.cluster.kubectl("rollout", "status", f"daemonset/{NAME}", "--timeout=300s")
    wait_until(lambda: len(pods(joined)) == 1, "the pod before it is gone", timeout=GRACE)


def select(joined: JoinedNode, mark: str) -> None:
    """Have the Node selected by ``yes``."""
    joined.cluster.kubectl("label", "node", joined.node.name, f"{NODE_LABEL}={mark}", "--overwrite")


def pods(joined: JoinedNode) -> list[Any]:
    listed = joined.cluster.kubectl("get", "pods", f"--selector=app={NAME}", "--output=json").stdout
    return list(json.loads(listed)["items"])


def labels(joined: JoinedNode) -> dict[str, str]:
    node = json.loads(joined.cluster.kubectl("get", "node", joined.node.name, "--output=json").stdout)
    return {name: value for name, value in node["metadata"]["labels"].items() if name in OURS}


def process(node: Node) -> str:
    """The directory in ``/proc`` of the one that stays."""
    (pid,) = node.run(["pgrep", "--full", "kata_node"]).stdout.split()
    return f"/proc/{pid}"


def memory(node: Node) -> int:
    """KiB that it takes."""
    status = node.run(["cat", f"{process(node)}/status"]).stdout
    return int(status.partition("VmRSS:")[2].split()[0])


def connections(node: Node) -> list[str]:
    """Its sockets, but for the one on which it is probed."""
    files = node.run(["find", f"{process(node)}/fd", "-lname", "socket:*"]).stdout.split()
    return files[1:]


@pytest.fixture
def ready(joined: JoinedNode, image: Path, tmp_path: Path) -> JoinedNode:
    """A node on which nothing but the DaemonSet is missing."""
    joined.import_image(image)
    fake_kvm(joined.node).mount(make_payload(tmp_path / "payload"), PAYLOAD)
    joined.cluster.kubectl("apply", "--filename=-", text=MAY_LOOK)
    select(joined, "yes")
    return joined


def test_kata_comes_with_the_pod_outlives_its_restart_and_goes_with_the_daemonset(ready: JoinedNode) -> None:
    cluster, node = ready.cluster, ready.node
    before = node.snapshot(*WATCHED)

    deploy(ready)
    rolled_out(ready)
    assert kata_handlers(node) == HANDLERS
    assert labels(ready) == dict.fromkeys(OURS, "true")
    installed, invocation = node.snapshot(*WATCHED), node.unit(UNIT).invocation
    assert memory(node) < LIMIT
    assert connections(node) == []  # nobody is asked anything while it waits
    (pod,) = pods(ready)

    cluster.kubectl("rollout", "restart", f"daemonset/{NAME}")
    rolled_out(ready)
    assert pods(ready)[0]["metadata"]["uid"] != pod["metadata"]["uid"]
    assert changes(installed, node.snapshot(*WATCHED)) == []
    assert node.unit(UNIT).invocation == invocation
    assert labels(ready) == dict.fromkeys(OURS, "true")

    cluster.kubectl("delete", "daemonset", NAME, "--wait=false")
    wait_until(lambda: not pods(ready), "the pod has ended", timeout=GRACE)
    assert kata_handlers(node) == ()
    assert labels(ready) == {}
    assert changes(before, node.snapshot(*WATCHED)) == []


def test_a_container_killed_by_the_restart_of_the_runtime_goes_on_without_another(ready: JoinedNode) -> None:
    node = ready.node
    drop_in = node.root / "run/systemd/system/containerd.service.d"
    drop_in.mkdir(parents=True)
    (drop_in / "kills.conf").write_text(KILLS)
    (node.root / "run/kill-once").touch()
    node.run(["systemctl", "daemon-reload"])

    deploy(ready)
    rolled_out(ready)
    assert not (node.root / "run/kill-once").exists()
    [status] = pods(ready)[0]["status"]["containerStatuses"]
    assert status["restartCount"] == 1
    assert (node.root / "run/starts").read_text().split() == [node.unit(UNIT).invocation]
    assert kata_handlers(node) == HANDLERS
    assert labels(ready) == dict.fromkeys(OURS, "true")


def test_a_node_is_left_when_it_is_selected_no_more_and_wrong_values_keep_nothing_there(
    ready: JoinedNode,
) -> None:
    cluster, node = ready.cluster, ready.node
    before = node.snapshot(*WATCHED)
    deploy(ready)
    rolled_out(ready)

    select(ready, "no")
    wait_until(lambda: not pods(ready), "the pod has ended", timeout=GRACE)
    assert labels(ready) == {}
    assert changes(before, node.snapshot(*WATCHED)) == []

    select(ready, "yes")
    rolled_out(ready)
    assert kata_handlers(node) == HANDLERS
    files = node.snapshot("/opt/kata/bin")
    deploy(ready, "2", shims={"qemu": {"enabled": True}})
    rolled_out(ready)
    assert kata_handlers(node) == ("kata-qemu",)
    assert [
        path for path in changes(files, node.snapshot("/opt/kata/bin")) if "containerd-shim" in path
    ] == []

    invocation = node.unit(UNIT).invocation
    deploy(ready, "3", shims={"qmeu": {"enabled": True}})
    wait_until(lambda: "no retry" in written(ready), "the pod has told of it", timeout=GRACE)
    [status] = pods(ready)[-1]["status"]["containerStatuses"]
    assert (status["restartCount"], status["ready"]) == (0, False)
    assert node.unit(UNIT).invocation == invocation
    assert kata_handlers(node) == ("kata-qemu",)

    cluster.kubectl("delete", "daemonset", NAME, "--wait=false")
    wait_until(lambda: not pods(ready), "the pod has ended", timeout=GRACE)
    assert labels(ready) == {}
    assert changes(before, node.snapshot(*WATCHED)) == []


def written(joined: JoinedNode) -> str:
    """What the pods there are have logged."""
    return "".join(
        text for pod in pods(joined) for text in joined.logs("default", pod["metadata"]["name"]).values()
    )


def test_a_node_that_cannot_run_it_is_left_alone_and_the_reason_is_an_event(ready: JoinedNode) -> None:
    node = ready.node
    node.run(["rm", "--force", "/dev/kvm"])
    before, invocation = node.snapshot(*WATCHED), node.unit(UNIT).invocation
    deploy(ready)
    wait_until(lambda: "no retry" in written(ready), "the pod has told of it", timeout=GRACE)
    assert "/dev/kvm" in written(ready)
    assert events(ready) == ["KataInstallFailed"]
    [status] = pods(ready)[0]["status"]["containerStatuses"]
    assert (status["restartCount"], status["ready"]) == (0, False)

    ready.cluster.kubectl("delete", "daemonset", NAME, "--wait=false")
    wait_until(lambda: not pods(ready), "the pod has ended", timeout=GRACE)
    assert labels(ready) == {}
    assert changes(before, node.snapshot(*WATCHED)) == []
    assert node.unit(UNIT).invocation == invocation


def test_an_uninstall_waits_for_pods_on_kata_and_is_completed_when_they_have_ended(
    ready: JoinedNode, tmp_path: Path
) -> None:
    cluster, node = ready.cluster, ready.node
    node.mount(payload_that_runs(node, tmp_path / "runs"), PAYLOAD)
    before = node.snapshot(*WATCHED)
    deploy(ready, containerd={"userDropIn": AS_RUNC})
    rolled_out(ready)
    cluster.kubectl("apply", "--filename=-", text=json.dumps(RUNTIME_CLASS))
    guest = {"runtimeClassName": "kata-qemu", "terminationGracePeriodSeconds": 0}
    Job.create(
        ready, job("guest", {**guest, "containers": [container("guest", "sleep", "infinity")]})
    ).running()

    cluster.kubectl("delete", "daemonset", NAME, "--cascade=foreground", "--wait=false")
    wait_until(lambda: "the revert failed" in written(ready), "it has failed once")
    assert "guest" in written(ready)
    assert len(pods(ready)) == 1
    assert labels(ready) == dict.fromkeys(OURS, "false")
    cluster.kubectl("delete", "job", "guest", "--wait", "--cascade=foreground")
    cluster.kubectl("wait", "daemonset", NAME, "--for=delete", f"--timeout={GRACE}s")
    assert labels(ready) == {}
    assert kata_handlers(node) == ()
    assert changes(before, node.snapshot(*WATCHED)) == []
