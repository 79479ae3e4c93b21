"""label with the credentials of a pod or kubeconfig, with missing rights, and with the wrong Node."""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Callable

import pytest

from certificates import MADE_UP_AUTHORITY
from cluster import flags, tokens
from cluster.conftest import skip_if_missing
from cluster.faulty_proxy import UNLIMITED, Fault
from cluster.stage_runner import CLAIMED, LABELED, Outcome, StageRunner
from node.commands import RunningCommand

MACHINE, ANOTHER = "0123456789abcdef0123456789abcdef", "f" * 32
STAGES = ("claim", "label", "unlabel", "unclaim")
MEANT = f"--expected-machine-id={MACHINE}"


# --- in a pod ---------------------------------------------------------------------------------------

# The command has its own mount namespace, in which /var/run contains only the ServiceAccount's files.
IN_A_POD = """
set -e
mount -t tmpfs tmpfs /var/run
mkdir -p /var/run/secrets/kubernetes.io/serviceaccount
mount --bind "$1" /var/run/secrets/kubernetes.io/serviceaccount
shift
exec "$@"
"""


class Pod:
    """The ServiceAccount directory of a pod, in which the kubelet replaces the token from time to time."""

    def __init__(self, stage_runner: StageRunner) -> None:
        self._scene = stage_runner
        self._unshare = ["unshare", "--mount", *(["--map-root-user"] if os.geteuid() else [])]
        refused = subprocess.run([*self._unshare, "true"], capture_output=True, text=True).stderr
        skip_if_missing(
            f"a pod's files need a mount namespace, and that is refused: {refused}" if refused else ""
        )
        self.account = stage_runner.directory / "serviceaccount"
        self.account.mkdir()
        for name in ("token", "ca.crt", "namespace"):
            (self.account / name).symlink_to(f"..data/{name}")

    def give(self, token: str, *, authority: str = "") -> None:
        """Replace all files atomically, as the kubelet does."""
        version = self.account / f"..{secrets.token_hex(4)}"
        version.mkdir()
        authority = authority or self._scene.cluster.ca.read_text()
        files = {"token": token, "ca.crt": authority, "namespace": "labelling"}
        for name, content in files.items():
            (version / name).write_text(content)
        (self.account / "..data_tmp").symlink_to(version.name)
        (self.account / "..data_tmp").rename(self.account / "..data")

    def start(self, *options: str) -> RunningCommand:
        """Start ``label`` with this directory."""
        server = {
            "KUBERNETES_SERVICE_HOST": "127.0.0.1",
            "KUBERNETES_SERVICE_PORT": str(self._scene.proxy.port),
        }
        return self._scene.start(
            "label",
            *options,
            env={**server, "KUBECONFIG": "/nonexistent"},
            entering=(*self._unshare, "sh", "-c", IN_A_POD, "sh", str(self.account)),
        )


def test_a_pod_labels_the_node_with_its_service_account(stage_runner: StageRunner) -> None:
    stage_runner.register()
    pod = Pod(stage_runner)
    pod.give(stage_runner.token)
    Outcome.of(pod.start().wait()).succeeded()
    assert stage_runner.labels == LABELED
    assert {each.token for each in stage_runner.proxy.requests} == {stage_runner.token}


def test_a_token_that_is_replaced_during_the_run_is_read_again(
    stage_runner: StageRunner,
) -> None:
    stage_runner.register()
    pod = Pod(stage_runner)
    expired = tokens.with_lifetime(stage_runner.token, -60, stage_runner.key)
    fresh = tokens.with_lifetime(stage_runner.token, 600, stage_runner.key)
    pod.give(expired)
    stage_runner.proxy.inject(Fault(then=lambda: pod.give(fresh)), after=3)
    Outcome.of(pod.start().wait()).succeeded()
    assert stage_runner.labels == LABELED
    refused = [each for each in stage_runner.proxy.requests if each.status == 401]
    assert {each.token for each in refused} == {expired}
    assert {each.token for each in stage_runner.proxy.requests if each.status == 200} == {fresh}


def test_invalid_tokens_fail_long_before_the_timeout(
    stage_runner: StageRunner,
) -> None:
    stage_runner.register()
    pod = Pod(stage_runner)
    pod.give(tokens.with_lifetime(stage_runner.token, -60, stage_runner.key))
    leaver = account(stage_runner, "leaver")
    stage_runner.cluster.kubectl("delete", "serviceaccount", "leaver", "--namespace=labelling")
    expired = pod.start("--label-timeout=3000")
    orphaned = stage_runner.start("label", "--label-timeout=3000", env=stage_runner.as_holder_of(leaver))
    for running in (expired, orphaned):
        failed = Outcome.of(running.wait()).failed()
        assert 'the API server answered 401: "Unauthorized"' in failed.text
        assert "check that its ServiceAccount still exists" in failed.error["hint"]
    assert stage_runner.labels == {}


