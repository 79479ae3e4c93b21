"""A node that cannot run Kata: its labels and its Event, on a real API server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.lost_handlers import nodes_report_handlers
from cluster.stage_runner import INSTALLATION_LABEL_PREFIX, LABELED, SHARED_LABEL, StageRunner

UNFIT = {SHARED_LABEL: "false", f"{INSTALLATION_LABEL_PREFIX}default": "unfit"}


@pytest.fixture
def reports(stage_runner: StageRunner) -> Path:
    """The directory that the containers of a node Job share. The node has no /dev/kvm."""
    stage_runner.register()
    (stage_runner.host / "dev").mkdir()
    (stage_runner.host / "dev/null").touch()
    directory = stage_runner.directory / "reports"
    directory.mkdir()
    return directory


def test_a_node_job_labels_an_unfit_node_and_records_the_reason(
    stage_runner: StageRunner, reports: Path
) -> None:
    termination_log = stage_runner.directory / "termination-log"
    termination_log.touch()
    # The container of host-check has no credentials, so its report goes to the container of claim.
    no_credentials = {"KUBECONFIG": "/nowhere", "NODE_NAME": ""}
    stage_runner.run("host-check", f"--reports={reports}", env=no_credentials).succeeded()
    assert stage_runner.labels == {}
    claim = ("claim", f"--reports={reports}", f"--termination-log={termination_log}")
    failed = stage_runner.run(*claim).failed(3)
    assert "/dev/kvm does not exist" in failed.text
    message = json.loads(termination_log.read_text())
    assert (message["stage"], message["error"]["unfit"]) == ("host-check", True)
    assert stage_runner.labels == UNFIT
    found = stage_runner.cluster.kubectl("get", "nodes", f"-l={INSTALLATION_LABEL_PREFIX}default=unfit")
    assert stage_runner.name in found.stdout
    described = stage_runner.cluster.kubectl("describe", "node", stage_runner.name).stdout
    assert "Warning  KataNodeUnfit" in described
    stage_runner.run(*claim).failed(3)
    assert stage_runner.labels == UNFIT
    stage_runner.run("unclaim").succeeded()
    assert stage_runner.labels == {}


def test_a_release_that_cannot_install_changes_nothing_on_the_node_of_another_one(
    stage_runner: StageRunner, reports: Path
) -> None:
    for stage in ("claim", "label"):
        stage_runner.run(stage, "--label-stable-for=0", "--helm-release=kata-system/kata").succeeded()
    version = stage_runner.version
    stage_runner.run("host-check", f"--reports={reports}", env={"KUBECONFIG": "/nowhere"}).succeeded()
    stage_runner.run("claim", f"--reports={reports}", "--helm-release=tenants/kata").failed(3)
    assert (stage_runner.labels, stage_runner.version) == (LABELED, version)


def test_a_node_on_which_no_enabled_shim_runs_is_unfit(stage_runner: StageRunner, reports: Path) -> None:
    values = stage_runner.directory / "values.yaml"
    values.write_text("shims: {qemu: {supportedArches: []}}\n")
    config = (f"--config={values}", "--shims=")
    stage_runner.run("host-check", f"--reports={reports}", *config).succeeded()
    failed = stage_runner.run("claim", f"--reports={reports}", *config).failed(3)
    assert "no enabled shim runs on" in failed.text
    assert stage_runner.labels == UNFIT
    # A revert needs no shim.
    stage_runner.run("unlabel", *config).succeeded()
    stage_runner.run("unclaim", *config).succeeded()
    assert stage_runner.labels == {}


def test_a_node_that_still_serves_keeps_its_labels(stage_runner: StageRunner, reports: Path) -> None:
    stage_runner.run("label").succeeded()
    stage_runner.run("host-check", f"--reports={reports}").succeeded()
    # This machine has nothing. A machine with an earlier installation that the runtime serves says no more.
    rebuilt = json.loads((reports / "host-check.json").read_text())
    serving = {key: value for key, value in rebuilt.items() if key != "not_served"}
    (reports / "host-check.json").write_text(json.dumps(serving))
    stage_runner.run("claim", f"--reports={reports}").failed(3)
    assert stage_runner.labels == LABELED
    stage_runner.run("host-check", f"--reports={reports}").succeeded()
    stage_runner.run("claim", f"--reports={reports}").failed(3)
    assert stage_runner.labels == UNFIT


def test_an_unfit_node_that_becomes_fit_is_claimed_and_labeled(
    stage_runner: StageRunner, reports: Path
) -> None:
    stage_runner.run("host-check", f"--reports={reports}").succeeded()
    stage_runner.run("claim", f"--reports={reports}").failed(3)
    stage_runner.run("claim").succeeded()
    stage_runner.run("label").succeeded()
    assert stage_runner.labels == LABELED


def test_a_node_that_does_not_serve_loses_its_labels_when_host_check_fails(
    stage_runner: StageRunner,
) -> None:
    """The machine was rebuilt under its old Node, and has no runtime."""
    stage_runner.register()
    reports = stage_runner.directory / "reports"
    reports.mkdir()
    shared = (f"--reports={reports}",)
    # Without labels that are true, claim has nothing to withdraw, and ends the install all the same.
    stage_runner.run("host-check", *shared).succeeded()
    assert "systemd answers neither on" in stage_runner.run("claim", *shared).failed(3).text
    assert (stage_runner.labels, stage_runner.record()) == ({}, None)

    stage_runner.run("label").succeeded()
    for _ in range(2):
        stage_runner.run("host-check", *shared).succeeded()
        stage_runner.run("claim", *shared).failed(3)
        assert set(stage_runner.labels.values()) == {"false"}
        record = stage_runner.record()
        assert record is not None
        assert (record.outcome, record.reason.split(":")[0]) == ("failed", "host-check")
    described = stage_runner.cluster.kubectl("describe", "node", stage_runner.name).stdout
    assert "Warning  KataNotServed" in described
    assert "Kata is not installed on this machine" in described
    assert "Warning  KataInstallFailed" in described


@nodes_report_handlers
def test_label_does_not_wait_for_the_handlers_that_the_stage_cri_left_out(
    stage_runner: StageRunner, reports: Path
) -> None:
    values = stage_runner.directory / "values.yaml"
    values.write_text("shims: {qemu: {}, clh: {}}\n")
    options = (f"--config={values}", "--shims=", f"--reports={reports}", "--label-timeout=3")
    served = [{"name": "runc"}, {"name": "kata-qemu"}]
    stage_runner.node_writer.report(stage_runner.name, runtimeHandlers=served)
    stage_runner.run("label", *options).failed()
    report = {"stage": "cri", "outcome": "done", "summary": "served", "left_out": ["clh"]}
    (reports / "cri.json").write_text(json.dumps(report))
    stage_runner.run("label", *options).succeeded()
    assert stage_runner.labels == LABELED
