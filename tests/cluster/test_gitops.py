"""The manifests without helm's hooks: applied again, changed, absent, deleted, and in Argo CD's order."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster import programs
from cluster.control_plane import Cluster
from cluster.fake_kubelet import failed
from cluster.helm_chart import load_manifests
from cluster.simulated_release import (
    DISPATCHERS,
    INSTALLATION_LABEL,
    NODES,
    SHARED_LABEL,
    SimulatedRelease,
    with_annotation,
)
from kata_node.kube import node_status
from kata_node.kube.events import failure_event
from kata_node.kube.node_status import NodeStatus
from node.cache import CHECKOUT
from node.commands import wait_until
from node.gomodule import built

JOB: dict[str, Any] = {
    "deploymentMode": "job",
    "job": {"waitForNodesSeconds": 0, "nodeSettleSeconds": 0},
    "shims": {"disableAll": True, "qemu": {"enabled": True}},
}
DAEMONSET: dict[str, Any] = {**JOB, "deploymentMode": "daemonset"}
_numbers = itertools.count()


@pytest.fixture
def release(workers: Cluster, tmp_path: Path) -> Iterator[SimulatedRelease]:
    """A namespace for a release in the mode `job`; afterwards nothing of it is left in the cluster."""
    with SimulatedRelease(workers, f"gitops-{next(_numbers)}", tmp_path, JOB) as release:
        try:
            yield release
        finally:
            for kinds in ("validatingadmissionpolicies,validatingadmissionpolicybindings", "runtimeclasses"):
                workers.kubectl("delete", kinds, "--all")
            workers.kubectl("delete", "clusterroles,clusterrolebindings", "-lapp.kubernetes.io/instance=kata")
            label(workers, *NODES, value=None)
            release.kubectl("delete", "configmaps", "--all")


def label(cluster: Cluster, *nodes: str, value: str | None) -> None:
    """Set the labels of an installation on Nodes as its pods do, or remove them."""
    change = [f"{key}-" if value is None else f"{key}={value}" for key in (SHARED_LABEL, INSTALLATION_LABEL)]
    cluster.kubectl("label", "node", *nodes, *change, "--overwrite")


def actions(release: SimulatedRelease) -> dict[str, set[str]]:
    """Return action -> Nodes of the node Jobs that ran and changed the Node."""
    changed = [(action, node) for action, node in release.history if action != "check"]
    return {action: {node for made, node in changed if made == action} for action, _ in changed}


def cluster_status(release: SimulatedRelease, *options: str) -> dict[str, Any]:
    """Return what `kata-node cluster status` says."""
    command = [sys.executable, "-m", "kata_node", "cluster", "status", "--output=json", *options]
    environment = {**release.cluster.environment(), "PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return dict(json.loads(done.stdout))


def dispatchers(release: SimulatedRelease) -> set[str]:
    """Return the names of the dispatchers' Jobs, without the digests."""
    names = [each["metadata"]["name"] for each in release.items("jobs", f"--selector={DISPATCHERS}")]
    return {name.rpartition("-")[0] for name in names}


@pytest.mark.parametrize("values", [JOB, DAEMONSET], ids=["job", "daemonset"])
def test_a_rendering_without_a_cluster_has_no_hooks_of_an_uninstall(
    release: SimulatedRelease, values: dict[str, Any]
) -> None:
    release.values = {**values, "job": {**JOB["job"], "reconcileSchedule": "@daily"}}
    assert "helm.sh/hook" not in release.render()
    assert "pre-delete" in release.helm("template", "--dry-run=server")


def test_an_apply_on_a_release_of_helm_takes_nothing_away(release: SimulatedRelease) -> None:
    release.helm("install")
    assert actions(release) == {"install": NODES}
    assert release.labeled == NODES
    manifests = release.render()
    release.apply(manifests)
    before = release.uids("jobs", "configmaps")
    release.apply(manifests)
    assert release.uids("jobs", "configmaps") == before
    assert actions(release) == {"install": NODES}
    assert release.labeled == NODES

    # A rendering with the cluster has helm's hooks.
    with_hooks = release.helm("template", "--dry-run=server")
    assert "kata-deploy-cleanup-dispatcher" in with_hooks
    for how in ((), ("--server-side", "--force-conflicts", "--field-manager=ci")):
        release.apply(with_hooks, *how)
        assert "says that Kata is wanted on the nodes" in release.logs.pop("kata-deploy-cleanup-dispatcher")
        assert actions(release) == {"install": NODES}
        assert "STATUS: deployed" in release.helm("status")
        release.kubectl("delete", "job", "kata-deploy-cleanup-dispatcher")

    release.helm("uninstall")
    assert actions(release) == {"install": NODES, "cleanup": NODES}
    assert release.labeled == set()


