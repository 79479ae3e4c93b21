"""The image in the pod of a real DaemonSet on a real node: install, restarts, and revert."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.jobs import Job, container, job
from cluster.joined_node import JoinedNode
from cluster.lost_handlers import lose_handlers
from cluster.stage_jobs import ACCOUNT, prepare, stages_job
from cluster.test_stages import AS_RUNC, RUNTIME_CLASS, events, payload_that_runs
from node.commands import wait_until
from node.debian_node import Node
from node.installation import HANDLERS, PAYLOAD, UNIT, VALUES, WATCHED, fake_kvm, kata_handlers, make_payload
from node.snapshot import changes

NAME = "kata-deploy"
LABELED = ("katacontainers.io/kata-runtime", "kata-deploy.katacontainers.io/default")
GRACE = 300
NODE_LABEL = "example.org/kata"
LIMIT = 20 * 1024
"""The memory limit of the waiting daemon, in KiB."""

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


# A runtime that once kills its containers at its start, like the runtimes of some distributions.
KILLS = """\
[Service]
ExecStartPre=/bin/sh -c 'echo "$$INVOCATION_ID" >>/run/starts; \
    test ! -e /run/kill-once || { rm /run/kill-once; pkill --signal KILL --full "[k]ata_node"; }'
"""


def daemonset(node: str, version: str) -> dict[str, Any]:
    """Return a DaemonSet with the mounts of all stages and with probes.

    It is pinned to ``node``, because no scheduler runs. Another ``version`` rolls out new pods.
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
        # On a busy machine Python needs seconds to start, and the tests count the restarts of the container.
        "startupProbe": {
            "httpGet": {"path": "/healthz", "port": 8090},
            "periodSeconds": 1,
            "failureThreshold": 60,
        },
        "livenessProbe": {"httpGet": {"path": "/healthz", "port": 8090}, "timeoutSeconds": 10},
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
    """Apply the DaemonSet and the values :data:`VALUES` plus ``more``."""
    prepare(joined.cluster, {**VALUES, **more})
    joined.cluster.kubectl("apply", "--filename=-", text=json.dumps(daemonset(joined.node.name, version)))


def rolled_out(joined: JoinedNode) -> None:
    """Wait until the new pod has installed and is the only one."""
    joined.cluster.kubectl("rollout", "status", f"daemonset/{NAME}", "--timeout=300s")
    wait_until(lambda: len(pods(joined)) == 1, "the pod before it is gone", timeout=GRACE)


def select(joined: JoinedNode, value: str) -> None:
    """Set the label of the Node; the DaemonSet selects ``yes``."""
    joined.cluster.kubectl("label", "node", joined.node.name, f"{NODE_LABEL}={value}", "--overwrite")


def pods(joined: JoinedNode) -> list[Any]:
    listed = joined.cluster.kubectl("get", "pods", f"--selector=app={NAME}", "--output=json").stdout
    return list(json.loads(listed)["items"])


def is_ready(joined: JoinedNode) -> bool:
    """Return whether the only pod is ready."""
    (pod,) = pods(joined)
    return all(each["ready"] for each in pod["status"]["containerStatuses"])


def labels(joined: JoinedNode) -> dict[str, str]:
    node = json.loads(joined.cluster.kubectl("get", "node", joined.node.name, "--output=json").stdout)
    return {name: value for name, value in node["metadata"]["labels"].items() if name in LABELED}


def process(node: Node) -> str:
    """Return the ``/proc`` directory of the daemon."""
    (pid,) = node.run(["pgrep", "--full", "kata_node.daemon.daemon"]).stdout.split()
    return f"/proc/{pid}"


def memory(node: Node) -> int:
    """Return the resident memory of the daemon, in KiB."""
    status = node.run(["cat", f"{process(node)}/status"]).stdout
    return int(status.partition("VmRSS:")[2].split()[0])


def connections(node: Node) -> list[str]:
    """Return the sockets of the daemon, without the socket of the probes."""
    files = node.run(["find", f"{process(node)}/fd", "-lname", "socket:*"]).stdout.split()
    return files[1:]


@pytest.fixture
def ready(joined: JoinedNode, image: Path, tmp_path: Path) -> JoinedNode:
    """A node that is ready for the DaemonSet."""
    joined.import_image(image)
    fake_kvm(joined.node).mount(make_payload(tmp_path / "payload"), PAYLOAD)
    joined.cluster.kubectl("apply", "--filename=-", text=MAY_LOOK)
    select(joined, "yes")
    return joined


