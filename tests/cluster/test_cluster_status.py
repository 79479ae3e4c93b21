"""A rollout with a failed node, seen afterwards: the Nodes, the state of the release, `kubectl kata`."""

from __future__ import annotations

import itertools
import json
import os
import re
import stat
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from cluster import programs
from cluster.control_plane import Cluster
from cluster.fake_kubelet import Server, failed
from cluster.lost_handlers import REPORTS_HANDLERS
from cluster.simulated_release import SHARED_LABEL, Document, SimulatedRelease
from kata_node.cluster import labels
from kata_node.cluster.labels import NodeState
from kata_node.kube import node_status
from kata_node.kube.node import NodeFacts
from kata_node.kube.node_status import NodeStatus
from node.cache import CHECKOUT
from node.commands import CommandResult

INSTANCE = "seen"
LABEL = f"kata-deploy.katacontainers.io/{INSTANCE}"
STATUS = f"status.kata-deploy.katacontainers.io/{INSTANCE}"
VERSION = f"version.kata-deploy.katacontainers.io/{INSTANCE}"
OUTCOME = f"outcome.kata-deploy.katacontainers.io/{INSTANCE}"
PROXY = "https://user:hunter2@proxy.example:3128"
SECRET_TOML = '[plugins]\nsecret = "hunter3"\n'
MESSAGE = json.dumps(
    {
        "stage": "cri",
        "outcome": "failed",
        "summary": "x",
        "error": {
            "what": "containerd did not serve kata-qemu",
            "where": "containerd.service",
            "hint": "see its log",
        },
    }
)
_numbers = itertools.count()


class RecordingRelease(SimulatedRelease):
    """A release whose node Jobs leave the labels and records of their stages, and fail on some nodes."""

    failing: frozenset[str] = frozenset()

    def _node_job(self, server: Server, pod: Document, path: str) -> Mapping[str, Any] | None:
        node = pod["spec"].get("nodeName")
        stages = [each["name"] for each in pod["spec"]["containers"]]
        if not node or "check-pods" in stages:
            return super()._node_job(server, pod, path)
        installs = "label" in stages
        self.history.append(("install" if installs else "cleanup", node))
        for goal, outcome in (
            (("claimed", "installing"), ("served", "installed"))
            if installs
            else (("withdrawn", "removing"), ("released", "removing"))
        ):
            facts = NodeFacts.of(server.call("GET", f"/api/v1/nodes/{node}")[1])
            status = NodeStatus(
                outcome,  # type: ignore[arg-type]
                kata_version="4.1.0",
                program_version="0.1.0",
                settings="0123456789ab",
                since="2026-11-30T04:40:00Z",
                machine_id=facts.machine_id,
                handlers=("kata-qemu-seen",) if outcome == "installed" else (),
            )
            state = NodeState(facts.labels, facts.annotations)
            changes = labels.changes(goal, state, INSTANCE, status)  # type: ignore[arg-type]
            code, _ = server.call("PATCH", f"/api/v1/nodes/{node}", {"metadata": changes.patch()})
            assert code == 200
            if goal == "claimed" and node in self.failing:
                name = f"/api/v1/namespaces/{self.namespace}/pods/{pod['metadata']['name']}/status"
                server.call("PATCH", name, {"status": failed("cri", 4, MESSAGE)})
                return None
        return {"phase": "Succeeded"}

    def node(self, name: str) -> NodeFacts:
        return NodeFacts.of(json.loads(self.cluster.kubectl("get", "node", name, "--output=json").stdout))


@pytest.fixture(scope="module")
def nodes(workers: Cluster) -> list[str]:
    """Three Nodes in a cluster of this module: an uninstall goes to all Nodes of the cluster with Kata."""
    names = [f"seen-{number}" for number in range(3)]
    for name in names:
        info = {"containerRuntimeVersion": "containerd://2.3.4", "machineID": "ab" * 16}
        handlers = [{"name": "kata-qemu-seen"}, {"name": "runc"}]
        workers.node(name, status={"nodeInfo": info, "runtimeHandlers": handlers})
    return names


@pytest.fixture
def release(workers: Cluster, nodes: list[str], tmp_path: Path) -> Iterator[RecordingRelease]:
    values: dict[str, Any] = {
        "deploymentMode": "job",
        "env": {"multiInstallSuffix": INSTANCE},
        "job": {"nodes": nodes, "waitForNodesSeconds": 0, "nodeSettleSeconds": 0},
        "shims": {"disableAll": True, "qemu": {"enabled": True, "agent": {"httpsProxy": PROXY}}},
        "containerd": {"userDropIn": SECRET_TOML},
    }
    with RecordingRelease(workers, f"seen-{next(_numbers)}", tmp_path, values) as release:
        try:
            yield release
        finally:
            kinds = (
                "validatingadmissionpolicies,validatingadmissionpolicybindings,runtimeclasses,clusterroles"
            )
            workers.kubectl("delete", f"{kinds},clusterrolebindings", "-lapp.kubernetes.io/instance=kata")
            removed = [f"{each}-" for each in (LABEL, VERSION, OUTCOME, SHARED_LABEL)]
            workers.kubectl("label", "node", *nodes, *removed)
            workers.kubectl("annotate", "node", *nodes, f"{STATUS}-", f"{labels.SETTER_ANNOTATION}-")


