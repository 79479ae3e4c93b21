"""Pods on a joined node: Jobs run to their end and reach the API server; the scheduler binds pods."""

from __future__ import annotations

import json

import pytest

from cluster.chart_objects import JOB, dispatcher_configs, documents, job_for
from cluster.jobs import Job, container, job
from cluster.joined_node import JoinedNode
from node.cache import NodeError
from node.installation import UNIT

TOKENS = "/var/run/secrets/tokens"

WHOAMI = f"""\
wget -q -O - --no-check-certificate \
  --header "Authorization: Bearer $(cat {TOKENS}/token)" --header "Content-Type: application/json" \
  --post-data '{{"kind": "SelfSubjectReview", "apiVersion": "authentication.k8s.io/v1"}}' \
  "https://$KUBERNETES_SERVICE_HOST/apis/authentication.k8s.io/v1/selfsubjectreviews"
"""


def test_the_containers_of_a_job_run_in_order_and_leave_termination_messages(shared_node: JoinedNode) -> None:
    shared = {"volumeMounts": [{"name": "shared", "mountPath": "/shared"}]}
    first = "echo first >/shared/word; echo the word is written"
    then = "cat /shared/word >/dev/termination-log; echo the word is passed on >&2"
    spec = {
        "volumes": [{"name": "shared", "emptyDir": {}}],
        "automountServiceAccountToken": False,
        "initContainers": [container("first", "sh", "-c", first) | shared],
        "containers": [container("then", "sh", "-c", then) | shared],
    }
    done = Job.create(shared_node, job("in-order", spec)).wait()
    assert done.logs() == {"first": "the word is written\n", "then": "the word is passed on\n"}
    assert done.states()["then"]["message"] == "first\n"


def test_a_failed_job_is_described_completely(shared_node: JoinedNode) -> None:
    does = "echo what went wrong; echo the reason >/dev/termination-log; exit 3"
    never = {
        "podFailurePolicy": {
            "rules": [{"action": "FailJob", "onExitCodes": {"operator": "In", "values": [3]}}]
        }
    }
    spec = {"containers": [container("broken", "sh", "-c", does)]}
    failing = Job.create(shared_node, job("failing", spec, **{**never, "backoffLimit": 6}))
    with pytest.raises(NodeError, match=r"(?s)ended as Failed.*the reason.*event .*broken.*what went wrong"):
        failing.wait()
    assert failing.states()["broken"]["exitCode"] == 3
    assert len(failing.pods()) == 1


def test_a_container_that_is_lost_in_a_restart_of_the_runtime_does_not_fail_the_job(
    shared_node: JoinedNode,
) -> None:
    node, mounted = shared_node.node, {"volumeMounts": [{"name": "tmp", "mountPath": "/host"}]}
    once = "mkdir /host/was-lost || exit 0; exec sleep 98765"
    spec = {
        "volumes": [{"name": "tmp", "hostPath": {"path": "/var/tmp"}}],
        "containers": [container("stage", "sh", "-c", once) | mounted],
    }
    policy = job_for(dispatcher_configs(documents(shared_node.cluster, JOB))["install.yaml"])["spec"]
    lost = Job.create(
        shared_node, job("lost", spec, podFailurePolicy=policy["podFailurePolicy"], backoffLimit=0)
    ).running()
    # The other release's `cri` stage restarts the runtime while the shim of this container has ended.
    pid = node.run(["pgrep", "--full", "^sleep 98765"]).stdout.strip()
    shim = node.run(["ps", "-o", "ppid=", "-p", pid]).stdout.strip()
    node.run(["systemctl", "stop", UNIT])
    node.run(["kill", "-KILL", shim, pid])
    node.run(["systemctl", "start", UNIT])
    lost.wait()
    first, _ = lost.pods()
    [status] = first["status"]["containerStatuses"]
    assert status["state"]["terminated"]["exitCode"] == 255
    assert not status["state"]["terminated"].get("message")
    node.run(["rmdir", "/var/tmp/was-lost"])


def test_the_token_of_a_pod_identifies_the_pod_and_its_node(shared_node: JoinedNode) -> None:
    shared_node.cluster.kubectl("create", "serviceaccount", "labeller")
    projected = {"sources": [{"serviceAccountToken": {"path": "token", "expirationSeconds": 600}}]}
    mount = {"volumeMounts": [{"name": "token", "mountPath": TOKENS}]}
    spec = {
        "serviceAccountName": "labeller",
        "automountServiceAccountToken": False,
        "volumes": [{"name": "token", "projected": projected}],
        "containers": [container("asks", "sh", "-c", WHOAMI) | mount],
    }
    done = Job.create(shared_node, job("asks", spec)).wait()
    user = json.loads(done.logs()["asks"])["status"]["userInfo"]
    assert user["username"] == "system:serviceaccount:default:labeller"
    assert user["extra"]["authentication.kubernetes.io/node-name"] == [shared_node.node.name]
    (pod,) = done.pods()
    assert user["extra"]["authentication.kubernetes.io/pod-name"] == [pod["metadata"]["name"]]


def test_logs_and_exec_of_a_container_work_through_the_api_server(shared_node: JoinedNode) -> None:
    waits = "echo ready; while [ ! -e /tmp/end ]; do sleep 0.1; done"
    spec = {"containers": [container("waits", "sh", "-c", f"mkdir /tmp; {waits}")]}
    waiting = Job.create(shared_node, job("waits", spec)).running()
    kubectl = shared_node.cluster.kubectl
    assert kubectl("logs", "job/waits").stdout == "ready\n"
    kubectl("exec", "job/waits", "--", "touch", "/tmp/end")
    waiting.wait()


DAEMON_SET = {
    "apiVersion": "apps/v1",
    "kind": "DaemonSet",
    "metadata": {"name": "daemon"},
    "spec": {
        "selector": {"matchLabels": {"app": "daemon"}},
        "template": {
            "metadata": {"labels": {"app": "daemon"}},
            "spec": {
                "terminationGracePeriodSeconds": 0,
                "containers": [container("daemon", "sleep", "infinity")],
            },
        },
    },
}


def test_the_scheduler_binds_the_pods_of_a_daemonset_to_all_nodes(
    shared_node: JoinedNode, second_node: JoinedNode
) -> None:
    kubectl = shared_node.cluster.kubectl
    kubectl("create", "--filename=-", text=json.dumps(DAEMON_SET))
    kubectl("rollout", "status", "daemonset/daemon", "--timeout=300s")
    pods = json.loads(kubectl("get", "pods", "--selector=app=daemon", "--output=json").stdout)["items"]
    names = {pod["spec"]["nodeName"] for pod in pods}
    assert names == {shared_node.node.name, second_node.node.name}
    for pod in pods:
        seen = kubectl("exec", pod["metadata"]["name"], "--", "cat", "/etc/hostname").stdout
        assert seen.strip() == pod["metadata"]["name"]
    kubectl("delete", "daemonset", "daemon", "--cascade=foreground")
