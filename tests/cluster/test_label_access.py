"""Who labels, and what: credentials of a pod and of a kubeconfig, rights, and the Node that is meant."""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Callable

import pytest
from certificates import MADE_UP_AUTHORITY
from node.commands import Running

from cluster import flags, tokens
from cluster.conftest import needs_no
from cluster.faulty_proxy import FOR_EVER, Fault
from cluster.stage_runner import CLAIMED, OURS, Outcome, Scene

MACHINE, ANOTHER = "0123456789abcdef0123456789abcdef", "f" * 32
STAGES = ("claim", "label", "unlabel", "unclaim")
MEANT = f"--expected-machine-id={MACHINE}"


# --- in a pod ---------------------------------------------------------------------------------------

# Only the command sees it: a mount namespace of its own, with a /run that is empty but for the account.
IN_A_POD = """
set -e
mount -t tmpfs tmpfs /var/run
mkdir -p /var/run/secrets/kubernetes.io/serviceaccount
mount --bind "$1" /var/run/secrets/kubernetes.io/serviceaccount
shift
exec "$@"
"""


class Pod:
    """What the kubelet gives to a pod: an account's directory, whose token it replaces from time to time."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._unshare = ["unshare", "--mount", *(["--map-root-user"] if os.geteuid() else [])]
        refused = subprocess.run([*self._unshare, "true"], capture_output=True, text=True).stderr
        needs_no(f"a pod's files need a mount namespace, and that is refused: {refused}" if refused else "")
        self.account = scene.directory / "serviceaccount"
        self.account.mkdir()
        for name in ("token", "ca.crt", "namespace"):
            (self.account / name).symlink_to(f"..data/{name}")

    def give(self, token: str, *, authority: str = "") -> None:
        """Replace all of it at once, the way a kubelet does."""
        version = self.account / f"..{secrets.token_hex(4)}"
        version.mkdir()
        authority = authority or self._scene.cluster.ca.read_text()
        files = {"token": token, "ca.crt": authority, "namespace": "labelling"}
        for name, content in files.items():
            (version / name).write_text(content)
        (self.account / "..data_tmp").symlink_to(version.name)
        (self.account / "..data_tmp").rename(self.account / "..data")

    def start(self, *options: str) -> Running:
        """Start label in it."""
        server = {
            "KUBERNETES_SERVICE_HOST": "127.0.0.1",
            "KUBERNETES_SERVICE_PORT": str(self._scene.road.port),
        }
        return self._scene.start(
            "label",
            *options,
            env={**server, "KUBECONFIG": "/nonexistent"},
            entering=(*self._unshare, "sh", "-c", IN_A_POD, "sh", str(self.account)),
        )


def test_in_a_pod_its_own_account_labels_the_node(scene: Scene) -> None:
    scene.register()
    pod = Pod(scene)
    pod.give(scene.token)
    Outcome.of(pod.start().wait()).succeeded()
    assert scene.labels == OURS
    assert {each.token for each in scene.road.requests} == {scene.token}


def test_a_token_that_is_replaced_while_a_node_is_labelled_is_taken_from_the_file(scene: Scene) -> None:
    scene.register()
    pod = Pod(scene)
    expired = tokens.lasting(scene.token, -60, scene.key)
    fresh = tokens.lasting(scene.token, 600, scene.key)
    pod.give(expired)
    scene.road.meet(Fault(then=lambda: pod.give(fresh)), after=3)
    Outcome.of(pod.start().wait()).succeeded()
    assert scene.labels == OURS
    refused = [each for each in scene.road.requests if each.status == 401]
    assert {each.token for each in refused} == {expired}
    assert {each.token for each in scene.road.requests if each.status == 200} == {fresh}


def test_tokens_that_are_worth_nothing_are_a_failure_long_before_the_deadline(scene: Scene) -> None:
    scene.register()
    pod = Pod(scene)
    pod.give(tokens.lasting(scene.token, -60, scene.key))
    leaver = account(scene, "leaver")
    scene.cluster.kubectl("delete", "serviceaccount", "leaver", "--namespace=labelling")
    expired = pod.start("--label-timeout=300")
    orphaned = scene.start("label", "--label-timeout=300", env=scene.as_holder_of(leaver))
    for running in (expired, orphaned):
        failed = Outcome.of(running.wait(60)).failed()
        assert "the API server answered 401: Unauthorized" in failed.text
        assert "see that its ServiceAccount still exists" in failed.error["hint"]
    assert scene.labels == {}


# --- rights -----------------------------------------------------------------------------------------


def account(scene: Scene, name: str, *verbs: str) -> str:
    """The token of a new account that may do this with nodes, and nothing else."""
    kubectl = scene.cluster.kubectl
    kubectl("create", "serviceaccount", name, "--namespace=labelling")
    if verbs:
        kubectl("create", "clusterrole", name, f"--verb={','.join(verbs)}", "--resource=nodes")
        to = f"--serviceaccount=labelling:{name}"
        kubectl("create", "clusterrolebinding", name, f"--clusterrole={name}", to)
    return scene.cluster.token(f"system:serviceaccount:labelling:{name}")


@pytest.mark.parametrize(
    ("verbs", "lacks"),
    [pytest.param((), "get", id="may do nothing"), pytest.param(("get",), "patch", id="may only look")],
)
def test_a_right_that_is_missing_is_named(scene: Scene, verbs: tuple[str, ...], lacks: str) -> None:
    scene.register()
    token = account(scene, f"lacks-{lacks}", *verbs)
    failed = scene.run("label", "--label-timeout=3", env=scene.as_holder_of(token)).failed()
    assert f'cannot {lacks} resource "nodes"' in failed.text
    assert f'the account lacks the verb "{lacks}" on the resource "nodes"' in failed.error["hint"]
    assert scene.labels == {}


def test_a_role_that_is_bound_a_moment_later_is_waited_for(scene: Scene) -> None:
    scene.register()
    token = account(scene, "early")

    def bind() -> None:
        bound = ("--clusterrole=labelling", "--serviceaccount=labelling:early")
        scene.cluster.kubectl("create", "clusterrolebinding", "early", *bound)

    scene.road.meet(Fault(then=bind))
    scene.run("label", env=scene.as_holder_of(token)).succeeded()
    assert scene.labels == OURS


def test_without_the_right_to_record_events_a_node_is_labelled_all_the_same(scene: Scene) -> None:
    scene.register()
    token = account(scene, "quiet", "get", "patch")
    done = scene.run("label", env=scene.as_holder_of(token)).succeeded()
    assert scene.labels == OURS
    assert 'give the account "create" on "events"' in done.log


# --- servers ----------------------------------------------------------------------------------------


def test_a_server_of_another_authority_is_not_told_the_token(scene: Scene) -> None:
    scene.register()
    config = scene.directory / "distrusts"
    config.write_text(flags.kubeconfig(scene.road.url, MADE_UP_AUTHORITY, scene.token, "default"))
    pod = Pod(scene)
    pod.give(scene.token, authority=MADE_UP_AUTHORITY)
    timeout = "--label-timeout=300"
    for running in (scene.start("label", timeout, env={"KUBECONFIG": str(config)}), pod.start(timeout)):
        failed = Outcome.of(running.wait()).failed()
        assert "CERTIFICATE_VERIFY_FAILED" in failed.text
        assert "its certificate is the cluster's" in failed.error["hint"]
    assert scene.road.requests == []


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(Fault(200, {"Content-Type": "text/html"}, "<html>hello</html>"), id="a page"),
        pytest.param(Fault(404, {"Content-Type": "text/html"}, "<html>no</html>"), id="no such page"),
        pytest.param(Fault(302, {"Location": "/login"}, ""), id="a log-in"),
    ],
)
def test_a_server_that_is_none_of_kubernetes_is_said_at_once(scene: Scene, answer: Fault) -> None:
    scene.road.meet(answer, method="GET", times=FOR_EVER)
    failed = scene.run("label", "--label-timeout=300").failed()
    assert scene.road.url in failed.error["where"]
    assert scene.road.count("GET") == 1


def test_a_server_that_is_not_there_is_named(scene: Scene) -> None:
    config = scene.directory / "nobody"
    nobody = "https://127.0.0.1:1"
    config.write_text(flags.kubeconfig(nobody, scene.cluster.ca.read_text(), scene.token, "default"))
    failed = scene.run("label", "--label-timeout=3", env={"KUBECONFIG": str(config)}).failed()
    assert "refused" in failed.text
    assert failed.error["where"] == f"node/{scene.name} at {nobody}"


# --- which Node -------------------------------------------------------------------------------------


def test_a_node_that_the_cluster_does_not_have_yet_may_be_tried_again(scene: Scene) -> None:
    for running in [scene.start(stage, "--label-timeout=1") for stage in STAGES]:
        failed = Outcome.of(running.wait()).failed(1)
        assert f"the cluster has no Node named {scene.name}" in failed.text
        assert "NODE_NAME" in failed.error["hint"]


def test_without_the_name_of_a_node_nothing_is_asked(scene: Scene) -> None:
    failed = scene.run("label", env={"NODE_NAME": ""}).failed(2)
    assert failed.error["where"] == "NODE_NAME"
    assert scene.road.requests == []


def registered_anew(scene: Scene, machine: str) -> Callable[[], None]:
    def happen() -> None:
        scene.hand.remove(scene.name)
        scene.road.meet(
            Fault(first=lambda: scene.register(nodeInfo=node_info(machine))), method="GET", after=1
        )

    return happen


def node_info(machine: str) -> dict[str, str]:
    required = "architecture bootID containerRuntimeVersion kernelVersion kubeProxyVersion kubeletVersion"
    return {
        **dict.fromkeys(f"{required} operatingSystem osImage systemUUID".split(), ""),
        "machineID": machine,
    }


STARTING = [{"type": "Ready", "status": "False", "message": "starting"}]
READY = [{"type": "Ready", "status": "True"}]


def to_be_registered_anew(scene: Scene, when: str, machine: str) -> None:
    """Register the Node, to pass to ``machine`` when it is ``not ready yet``, or just ``labelled``."""
    waiting = when == "not ready yet"
    scene.register(nodeInfo=node_info(MACHINE), conditions=STARTING if waiting else READY)
    happen = registered_anew(scene, machine)
    if waiting:
        scene.road.meet(Fault(first=happen), method="GET", after=2)
    else:
        scene.road.meet(Fault(then=happen), method="PATCH")


@pytest.mark.parametrize(
    ("options", "new"),
    [
        pytest.param((MEANT,), MACHINE, id="the machine meant"),
        pytest.param((), ANOTHER, id="whatever machine"),
    ],
)
@pytest.mark.parametrize("when", ["not ready yet", "labelled"])
def test_a_node_that_is_deleted_and_registered_anew_is_labelled_then(
    scene: Scene, when: str, options: tuple[str, ...], new: str
) -> None:
    to_be_registered_anew(scene, when, new)
    done = scene.run("label", *options).succeeded()
    assert scene.labels == OURS
    assert "giving it" in done.log


@pytest.mark.parametrize("when", ["not ready yet", "labelled"])
def test_a_name_that_passes_to_another_machine_is_left_alone(scene: Scene, when: str) -> None:
    to_be_registered_anew(scene, when, ANOTHER)
    failed = scene.run("label", MEANT).failed(3)
    assert f"its machine id is {ANOTHER}, expected was {MACHINE}" in failed.text
    assert scene.labels == {}


@pytest.mark.parametrize(
    ("stages", "there"),
    [
        pytest.param(("claim", "unlabel"), CLAIMED, id="claimed"),
        pytest.param(("claim", "label"), OURS, id="served"),
        pytest.param(("unlabel", "unclaim"), {}, id="bare"),
    ],
)
def test_labels_of_another_machine_that_are_as_they_should_be_are_no_success(
    scene: Scene, stages: tuple[str, ...], there: dict[str, str]
) -> None:
    scene.register(there, nodeInfo=node_info(ANOTHER))
    for running in [scene.start(stage, MEANT) for stage in stages]:
        failed = Outcome.of(running.wait()).failed(3)
        assert "the Node is on another machine" in failed.text
