"""What a dry run says of a live node, and that the run after it does exactly that."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fakes import MAIN, UNIT, FakeKube, FakeNode
from kata_node.host.cri_sandboxes import Pod
from kata_node.plan import dry_run
from kata_node.plan.preview import Preview, Space, combined
from kata_node.plan.report import StageReport
from kata_node.runtime import restart
from pipeline import node_variants
from pipeline.harness import INSTALL, REVERT, errors, make_node, run, snapshot

DROP_IN = "/opt/kata/containerd/config.d/99-kata-deploy.toml"
QEMU_CONFIG = "/opt/kata/share/defaults/kata-containers/runtimes/qemu/configuration-qemu.toml"
LABELS = ("katacontainers.io/kata-runtime", "kata-deploy.katacontainers.io/default")
WEB = Pod("shop", "web", "kata-qemu")
FREE = Space("/opt", 1 << 30)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    monkeypatch.setattr(restart, "POLL", 0.001)


@pytest.fixture
def node(tmp_path: Path) -> FakeNode:
    return make_node(tmp_path / "host")


@pytest.fixture
def installed(node: FakeNode, payload: Path) -> FakeNode:
    assert errors(run(node, INSTALL, payload)) == []
    return node


def plan(node: FakeNode, stages: Any, payload: Path, **options: Any) -> dict[str, Any]:
    """Return the summary of a dry run as JSON."""
    done = run(node, stages, payload, dry_run=True, **options)
    assert errors(done) == []
    document: dict[str, Any] = dry_run.to_json(done, None, verbose=False)["plan"]
    return document


def test_a_first_install_restarts_the_unit_and_labels_the_node(node: FakeNode, payload: Path) -> None:
    node.kube = FakeKube(node)
    assert plan(node, INSTALL, payload, node_name="n1") == {
        "complete": True,
        "files": {"placed": 12, "placed_bytes": 1081, "removed": 0, "removed_bytes": 0},
        "drifted": [],
        "configuration": [{"path": DROP_IN, "change": "add"}, {"path": MAIN, "change": "change"}],
        "restart": {"unit": UNIT, "operation": "restart", "only_if_running": False},
        "units": [],
        "handlers": {"added": ["kata-qemu"], "removed": []},
        "pods": {"known": True, "blocking": []},
        "space": None,
        "labels": dict.fromkeys(LABELS, "true"),
    }


def test_a_revert_restarts_a_unit_that_runs_and_removes_the_labels(
    installed: FakeNode, payload: Path
) -> None:
    installed.kube = FakeKube(installed, dict.fromkeys(LABELS, "true"))
    installed.pods = (WEB,)
    found = plan(installed, REVERT, payload, node_name="n1")
    assert found["restart"] == {"unit": UNIT, "operation": "restart", "only_if_running": True}
    assert found["handlers"] == {"added": [], "removed": ["kata-qemu"]}
    assert found["pods"] == {
        "known": True,
        "blocking": [{"namespace": "shop", "name": "web", "handler": "kata-qemu"}],
    }
    assert found["labels"] == dict.fromkeys(LABELS)
    text = dry_run.to_text(run(installed, REVERT, payload, dry_run=True, node_name="n1"), None, verbose=False)
    assert f"\n  restart        yes: {UNIT}, if it runs\n" in text
    assert "\n  pods           1 pod runs on a handler that would be removed: shop/web (kata-qemu)\n" in text
    assert f"\n  labels         remove {LABELS[0]}\n" in text


def test_a_runtime_that_does_not_answer_leaves_the_pods_unknown(installed: FakeNode, payload: Path) -> None:
    installed.handlers = None
    installed.root.write(MAIN, b"# mended\nversion = 3\n")
    done = run(installed, REVERT, payload, dry_run=True)
    assert not dry_run.to_json(done, None, verbose=False)["plan"]["pods"]["known"]
    text = dry_run.to_text(done, None, verbose=False)
    assert "\n  pods           not known: the runtime did not answer\n" in text


def test_a_change_of_kata_alone_needs_no_restart(installed: FakeNode, payload: Path) -> None:
    installed.root.write(QEMU_CONFIG, b"# mine\n")
    found = plan(installed, INSTALL, payload)
    assert (found["drifted"], found["restart"], found["configuration"]) == ([QEMU_CONFIG], None, [])


def test_a_runtime_that_loads_changes_is_restarted_only_if_it_does_not(tmp_path: Path, payload: Path) -> None:
    node = node_variants.make_node(node_variants.NODE_VARIANTS["k0s"], tmp_path / "host")
    done = run(node, INSTALL, payload, dry_run=True, k8s_distribution="k0s")
    assert errors(done) == []
    unit = dry_run.to_json(done, None, verbose=False)["plan"]["restart"]
    assert unit == {"unit": "k0sworker.service", "operation": "wait for", "only_if_running": False}
    text = dry_run.to_text(done, FREE, verbose=False)
    assert "\n  restart        only if k0sworker.service does not load the change by itself\n" in text
    assert "to write, 1.0 GiB free at /opt\n" in text


def files(node: FakeNode) -> dict[str, object]:
    """Return the content or target of every file and link on the node, without the record of kata-node."""
    paths = (path for path in node.root.base.rglob("*") if path.is_symlink() or path.is_file())
    return {
        f"/{path.relative_to(node.root.base)}": os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in paths
        if ".kata-node" not in path.parts
    }


def drift(node: FakeNode) -> None:
    node.root.write(QEMU_CONFIG, b"# mine\n")
    node.root.write(DROP_IN, b"# mine\n")
    node.root.remove("/opt/kata/bin/qemu-system-x86_64")


@pytest.mark.parametrize(
    ("drifts", "stages", "values"),
    [
        pytest.param(None, INSTALL, {}, id="first install"),
        pytest.param(False, INSTALL, {"shims": "clh"}, id="another shim"),
        pytest.param(False, INSTALL, {"shims": "qemu,clh"}, id="one more shim"),
        pytest.param(True, INSTALL, {}, id="drift"),
        pytest.param(False, REVERT, {}, id="revert"),
        pytest.param(True, REVERT, {}, id="revert with drift"),
    ],
)
def test_a_run_changes_the_files_that_the_dry_run_names(
    node: FakeNode, payload: Path, drifts: bool | None, stages: Any, values: dict[str, Any]
) -> None:
    if drifts is not None:
        assert errors(run(node, INSTALL, payload)) == []
    if drifts:
        drift(node)
    before, unchanged, restarts = files(node), snapshot(node), node.restarts
    planned = run(node, stages, payload, dry_run=True, **values)
    assert (snapshot(node), node.restarts) == (unchanged, restarts)
    assert errors(run(node, stages, payload, **values)) == []

    after = files(node)
    named = {each.path for each in combined(previews(planned)).paths if each.kind != "dir"}
    assert {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)} == {
        path for path in named if path in before or path in after
    }
    found = dry_run.to_json(planned, None, verbose=False)["plan"]
    assert (node.restarts > restarts) == (found["restart"] is not None)


def previews(done: Sequence[StageReport]) -> list[Preview]:
    return [report.preview for report in done if report.preview is not None]