def test_an_uninstall_asks_all_nodes_for_running_pods_before_it_cleans_one(release: SimulatedRelease) -> None:
    release.helm("install")
    release.forget()
    what = "1 pod runs on a handler that would be removed: default/guest (kata-qemu)"
    message = json.dumps({"summary": what, "stage": "check-pods", "error": {"what": what, "pods_run": True}})
    pod = failed("check-pods", 1, message)
    release.answers["worker-2"] = [
        {**pod, "initContainerStatuses": [], "containerStatuses": pod["initContainerStatuses"]}
    ]
    assert "failed" in release.helm("uninstall", check=False)
    assert (release.history, release.labeled) == ([("check", "worker-1")], NODES)
    log = release.logs["kata-deploy-cleanup-dispatcher"]
    assert f'worker-2  cleanup  failed       -     check-pods: the node says "{what}" (exit code 1)' in log
    assert "pods run in Kata on 1 of 2 nodes, so no node was changed" in log
    release.helm("uninstall")
    assert actions(release) == {"cleanup": NODES}
    assert release.labeled == set()


def test_a_forced_cleanup_does_not_ask(release: SimulatedRelease) -> None:
    release.helm("install", job={"cleanup": {"force": True}})
    release.forget()
    release.helm("uninstall")
    assert {action for action, _ in release.history} == {"cleanup"}


def test_an_apply_on_a_daemonset_of_helm_takes_nothing_away(release: SimulatedRelease) -> None:
    release.values = DAEMONSET
    release.helm("install")
    [before] = release.items("daemonsets")
    for _ in range(2):
        release.apply(release.render())
        [now] = release.items("daemonsets")
        assert (now["metadata"]["uid"], now["spec"]) == (before["metadata"]["uid"], before["spec"])
        assert release.items("jobs") == []

    # A rendering with the cluster has the hook that deletes the DaemonSet.
    release.apply(release.helm("template", "--dry-run=server"))
    assert "says that Kata is wanted on the nodes" in release.logs["kata-deploy-stop"]
    [now] = release.items("daemonsets")
    assert now["metadata"]["uid"] == before["metadata"]["uid"]
    release.kubectl("delete", "job", "kata-deploy-stop")


def test_an_uninstall_of_a_daemonset_names_the_nodes_that_still_have_kata_and_what_they_say(
    release: SimulatedRelease,
) -> None:
    release.values = DAEMONSET
    release.helm("install")
    label(release.cluster, "worker-1", value="false")
    what = "default: revert-cri: 1 pod runs on a handler that would be removed: default/guest (kata-qemu)"
    blocked = failure_event(what, removing=True, exit_code=1)
    event = blocked.as_object("worker-1", component="kata-node", reporter="any")
    release.cluster.kubectl("create", "--namespace=default", "--filename=-", text=json.dumps(event))
    assert "failed" in release.helm("uninstall", check=False)
    assert release.items("daemonsets") == []
    told = f'these nodes still have Kata: worker-1 (worker-1 says "{what}")'
    assert told in release.logs["kata-deploy-stop"]
    label(release.cluster, "worker-1", value=None)
    release.helm("uninstall")
    assert "the daemonset kata-deploy does not exist" in release.logs["kata-deploy-stop"]


def test_manifests_without_helm_converge_and_an_apply_without_a_change_does_nothing(
    release: SimulatedRelease,
) -> None:
    first, second, absent = (
        release.render(**change) for change in ({}, {"debug": True}, {"desiredState": "absent"})
    )
    for manifests, action in (
        (first, "install"),
        (second, "install"),
        (first, "install"),
        (absent, "cleanup"),
        (first, "install"),
    ):
        release.forget()
        release.apply(manifests)
        assert actions(release) == {action: NODES}
        assert release.labeled == (NODES if action == "install" else set())
        assert dispatchers(release) == {f"kata-deploy-{action}-dispatcher"}
        before, release.history[:] = release.uids("jobs"), []
        release.apply(manifests)
        assert (release.uids("jobs"), release.history) == (before, [])


def test_kata_is_removed_after_the_objects_were_deleted_without_hooks(release: SimulatedRelease) -> None:
    manifests = release.render()
    release.apply(manifests)
    release.delete(manifests)
    assert release.labeled == NODES
    [note] = cluster_status(release)["notes"]
    assert note.startswith("no release has the installation default, which is on 2 nodes")
    absent = release.render(desiredState="absent")
    release.apply(absent)
    assert release.labeled == set()
    release.delete(absent)
    assert set(release.uids("jobs", "configmaps").values()) <= {"kube-root-ca.crt"}


def test_helm_removes_kata_with_an_upgrade_and_the_uninstall_has_nothing_left_to_do(
    release: SimulatedRelease,
) -> None:
    release.helm("install")
    release.helm("upgrade", desiredState="absent")
    assert release.labeled == set()
    assert "runtimeclass" not in release.kubectl("get", "runtimeclasses", "--output=name")
    release.helm("upgrade")
    assert release.labeled == NODES
    release.helm("upgrade", desiredState="absent")
    release.forget()
    release.helm("uninstall")
    assert release.history == []


