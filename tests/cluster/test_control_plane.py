"""The test control plane: API server, users, controllers, restarts, and scripts/testcluster."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster import cluster_records, programs
from cluster.control_plane import NOBODY, Cluster
from node.cache import CHECKOUT, NodeError, cache_dir
from node.commands import CommandFailed, wait_until
from node.node_records import Process

RESTRICTED = "system:node:restricted"


def read(cluster: Cluster, *what: str) -> Any:
    return json.loads(cluster.kubectl("get", *what, "--output=json").stdout)


def test_the_api_server_is_ready_and_has_the_pinned_release(cluster: Cluster) -> None:
    assert cluster.get("/readyz") == (200, "ok")
    pinned = programs.version_of(programs.KUBERNETES)
    versions = json.loads(cluster.kubectl("version", "--output=json").stdout)
    assert versions["serverVersion"]["gitVersion"] == versions["clientVersion"]["gitVersion"] == pinned
    assert pinned.startswith(f"v1.{versions['serverVersion']['minor']}.")


def test_a_user_without_rights_is_refused_and_accepted_after_a_role_binding(cluster: Cluster) -> None:
    refused = cluster.kubectl("get", "nodes", who=NOBODY, check=False)
    assert refused.returncode
    assert 'User "nobody" cannot list resource "nodes"' in refused.stderr
    cluster.kubectl("create", "clusterrole", "sees-nodes", "--verb=list", "--resource=nodes")
    cluster.kubectl("create", "clusterrolebinding", "sees-nodes", "--clusterrole=sees-nodes", "--user=nobody")
    # The API server applies a new role after a moment.
    wait_until(lambda: not cluster.kubectl("get", "nodes", who=NOBODY, check=False).returncode, "it may look")


def test_an_unknown_token_is_refused(cluster: Cluster) -> None:
    assert cluster.get("/api/v1/secrets", token="made-up")[0] == 401
    assert cluster.get("/api/v1/secrets", token=cluster.token(NOBODY))[0] == 403
    with pytest.raises(NodeError, match="has no user stranger"):
        cluster.token("stranger")


def test_a_node_is_registered_ready_and_keeps_what_is_patched(cluster: Cluster) -> None:
    info = {"machineID": "0" * 32}
    node = cluster.node("worker", labels={"example.org/a": "1"}, status={"nodeInfo": info})
    assert node["status"]["nodeInfo"]["machineID"] == info["machineID"]
    assert "taints" not in node["spec"]
    cluster.kubectl("label", "node", "worker", "example.org/b=2")
    cluster.kubectl("label", "node", "worker", "example.org/a=2", "--overwrite")
    cluster.node("worker", labels={"example.org/a": "3"})
    labels = read(cluster, "node", "worker")["metadata"]["labels"]
    assert labels == {"kubernetes.io/hostname": "worker", "example.org/a": "3", "example.org/b": "2"}
    ready = cluster.kubectl("wait", "node/worker", "--for=condition=Ready", "--timeout=300s")
    assert "condition met" in ready.stdout


def test_a_kubelet_may_change_only_its_own_node_and_within_limits(cluster: Cluster) -> None:
    for name in ("restricted", "other"):
        cluster.node(name)
    cluster.kubectl("label", "node", "restricted", "example.org/mine=yes", who=RESTRICTED)
    with pytest.raises(CommandFailed, match="is not allowed to modify labels"):
        cluster.kubectl("label", "node", "restricted", "node-restriction.kubernetes.io/a=1", who=RESTRICTED)
    with pytest.raises(CommandFailed, match="node 'restricted' cannot read 'other'"):
        cluster.kubectl("label", "node", "other", "example.org/mine=yes", who=RESTRICTED)


def test_a_service_account_gets_a_token_that_the_api_server_accepts(cluster: Cluster) -> None:
    cluster.kubectl("create", "namespace", "kata")
    cluster.kubectl("create", "serviceaccount", "labeller", "--namespace=kata")
    name = "system:serviceaccount:kata:labeller"
    seen = json.loads(cluster.kubectl("auth", "whoami", "--output=json", who=name).stdout)
    assert seen["status"]["userInfo"]["username"] == name
    config = cluster.kubeconfig_of(name, namespace="kata")
    assert json.loads(config.read_text())["contexts"][0]["context"]["namespace"] == "kata"
    with pytest.raises(CommandFailed, match="not found"):
        cluster.token("system:serviceaccount:kata:nobody-of-that-name")


def test_the_controllers_add_the_objects_that_pods_need_to_a_new_namespace(cluster: Cluster) -> None:
    cluster.kubectl("create", "namespace", "served")
    made = ("serviceaccount/default", "configmap/kube-root-ca.crt")
    cluster.kubectl("wait", *made, "--for=create", "--namespace=served", "--timeout=300s")
    bundle = read(cluster, "configmap", "kube-root-ca.crt", "--namespace=served")["data"]["ca.crt"]
    assert bundle == cluster.ca.read_text()


POLICY = """\
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: no-forbidden-nodes}
spec:
  failurePolicy: Fail
  matchConstraints:
    resourceRules: [{apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [nodes]}]
  validations: [{expression: "!object.metadata.name.startsWith('forbidden')", message: not this one}]
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: no-forbidden-nodes}
spec: {policyName: no-forbidden-nodes, validationActions: [Deny]}
"""


def test_an_admission_policy_is_enforced(cluster: Cluster) -> None:
    cluster.kubectl("apply", "--filename=-", text=POLICY)
    node = json.dumps({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "forbidden"}})

    def refused() -> bool:
        tried = cluster.kubectl("create", "--filename=-", "--dry-run=server", text=node, check=False)
        return "not this one" in tried.stderr

    wait_until(refused, "the policy is in force")
    cluster.node("allowed")


@pytest.mark.parametrize("kill", [pytest.param(False, id="drained"), pytest.param(True, id="killed")])
def test_a_restart_of_the_api_server_keeps_all_objects(own_cluster: Cluster, kill: bool) -> None:
    own_cluster.node("before")
    token = own_cluster.token("system:serviceaccount:default:default")
    before = own_cluster.processes
    own_cluster.stop_apiserver(kill=kill)
    with pytest.raises(OSError, match="refused"):
        own_cluster.get("/readyz")
    own_cluster.start_apiserver()
    assert own_cluster.get("/api/v1/namespaces/default/pods", token=token)[0] == 403  # known, without rights
    assert read(own_cluster, "node", "before")["metadata"]["name"] == "before"
    own_cluster.kubectl("create", "namespace", "after")
    made = ("serviceaccount/default", "--for=create", "--namespace=after", "--timeout=300s")
    own_cluster.kubectl("wait", *made)
    after = own_cluster.processes
    assert {name for name in before if before[name] != after[name]} == {"kube-apiserver"}


def test_helm_installs_and_uninstalls_a_chart(cluster: Cluster, tmp_path: Path) -> None:
    chart = tmp_path / "sample"
    (chart / "templates").mkdir(parents=True)
    (chart / "Chart.yaml").write_text("{apiVersion: v2, name: sample, version: 1.0.0}\n")
    (chart / "templates" / "map.yaml").write_text(
        "{apiVersion: v1, kind: ConfigMap, metadata: {name: sample}, data: {of: '{{ .Release.Name }}'}}\n"
    )
    cluster.helm("install", "mine", str(chart))
    assert read(cluster, "configmap", "sample")["data"] == {"of": "mine"}
    cluster.helm("uninstall", "mine", "--wait")
    assert cluster.kubectl("get", "configmap", "sample", check=False).returncode


def test_a_program_that_does_not_start_is_reported_with_its_log(
    machine: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"broken-{os.getpid()}"
    monkeypatch.setattr("cluster.flags.etcd", lambda: ["--no-such-flag"])
    error = (
        r"(?s)etcd ended with exit code 2 before .*\n  hint: Read .*\n--- etcd.*flag provided but not defined"
    )
    with pytest.raises(NodeError, match=error):
        Cluster.start(name=name)
    assert name not in [record.name for record in cluster_records.running()]


def test_programs_that_need_the_api_server_start_after_it_is_ready(
    machine: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready, looks = Cluster._ready, itertools.count(1)

    def ready_late(cluster: Cluster) -> bool:
        assert set(cluster.processes) == {"etcd", "kube-apiserver"}
        return next(looks) > 100 and ready(cluster)

    monkeypatch.setattr(Cluster, "_ready", ready_late)
    with Cluster.start(scheduler=True) as cluster:
        assert {"kube-controller-manager", "kube-scheduler"} <= set(cluster.processes)


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["testcluster", "up"], id="testcluster"),
        pytest.param(["bench-dispatcher", "--nodes=1"], id="bench-dispatcher"),
    ],
)
def test_the_scripts_report_a_control_plane_that_does_not_start(
    machine: None, tmp_path: Path, command: list[str]
) -> None:
    for name in programs.CONTROL_PLANE:
        kept = tmp_path / programs.program(name).parent.relative_to(cache_dir())
        kept.mkdir(parents=True)
        (kept / name).symlink_to(programs.program(name))
    etcd = tmp_path / programs.program("etcd").relative_to(cache_dir())
    etcd.unlink()
    etcd.write_text("#!/bin/sh\necho the disk is full >&2\nexit 3\n")
    etcd.chmod(0o755)
    done = subprocess.run(
        [sys.executable, str(CHECKOUT / "scripts" / command[0]), *command[1:]],
        env={**os.environ, "KATA_NODE_TEST_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    what, hint, title, _, logged, *_ = done.stderr.splitlines()
    assert re.match(rf"{command[0]}: the cluster \S+: etcd ended with exit code 3 ", what)
    assert hint.startswith("  hint: ")
    assert (title, logged) == ("--- etcd", "the disk is full")
    assert list((tmp_path / "clusters").glob("*/")) == []


START_AND_WAIT = """
import sys
from cluster.control_plane import Cluster
cluster = Cluster.start(name=sys.argv[1])
print("up", flush=True)
sys.stdin.read()
"""


def test_a_killed_test_leaves_no_process_and_the_next_start_removes_its_files(machine: None) -> None:
    name = f"killed-{os.getpid()}"
    command = [sys.executable, "-c", START_AND_WAIT, name]
    env = {**os.environ, "PYTHONPATH": str(CHECKOUT / "tests")}
    with subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"up\n"
        left = Cluster.attach(name)
        owner.kill()
    assert len(left.processes) == 3
    for program, process in left.processes.items():
        wait_until(lambda process=process: not process.alive, f"{program} has ended")  # type: ignore[misc]
    with Cluster.start():
        assert not left.directory.exists()


def test_a_cluster_of_testcluster_runs_until_it_is_stopped(machine: None) -> None:
    name = f"person-{os.getpid()}"

    def testcluster(*args: str) -> str:
        command = [sys.executable, str(CHECKOUT / "scripts/testcluster"), *args, "--name", name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    try:
        assert f"{name}: Kubernetes {programs.version_of(programs.KUBERNETES)}, up in" in testcluster("up")
        assert f"{name}: ready at https://127.0.0.1:" in testcluster("status")
        shell = f'{testcluster("env")}\nkubectl auth whoami --output=jsonpath="{{.status.userInfo.username}}"'
        done = subprocess.run(["bash", "-c", shell], check=True, capture_output=True, text=True)
        assert done.stdout == "admin"
        processes: dict[str, Process] = dict(Cluster.attach(name).processes)
    finally:
        testcluster("down")
    assert not any(process.alive for process in processes.values())
    assert name not in testcluster("status")
