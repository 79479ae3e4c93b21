"""The client against a fake API server over real HTTP, with one Node and failures on demand."""

from __future__ import annotations

import functools
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx2
import pytest
from msgspec.structs import replace

from certificates import MADE_UP_AUTHORITY
from kata_node import signals
from kata_node.cluster import labels
from kata_node.cluster.labels import NodeState
from kata_node.errors import IneligibleNodeError, KubeError, UsageError
from kata_node.kube import credentials
from kata_node.kube.client import NODE_ABSENCE_TIMEOUT, Clock, KubeClient, NodeFacts, NoSuchNodeError
from kata_node.kube.node import MetadataChanges
from kata_node.kube.retry import MAX_AUTH_TRIES
from kata_node.kube.session import KubeconfigSession
from kube.fake_api_server import MACHINE, Api, FakeClock, Fault, Labels, status_object

SHARED_LABEL = "katacontainers.io/kata-runtime"
INSTALLATION_LABEL = "kata-deploy.katacontainers.io/blue"
OURS = {SHARED_LABEL: "true", INSTALLATION_LABEL: "true"}


def label(node: NodeFacts) -> MetadataChanges:
    return labels.changes("served", NodeState(node.labels, node.annotations), "blue")


def unlabel(node: NodeFacts) -> MetadataChanges:
    return labels.changes("released", NodeState(node.labels, node.annotations), "blue")


# --- fixtures ------------------------------------------------------------------------------------------


@pytest.fixture
def api() -> Iterator[Api]:
    api = Api()
    api.start()
    yield api
    api.stop()


