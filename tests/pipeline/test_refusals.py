"""What a stage refuses to touch, and what it takes away all the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import MAIN, FakeNode

from kata_node import pipeline
from kata_node.plan.context import Options
from kata_node.plan.report import StageReport
from kata_node.settings import load as settings
from kata_node.settings.model import Settings
from kata_node.settings.runtime import ContainerdSettings
from kata_node.settings.selection import CustomRuntime
from pipeline.harness import (
    CONFIG,
    INSTALL,
    REVERT,
    errors,
    exit_code,
    make_node,
    outcomes,
    run,
    small_payload,
    snapshot,
)
from pipeline.node_variants import NODE_VARIANTS
from pipeline.node_variants import make_node as make_kind
from stages import cri, host_check

BUILT_IN = CustomRuntime("mine", "qemu", "runsc")


@pytest.fixture
def payload(tmp_path: Path) -> Path:
    return small_payload(tmp_path / "payload")


@pytest.fixture
def node(tmp_path: Path) -> FakeNode:
    return make_node(tmp_path / "host")


def run_with(node: FakeNode, stages: Any, payload: Path, **changes: Any) -> list[StageReport]:
    wanted: Settings = replace(settings.load(None, overrides={"shims": "qemu"}, arch="x86_64"), **changes)
    options = Options(payload, restart_timeout=5, stable_for=0)
    return pipeline.run(stages, pipeline.Run(wanted, options, node.clients(), lock_timeout=1))


def test_a_handler_that_the_runtime_has_built_in_is_not_taken_over(node: FakeNode, payload: Path) -> None:
    """No file defines it, so only what is served can tell."""
    node.handlers = ("runc", "runsc")
    before = snapshot(node)
    for stages in ((host_check,), INSTALL):
        reports = run_with(node, stages, payload, custom_runtimes=(BUILT_IN,))
        assert exit_code(reports) == 3
        assert "a custom runtime cannot define runsc" in str(errors(reports)[0])
    assert snapshot(node) == before


def test_a_custom_runtime_of_ours_is_served_and_not_taken_for_the_runtimes_own(
    node: FakeNode, payload: Path
) -> None:
    assert errors(run_with(node, INSTALL, payload, custom_runtimes=(BUILT_IN,))) == []
    assert set(node.handlers or ()) == {"kata-qemu", "runc", "runsc"}
    assert errors(run_with(node, INSTALL, payload, custom_runtimes=(BUILT_IN,))) == []
    assert errors(run_with(node, INSTALL, payload)) == []
    assert set(node.handlers or ()) == {"kata-qemu", "runc"}


def test_a_directory_that_the_daemon_does_not_read_is_refused(node: FakeNode, payload: Path) -> None:
    elsewhere = ContainerdSettings(config_dir="/etc/elsewhere")
    reports = run_with(node, INSTALL, payload, containerd=elsewhere)
    assert exit_code(reports) == 3
    assert f"containerd.service reads {MAIN}" in str(errors(reports)[0])
    assert outcomes(reports)[0].startswith("host-check failed")


def test_a_runtime_that_others_broke_does_not_keep_ours_from_being_taken_out(
    tmp_path: Path, node: FakeNode, payload: Path
) -> None:
    assert errors(run(node, INSTALL, payload)) == []
    broken = (node.root.read(MAIN) or b"").replace(b"imports = [", b'imports = ["/etc/missing.toml", ')
    node.root.write(MAIN, broken)
    with pytest.raises(Exception, match="missing"):
        node.restart("containerd.service", 1)
    assert node.state == "failed"
    assert errors(run(node, REVERT, payload)) == []
    left = node.root.read(MAIN) or b""
    assert (b"/etc/missing.toml" in left, b"/opt/kata" in left) == (True, False)
    node.root.write(MAIN, CONFIG)
    assert snapshot(node) == snapshot(make_node(tmp_path / "untouched"))


def test_a_runtime_that_serves_is_not_reverted_into_one_that_does_not(node: FakeNode, payload: Path) -> None:
    assert errors(run(node, INSTALL, payload)) == []
    broken = (node.root.read(MAIN) or b"").replace(b"imports = [", b'imports = ["/etc/missing.toml", ')
    node.root.write(MAIN, broken)
    assert exit_code(run(node, REVERT, payload)) == 4
    assert node.handlers == ("kata-qemu", "runc")


def test_a_runtime_that_was_replaced_by_one_that_cannot_serve_this_is_told_the_way_out(
    node: FakeNode, payload: Path
) -> None:
    assert errors(run(node, INSTALL, payload)) == []
    node.handlers = None
    reports = run(node, (cri,), payload)
    assert "run `kata-node revert` and then `kata-node install`" in str(errors(reports)[0])


def test_a_drop_in_for_containerd_is_passed_over_on_other_runtimes_and_that_is_told(
    tmp_path: Path, payload: Path
) -> None:
    crio = make_kind(NODE_VARIANTS["CRI-O"], tmp_path / "crio")
    (report,) = run_with(crio, (host_check,), payload, user_drop_in="[debug]\n")
    found = {check.name: check.status for check in report.checks}
    assert (report.outcome, found["user-drop-in"]) == ("done", "skip")


def test_the_main_file_made_for_two_needs_no_restart_when_one_of_them_has_gone(
    node: FakeNode, payload: Path
) -> None:
    node.root.remove(MAIN)
    assert errors(run(node, INSTALL, payload)) == []
    assert errors(run(node, INSTALL, payload, multi_install_suffix="blue")) == []
    assert errors(run(node, REVERT, payload)) == []
    restarts = node.restarts
    assert outcomes(run(node, (cri,), payload, multi_install_suffix="blue")) == ["cri skipped"]
    assert node.restarts == restarts
    assert errors(run(node, REVERT, payload, multi_install_suffix="blue")) == []
    assert node.root.read(MAIN) is None


def notes_of(reports: list[StageReport]) -> list[str]:
    return [note for report in reports for note in report.notes if MAIN in note]


def test_a_file_that_another_installation_changed_is_not_taken_for_edited_by_somebody(
    node: FakeNode, payload: Path
) -> None:
    assert errors(run(node, INSTALL, payload)) == []
    assert errors(run(node, INSTALL, payload, multi_install_suffix="blue")) == []
    reports = run(node, REVERT, payload)
    assert errors(reports) == []
    assert notes_of(reports) == [
        f"the installation blue changed {MAIN}; kata-node removed only its own entry"
    ]
    reports = run(node, REVERT, payload, multi_install_suffix="blue")
    assert notes_of(reports) == [
        f"a person or a reverted installation changed {MAIN}; kata-node removed only its own entry"
    ]
    assert node.root.read(MAIN) == CONFIG


def test_an_edit_of_the_admin_is_told_apart_from_what_another_installation_did(
    node: FakeNode, payload: Path
) -> None:
    assert errors(run(node, INSTALL, payload)) == []
    assert errors(run(node, INSTALL, payload, multi_install_suffix="blue")) == []
    node.root.write(MAIN, (node.root.read(MAIN) or b"") + b"# a new admin\n")
    (note,) = notes_of(run(node, REVERT, payload))
    assert note.startswith("a person or a reverted installation changed ")
