"""Runs that are killed after each change in turn. The next run completes or reverts what they left."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes import FakeNode
from pipeline.harness import (
    INSTALL,
    REVERT,
    Killed,
    errors,
    killed_after,
    make_node,
    outcomes,
    run,
    small_payload,
    snapshot,
)


@pytest.fixture(autouse=True)
def no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip fsync: it makes a hundred runs take a minute, and these tests do not cut the power."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)


@pytest.fixture
def payload(tmp_path: Path) -> Path:
    return small_payload(tmp_path / "payload")


@pytest.fixture
def node(tmp_path: Path) -> FakeNode:
    return make_node(tmp_path / "host")


def every_cut(
    tmp_path: Path, payload: Path, prepare: Callable[[FakeNode], None], stages: Any
) -> Iterator[FakeNode]:
    """Yield a node for each change after which the run can be killed, until the run ends by itself."""
    for changes in range(500):
        node = make_node(tmp_path / f"host-{changes}")
        prepare(node)
        try:
            with killed_after(changes):
                run(node, stages, payload)
        except Killed:
            yield node
            continue
        assert changes > 15, "too few changes: killed_after does not guard the functions that kata-node calls"
        return
    pytest.fail("the run did not end")


def test_an_install_serves_a_second_install_skips_and_a_revert_restores_the_node(
    node: FakeNode, payload: Path
) -> None:
    before = snapshot(node)
    assert all(report.error is None for report in run(node, INSTALL, payload))
    assert node.handlers is not None
    assert "kata-qemu" in node.handlers
    assert node.restarts == 1
    installed = snapshot(node)
    assert outcomes(run(node, INSTALL, payload)) == [
        "host-check done",
        "claim skipped",
        "artifacts skipped",
        "cri skipped",
        "label skipped",
    ]
    assert snapshot(node) == installed
    assert node.restarts == 1
    assert all(report.error is None for report in run(node, REVERT, payload))
    assert node.handlers == ("runc",)
    assert node.restarts == 2
    assert snapshot(node) == before


@pytest.mark.slow
def test_a_killed_install_is_completed_by_the_next_install(tmp_path: Path, payload: Path) -> None:
    for node in every_cut(tmp_path, payload, lambda _: None, INSTALL):
        assert errors(run(node, INSTALL, payload)) == []
        assert node.handlers is not None
        assert "kata-qemu" in node.handlers
        assert outcomes(run(node, INSTALL, payload))[1:] == [
            "claim skipped",
            "artifacts skipped",
            "cri skipped",
            "label skipped",
        ]
        assert leftovers(node) == []


@pytest.mark.slow
def test_a_killed_install_can_be_reverted(tmp_path: Path, payload: Path) -> None:
    before = snapshot(make_node(tmp_path / "untouched"))
    for node in every_cut(tmp_path, payload, lambda _: None, INSTALL):
        assert errors(run(node, REVERT, payload)) == []
        assert node.handlers == ("runc",)
        assert snapshot(node) == before


@pytest.mark.slow
def test_a_killed_revert_is_completed_by_the_next_revert(tmp_path: Path, payload: Path) -> None:
    before = snapshot(make_node(tmp_path / "untouched"))

    def install(node: FakeNode) -> None:
        assert errors(run(node, INSTALL, payload)) == []

    for node in every_cut(tmp_path, payload, install, REVERT):
        assert errors(run(node, REVERT, payload)) == []
        assert node.handlers == ("runc",)
        assert snapshot(node) == before


@pytest.mark.slow
def test_after_a_killed_revert_an_install_serves_again(tmp_path: Path, payload: Path) -> None:
    def install(node: FakeNode) -> None:
        assert errors(run(node, INSTALL, payload)) == []

    for node in every_cut(tmp_path, payload, install, REVERT):
        install(node)
        assert node.handlers is not None
        assert "kata-qemu" in node.handlers
        assert leftovers(node) == []


@pytest.mark.slow
def test_the_runtime_can_start_after_a_run_was_killed(tmp_path: Path, payload: Path) -> None:
    """A node that loses power during a run boots with a container runtime."""

    def install(node: FakeNode) -> None:
        assert errors(run(node, INSTALL, payload)) == []

    for stages, prepare in ((INSTALL, lambda _: None), (REVERT, install)):
        for node in every_cut(tmp_path / stages[0].NAME, payload, prepare, stages):
            node.restart("containerd.service", 1)
            assert node.handlers is not None
            assert "runc" in node.handlers


def leftovers(node: FakeNode) -> list[str]:
    """Return the temporary files that a killed run left, and reserves of files other than the receipt."""
    kept = "opt/kata/.kata-node/.receipt.json.kata-node-reserve"
    return [path for path in snapshot(node) if path.endswith(("-tmp", "-reserve")) and path != kept]
