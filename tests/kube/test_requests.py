"""The requests of the stages of one node Job, counted at the API server."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from cli.cli_runner import CliRunner, open_cli_runner
from kata_node.kube import credentials, node_status
from kata_node.kube.client import KubeClient
from kata_node.kube.node import SHARED_LABEL
from kata_node.plan import report
from kata_node.plan.report import StageReport
from kube import stage_requests
from kube.fake_api_server import MACHINE, Api, FakeClock

HANDLERS = [{"name": "kata-qemu"}]
OWN_LABEL = "kata-deploy.katacontainers.io/default"


@pytest.fixture
def api() -> Iterator[Api]:
    api = Api()
    api.taints = []
    api.annotations = {"volumes.kubernetes.io/controller-managed-attach-detach": "true"}  # as of any kubelet
    api.start()
    yield api
    api.stop()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(time.monotonic())


@pytest.fixture
def cli_runner(
    api: Api,
    clock: FakeClock,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[CliRunner]:
    """A runner with the environment of the containers that label."""
    config = tmp_path / "kubeconfig"
    cluster = {"name": "it", "cluster": {"server": api.url}}
    context = {"name": "it", "context": {"cluster": "it", "user": "me"}}
    users = [{"name": "me", "user": {"token": "anything"}}]
    document = {"current-context": "it", "contexts": [context], "clusters": [cluster], "users": users}
    config.write_text(json.dumps(document))  # JSON is YAML
    connect = functools.partial(KubeClient.connect, clock=clock.clock())
    monkeypatch.setattr(KubeClient, "connect", connect)
    monkeypatch.setattr(credentials, "SERVICE_ACCOUNT", str(tmp_path / "serviceaccount"))
    with open_cli_runner(tmp_path, capsys) as cli_runner:
        monkeypatch.setenv("KUBECONFIG", str(config))
        monkeypatch.setenv("NO_PROXY", "*")
        monkeypatch.setenv("NODE_NAME", api.name)
        monkeypatch.setenv("KATA_NODE_EXPECTED_MACHINE_ID", MACHINE)
        yield cli_runner


def run_stage(cli_runner: CliRunner, api: Api, stage: str, reports: Path) -> tuple[str, ...]:
    """Run a stage as a container of a node Job; return the methods of its requests."""
    api.requests.clear()
    result = cli_runner.run("stage", stage, "--shims=qemu", f"--reports={reports}", "--output=json")
    assert result.code == 0, result.err
    return tuple(api.requests)


def node_job(
    cli_runner: CliRunner, api: Api, reports: Path, *, is_new: bool, version: str = ""
) -> dict[str, tuple[str, ...]]:
    """Run the stages of a node Job that label; return the requests of each. The others leave reports."""
    reports.mkdir()
    sent: dict[str, tuple[str, ...]] = {}
    for stage in ("host-check", "claim", "artifacts", "cri", "label"):
        if stage in ("claim", "label"):
            sent[stage] = run_stage(cli_runner, api, stage, reports)
        else:
            leave_report(reports, stage, is_new=is_new, version=version)
    return sent


def leave_report(reports: Path, stage: str, *, is_new: bool, version: str = "") -> None:
    outcome: report.Outcome = "done" if is_new or version else "skipped"
    found = StageReport(stage, outcome, stage, is_new=is_new, kata_version=version)
    report.write_shared_report(reports, found)


def test_node_jobs_that_install_find_nothing_to_do_and_upgrade_send_these_requests(
    cli_runner: CliRunner, api: Api, clock: FakeClock, tmp_path: Path
) -> None:
    api.report(runtimeHandlers=HANDLERS)
    assert node_job(cli_runner, api, tmp_path / "1", is_new=True) == stage_requests.FRESH_INSTALL
    assert api.labels[SHARED_LABEL] == api.labels[OWN_LABEL] == "true"
    assert clock.passed >= 10, "the labels were watched"
    assert [event["reason"] for event in api.events] == ["KataInstalled"]
    assert node_job(cli_runner, api, tmp_path / "2", is_new=False) == stage_requests.NOTHING_TO_DO
    upgrade = node_job(cli_runner, api, tmp_path / "3", is_new=False, version="4.2.0")
    assert upgrade == stage_requests.UPGRADE


def test_a_claim_sends_the_same_as_the_one_that_reads_the_node_first(
    cli_runner: CliRunner, api: Api, tmp_path: Path
) -> None:
    labels, annotations = api.labels, api.annotations
    found = []
    for is_new in (True, False):
        api.labels, api.annotations = labels, annotations
        leave_report(tmp_path, "host-check", is_new=is_new)
        run_stage(cli_runner, api, "claim", tmp_path)
        record = node_status.read(api.annotations, "default")
        assert record is not None
        found.append((api.labels, api.annotations.keys(), replace(record, since="")))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("labels", "annotations", "machine", "sent"),
    [
        pytest.param({SHARED_LABEL: "true"}, {"a": "b"}, MACHINE, ("PATCH", "GET", "PATCH"), id="a label"),
        pytest.param({OWN_LABEL: "false"}, {"a": "b"}, MACHINE, ("PATCH", "GET", "PATCH"), id="a claim"),
        pytest.param({}, {}, MACHINE, ("PATCH", "GET", "PATCH"), id="no annotations"),
        pytest.param({}, {"a": "b"}, "f" * 32, ("PATCH", "GET"), id="another machine"),
    ],
)
def test_a_new_node_whose_node_object_is_not_as_expected_is_read(
    cli_runner: CliRunner,
    api: Api,
    tmp_path: Path,
    labels: dict[str, str],
    annotations: dict[str, str],
    machine: str,
    sent: tuple[str, ...],
) -> None:
    api.labels, api.annotations = labels, annotations
    api.report(nodeInfo={"machineID": machine})
    leave_report(tmp_path, "host-check", is_new=True)
    api.requests.clear()
    code = cli_runner.run("stage", "claim", "--shims=qemu", f"--reports={tmp_path}").code
    assert (code, tuple(api.requests[: len(sent)])) == (0 if machine == MACHINE else 3, sent)
    claimed = {SHARED_LABEL: "false", OWN_LABEL: "false"} | labels
    assert api.labels.items() >= (claimed.items() if machine == MACHINE else {}.items())
    assert machine == MACHINE or not api.labels


def test_a_rebuilt_machine_whose_node_is_still_labeled_is_told_as_not_served(
    cli_runner: CliRunner, api: Api, tmp_path: Path
) -> None:
    api.labels = {SHARED_LABEL: "true", OWN_LABEL: "true"}
    why = "Kata is not installed on this machine"
    report.write_shared_report(tmp_path, StageReport("host-check", "done", "", not_served=why, is_new=True))
    run_stage(cli_runner, api, "claim", tmp_path)
    assert api.labels.items() >= {SHARED_LABEL: "false", OWN_LABEL: "false"}.items()
    assert [event["reason"] for event in api.events] == ["KataNotServed"]
    record = node_status.read(api.annotations, "default")
    assert record is not None
    assert record.reason == why


def test_the_claim_of_a_new_node_needs_its_name(
    cli_runner: CliRunner, api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NODE_NAME", "")
    leave_report(tmp_path, "host-check", is_new=True)
    api.requests.clear()
    result = cli_runner.run("stage", "claim", "--shims=qemu", f"--reports={tmp_path}", "--output=json")
    assert (result.code, api.requests) == (2, [])
    assert "NODE_NAME is not set" in result.json["stages"][0]["error"]["what"]


def test_a_kubelet_that_reports_the_handlers_late_costs_one_read_each_five_seconds(
    cli_runner: CliRunner, api: Api, clock: FakeClock, tmp_path: Path
) -> None:
    api.report(runtimeHandlers=[{"name": "runc"}])
    clock.at(21, lambda: api.report(runtimeHandlers=HANDLERS))
    sent = node_job(cli_runner, api, tmp_path / "1", is_new=True)
    waited = ["GET"] * 5  # after 2, 6, 11, 16 and 21 seconds
    assert sent == {**stage_requests.FRESH_INSTALL, "label": ("GET", *waited, "PATCH", "GET", "POST")}