# --- rights -----------------------------------------------------------------------------------------


def account(stage_runner: StageRunner, name: str, *verbs: str) -> str:
    """Return the token of a new account with only these verbs on nodes."""
    kubectl = stage_runner.cluster.kubectl
    kubectl("create", "serviceaccount", name, "--namespace=labelling")
    if verbs:
        kubectl("create", "clusterrole", name, f"--verb={','.join(verbs)}", "--resource=nodes")
        to = f"--serviceaccount=labelling:{name}"
        kubectl("create", "clusterrolebinding", name, f"--clusterrole={name}", to)
    return stage_runner.cluster.token(f"system:serviceaccount:labelling:{name}")


@pytest.mark.parametrize(
    ("verbs", "lacks"),
    [pytest.param((), "get", id="may do nothing"), pytest.param(("get",), "patch", id="may only look")],
)
def test_a_missing_right_is_named(stage_runner: StageRunner, verbs: tuple[str, ...], lacks: str) -> None:
    stage_runner.register()
    token = account(stage_runner, f"lacks-{lacks}", *verbs)
    failed = stage_runner.run("label", "--label-timeout=3", env=stage_runner.as_holder_of(token)).failed()
    assert f"cannot {lacks} resource 'nodes'" in failed.text
    assert f'give the account the verb "{lacks}" on the resource "nodes"' in failed.error["hint"]
    assert stage_runner.labels == {}


def test_label_waits_for_a_role_that_is_bound_a_moment_later(stage_runner: StageRunner) -> None:
    stage_runner.register()
    token = account(stage_runner, "early")

    def bind() -> None:
        bound = ("--clusterrole=labelling", "--serviceaccount=labelling:early")
        stage_runner.cluster.kubectl("create", "clusterrolebinding", "early", *bound)

    stage_runner.proxy.inject(Fault(then=bind))
    stage_runner.run("label", env=stage_runner.as_holder_of(token)).succeeded()
    assert stage_runner.labels == LABELED


def test_a_node_is_labeled_without_the_right_to_create_events(
    stage_runner: StageRunner,
) -> None:
    stage_runner.register()
    token = account(stage_runner, "quiet", "get", "patch")
    done = stage_runner.run("label", env=stage_runner.as_holder_of(token)).succeeded()
    assert stage_runner.labels == LABELED
    assert 'give the account the verb "create" on the resource "events"' in done.log


# --- servers ----------------------------------------------------------------------------------------


def test_a_server_with_an_untrusted_certificate_does_not_get_the_token(stage_runner: StageRunner) -> None:
    stage_runner.register()
    config = stage_runner.directory / "distrusts"
    config.write_text(
        flags.kubeconfig(stage_runner.proxy.url, MADE_UP_AUTHORITY, stage_runner.token, "default")
    )
    pod = Pod(stage_runner)
    pod.give(stage_runner.token, authority=MADE_UP_AUTHORITY)
    timeout = "--label-timeout=3000"
    for running in (
        stage_runner.start("label", timeout, env={"KUBECONFIG": str(config)}),
        pod.start(timeout),
    ):
        failed = Outcome.of(running.wait()).failed()
        assert "CERTIFICATE_VERIFY_FAILED" in failed.text
        assert "its certificate is the cluster's" in failed.error["hint"]
    assert stage_runner.proxy.requests == []


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(Fault(200, {"Content-Type": "text/html"}, "<html>hello</html>"), id="a page"),
        pytest.param(Fault(404, {"Content-Type": "text/html"}, "<html>no</html>"), id="no such page"),
        pytest.param(Fault(302, {"Location": "/login"}, ""), id="a log-in"),
    ],
)
def test_a_server_that_is_not_an_api_server_is_reported_at_once(
    stage_runner: StageRunner, answer: Fault
) -> None:
    stage_runner.proxy.inject(answer, method="GET", times=UNLIMITED)
    failed = stage_runner.run("label", "--label-timeout=3000").failed()
    assert stage_runner.proxy.url in failed.error["where"]
    assert stage_runner.proxy.count("GET") == 2  # the second one is to record the failure on the Node


