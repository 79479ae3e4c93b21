"""States of the runtime that a stage refuses to change, and states that it reverts nevertheless."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

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
    changed: Settings = replace(settings.load(None, overrides={"shims": "qemu"}, arch="x86_64"), **changes)
    options = Options(payload, restart_timeout=5, stable_for=0)
    return pipeline.run(stages, pipeline.Run(changed, options, node.clients(), lock_timeout=1))


def test_a_built_in_handler_of_the_runtime_is_refused(node: FakeNode, payload: Path) -> None:
    """No file defines it. Only the CRI shows that the runtime serves it."""
    node.handlers = ("runc", "runsc")
    before = snapshot(node)
    for stages in ((host_check,), INSTALL):
        reports = run_with(node, stages, payload, custom_runtimes=(BUILT_IN,))
        assert exit_code(reports) == 3
        assert "a custom runtime cannot define runsc" in str(errors(reports)[0])
    assert snapshot(node) == before


def test_a_custom_runtime_is_not_mistaken_for_a_built_in_handler(node: FakeNode, payload: Path) -> None:
    assert errors(run_with(node, INSTALL, payload, custom_runtimes=(BUILT_IN,))) == []
    assert set(node.handlers or ()) == {"kata-qemu", "runc", "runsc"}
    assert errors(run_with(node, INSTALL, payload, custom_runtimes=(BUILT_IN,))) == []
    assert errors(run_with(node, INSTALL, payload)) == []
    assert set(node.handlers or ()) == {"kata-qemu", "runc"}


def test_a_configuration_directory_that_containerd_does_not_read_is_refused(
    node: FakeNode, payload: Path
) -> None:
    elsewhere = ContainerdSettings(config_dir="/etc/elsewhere")
    reports = run_with(node, INSTALL, payload, containerd=elsewhere)
    assert exit_code(reports) == 3
    assert f"containerd.service reads {MAIN}" in str(errors(reports)[0])
    assert outcomes(reports)[0].startswith("host-check failed")


def test_a_revert_succeeds_on_a_runtime_that_a_foreign_change_broke(
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


def test_a_revert_is_refused_if_a_serving_runtime_would_not_start_after_it(
    node: FakeNode, payload: Path
) -> None:
    assert errors(run(node, INSTALL, payload)) == []
    broken = (node.root.read(MAIN) or b"").replace(b"imports = [", b'imports = ["/etc/missing.toml", ')
    node.root.write(MAIN, broken)
    assert exit_code(run(node, REVERT, payload)) == 3
    assert node.handlers == ("kata-qemu", "runc")


def test_a_runtime_that_cannot_read_its_configuration_any_more_gets_a_hint_to_revert(
    node: FakeNode, payload: Path
) -> None:
    assert errors(run(node, INSTALL, payload)) == []
    node.handlers = None
    reports = run(node, (cri,), payload)
    assert "run `kata-node revert` and then `kata-node install`" in str(errors(reports)[0])


def test_a_drop_in_for_containerd_is_skipped_on_other_runtimes_with_a_finding(
    tmp_path: Path, payload: Path
) -> None:
    crio = make_kind(NODE_VARIANTS["CRI-O"], tmp_path / "crio")
    (report,) = run_with(crio, (host_check,), payload, user_drop_in="[debug]\n")
    found = {check.name: check.status for check in report.checks}
    assert (report.outcome, found["user-drop-in"]) == ("done", "skip")


def test_a_revert_of_one_of_two_installations_needs_no_restart_for_the_other(
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


def test_a_note_names_the_other_installation_that_changed_a_file(node: FakeNode, payload: Path) -> None:
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


def test_a_note_tells_an_edit_of_the_admin_from_a_change_by_another_installation(
    node: FakeNode, payload: Path
) -> None:
    assert errors(run(node, INSTALL, payload)) == []
    assert errors(run(node, INSTALL, payload, multi_install_suffix="blue")) == []
    node.root.write(MAIN, (node.root.read(MAIN) or b"") + b"# a new admin\n")
    (note,) = notes_of(run(node, REVERT, payload))
    assert note.startswith("a person or a reverted installation changed ")