def kubectl_kata(release: RecordingRelease, *arguments: str, directory: Path | None = None) -> CommandResult:
    """Run the plugin with the real kubectl."""
    plugins = release.directory / "plugins"
    plugins.mkdir(exist_ok=True)
    plugin = plugins / "kubectl-kata"
    program = "from kata_node.__main__ import kubectl_kata; kubectl_kata()"
    plugin.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{program}" "$@"\n')
    plugin.chmod(0o755)
    environment = release.cluster.environment()
    environment |= {"PATH": f"{plugins}:{os.environ['PATH']}", "PYTHONPATH": str(CHECKOUT)}
    command = [str(programs.program("kubectl")), "kata", *arguments]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, cwd=directory, umask=0o022
    )


def status_of(release: RecordingRelease) -> tuple[int, dict[str, Any]]:
    done = kubectl_kata(
        release, "status", "--release=kata", f"--namespace={release.namespace}", "--output=json"
    )
    return done.returncode, json.loads(done.stdout)


def test_a_failed_rollout_can_be_explained_from_the_cluster_when_its_jobs_are_gone(
    release: RecordingRelease, nodes: list[str]
) -> None:
    release.failing = frozenset(nodes[:1])
    release.apply(release.render())
    release.kubectl("delete", "jobs,pods", "--all")

    # The Nodes say what became of them; the policy let the dispatcher write no more than that.
    bad, good, _ = (release.node(name) for name in nodes)
    assert (bad.labels[LABEL], bad.labels[OUTCOME], bad.labels[VERSION]) == ("false", "rolled-back", "4.1.0")
    assert (good.labels[LABEL], good.labels[OUTCOME]) == ("true", "installed")
    record = node_status.read(bad.annotations, INSTANCE)
    assert record is not None
    assert record.outcome == "rolled-back"
    assert record.reason.startswith(
        'cri: the node says "containerd.service: containerd did not serve kata-qemu"'
    )
    assert (record.kata_version, record.settings) == ("4.1.0", "0123456789ab")
    selected = release.cluster.kubectl("get", "nodes", f"--selector={OUTCOME}=rolled-back", "--output=name")
    assert selected.stdout.split() == [f"node/{nodes[0]}"]

    # The state of the release has the rollout.
    rollout = json.loads(release.state["lastRollout"])
    assert (rollout["action"], rollout["outcome"], rollout["counts"]) == (
        "install",
        "failed",
        {"done": 2, "failed": 1},
    )
    assert rollout["begun"] <= rollout["ended"]
    assert rollout["job"].startswith("kata-deploy-seen-install-dispatcher")
    assert "containerd did not serve kata-qemu" in rollout["nodes"]["failed"][nodes[0]]

    # An Event says so by default.
    about = f"--field-selector=involvedObject.name={nodes[0]},source=kata-deploy-job-dispatcher"
    events = json.loads(
        release.cluster.kubectl("get", "events", "--namespace=default", about, "--output=json").stdout
    )
    assert [each["reason"] for each in events["items"]] == ["KataRolledBack"]

    # One table over all nodes.
    done = kubectl_kata(release, "status", "--release=kata", f"--namespace={release.namespace}")
    assert done.returncode == 10
    lines = done.stdout.splitlines()
    assert lines[0].startswith(
        f"release kata in {release.namespace}: install failed (1 of 3 nodes did not succeed)"
    )
    assert lines[1].split() == ["NODE", "KATA", "PROGRAM", "OUTCOME", "SERVING", "SINCE", "DETAIL"]
    assert re.match(
        rf"{nodes[0]} +4\.1\.0 +0\.1\.0 +rolled-back +false +2026\S+Z +cri: the node says", lines[2]
    )
    assert re.fullmatch(rf"{nodes[1]} +4\.1\.0 +0\.1\.0 +installed +true +2026-11-30T04:40:00Z", lines[3])
    assert lines[-1].startswith("not healthy: 3 nodes with Kata: 2 installed, 1 rolled-back")

    # The next rollout mends it.
    release.failing = frozenset()
    release.apply(release.render(debug=True))
    code, document = status_of(release)
    assert (code, document["outcome"]) == (0, "healthy"), document
    assert json.loads(release.state["lastRollout"])["outcome"] == "ok"

    # What the Node reports contradicts its label; and another machine has the name of a Node.
    runc = {"status": {"runtimeHandlers": [{"name": "runc"}]}}
    other = {"status": {"nodeInfo": {"machineID": "cd" * 16}}}
    for name, change in ((nodes[1], runc), (nodes[2], other)):
        patch = f"--patch={json.dumps(change)}"
        release.cluster.kubectl("patch", "node", name, "--subresource=status", "--type=merge", patch)
    code, document = status_of(release)
    drift = {each["node"]: each["drift"] for each in document["nodes"]}
    assert code == 10
    assert drift == {
        nodes[0]: [],
        nodes[1]: ["the Node does not report kata-qemu-seen"] if REPORTS_HANDLERS else [],
        nodes[2]: ["another machine has the name of the Node now"],
    }
    release.apply(release.render(desiredState="absent"))
    for name in nodes:
        node = release.node(name)
        assert not {LABEL, VERSION, OUTCOME} & set(node.labels)
        assert STATUS not in node.annotations
    assert json.loads(release.state["lastRollout"])["action"] == "cleanup"


