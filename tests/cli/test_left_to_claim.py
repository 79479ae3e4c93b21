"""A failed host-check on a node that does not serve: the labels are withdrawn, whoever may do it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.cli_runner import CliRunner, make_live, open_cli_runner
from fakes import FakeKube
from kata_node.kube import credentials, node_status

SHARED_LABEL = "katacontainers.io/kata-runtime"
LABEL = "kata-deploy.katacontainers.io/default"
OPTIONS = ("--shims=qemu", "--k8s-distribution=k3s", "--label-stable-for=0")
"""The node has no k3s, so host-check fails."""


@pytest.fixture
def cli_runner(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[CliRunner]:
    with open_cli_runner(tmp_path, capsys) as runner:
        yield runner


@pytest.fixture
def kube(cli_runner: CliRunner, monkeypatch: pytest.MonkeyPatch) -> FakeKube:
    """The API server, whose Node has labels of an installation that the machine lost when it was rebuilt."""
    node = make_live(cli_runner, monkeypatch)
    kube = node.kube = FakeKube(node, {SHARED_LABEL: "true", LABEL: "true"})
    monkeypatch.setattr(credentials, "find_credentials", lambda: "a kubeconfig")
    monkeypatch.setenv("NODE_NAME", "n1")
    return kube


def outcome(kube: FakeKube) -> tuple[dict[str, str], str, list[str]]:
    record = node_status.read(kube.annotations, "default")
    return kube.marks, record.outcome if record else "", [event["reason"] for event in kube.events]


WITHDRAWN = {SHARED_LABEL: "false", LABEL: "false"}


def test_an_install_in_one_process_withdraws_them(cli_runner: CliRunner, kube: FakeKube) -> None:
    done = cli_runner.online("install", *OPTIONS)
    assert done.code == 3
    assert outcome(kube) == (WITHDRAWN, "failed", ["KataInstallFailed", "KataNotServed"])


def test_the_container_of_claim_withdraws_them_and_fails_in_place_of_host_check(
    cli_runner: CliRunner, kube: FakeKube, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shared = ("--reports", tmp_path, *OPTIONS)
    with monkeypatch.context() as without:
        without.setattr(credentials, "find_credentials", lambda: None)
        checked = cli_runner.online("stage", "host-check", *shared)
    assert checked.code == 0
    assert "this node does not serve Kata; the stage claim tells the cluster" in checked.err
    assert kube.marks == {SHARED_LABEL: "true", LABEL: "true"}
    claimed = cli_runner.online("stage", "claim", *shared)
    assert claimed.code == 3
    assert outcome(kube) == (WITHDRAWN, "failed", ["KataInstallFailed", "KataNotServed"])


def test_a_node_without_labels_gets_none(cli_runner: CliRunner, kube: FakeKube) -> None:
    kube.labels.clear()
    assert cli_runner.online("install", *OPTIONS).code == 3
    assert outcome(kube) == ({}, "", ["KataInstallFailed"])


@pytest.mark.parametrize("served", [True, False])
def test_labels_stay_while_the_runtime_serves_the_handlers_of_another_install_dir(
    cli_runner: CliRunner, kube: FakeKube, served: bool
) -> None:
    kube.host.handlers = ("runc", "kata-qemu") if served else ("runc",)
    (cli_runner.host / "dev/vhost-vsock").unlink()
    done = cli_runner.online("install", "--shims=qemu", "--label-stable-for=0", "--installation-prefix=/srv")
    assert "/dev/vhost-vsock does not exist" in done.out
    assert kube.marks == ({SHARED_LABEL: "true", LABEL: "true"} if served else WITHDRAWN)