def test_an_unreachable_server_is_named(stage_runner: StageRunner) -> None:
    config = stage_runner.directory / "nobody"
    nobody = "https://127.0.0.1:1"
    config.write_text(
        flags.kubeconfig(nobody, stage_runner.cluster.ca.read_text(), stage_runner.token, "default")
    )
    failed = stage_runner.run("label", "--label-timeout=3", env={"KUBECONFIG": str(config)}).failed()
    assert "refused" in failed.text
    assert failed.error["where"] == f"node/{stage_runner.name} at {nobody}"


# --- the Node ---------------------------------------------------------------------------------------


def test_a_node_that_is_not_registered_yet_is_a_retryable_failure(stage_runner: StageRunner) -> None:
    for running in [stage_runner.start(stage, "--label-timeout=1") for stage in STAGES]:
        failed = Outcome.of(running.wait()).failed(1)
        assert f"the cluster has no Node named {stage_runner.name}" in failed.text
        assert "NODE_NAME" in failed.error["hint"]


def test_without_a_node_name_no_request_is_sent(stage_runner: StageRunner) -> None:
    failed = stage_runner.run("label", env={"NODE_NAME": ""}).failed(2)
    assert failed.error["where"] == "NODE_NAME"
    assert stage_runner.proxy.requests == []


def registered_again(stage_runner: StageRunner, machine: str) -> Callable[[], None]:
    def replace_node() -> None:
        stage_runner.node_writer.remove(stage_runner.name)
        stage_runner.proxy.inject(
            Fault(first=lambda: stage_runner.register(nodeInfo=node_info(machine))), method="GET", after=1
        )

    return replace_node


def node_info(machine: str) -> dict[str, str]:
    required = "architecture bootID containerRuntimeVersion kernelVersion kubeProxyVersion kubeletVersion"
    return {
        **dict.fromkeys(f"{required} operatingSystem osImage systemUUID".split(), ""),
        "machineID": machine,
    }


STARTING = [{"type": "Ready", "status": "False", "message": "starting"}]
READY = [{"type": "Ready", "status": "True"}]


def register_to_be_replaced(stage_runner: StageRunner, when: str, machine: str) -> None:
    """Register the Node, and prepare its replacement by a Node on ``machine`` during the run.

    ``when`` is ``not ready yet`` (before the first Node is Ready) or ``labelled`` (after the first write).
    """
    waiting = when == "not ready yet"
    stage_runner.register(nodeInfo=node_info(MACHINE), conditions=STARTING if waiting else READY)
    replace_node = registered_again(stage_runner, machine)
    if waiting:
        stage_runner.proxy.inject(Fault(first=replace_node), method="GET", after=1)
    else:
        stage_runner.proxy.inject(Fault(then=replace_node), method="PATCH")


@pytest.mark.parametrize(
    ("options", "new"),
    [
        pytest.param((MEANT,), MACHINE, id="the machine meant"),
        pytest.param((), ANOTHER, id="whatever machine"),
    ],
)
@pytest.mark.parametrize("when", ["not ready yet", "labelled"])
def test_a_node_that_is_deleted_and_registered_again_is_labeled(
    stage_runner: StageRunner, when: str, options: tuple[str, ...], new: str
) -> None:
    register_to_be_replaced(stage_runner, when, new)
    done = stage_runner.run("label", *options).succeeded()
    assert stage_runner.labels == LABELED
    assert "for the kubelet to register Node" in done.log


@pytest.mark.parametrize("when", ["not ready yet", "labelled"])
def test_a_node_name_that_now_belongs_to_another_machine_is_not_labeled(
    stage_runner: StageRunner, when: str
) -> None:
    register_to_be_replaced(stage_runner, when, ANOTHER)
    failed = stage_runner.run("label", MEANT).failed(3)
    assert f"its machine id is {ANOTHER}, the expected one is {MACHINE}" in failed.text
    assert stage_runner.labels == {}


@pytest.mark.parametrize(
    ("stages", "there"),
    [
        pytest.param(("claim", "unlabel"), CLAIMED, id="claimed"),
        pytest.param(("claim", "label"), LABELED, id="served"),
        pytest.param(("unlabel", "unclaim"), {}, id="bare"),
    ],
)
def test_correct_labels_of_another_machine_are_not_a_success(
    stage_runner: StageRunner, stages: tuple[str, ...], there: dict[str, str]
) -> None:
    stage_runner.register(there, nodeInfo=node_info(ANOTHER))
    for running in [stage_runner.start(stage, MEANT) for stage in stages]:
        failed = Outcome.of(running.wait()).failed(3)
        assert "the Node is not the expected machine" in failed.text
