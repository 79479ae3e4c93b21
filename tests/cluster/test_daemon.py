"""``kata-node wanted`` and the daemon on a real API server, with the rights of the DaemonSet's account."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from cluster.control_plane import Cluster
from cluster.daemonsets import NAME, RACK, DaemonSetFixture, WantedAnswer
from daemon.daemon_process import DaemonProcess, daemon
from node.commands import wait_until


@pytest.fixture
def daemonset_fixture(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[DaemonSetFixture]:
    name = request.node.name.removeprefix("test_").partition("[")[0].replace("_", "-")[:30].strip("-")
    name = f"{name}-{abs(hash(request.node.name)) % 10**6}"
    cluster.node(f"{name}-node")
    daemonset_fixture = DaemonSetFixture(cluster, name, f"{name}-node").prepare()
    yield daemonset_fixture
    daemonset_fixture.kubectl(
        "delete", "node", daemonset_fixture.node, "--ignore-not-found"
    )  # other DaemonSets would select this Node too
    daemonset_fixture.kubectl("delete", "namespace", daemonset_fixture.namespace, "--wait=false")


def affinity(operator: str, *values: str) -> Mapping[str, Any]:
    term = {"matchExpressions": [{"key": RACK, "operator": operator, "values": list(values)}]}
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}
    return {"nodeAffinity": required}


def test_kata_is_still_wanted_during_a_rolling_restart(daemonset_fixture: DaemonSetFixture) -> None:
    daemonset_fixture.deploy(image="two")
    daemonset_fixture.kubectl(
        "rollout", "restart", f"daemonset/{NAME}", f"--namespace={daemonset_fixture.namespace}"
    )
    answer = daemonset_fixture.ask_wanted()
    assert answer == WantedAnswer(
        0, "Kata is still wanted on this node: the DaemonSet exists and selects this node\n"
    )


@pytest.mark.parametrize(
    ("pod", "wanted"),
    [
        pytest.param({"nodeSelector": {RACK: "b"}}, False, id="another value"),
        pytest.param({"nodeSelector": {"example.org/none": ""}}, False, id="a label of no node"),
        pytest.param({"nodeSelector": {}}, True, id="all nodes"),
        pytest.param({"affinity": affinity("In", "a", "c")}, True, id="affinity"),
        pytest.param({"affinity": affinity("NotIn", "a")}, False, id="affinity to others"),
        pytest.param({"tolerations": []}, True, id="taints not tolerated"),
    ],
)
def test_wanted_decides_like_the_daemonset_controller(
    daemonset_fixture: DaemonSetFixture, pod: Mapping[str, Any], wanted: bool
) -> None:
    wait_until(lambda: len(daemonset_fixture.pods()) == 1, "the DaemonSet has its pod on the node")
    daemonset_fixture.deploy(**pod)
    assert daemonset_fixture.ask_wanted().code == (0 if wanted else 10)
    if not wanted:
        wait_until(lambda: not daemonset_fixture.pods(), "the controller wants no pod there either")


def test_kata_is_not_wanted_while_the_labels_of_the_node_do_not_match(
    daemonset_fixture: DaemonSetFixture,
) -> None:
    daemonset_fixture.register("b")
    answer = daemonset_fixture.ask_wanted()
    assert answer.code == 10
    assert f"selects nodes with {RACK}=a, and this one has {RACK}=b" in answer.text
    daemonset_fixture.register("a")
    assert daemonset_fixture.ask_wanted().code == 0


@pytest.mark.parametrize("how", ["background", "foreground", "orphan"])
def test_kata_is_not_wanted_after_every_kind_of_delete_of_the_daemonset(
    daemonset_fixture: DaemonSetFixture, how: str
) -> None:
    wait_until(lambda: len(daemonset_fixture.pods()) == 1, "the DaemonSet has its pod on the node")
    daemonset_fixture.delete(f"--cascade={how}")
    assert daemonset_fixture.ask_wanted().code == 10


def test_kata_is_not_wanted_while_a_deleted_daemonset_waits_for_its_pods(
    daemonset_fixture: DaemonSetFixture,
) -> None:
    wait_until(lambda: len(daemonset_fixture.pods()) == 1, "the DaemonSet has its pod on the node")
    pod = daemonset_fixture.pods()[0]["metadata"]["name"]
    hold = json.dumps({"metadata": {"finalizers": ["example.org/hold"]}})
    daemonset_fixture.kubectl(
        "patch", "pod", pod, f"--namespace={daemonset_fixture.namespace}", "--type=merge", f"--patch={hold}"
    )
    daemonset_fixture.delete("--cascade=foreground")
    wait_until(lambda: not daemonset_fixture.pods(), "the pod is being deleted")
    answer = daemonset_fixture.ask_wanted()
    assert answer == WantedAnswer(
        10, "Kata is no longer wanted on this node: the DaemonSet is being deleted\n"
    )
    free = json.dumps({"metadata": {"finalizers": None}})
    daemonset_fixture.kubectl(
        "patch", "pod", pod, f"--namespace={daemonset_fixture.namespace}", "--type=merge", f"--patch={free}"
    )


def test_kata_is_wanted_by_a_new_daemonset_of_the_same_name(
    daemonset_fixture: DaemonSetFixture,
) -> None:
    daemonset_fixture.delete()
    daemonset_fixture.deploy()
    assert daemonset_fixture.ask_wanted().code == 0


def test_wanted_fails_without_the_right_to_read_the_daemonset(daemonset_fixture: DaemonSetFixture) -> None:
    environment = daemonset_fixture.environment
    daemonset_fixture.kubectl("delete", "rolebinding", NAME, f"--namespace={daemonset_fixture.namespace}")
    wait_until(lambda: daemonset_fixture.ask_wanted(environment=environment).code == 1, "the right is gone")
    answer = daemonset_fixture.ask_wanted(environment=environment)
    assert "is forbidden" in answer.text
    assert 'give the account the verb "get" on the resource "daemonsets"' in answer.text
    # Without the right the API server also hides that the DaemonSet is deleted.
    daemonset_fixture.delete()
    assert daemonset_fixture.ask_wanted(environment=environment).code == 1


def test_wanted_fails_without_the_service_account(daemonset_fixture: DaemonSetFixture) -> None:
    environment = daemonset_fixture.environment
    daemonset_fixture.kubectl("delete", "serviceaccount", NAME, f"--namespace={daemonset_fixture.namespace}")
    daemonset_fixture.delete()
    # The API server accepts the token for some more seconds.
    wait_until(
        lambda: daemonset_fixture.ask_wanted(environment=environment).code == 1, "the token is refused"
    )
    assert (
        "keep the ServiceAccount until the pods that use it are gone"
        in daemonset_fixture.ask_wanted(environment=environment).text
    )


def test_wanted_fails_for_a_node_that_is_not_in_the_cluster(daemonset_fixture: DaemonSetFixture) -> None:
    daemonset_fixture.kubectl("delete", "node", daemonset_fixture.node)
    answer = daemonset_fixture.ask_wanted()
    assert answer.code == 1
    assert f"no Node named {daemonset_fixture.node}" in answer.text


def test_wanted_retries_an_api_server_that_is_down_until_the_timeout(own_cluster: Cluster) -> None:
    own_cluster.node("worker-1")
    daemonset_fixture = DaemonSetFixture(own_cluster, "away", "worker-1").prepare()
    environment = daemonset_fixture.environment
    own_cluster.stop_apiserver()
    answer = daemonset_fixture.ask_wanted("--daemonset-timeout=2", environment=environment)
    assert answer.code == 1
    assert "gave no answer" in answer.text
    own_cluster.start_apiserver()
    wait_until(
        lambda: daemonset_fixture.ask_wanted(environment=environment).code == 0, "it is answered again"
    )


# --- the daemon -------------------------------------------------------------------------------------


@pytest.fixture
def pod(daemonset_fixture: DaemonSetFixture, tmp_path: Path) -> Iterator[DaemonProcess]:
    """A daemon that has installed and runs the real ``kata-node wanted``."""
    with daemon(tmp_path, asks=(daemonset_fixture.wanted_command, daemonset_fixture.environment)) as it:
        it.child("install").ends(0)
        it.says("installed")
        yield it


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda daemonset_fixture: daemonset_fixture.delete(), id="deleted"),
        pytest.param(
            lambda daemonset_fixture: daemonset_fixture.deploy(nodeSelector={RACK: "b"}), id="selects others"
        ),
        pytest.param(lambda daemonset_fixture: daemonset_fixture.register("b"), id="the node changed"),
    ],
)
def test_the_daemon_reverts_when_kata_is_not_wanted(
    daemonset_fixture: DaemonSetFixture, pod: DaemonProcess, change: Callable[[DaemonSetFixture], None]
) -> None:
    change(daemonset_fixture)
    pod.terminate()
    pod.child("revert").ends(0)
    assert pod.exit_code() == 0


def test_the_daemon_handles_sigterm_as_process_1_of_a_container(machine: None, tmp_path: Path) -> None:
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


def test_the_daemon_does_not_revert_in_a_rolling_restart(
    daemonset_fixture: DaemonSetFixture, pod: DaemonProcess
) -> None:
    daemonset_fixture.deploy(image="two")
    pod.terminate()
    assert pod.exit_code() == 0


def test_the_daemon_does_not_revert_when_it_has_lost_its_rights(
    daemonset_fixture: DaemonSetFixture, pod: DaemonProcess
) -> None:
    environment = daemonset_fixture.environment
    daemonset_fixture.kubectl("delete", "rolebinding", NAME, f"--namespace={daemonset_fixture.namespace}")
    wait_until(lambda: daemonset_fixture.ask_wanted(environment=environment).code == 1, "the right is gone")
    daemonset_fixture.delete()
    pod.terminate()
    pod.says("so Kata stays")
    assert pod.exit_code() == 1