@pytest.fixture
def time() -> FakeClock:
    return FakeClock()


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment without credentials, except those that a test creates below ``tmp_path``."""
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(credentials, "SERVICE_ACCOUNT", str(tmp_path / "serviceaccount"))
    return tmp_path


def write_kubeconfig(path: Path, server: str, user: Mapping[str, str]) -> None:
    config = {
        "current-context": "it",
        "contexts": [{"name": "it", "context": {"cluster": "it", "user": "me"}}],
        "clusters": [{"name": "it", "cluster": {"server": server}}],
        "users": [{"name": "me", "user": user}],
    }
    path.write_text(json.dumps(config))  # JSON is YAML


def pretend_pod(environment: Path, monkeypatch: pytest.MonkeyPatch, host: str, port: int) -> None:
    account = environment / "serviceaccount"
    account.mkdir()
    for name, content in {"token": "t", "namespace": "kata", "ca.crt": MADE_UP_AUTHORITY}.items():
        (account / name).write_text(content)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(port))


class PlainConnection(http.client.HTTPConnection):
    """A connection without TLS, as the fake API server has none. tests/cluster has TLS."""

    def __init__(self, host: str, port: int, *, timeout: float, context: ssl.SSLContext) -> None:
        super().__init__(host, port, timeout=timeout)


@pytest.fixture
def token_file(environment: Path) -> Path:
    return environment / "token"


@pytest.fixture(params=["kubeconfig", "pod"])
def kube(
    request: pytest.FixtureRequest,
    api: Api,
    time: FakeClock,
    environment: Path,
    token_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[KubeClient]:
    if request.param == "pod":
        pretend_pod(environment, monkeypatch, "127.0.0.1", api.port)
        (environment / "serviceaccount/token").unlink()
        (environment / "serviceaccount/token").symlink_to(token_file)
        monkeypatch.setattr(http.client, "HTTPSConnection", PlainConnection)
    else:
        config = environment / "kubeconfig"
        write_kubeconfig(config, api.url, {"tokenFile": str(token_file)})
        monkeypatch.setenv("KUBECONFIG", str(config))
    token_file.write_text("first")
    # The server is real, and so is the time that it takes to answer, also at the end of a deadline.
    monkeypatch.setattr("kata_node.kube.retry.MIN_REQUEST_TIMEOUT", 60)
    with KubeClient.connect(clock=time.clock(), request_timeout=60) as kube:
        yield kube


# --- signals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", signals.STOP_SIGNALS, ids=lambda number: number.name)
@pytest.mark.usefixtures("handled_signals")
def test_a_wait_for_the_node_ends_on_a_signal(
    kube: KubeClient, api: Api, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.report(conditions=[])
    monkeypatch.setattr("time.sleep", lambda _: os.kill(os.getpid(), number))
    kube.clock = replace(kube.clock, sleep=Clock().sleep)
    with signals.changing(), pytest.raises(signals.StopRequested):
        kube.wait_ready("n1", timeout=300)
    assert api.requests == ["GET"]


@pytest.mark.usefixtures("handled_signals")
def test_a_read_that_the_api_server_does_not_answer_ends_on_a_signal(kube: KubeClient, api: Api) -> None:
    asked = threading.Event()
    api.faults = [Fault(hang=True, asked=asked)]

    def terminate() -> None:
        asked.wait()
        os.kill(os.getpid(), signal.SIGTERM)

    sender = threading.Thread(target=terminate)
    sender.start()
    with signals.changing(), pytest.raises(signals.StopRequested):
        kube.node("n1", kube.deadline_after(300))
    sender.join()


@pytest.mark.usefixtures("handled_signals")
def test_a_label_change_in_flight_is_finished_before_a_stop(kube: KubeClient, api: Api) -> None:
    api.faults = [Fault(method="PATCH", first=lambda: os.kill(os.getpid(), signal.SIGTERM))]
    with signals.changing(), pytest.raises(signals.StopRequested):
        kube.ensure_labels("n1", label, window=10, timeout=60)
    assert OURS.items() <= api.labels.items()
    assert api.writes == 1


# --- labels that last -------------------------------------------------------------------------------


def test_a_node_gets_its_labels_and_keeps_all_others(kube: KubeClient, api: Api, time: FakeClock) -> None:
    others = {f"example.com/label-{number}": "x" * 63 for number in range(500)}
    api.labels |= others
    facts = kube.ensure_labels("n1", label, window=10, timeout=60)
    assert api.labels == {"kubernetes.io/hostname": "n1", **others, **OURS}
    assert facts.labels == api.labels
    assert api.writes == 1
    assert time.passed >= 10


def test_releasing_a_node_removes_the_label_keys(kube: KubeClient, api: Api) -> None:
    api.labels |= OURS
    kube.ensure_labels("n1", unlabel, window=3, timeout=60)
    assert api.labels == {"kubernetes.io/hostname": "n1"}


def test_labels_and_annotations_change_in_one_request(kube: KubeClient, api: Api) -> None:
    api.annotations = {"example.com/own": "stays"}
    kube.ensure_labels("n1", label, window=3, timeout=60)
    assert api.annotations == {"example.com/own": "stays", labels.SETTER_ANNOTATION: "kata-node"}
    kube.ensure_labels("n1", unlabel, window=3, timeout=60)
    assert (api.annotations, api.writes) == ({"example.com/own": "stays"}, 2)


@pytest.mark.parametrize(
    ("change", "node_labels"),
    [pytest.param(label, OURS, id="label"), pytest.param(unlabel, {}, id="unlabel")],
)
def test_a_node_with_the_wanted_labels_is_not_changed(
    kube: KubeClient, api: Api, change: Callable[[NodeFacts], MetadataChanges], node_labels: Labels
) -> None:
    api.labels |= node_labels
    kube.ensure_labels("n1", change, window=3, timeout=60)
    assert set(api.requests) == {"GET"}


def test_labels_that_a_kubelet_removes_are_set_again_and_the_window_restarts(
    kube: KubeClient, api: Api, time: FakeClock
) -> None:
    time.at(8, lambda: api.replace({"kubernetes.io/hostname": "n1"}))
    kube.ensure_labels("n1", label, window=10, timeout=60)
    assert OURS.items() <= api.labels.items()
    assert api.writes == 2
    assert time.passed >= 18


def test_removed_labels_that_come_back_are_removed_again(kube: KubeClient, api: Api, time: FakeClock) -> None:
    api.labels |= OURS
    time.at(2, lambda: api.write(OURS))
    kube.ensure_labels("n1", unlabel, window=5, timeout=60)
    assert api.labels == {"kubernetes.io/hostname": "n1"}
    assert time.passed >= 7


def test_labels_that_are_removed_repeatedly_are_an_error_at_the_timeout(
    kube: KubeClient, api: Api, time: FakeClock
) -> None:
    for second in range(2, 60, 4):
        time.at(second, lambda: api.replace({}))
    with pytest.raises(
        KubeError, match=r"did not stay unchanged for 10 s within 30 s.*undone 3 times"
    ) as error:
        kube.ensure_labels("n1", label, window=10, timeout=30)
    assert time.passed == 30
    assert "managedFields" in error.value.hint


def test_the_deadline_of_the_stage_limits_every_wait(kube: KubeClient, api: Api, time: FakeClock) -> None:
    api.status["conditions"] = [{"type": "Ready", "status": "False", "message": "starting"}]
    with pytest.raises(KubeError, match="not Ready"):
        kube.wait_ready("n1", timeout=300, deadline=kube.deadline_after(20))
    assert time.passed == 20
    for second in range(21, 60):
        time.at(second, lambda: api.replace({}))
    with pytest.raises(KubeError, match="did not stay unchanged"):
        kube.ensure_labels("n1", label, window=10, timeout=300, deadline=kube.deadline_after(15))
    assert time.passed == 35


def test_a_node_that_stops_serving_is_not_labeled_again(kube: KubeClient, api: Api, time: FakeClock) -> None:
    serving = [{"name": "kata-qemu"}]
    api.status["runtimeHandlers"] = serving

    def reverted() -> None:
        api.replace({})
        api.status["runtimeHandlers"] = [{"name": "runc"}]

    time.at(3, reverted)
    with pytest.raises(KubeError, match="does not report kata-qemu"):
        kube.ensure_labels("n1", label, required_handlers=["kata-qemu"], window=10, timeout=30)
    assert not OURS.items() & api.labels.items()
    time.at(40, lambda: api.status.update(runtimeHandlers=serving))
    kube.ensure_labels("n1", label, required_handlers=["kata-qemu"], window=10, timeout=60)
    assert OURS.items() <= api.labels.items()


def test_a_missing_node_name_is_an_error_that_names_the_variable(kube: KubeClient, api: Api) -> None:
    with pytest.raises(UsageError) as error:
        kube.ensure_labels("", label, window=3, timeout=60)
    assert error.value.where == "NODE_NAME"
    assert api.requests == []


def test_a_window_longer_than_the_timeout_is_an_error(kube: KubeClient, api: Api) -> None:
    with pytest.raises(UsageError, match="5 s is shorter than the stability window of 10 s"):
        kube.ensure_labels("n1", label, window=10, timeout=5)
    assert api.requests == []


# --- conflicts --------------------------------------------------------------------------------------


def test_a_concurrent_change_by_another_writer_is_kept(kube: KubeClient, api: Api) -> None:
    api.faults = [
        Fault(method="PATCH", first=lambda: api.write({"kata-deploy.katacontainers.io/default": "true"}))
    ]
    api.labels |= OURS
    kube.ensure_labels("n1", unlabel, window=3, timeout=60)
    assert api.labels == {
        "kubernetes.io/hostname": "n1",
        SHARED_LABEL: "true",
        "kata-deploy.katacontainers.io/default": "true",
    }
    assert api.writes == 1


def test_labels_that_another_writer_restores_start_a_new_window(
    kube: KubeClient, api: Api, time: FakeClock
) -> None:
    api.labels |= OURS
    time.at(8, lambda: api.replace({}))
    api.faults = [Fault(method="PATCH", first=lambda: api.write(OURS))]
    kube.ensure_labels("n1", label, window=10, timeout=60)
    assert api.writes == 0
    assert time.passed >= 18


def test_endless_conflicts_are_an_error_at_the_timeout(kube: KubeClient, api: Api, time: FakeClock) -> None:
    api.faults = [
        Fault(method="PATCH", first=functools.partial(api.write, {"beat": str(n)})) for n in range(200)
    ]
    with pytest.raises(KubeError, match=r"undone 0 times, and [1-9]\d* changes met a conflict"):
        kube.ensure_labels("n1", label, window=3, timeout=30)
    assert time.passed == 30
    assert api.writes == 0


def test_a_change_with_a_lost_answer_is_not_made_twice(kube: KubeClient, api: Api) -> None:
    api.faults = [Fault(method="PATCH", carried_out=True)]
    kube.ensure_labels("n1", label, window=3, timeout=60)
    assert OURS.items() <= api.labels.items()
    assert api.writes == 1


# --- failures of the API server ---------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "PATCH"])
@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(Fault(500), id="internal error"),
        pytest.param(Fault(503), id="unavailable"),
        pytest.param(Fault(504), id="timeout in the server"),
        pytest.param(Fault(429), id="too many requests"),
        pytest.param(Fault(), id="connection cut"),
        pytest.param(Fault(502, b"<html>", {"Content-Type": "text/html"}), id="a proxy's page"),
        pytest.param(Fault(503, b"", {}), id="no content type"),
        pytest.param(Fault(503, b"no JSON"), id="JSON by name only"),
        pytest.param(Fault(503, b'{"message": {"odd": 1}}'), id="no Status object"),
        pytest.param(Fault(503, b"[]"), id="no object"),
    ],
)
def test_temporary_failures_are_retried(
    kube: KubeClient, api: Api, time: FakeClock, method: str, fault: Fault
) -> None:
    api.faults = [
        Fault(fault.status, fault.body, fault.headers, method),
        Fault(fault.status, fault.body, fault.headers, method),
    ]
    kube.ensure_labels("n1", label, window=3, timeout=60)
    assert OURS.items() <= api.labels.items()
    assert api.faults == []
    assert time.slept[:2] == [0.5, 1.0]


def test_the_retry_after_header_is_honored(kube: KubeClient, api: Api, time: FakeClock) -> None:
    api.faults = [Fault(429, headers={"Content-Type": "application/json", "Retry-After": "7"})]
    kube.node("n1", kube.deadline_after(30))
    assert time.slept == [7]


def test_a_retry_after_the_deadline_is_not_waited_for(kube: KubeClient, api: Api, time: FakeClock) -> None:
    api.faults = [Fault(429, headers={"Content-Type": "application/json", "Retry-After": "60"})]
    with pytest.raises(KubeError, match="429"):
        kube.node("n1", kube.deadline_after(30))
    assert time.slept == []


def test_an_overloaded_server_gets_fewer_and_fewer_requests(
    kube: KubeClient, api: Api, time: FakeClock
) -> None:
    api.faults = [Fault(503, b"no endpoints", {"Content-Type": "text/plain"}) for _ in range(100)]
    with pytest.raises(KubeError, match=r"answered 503.*asked 10 times") as error:
        kube.node("n1", kube.deadline_after(60))
    assert time.slept == [0.5, 1, 2, 4, 8, 10, 10, 10, 10]
    assert f"127.0.0.1:{api.port}" in error.value.where


def test_retries_of_many_nodes_are_spread(kube: KubeClient, api: Api, time: FakeClock) -> None:
    api.faults = [Fault(503), Fault(503)]
    kube.node("n1", kube.deadline_after(60))
    kube.clock = time.clock(jitter=0)
    api.faults = [Fault(503), Fault(503)]
    kube.node("n1", kube.deadline_after(60))
    assert time.slept == [0.5, 1, 0.25, 0.5]


def test_a_request_without_an_answer_times_out_and_is_retried(
    api: Api, kube: KubeClient, time: FakeClock
) -> None:
    api.faults = [Fault(hang=True)]
    with KubeClient.connect(clock=time.clock(), request_timeout=0.2) as impatient:
        assert impatient.node("n1", impatient.deadline_after(60)).ready
    assert time.slept[0] == 0.5


def test_a_request_with_a_very_slow_answer_times_out_and_is_retried(
    api: Api, kube: KubeClient, time: FakeClock
) -> None:
    api.faults = [Fault(drip=0.1)]
    with KubeClient.connect(clock=time.clock(), request_timeout=0.3) as impatient:
        assert impatient.node("n1", impatient.deadline_after(60)).ready
    assert time.slept[0] == 0.5


def test_the_deadline_limits_the_wait_for_an_answer(
    api: Api, kube: KubeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kata_node.kube.retry.MIN_REQUEST_TIMEOUT", 0.1)
    api.faults = [Fault(hang=True), Fault(hang=True)]
    with pytest.raises(KubeError, match=r"gave no answer .none within 0.1 s"):
        kube.node("n1", kube.deadline_after(0))
    with pytest.raises(KubeError, match=r"gave no answer .none within 0.2 s"):
        kube.node("n1", kube.deadline_after(0.2))


def test_a_restart_of_the_server_during_a_stage_is_waited_for(
    kube: KubeClient, api: Api, time: FakeClock
) -> None:
    time.at(2, api.stop)
    time.at(9, api.start)
    kube.ensure_labels("n1", label, window=10, timeout=60)
    assert OURS.items() <= api.labels.items()
    assert api.writes == 1


def test_a_server_that_stays_away_is_an_error_that_names_it(
    kube: KubeClient, api: Api, time: FakeClock
) -> None:
    api.stop()
    with pytest.raises(KubeError, match=r"gave no answer .Connect(ionRefused)?Error") as error:
        kube.ensure_labels("n1", label, window=5, timeout=20)
    assert time.passed <= 20
    assert f"127.0.0.1:{api.port}" in error.value.where
    assert "reachable" in error.value.hint
    api.start()


@pytest.mark.parametrize(
    ("fault", "says", "hint"),
    [
        pytest.param(
            Fault(403, status_object(403, "denied by policy kata-labels"), method="PATCH"),
            "kata-labels",
            "admission policy",
            id="admission says no",
        ),
        pytest.param(
            Fault(422, status_object(422, "too long"), method="PATCH"), "too long", "", id="invalid"
        ),
        pytest.param(
            Fault(404, b"<html>", {"Content-Type": "text/html"}),
            "404",
            "Kubernetes API server",
            id="a web server",
        ),
        pytest.param(Fault(200, b"<html>"), "not JSON", "", id="an answer that is no JSON"),
        pytest.param(
            Fault(200, b'{"kind": "NodeList"}'),
            "not a Node",
            "Kubernetes API server",
            id="an answer that is no Node",
        ),
        pytest.param(Fault(302, b"", {"Location": "/login"}), "302", "", id="sent elsewhere"),
    ],
)
def test_permanent_failures_are_reported_at_once(
    kube: KubeClient, api: Api, time: FakeClock, fault: Fault, says: str, hint: str
) -> None:
    api.faults = [fault]
    with pytest.raises(KubeError, match=says) as error:
        kube.ensure_labels("n1", label, window=3, timeout=60)
    assert hint in error.value.hint
    assert time.slept == []
    assert api.writes == 0


def test_an_untrusted_certificate_is_reported_at_once(time: FakeClock) -> None:
    def refuse(request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ConnectError("wrong") from ssl.SSLCertVerificationError("self-signed certificate")

    session = KubeconfigSession(httpx2.Client(transport=httpx2.MockTransport(refuse), base_url="https://x"))
    with KubeClient(session, clock=time.clock()) as kube, pytest.raises(KubeError) as error:
        kube.node("n1", kube.deadline_after(60))
    assert "certificate" in error.value.hint
    assert time.slept == []


# --- credentials and permissions --------------------------------------------------------------------


FORBIDDEN = 'nodes "n1" is forbidden: User "system:serviceaccount:kata:label" cannot {} resource "nodes"'


@pytest.mark.parametrize(("verb", "method"), [("get", "GET"), ("patch", "PATCH")])
def test_a_missing_permission_is_an_error_that_names_it(
    kube: KubeClient, api: Api, time: FakeClock, verb: str, method: str
) -> None:
    refused = Fault(403, status_object(403, FORBIDDEN.format(verb)), method=method)
    api.faults = [refused] * 100
    with pytest.raises(KubeError, match=rf"403.*cannot {verb}.*asked {MAX_AUTH_TRIES} times") as error:
        kube.ensure_labels("n1", label, window=3, timeout=600)
    assert f'the verb "{verb}" on the resource "nodes"' in error.value.hint
    assert api.writes == 0


@pytest.mark.parametrize("says", [FORBIDDEN.format("patch"), "not yet ready to handle request"])
def test_a_server_that_has_not_loaded_its_roles_yet_is_retried(kube: KubeClient, api: Api, says: str) -> None:
    api.faults = [Fault(403, status_object(403, says), method="PATCH")] * 3
    kube.ensure_labels("n1", label, window=3, timeout=60)
    assert OURS.items() <= api.labels.items()


def test_a_rotated_token_is_used_without_a_pause(
    kube: KubeClient, api: Api, time: FakeClock, token_file: Path
) -> None:
    api.token = "first"
    kube.node("n1", kube.deadline_after(30))
    token_file.write_text("second")
    api.token = "second"
    kube.node("n1", kube.deadline_after(30))
    assert time.slept == []


def test_an_expired_token_is_waited_for_until_it_is_rotated(
    kube: KubeClient, api: Api, time: FakeClock, token_file: Path
) -> None:
    api.token = "second"
    time.at(3, lambda: token_file.write_text("second"))
    kube.ensure_labels("n1", label, window=3, timeout=60)
    assert OURS.items() <= api.labels.items()


def test_refused_credentials_are_not_retried_until_the_deadline(
    kube: KubeClient, api: Api, time: FakeClock
) -> None:
    api.token = "another"
    with pytest.raises(KubeError, match="401") as error:
        kube.node("n1", kube.deadline_after(600))
    assert len(time.slept) == MAX_AUTH_TRIES - 1
    assert "token" in error.value.hint


def test_a_missing_token_file_is_an_error(kube: KubeClient, api: Api, token_file: Path) -> None:
    api.token = "another"
    token_file.unlink()
    with pytest.raises(KubeError, match=r"token not found|No such file.*token"):
        kube.node("n1", kube.deadline_after(30))


# --- names and machine ids of Nodes -----------------------------------------------------------------


def test_a_missing_node_is_an_error_that_allows_a_retry(kube: KubeClient, api: Api, time: FakeClock) -> None:
    with pytest.raises(NoSuchNodeError, match="no Node named n2") as error:
        kube.ensure_labels("n2", label, window=3, timeout=600)
    assert error.value.exit_code == 1
    assert "set NODE_NAME to a name that `kubectl get nodes` shows" in error.value.hint
    assert "wait until the kubelet has registered the node" in error.value.hint
    assert time.passed == NODE_ABSENCE_TIMEOUT


def test_a_node_that_is_registered_again_is_waited_for(kube: KubeClient, api: Api, time: FakeClock) -> None:
    def register() -> None:
        api.present = True
        api.replace({})

    time.at(4, lambda: setattr(api, "present", False))
    time.at(9, register)
    kube.ensure_labels("n1", label, window=10, timeout=60)
    assert api.labels == OURS
    assert time.passed >= 19


def test_a_node_that_is_deleted_before_the_change_is_read_again(
    kube: KubeClient, api: Api, time: FakeClock
) -> None:
    api.faults = [Fault(method="PATCH", first=lambda: setattr(api, "present", False))]
    time.at(2, lambda: setattr(api, "present", True))
    kube.ensure_labels("n1", label, window=3, timeout=60)
    assert OURS.items() <= api.labels.items()


@pytest.mark.parametrize("name", ["N1", "n1/status", "../pods", "n1?watch=1", "-n1"])
def test_an_invalid_node_name_is_not_sent(kube: KubeClient, api: Api, name: str) -> None:
    with pytest.raises(UsageError, match="is not a valid name of a Node"):
        kube.ensure_labels(name, label, window=3, timeout=60)
    assert api.requests == []


@pytest.mark.parametrize(
    "expected",
    [
        pytest.param(MACHINE, id="same"),
        pytest.param(MACHINE + "\n", id="as the file has it"),
        pytest.param("01234567-89AB-CDEF-0123-456789ABCDEF", id="as a UUID"),
        pytest.param(None, id="none expected"),
        pytest.param("", id="empty"),
    ],
)
def test_a_node_with_the_expected_machine_id_is_labeled(
    kube: KubeClient, api: Api, expected: str | None
) -> None:
    kube.ensure_labels("n1", label, window=3, timeout=60, expected_machine_id=expected)
    assert OURS.items() <= api.labels.items()


@pytest.mark.parametrize("reported", ["f" * 32, ""])
def test_a_node_with_another_machine_id_is_not_changed(kube: KubeClient, api: Api, reported: str) -> None:
    api.report(nodeInfo={"machineID": reported})
    for wait in (
        functools.partial(kube.wait_ready, "n1", timeout=60),
        functools.partial(kube.ensure_labels, "n1", label, window=3, timeout=60),
    ):
        with pytest.raises(IneligibleNodeError, match="not the expected machine") as error:
            wait(expected_machine_id=MACHINE)
        assert error.value.exit_code == 3
    assert set(api.requests) == {"GET"}


def test_a_node_that_gets_another_machine_id_is_not_changed_again(
    kube: KubeClient, api: Api, time: FakeClock
) -> None:
    def replaced() -> None:
        api.report(nodeInfo={"machineID": "f" * 32})
        api.replace({})

    time.at(2, replaced)
    with pytest.raises(IneligibleNodeError, match="not the expected machine"):
        kube.ensure_labels("n1", label, window=10, timeout=60, expected_machine_id=MACHINE)
    assert api.labels == {}


# --- Ready, and the handlers ------------------------------------------------------------------------


def reported(*names: str) -> list[dict[str, Any]]:
    return [{"name": name, "features": {}} for name in names]


def test_a_node_is_waited_for_until_it_is_ready(kube: KubeClient, api: Api, time: FakeClock) -> None:
    api.report(conditions=[{"type": "Ready", "status": "Unknown", "message": "stopped posting status"}])
    time.at(5, lambda: api.report(conditions=[{"type": "Ready", "status": "True"}]))
    facts = kube.wait_ready("n1", timeout=60)
    assert facts.ready
    assert time.slept == [2, 4]


@pytest.mark.parametrize(
    ("conditions", "says"),
    [
        pytest.param(
            [{"type": "Ready", "status": "False", "message": "PLEG is down"}], "PLEG is down", id="not ready"
        ),
        pytest.param([], "has not reported yet", id="no conditions"),
        pytest.param(None, "has not reported yet", id="null"),
    ],
)
def test_a_node_that_is_not_ready_is_an_error_with_the_message_of_the_kubelet(
    kube: KubeClient, api: Api, time: FakeClock, conditions: object, says: str
) -> None:
    api.report(conditions=conditions)
    with pytest.raises(KubeError, match=says):
        kube.wait_ready("n1", timeout=20)
    assert time.passed == 20


@pytest.mark.parametrize("handlers", [pytest.param(None, id="no field"), pytest.param([], id="empty")])
def test_a_node_that_reports_no_handlers_at_all_is_accepted(
    kube: KubeClient, api: Api, time: FakeClock, handlers: object
) -> None:
    api.report(runtimeHandlers=handlers)
    assert kube.wait_ready("n1", ["kata-qemu"], timeout=20).handlers is None
    assert time.slept == []


def test_handlers_are_waited_for_until_the_kubelet_reports_them(
    kube: KubeClient, api: Api, time: FakeClock
) -> None:
    api.report(runtimeHandlers=[{"features": {}}, *reported("runc")])
    time.at(6, lambda: api.report(runtimeHandlers=reported("", "runc", "kata-qemu")))
    facts = kube.wait_ready("n1", ["kata-qemu"], timeout=60)
    assert facts.handlers == ("runc", "kata-qemu")
    assert time.passed == 6


@pytest.mark.parametrize(
    ("handlers", "says"),
    [
        pytest.param(
            reported("runc", "kata-clh"), "kata-fc, kata-qemu .it reports runc, kata-clh", id="some"
        ),
        pytest.param(
            [{"features": {}}],
            "kata-clh, kata-fc, kata-qemu .it reports only the default handler",
            id="nameless",
        ),
    ],
)
def test_missing_handlers_are_an_error_that_names_them(
    kube: KubeClient, api: Api, handlers: object, says: str
) -> None:
    api.report(runtimeHandlers=handlers)
    with pytest.raises(KubeError, match=says) as error:
        kube.wait_ready("n1", ["kata-qemu", "kata-clh", "kata-fc"], timeout=20)
    assert error.value.exit_code == 1


# --- finding credentials ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "url"), [("10.96.0.1", "https://10.96.0.1:443"), ("fd00::1", "https://[fd00::1]:443")]
)
def test_the_service_account_of_a_pod_is_preferred_to_a_kubeconfig(
    environment: Path, monkeypatch: pytest.MonkeyPatch, host: str, url: str
) -> None:
    pretend_pod(environment, monkeypatch, host, 443)
    monkeypatch.setenv("KUBECONFIG", "/nonexistent")
    assert credentials.find_credentials()
    with KubeClient.connect() as kube:
        assert kube.server == url


def test_a_certificate_without_key_identifiers_is_trusted_in_a_pod(
    environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_pod(environment, monkeypatch, "10.96.0.1", 443)
    contexts: list[ssl.SSLContext] = []

    def strict(cafile: str) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cafile)
        context.verify_flags |= ssl.VERIFY_X509_STRICT  # the default since Python 3.13
        return context

    def spy(*address: object, timeout: float, context: ssl.SSLContext) -> None:
        contexts.append(context)
        raise RuntimeError("seen")

    monkeypatch.setattr(ssl, "create_default_context", strict)
    monkeypatch.setattr(http.client, "HTTPSConnection", spy)
    with KubeClient.connect() as kube, pytest.raises(RuntimeError, match="seen"):
        kube.node("n1", kube.deadline_after(5))
    (context,) = contexts
    assert not context.verify_flags & ssl.VERIFY_X509_STRICT
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname


def test_a_kubeconfig_in_the_home_directory_is_used_last(environment: Path) -> None:
    assert credentials.find_credentials() is None
    home = environment / "home" / ".kube"
    home.mkdir(parents=True)
    write_kubeconfig(home / "config", "http://127.0.0.1:1", {"token": "t"})
    assert credentials.find_credentials()
    with KubeClient.connect() as kube:
        assert kube.server == "http://127.0.0.1:1"


def test_the_first_existing_kubeconfig_is_used(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_kubeconfig(environment / "config", "http://127.0.0.1:1", {"token": "t"})
    monkeypatch.setenv("KUBECONFIG", f"/nonexistent:{environment / 'config'}")
    with KubeClient.connect() as kube:
        assert kube.server == "http://127.0.0.1:1"


def test_a_pod_without_a_token_has_no_credentials(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    assert credentials.find_credentials() is None
    with pytest.raises(KubeError, match="no credentials") as error:
        KubeClient.connect()
    assert "--offline" in error.value.hint


@pytest.mark.parametrize(
    ("content", "says"),
    [
        pytest.param(None, "not found", id="missing"),
        pytest.param("", "cannot be used", id="empty"),
        pytest.param("a: [", r"line 1, column 5\)", id="broken YAML"),
        pytest.param("[]", "cannot be used", id="a list"),
        pytest.param("{contexts: []}", "clusters", id="no clusters"),
        pytest.param("{clusters: [], contexts: []}", "current context", id="no current context"),
        pytest.param(
            "{current-context: a, clusters: [{name: a, cluster: {server: 'http://x'}}],"
            " contexts: [{name: a, context: {cluster: a}}]}",
            "user",
            id="no user",
        ),
        pytest.param(
            "{current-context: a, clusters: [{name: a, cluster: {server: 'https://x',"
            " certificate-authority: /no}}], contexts: [{name: a, context: {cluster: a, user: a}}],"
            " users: [{name: a, user: {token: t}}]}",
            "No such file",
            id="certificate missing",
        ),
    ],
)
def test_a_broken_kubeconfig_is_an_error_that_names_it(
    environment: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, says: str
) -> None:
    path = environment / "config"
    if content is not None:
        path.write_text(content)
    monkeypatch.setenv("KUBECONFIG", str(path))
    assert credentials.find_credentials()
    with pytest.raises(KubeError, match=says) as error:
        KubeClient.connect()
    assert error.value.where == str(path)


def test_an_invalid_server_address_is_an_error(
    environment: Path, monkeypatch: pytest.MonkeyPatch, time: FakeClock
) -> None:
    write_kubeconfig(environment / "config", "127.0.0.1:6443", {"token": "t"})
    monkeypatch.setenv("KUBECONFIG", str(environment / "config"))
    with pytest.raises(KubeError), KubeClient.connect(clock=time.clock()) as kube:
        kube.node("n1", kube.deadline_after(60))
    assert time.slept == []


@pytest.mark.commands
def test_the_search_for_credentials_does_not_load_the_kubernetes_client() -> None:
    code = (
        "import sys, kata_node.kube.client\n"
        "from kata_node.kube import credentials\ncredentials.find_credentials()\n"
        "sys.exit(bool({'lightkube', 'httpx2', 'ssl'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.commands
def test_a_pod_does_not_load_the_kubernetes_client(
    environment: Path, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_pod(environment, monkeypatch, "127.0.0.1", api.port)
    code = (
        "import sys\n"
        "from kata_node.errors import KubeError\n"
        "from kata_node.kube import client, credentials\n"
        f"credentials.SERVICE_ACCOUNT = {credentials.SERVICE_ACCOUNT!r}\n"
        "kube = client.KubeClient.connect()\n"
        "try:\n"
        "    kube.node('n1', kube.deadline_after(0))\n"
        "except KubeError as error:\n"
        "    assert 'gave no answer (SSLError' in error.what, error\n"
        "print(*{'lightkube', 'httpx2', 'yaml'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert run.stdout == "\n"


def test_a_connection_is_used_again_until_the_server_closes_it(
    kube: KubeClient, api: Api, time: FakeClock
) -> None:
    deadline = kube.deadline_after(60)
    kube.node("n1", deadline)
    (first,) = api._connections
    kube.node("n1", deadline)
    assert api._connections == {first}
    first.shutdown(socket.SHUT_RDWR)
    kube.node("n1", deadline)
    assert (time.slept, len(api.requests)) == ([], 3)


@pytest.mark.parametrize("kube", ["pod"], indirect=True)
def test_a_connection_that_was_idle_for_long_is_not_used_again(
    kube: KubeClient, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    kube.node("n1", kube.deadline_after(60))
    (first,) = api._connections
    monkeypatch.setattr("kata_node.kube.session.MAX_IDLE", -1.0)
    kube.node("n1", kube.deadline_after(60))
    assert api._connections != {first}


@pytest.mark.parametrize("host", ["a..b", "a" * 300 + ".b", "a b"])
def test_an_invalid_address_of_the_api_server_is_an_error_at_once(
    environment: Path, monkeypatch: pytest.MonkeyPatch, time: FakeClock, host: str
) -> None:
    pretend_pod(environment, monkeypatch, host, 443)
    with KubeClient.connect(clock=time.clock()) as kube, pytest.raises(KubeError, match="no answer"):
        kube.node("n1", kube.deadline_after(60))
    assert time.slept == []


@pytest.mark.parametrize("answer", [b"[]", b"1", b'"text"', b"9" * 5000, b"[" * 100_000, b"\xff"])
def test_an_answer_that_is_no_object_is_an_error_at_once(
    kube: KubeClient, api: Api, time: FakeClock, answer: bytes
) -> None:
    api.faults = [Fault(200, answer)]
    with pytest.raises(KubeError, match=r"not JSON|not a Node"):
        kube.node("n1", kube.deadline_after(60))
    assert time.slept == []


# --- secrets ----------------------------------------------------------------------------------------


def test_errors_about_credentials_do_not_contain_the_token(
    environment: Path, monkeypatch: pytest.MonkeyPatch, api: Api
) -> None:
    secret = "very-secret-token"
    path = environment / "config"
    monkeypatch.setenv("KUBECONFIG", str(path))
    path.write_text(f"users:\n- name: a\n  user:\n    token: {secret}: slip\n")
    with pytest.raises(KubeError) as error:
        KubeClient.connect()
    assert "line 4" in str(error.value)
    assert secret not in str(error.value)
    write_kubeconfig(path, api.url, {"token": f"{secret}\n"})
    with pytest.raises(KubeError) as error, KubeClient.connect() as kube:
        kube.node("n1", kube.deadline_after(5))
    assert "not allowed in a header" in str(error.value)
    assert secret not in str(error.value)


@pytest.mark.parametrize("token", ["very-secret\nX-Other: a", "very-secr\u00e9t", "very-secret\x00"])
def test_a_broken_token_of_a_pod_is_an_error_without_the_token(
    environment: Path, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    pretend_pod(environment, monkeypatch, "127.0.0.1", 1)
    (environment / "serviceaccount/token").write_text(token)
    with pytest.raises(KubeError, match="not allowed in a header") as error:
        KubeClient.connect()
    assert "secr" not in str(error.value)


def test_each_request_is_logged_with_its_duration(kube: KubeClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "kata_node")
    kube.node("n1", kube.deadline_after(60))
    (line,) = (each for each in caplog.messages if each.startswith("get node/n1 at http"))
    assert ": done in " in line
    assert line.endswith(" ms")