def test_the_pod_installs_kata_which_survives_a_pod_restart_and_is_reverted_with_the_daemonset(
    ready: JoinedNode,
) -> None:
    cluster, node = ready.cluster, ready.node
    before = node.snapshot(*WATCHED)

    deploy(ready)
    rolled_out(ready)
    assert kata_handlers(node) == HANDLERS
    assert labels(ready) == dict.fromkeys(LABELED, "true")
    installed, invocation = node.snapshot(*WATCHED), node.unit(UNIT).invocation
    assert memory(node) < LIMIT
    assert connections(node) == []  # the waiting daemon has no connection
    (pod,) = pods(ready)

    lose_handlers(ready)
    wait_until(lambda: not is_ready(ready), "the pod is not ready")
    wait_until(lambda: "KataNotServed" in events(ready), "the Event says that the node does not serve")
    wait_until(lambda: is_ready(ready), "the pod is ready again", timeout=GRACE)
    assert events(ready)[-2:] == ["KataNotServed", "KataInstalled"]
    assert kata_handlers(node) == HANDLERS
    assert labels(ready) == dict.fromkeys(LABELED, "true")
    differing = changes(installed, node.snapshot(*WATCHED))
    assert [each for each in differing if "/opt/kata/.kata-node/" not in each] == []
    assert memory(node) < LIMIT
    assert connections(node) == []
    installed, invocation = node.snapshot(*WATCHED), node.unit(UNIT).invocation

    cluster.kubectl("rollout", "restart", f"daemonset/{NAME}")
    rolled_out(ready)
    assert pods(ready)[0]["metadata"]["uid"] != pod["metadata"]["uid"]
    assert changes(installed, node.snapshot(*WATCHED)) == []
    assert node.unit(UNIT).invocation == invocation
    assert labels(ready) == dict.fromkeys(LABELED, "true")

    cluster.kubectl("delete", "daemonset", NAME, "--wait=false")
    wait_until(lambda: not pods(ready), "the pod has ended", timeout=GRACE)
    assert kata_handlers(node) == ()
    assert labels(ready) == {}
    assert changes(before, node.snapshot(*WATCHED)) == []


def test_a_container_killed_by_the_runtime_restart_completes_without_another_restart(
    ready: JoinedNode,
) -> None:
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
    assert status["restartCount"] == 1, status
    assert (node.root / "run/starts").read_text().split() == [node.unit(UNIT).invocation]
    assert kata_handlers(node) == HANDLERS
    assert labels(ready) == dict.fromkeys(LABELED, "true")


def test_a_deselected_node_is_reverted_even_with_invalid_values(
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
    wait_until(lambda: "no retry" in written(ready), "the pod logs it", timeout=GRACE)
    [status] = pods(ready)[-1]["status"]["containerStatuses"]
    assert (status["restartCount"], status["ready"]) == (0, False)
    assert node.unit(UNIT).invocation == invocation
    assert kata_handlers(node) == ("kata-qemu",)

    cluster.kubectl("delete", "daemonset", NAME, "--wait=false")
    wait_until(lambda: not pods(ready), "the pod has ended", timeout=GRACE)
    assert labels(ready) == {}
    assert changes(before, node.snapshot(*WATCHED)) == []


def written(joined: JoinedNode) -> str:
    """Return the logs of the current pods."""
    return "".join(
        text for pod in pods(joined) for text in joined.logs("default", pod["metadata"]["name"]).values()
    )


def test_a_node_that_cannot_run_kata_is_not_changed_and_the_reason_is_an_event(ready: JoinedNode) -> None:
    node = ready.node
    node.run(["rm", "--force", "/dev/kvm"])
    before, invocation = node.snapshot(*WATCHED), node.unit(UNIT).invocation
    deploy(ready)
    wait_until(lambda: "this node is unfit" in written(ready), "the pod logs it", timeout=GRACE)
    assert "/dev/kvm" in written(ready)
    assert events(ready) == ["KataNodeUnfit"]
    [status] = pods(ready)[0]["status"]["containerStatuses"]
    assert status["restartCount"] == 0

    ready.cluster.kubectl("delete", "daemonset", NAME, "--wait=false")
    wait_until(lambda: not pods(ready), "the pod has ended", timeout=GRACE)
    assert labels(ready) == {}
    assert changes(before, node.snapshot(*WATCHED)) == []
    assert node.unit(UNIT).invocation == invocation


def test_an_uninstall_waits_for_kata_pods_and_completes_after_they_ended(
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
    assert labels(ready) == dict.fromkeys(LABELED, "false")
    cluster.kubectl("delete", "job", "guest", "--wait", "--cascade=foreground")
    cluster.kubectl("wait", "daemonset", NAME, "--for=delete", f"--timeout={GRACE}s")
    assert labels(ready) == {}
    assert kata_handlers(node) == ()
    assert changes(before, node.snapshot(*WATCHED)) == []
