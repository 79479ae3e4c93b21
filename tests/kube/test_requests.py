"""The requests of the stages of one node Job, counted at the API server."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.cli_runner import CliRunner, open_cli_runner
from kata_node.kube import credentials
from kata_node.kube.client import KubeClient
from kata_node.kube.node import SHARED_LABEL
from kata_node.plan import report
from kata_node.plan.report import StageReport
from kube import stage_requests
from kube.fake_api_server import MACHINE, Api, FakeClock

HANDLERS = ["kata-qemu"]


@pytest.fixture
def api() -> Iterator[Api]:
    api = Api()
    api.taints = []
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


def node_job(
    cli_runner: CliRunner, api: Api, reports: Path, outcome: report.Outcome
) -> dict[str, tuple[str, ...]]:
    """Run the stages of a node Job that label; return the requests of each.

    The other stages had ``outcome``, and left reports.
    """
    reports.mkdir()
    sent: dict[str, tuple[str, ...]] = {}
    for stage in ("host-check", "claim", "artifacts", "cri", "label"):
        if stage not in ("claim", "label"):
            report.write_shared_report(reports, StageReport(stage, outcome, stage, kata_version="3.21.0"))
            continue
        api.requests.clear()
        result = cli_runner.run("stage", stage, "--shims=qemu", f"--reports={reports}", "--output=json")
        assert result.code == 0, result.err
        sent[stage] = tuple(api.requests)
    return sent


def test_a_node_job_that_installs_and_one_that_finds_nothing_to_do_send_these_requests(
    cli_runner: CliRunner, api: Api, clock: FakeClock, tmp_path: Path
) -> None:
    api.report(runtimeHandlers=[{"name": each} for each in HANDLERS])
    began = clock.passed
    assert node_job(cli_runner, api, tmp_path / "1", "done") == stage_requests.FRESH_INSTALL
    assert api.labels[SHARED_LABEL] == "true"
    assert clock.passed - began >= 10, "the labels were watched"
    assert node_job(cli_runner, api, tmp_path / "2", "skipped") == stage_requests.NOTHING_TO_DO


def test_a_kubelet_that_reports_the_handlers_late_costs_one_read_each_five_seconds(
    cli_runner: CliRunner, api: Api, clock: FakeClock, tmp_path: Path
) -> None:
    api.report(runtimeHandlers=[{"name": "runc"}])
    clock.at(21, lambda: api.report(runtimeHandlers=[{"name": each} for each in HANDLERS]))
    sent = node_job(cli_runner, api, tmp_path / "1", "done")
    waited = ["GET"] * 5  # after 2, 6, 11, 16 and 21 seconds
    assert sent == {**stage_requests.FRESH_INSTALL, "label": ("GET", *waited, "PATCH", "GET", "POST")}