def test_a_bundle_has_everything_but_secrets(
    release: RecordingRelease, nodes: list[str], tmp_path: Path
) -> None:
    release.failing = frozenset(nodes[:1])
    # The admission policies repeat the annotations of the pods.
    release.apply(release.render(podAnnotations={"vault-token": "hunter5"}))
    release.kubectl("create", "secret", "generic", "hidden", "--from-literal=key=hunter4")
    # A program that applies manifests keeps what it applied, in an annotation of its own.
    repeated = json.dumps({"data": {"values.yaml": SECRET_TOML.replace("3", "6")}})
    release.kubectl("annotate", "configmap", "--all", f"example.org/applied={repeated}")
    wanted = ("--release=kata", f"--namespace={release.namespace}")
    done = kubectl_kata(release, "bundle", *wanted, "--file=b.tar.gz", directory=tmp_path)
    assert done.returncode == 0, done.stderr
    file = tmp_path / "b.tar.gz"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with tarfile.open(file) as tar:
        members = tar.getnames()
        content = {
            name.removeprefix("kata-bundle/"): extracted.read().decode()
            for name in members
            if (extracted := tar.extractfile(name))
        }
    assert members == sorted(members)
    own = f"{release.namespace}/kata"
    for kind in ("configmaps", "jobs", "roles", "runtimeclasses", "policies", "events", "serviceaccounts"):
        assert json.loads(content[f"{own}/{kind}.json"]), kind
    everything = "\n".join(content.values())
    assert not re.findall(r"hunter\d", everything)
    assert "masked by kata-node" in content[f"{own}/configmaps.json"]
    assert "lastRollout" in content[f"{own}/configmaps.json"]
    found = {each["name"]: each for each in json.loads(content["nodes.json"])}
    assert found[nodes[0]]["labels"][OUTCOME] == "rolled-back"
    assert bool(found[nodes[1]].get("runtimeHandlers")) is REPORTS_HANDLERS
    assert "rolled-back" in content["status.txt"]
    assert "KataRolledBack" in content["node-events.json"]
    # The logs of pods without a kubelet cannot be read, which is told instead of failing.
    assert "/logs/" in content["missing.txt"]
    again = kubectl_kata(release, "bundle", *wanted, "--file=b.tar.gz", directory=tmp_path)
    assert again.returncode == 2
    assert "the file exists" in again.stderr


def test_a_user_without_rights_or_cluster_gets_a_clear_error(release: RecordingRelease) -> None:
    command = [sys.executable, "-m", "kata_node", "cluster", "status"]

    def run(who: str, *arguments: str) -> CommandResult:
        environment = {**release.cluster.environment(who), "PYTHONPATH": str(CHECKOUT)}
        return subprocess.run(
            [*command, *arguments], env=environment, capture_output=True, text=True, check=False
        )

    refused = run("nobody")
    assert refused.returncode == 1
    assert "/api/v1/nodes" in refused.stderr
    assert "ask the administrator of the cluster for the right to read this" in refused.stderr
    assert "Traceback" not in refused.stderr
    unknown = run("admin", "--kubeconfig=/nonexistent")
    assert (unknown.returncode, "Traceback" in unknown.stderr) == (1, False)
    context = run("admin", "--context=elsewhere")
    assert context.returncode == 1
    assert "Context 'elsewhere' not found" in context.stderr
    missing = run("admin", "--release=nope")
    assert missing.returncode == 2
    assert "there is no release nope" in missing.stderr