def test_a_daemonset_of_an_absent_release_selects_the_nodes_that_still_have_kata(
    release: SimulatedRelease,
) -> None:
    release.values = DAEMONSET
    release.apply(release.render())
    label(release.cluster, "worker-1", value="false")
    absent = release.render(desiredState="absent")

    def wanted() -> int:
        [daemonset] = release.items("daemonsets")
        status = daemonset["status"]
        current = status.get("observedGeneration") == daemonset["metadata"]["generation"]
        return int(status["desiredNumberScheduled"]) if current else -1

    for _ in range(2):
        release.apply(absent)
        wait_until(lambda: wanted() == 1, "only the Node with the label is selected")
        assert release.kubectl("get", "runtimeclasses", "--output=name")
    [daemonset] = release.items("daemonsets")
    assert daemonset["metadata"]["generation"] == 2
    label(release.cluster, "worker-1", value=None)
    wait_until(lambda: wanted() == 0, "no Node is selected")
    assert cluster_status(release, "--release=kata")["outcome"] == "healthy"
    release.apply(release.render())
    wait_until(lambda: wanted() == len(NODES), "all Nodes are selected")

    # The pods never become ready, and nothing is on their Nodes.
    status = cluster_status(release, "--release=kata")
    assert status["outcome"] == "not healthy"
    assert {each["node"] for each in status["nodes"] if "is not ready" in each["left"]} == NODES

    # `kubectl apply` has left what `absent` does not render.
    release.delete(f"{absent}\n---\n{release.render()}")
    assert not release.kubectl("get", "daemonsets,runtimeclasses", "--output=name")


@pytest.mark.parametrize("values", [JOB, DAEMONSET], ids=["job", "daemonset"])
def test_argos_hooks_remove_kata_after_everything_else_was_deleted(
    release: SimulatedRelease, values: dict[str, Any]
) -> None:
    release.values = {**values, "gitops": "argocd"}
    synced, post_delete = with_annotation(release.render(), "argocd.argoproj.io/hook", "PostDelete")
    release.apply(synced)
    if values is JOB:
        assert actions(release) == {"install": NODES}
    else:
        label(release.cluster, *NODES, value="true")
    release.forget()

    # Beside a release that is wanted they do nothing.
    release.apply(post_delete)
    assert (release.history, release.labeled) == ([], NODES)
    release.delete(post_delete)

    release.delete(synced)
    release.apply(post_delete)
    assert actions(release) == {"cleanup": NODES}
    assert release.labeled == set()
    for each in load_manifests(post_delete):
        annotations = each["metadata"]["annotations"]
        assert annotations["argocd.argoproj.io/hook-delete-policy"] == "HookSucceeded"
        assert not [key for key in annotations if key.startswith("helm.sh/hook")]


def test_another_prefix_is_refused_by_the_dispatcher_until_kata_is_removed(release: SimulatedRelease) -> None:
    moved = {"env": {"installationPrefix": "/srv"}}
    release.apply(release.render())
    release.forget()
    release.apply(release.render(**moved))
    assert release.history == []
    [log] = [log for log in release.logs.values() if "because nothing would revert its nodes" in log]
    assert "env.installationPrefix" in log
    assert json.loads(release.state["installed"])["installationPrefix"] == "/"
    release.apply(release.render(desiredState="absent"))
    assert "installed" not in release.state
    release.apply(release.render(**moved))
    assert actions(release) == {"cleanup": NODES, "install": NODES}
    assert json.loads(release.state["installed"])["installationPrefix"] == "/srv"


def test_another_suffix_is_refused_although_somebody_deleted_the_state_of_the_release(
    release: SimulatedRelease,
) -> None:
    release.apply(release.render())
    # The pods of this test are not run, and write no records.
    record = NodeStatus("installed", release=f"{release.namespace}/kata")
    for node in NODES:
        release.kubectl(
            "annotate", "node", node, f"{node_status.annotation('default')}={node_status.encode(record)}"
        )
    release.forget()
    release.kubectl("delete", "configmap", "kata-deploy-state.kata")
    try:
        release.apply(release.render(env={"multiInstallSuffix": "blue"}))
    finally:
        for node in NODES:
            release.kubectl("annotate", "node", node, f"{node_status.annotation('default')}-")
    assert release.history == []
    [log] = [log for log in release.logs.values() if "cannot change to blue" in log]
    assert "env.multiInstallSuffix" in log
    assert "the Nodes worker-1, worker-2" in log


def test_helm_3_installs_upgrades_and_uninstalls(release: SimulatedRelease) -> None:
    release.helm_path = built(programs.HELM_3)
    label(release.cluster, *NODES, value=None)
    release.forget()
    assert "kubectl kata status" in release.helm("install")
    assert release.labeled == NODES
    release.helm("upgrade", debug=True)
    assert actions(release) == {"install": NODES}
    assert release.history.count(("install", "worker-1")) == 2
    release.helm("uninstall")
    assert release.labeled == set()
    assert release.items("configmaps", "--selector=app.kubernetes.io/instance=kata") == []
