"""What a DaemonSet's pod learns from a real API server when it is to go, by the rights its account has."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from daemon.daemon_process import Running, daemon
from node.commands import wait_until

from cluster.control_plane import Cluster
from cluster.daemonsets import NAME, ZONE, Said, Scene


@pytest.fixture
def scene(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[Scene]:
    name = request.node.name.removeprefix("test_").partition("[")[0].replace("_", "-")[:30].strip("-")
    name = f"{name}-{abs(hash(request.node.name)) % 10**6}"
    cluster.node(f"{name}-node")
    scene = Scene(cluster, name, f"{name}-node").prepare()
    yield scene
    scene.kubectl("delete", "node", scene.node, "--ignore-not-found")  # which other DaemonSets would select
    scene.kubectl("delete", "namespace", scene.namespace, "--wait=false")


def affinity(operator: str, *values: str) -> Mapping[str, Any]:
    term = {"matchExpressions": [{"key": ZONE, "operator": operator, "values": list(values)}]}
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}
    return {"nodeAffinity": required}


def test_a_rolling_restart_is_no_reason_to_go(scene: Scene) -> None:
    scene.deploy(image="two")
    scene.kubectl("rollout", "restart", f"daemonset/{NAME}", f"--namespace={scene.namespace}")
    said = scene.asks()
    assert said == Said(
        0, "Kata is still wanted on this node: the DaemonSet is there and selects this node\n"
    )


@pytest.mark.parametrize(
    ("pod", "wanted"),
    [
        pytest.param({"nodeSelector": {ZONE: "b"}}, False, id="another value"),
        pytest.param({"nodeSelector": {"example.org/none": ""}}, False, id="a label of no node"),
        pytest.param({"nodeSelector": {}}, True, id="all nodes"),
        pytest.param({"affinity": affinity("In", "a", "c")}, True, id="affinity"),
        pytest.param({"affinity": affinity("NotIn", "a")}, False, id="affinity to others"),
        pytest.param({"tolerations": []}, True, id="taints not tolerated"),
    ],
)
def test_it_is_asked_as_the_daemonset_controller_decides(
    scene: Scene, pod: Mapping[str, Any], wanted: bool
) -> None:
    wait_until(lambda: len(scene.pods()) == 1, "the DaemonSet has its pod on the node")
    scene.deploy(**pod)
    assert scene.asks().code == (0 if wanted else 10)
    if not wanted:
        wait_until(lambda: not scene.pods(), "the controller wants no pod there either")


def test_a_node_whose_labels_change_is_left_and_can_come_back(scene: Scene) -> None:
    scene.register("b")
    said = scene.asks()
    assert said.code == 10
    assert f"selects nodes with {ZONE}=a, and this one has {ZONE}=b" in said.text
    scene.register("a")
    assert scene.asks().code == 0


@pytest.mark.parametrize("how", ["background", "foreground", "orphan"])
def test_a_daemonset_that_is_deleted_in_whatever_way_is_gone(scene: Scene, how: str) -> None:
    wait_until(lambda: len(scene.pods()) == 1, "the DaemonSet has its pod on the node")
    scene.delete(f"--cascade={how}")
    assert scene.asks().code == 10


def test_a_daemonset_that_waits_for_its_pods_to_end_is_gone_for_them(scene: Scene) -> None:
    wait_until(lambda: len(scene.pods()) == 1, "the DaemonSet has its pod on the node")
    pod = scene.pods()[0]["metadata"]["name"]
    hold = json.dumps({"metadata": {"finalizers": ["example.org/hold"]}})
    scene.kubectl("patch", "pod", pod, f"--namespace={scene.namespace}", "--type=merge", f"--patch={hold}")
    scene.delete("--cascade=foreground")
    wait_until(lambda: not scene.pods(), "the pod is being deleted")
    said = scene.asks()
    assert said == Said(10, "Kata is no longer wanted on this node: the DaemonSet is being deleted\n")
    free = json.dumps({"metadata": {"finalizers": None}})
    scene.kubectl("patch", "pod", pod, f"--namespace={scene.namespace}", "--type=merge", f"--patch={free}")


def test_a_daemonset_of_the_same_name_that_came_after_it_takes_the_node_over(scene: Scene) -> None:
    scene.delete()
    scene.deploy()
    assert scene.asks().code == 0


def test_without_rights_nothing_is_known(scene: Scene) -> None:
    environment = scene.environment
    scene.kubectl("delete", "rolebinding", NAME, f"--namespace={scene.namespace}")
    wait_until(lambda: scene.asks(environment=environment).code == 1, "the right is gone")
    said = scene.asks(environment=environment)
    assert "is forbidden" in said.text
    assert 'give the account "get" on the resource "daemonsets"' in said.text
    # Not even that there is none: to whoever may not look it is all the same.
    scene.delete()
    assert scene.asks(environment=environment).code == 1


def test_without_the_account_nothing_is_known(scene: Scene) -> None:
    environment = scene.environment
    scene.kubectl("delete", "serviceaccount", NAME, f"--namespace={scene.namespace}")
    scene.delete()
    # A token is believed for some seconds more.
    wait_until(lambda: scene.asks(environment=environment).code == 1, "the token is refused", timeout=60)
    assert "its ServiceAccount has to be there" in scene.asks(environment=environment).text


def test_a_node_that_has_left_the_cluster_is_nobodys_wish(scene: Scene) -> None:
    scene.kubectl("delete", "node", scene.node)
    said = scene.asks()
    assert said.code == 1
    assert f"no Node named {scene.node}" in said.text


def test_an_api_server_that_is_away_is_asked_until_the_time_is_over(own_cluster: Cluster) -> None:
    own_cluster.node("worker-1")
    scene = Scene(own_cluster, "away", "worker-1").prepare()
    environment = scene.environment
    own_cluster.stop_apiserver()
    said = scene.asks("--daemonset-timeout=2", environment=environment)
    assert said.code == 1
    assert "gave no answer" in said.text
    own_cluster.start_apiserver()
    wait_until(lambda: scene.asks(environment=environment).code == 0, "it is answered again")


# --- a daemon that asks ------------------------------------------------------------------------------


@pytest.fixture
def pod(scene: Scene, tmp_path: Path) -> Iterator[Running]:
    """A daemon that has installed, and that asks the question itself."""
    with daemon(tmp_path, asks=(scene.question, scene.environment)) as it:
        it.child("install").ends(0)
        it.says("installed")
        yield it


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda scene: scene.delete(), id="deleted"),
        pytest.param(lambda scene: scene.deploy(nodeSelector={ZONE: "b"}), id="selects others"),
        pytest.param(lambda scene: scene.register("b"), id="the node changed"),
    ],
)
def test_the_daemon_reverts_where_it_is_not_wanted(
    scene: Scene, pod: Running, change: Callable[[Scene], None]
) -> None:
    change(scene)
    pod.terminate()
    pod.child("revert").ends(0)
    assert pod.exit_code() == 0


def test_the_first_process_of_a_container_hears_the_kubelet(machine: None, tmp_path: Path) -> None:
    container = ("unshare", "--pid", "--fork", "--kill-child")
    with daemon(tmp_path, wrapped=container) as it:
        install = it.child("install")
        outside = it.process.pid
        first = int(Path(f"/proc/{outside}/task/{outside}/children").read_text())
        os.kill(first, signal.SIGTERM)
        it.child("wanted").ends(10)
        install.is_interrupted()
        install.ends(1)
        it.child("revert").ends(0)
        assert it.exit_code() == 0


def test_the_daemon_reverts_nothing_in_a_rolling_restart(scene: Scene, pod: Running) -> None:
    scene.deploy(image="two")
    pod.terminate()
    assert pod.exit_code() == 0


def test_the_daemon_reverts_nothing_when_its_rights_went_first(scene: Scene, pod: Running) -> None:
    environment = scene.environment
    scene.kubectl("delete", "rolebinding", NAME, f"--namespace={scene.namespace}")
    wait_until(lambda: scene.asks(environment=environment).code == 1, "the right is gone")
    scene.delete()
    pod.terminate()
    pod.says("could not be found out, so it stays")
    assert pod.exit_code() == 1
