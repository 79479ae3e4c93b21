"""Install and revert on every variant of a node, also after they were killed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fakes import FakeNode
from kata_node.host.files import Root
from pipeline.harness import (
    INSTALL,
    REVERT,
    Killed,
    errors,
    exit_code,
    killed_after,
    outcomes,
    run,
    small_payload,
    snapshot,
)
from pipeline.node_variants import NODE_VARIANTS, Crio, NodeVariant, make_node
from stages import artifacts, cri, remove_artifacts, revert_cri

CUTS = 1 if os.environ.get("HISTORIES") else 2
"""Kill a run after every change, or, without ``HISTORIES``, after every second one."""

EACH_VARIANT = pytest.mark.parametrize(
    "kind", [pytest.param(kind, id=name) for name, kind in NODE_VARIANTS.items()]
)


pytestmark = pytest.mark.usefixtures("no_waits")


@pytest.fixture
def payload(tmp_path: Path) -> Path:
    return small_payload(tmp_path / "payload")


def run_on(kind: NodeVariant, node: FakeNode, stages: Any, payload: Path, **values: Any) -> Any:
    return run(node, stages, payload, k8s_distribution=kind.distribution, **values)


def config(kind: NodeVariant, node: FakeNode) -> dict[str, tuple[object, ...]]:
    """Return the files of the runtime and its distribution, without the main file if it is rendered."""
    found = {**snapshot(node, "etc"), **snapshot(node, "var")}
    rendered = node.main not in kind.kata_files
    return {path: what for path, what in found.items() if not rendered or f"/{path}" != node.main}


def kata(node: FakeNode) -> list[str]:
    return [name for name in node.handlers or () if name.startswith("kata-")]


@EACH_VARIANT
def test_an_install_serves_a_second_install_skips_and_a_revert_restores_the_node(
    kind: NodeVariant, tmp_path: Path, payload: Path
) -> None:
    node = make_node(kind, tmp_path / "host")
    before, served = snapshot(node), node.handlers
    assert errors(run_on(kind, node, INSTALL, payload)) == []
    assert kata(node) == ["kata-qemu"]
    assert set(served or ()) <= set(node.handlers or ())
    assert node.restarts == (0 if kind.hot_reload else 1)
    changed = {f"/{path}" for path, what in config(kind, node).items() if what != before.get(path)}
    assert {path for path in changed if not node.root.is_dir(path)} == set(kind.kata_files)
    assert outcomes(run_on(kind, node, INSTALL, payload))[1:] == [
        "claim skipped",
        "artifacts skipped",
        "cri skipped",
        "label skipped",
    ]
    assert node.restarts == (0 if kind.hot_reload else 1)
    assert errors(run_on(kind, node, REVERT, payload)) == []
    assert (snapshot(node), node.handlers) == (before, served)
    assert node.restarts == (0 if kind.hot_reload else 2)


@EACH_VARIANT
def test_a_shim_enabled_later_is_served_and_a_disabled_one_is_not(
    kind: NodeVariant, tmp_path: Path, payload: Path
) -> None:
    node = make_node(kind, tmp_path / "host")
    before = snapshot(node)
    for shims, handlers in (("qemu", ["qemu"]), ("qemu,clh", ["clh", "qemu"]), ("clh", ["clh"])):
        assert errors(run_on(kind, node, INSTALL, payload, shims=shims)) == []
        assert kata(node) == [f"kata-{name}" for name in handlers]
    assert errors(run_on(kind, node, REVERT, payload)) == []
    assert snapshot(node) == before


@pytest.mark.slow
@EACH_VARIANT
def test_after_a_killed_install_the_runtime_starts_and_an_install_or_revert_succeeds(
    kind: NodeVariant, tmp_path: Path, payload: Path
) -> None:
    def place(node: FakeNode) -> None:
        assert errors(run_on(kind, node, (artifacts,), payload)) == []

    untouched = make_node(kind, tmp_path / "untouched")
    before, served = snapshot(untouched), untouched.handlers
    for node in every_cut(kind, tmp_path, place, lambda node: run_on(kind, node, (cri,), payload)):
        other = copy(node, tmp_path / "back")
        assert set(served or ()) <= set(node.load() or ())
        assert errors(run_on(kind, node, (cri,), payload)) == []
        assert kata(node) == ["kata-qemu"]
        assert outcomes(run_on(kind, node, (cri,), payload)) == ["cri skipped"]
        assert errors(run_on(kind, other, (revert_cri, remove_artifacts), payload)) == []
        assert (snapshot(other), other.handlers) == (before, served)


@pytest.mark.slow
@EACH_VARIANT
def test_after_a_killed_revert_the_runtime_starts_and_a_revert_or_install_succeeds(
    kind: NodeVariant, tmp_path: Path, payload: Path
) -> None:
    def install(node: FakeNode) -> None:
        assert errors(run_on(kind, node, (artifacts, cri), payload)) == []

    untouched = make_node(kind, tmp_path / "untouched")
    before, served = snapshot(untouched), untouched.handlers
    for node in every_cut(kind, tmp_path, install, lambda node: run_on(kind, node, (revert_cri,), payload)):
        other = copy(node, tmp_path / "back")
        assert set(served or ()) <= set(node.load() or ())
        assert errors(run_on(kind, node, (revert_cri, remove_artifacts), payload)) == []
        assert (snapshot(node), node.handlers) == (before, served)
        assert errors(run_on(kind, other, (cri,), payload)) == []
        assert kata(other) == ["kata-qemu"]


@EACH_VARIANT
def test_a_runtime_that_does_not_start_is_rolled_back(
    kind: NodeVariant, tmp_path: Path, payload: Path
) -> None:
    node = make_node(kind, tmp_path / "host")
    assert errors(run_on(kind, node, (artifacts,), payload)) == []
    before, served = config(kind, node), node.handlers
    node.refusals = 1
    if isinstance(node, Crio):
        (node.root.base / "opt/kata/bin/containerd-shim-kata-v2").unlink()
    if kind.hot_reload:
        return  # nothing is restarted that could refuse
    assert exit_code(run_on(kind, node, (cri,), payload)) == 4
    assert (config(kind, node), node.handlers) == (before, served)


def test_crio_gets_a_reload_signal_if_that_is_enough(tmp_path: Path, payload: Path) -> None:
    kind = NODE_VARIANTS["CRI-O"]
    node = make_node(kind, tmp_path / "host")
    assert isinstance(node, Crio)
    assert errors(run_on(kind, node, INSTALL, payload)) == []
    assert (node.restarts, node.reloads) == (1, 0), "CRI-O reads the storage option only at its start"
    assert errors(run_on(kind, node, INSTALL, payload, shims="qemu,clh")) == []
    assert (node.restarts, node.reloads, kata(node)) == (1, 1, ["kata-clh", "kata-qemu"])


def copy(node: FakeNode, base: Path) -> FakeNode:
    """Return a copy of the node with the root ``base``. Replaces an earlier copy."""
    shutil.rmtree(base, ignore_errors=True)
    shutil.copytree(node.root.base, base, symlinks=True)
    return replace(node, root=Root(base), asked=[])


def every_cut(
    kind: NodeVariant, directory: Path, prepare: Callable[[FakeNode], None], cut: Callable[[FakeNode], object]
) -> Iterator[FakeNode]:
    """Yield a node for every ``CUTS``-th change after which the run can be killed, until it ends."""
    prepared = make_node(kind, directory / "prepared")
    prepare(prepared)
    for changes in range(0, 200, CUTS):
        node = copy(prepared, directory / "cut")
        try:
            with killed_after(changes):
                cut(node)
        except Killed:
            yield node
            continue
        assert changes > 8, "too few changes: killed_after does not guard the functions that kata-node calls"
        return
    pytest.fail("the run did not end")


@EACH_VARIANT
def test_after_a_lost_receipt_an_install_and_a_revert_leave_nothing(
    kind: NodeVariant, tmp_path: Path, payload: Path
) -> None:
    node = make_node(kind, tmp_path / "host")
    before, served = config(kind, node), node.handlers
    assert errors(run_on(kind, node, INSTALL, payload)) == []
    shutil.rmtree(node.root.resolve("/opt/kata/.kata-node"))
    assert errors(run_on(kind, node, INSTALL, payload)) == []
    assert errors(run_on(kind, node, REVERT, payload)) == []
    found = {path: what for path, what in config(kind, node).items() if what[1]}
    assert found == {path: what for path, what in before.items() if what[1]}
    assert kata(node) == []
    assert set(served or ()) <= set(node.handlers or ())
