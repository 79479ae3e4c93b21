"""The files of a removed handler stay as long as the runtime may serve it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fakes import FakeNode
from pipeline.harness import (
    INSTALL,
    REVERT,
    Killed,
    errors,
    exit_code,
    killed_after,
    make_node,
    outcomes,
    run,
    small_payload,
    snapshot,
)
from stages import artifacts, cri

CLH = "opt/kata/share/defaults/kata-containers/runtimes/clh/configuration-clh.toml"


@pytest.fixture
def payload(tmp_path: Path) -> Path:
    return small_payload(tmp_path / "payload")


@pytest.fixture
def both(tmp_path: Path, payload: Path) -> FakeNode:
    """A node that serves kata-qemu and kata-clh."""
    node = make_node(tmp_path / "host")
    assert errors(run(node, INSTALL, payload, shims="qemu,clh")) == []
    return node


def has_clh(node: FakeNode) -> bool:
    return (node.root.base / CLH).is_file()


def test_the_files_of_a_disabled_shim_are_removed_when_it_is_not_served_any_more(
    both: FakeNode, payload: Path
) -> None:
    assert errors(run(both, (artifacts,), payload)) == []
    assert has_clh(both), "the runtime still serves it"
    assert outcomes(run(both, (artifacts,), payload)) == ["artifacts skipped"]
    assert errors(run(both, (cri,), payload)) == []
    assert (has_clh(both), both.handlers) == (False, ("kata-qemu", "runc"))
    assert outcomes(run(both, INSTALL, payload))[2:4] == ["artifacts skipped", "cri skipped"]


def test_the_files_of_a_disabled_shim_stay_if_the_change_is_rolled_back(
    both: FakeNode, payload: Path
) -> None:
    both.refusals = 1
    assert exit_code(run(both, INSTALL, payload)) == 4
    assert (has_clh(both), both.handlers) == (True, ("kata-clh", "kata-qemu", "runc"))
    assert errors(run(both, INSTALL, payload)) == []
    assert (has_clh(both), both.handlers) == (False, ("kata-qemu", "runc"))


def test_the_files_of_a_shim_that_is_enabled_again_stay(both: FakeNode, payload: Path) -> None:
    assert errors(run(both, (artifacts,), payload)) == []
    assert errors(run(both, INSTALL, payload, shims="qemu,clh")) == []
    assert has_clh(both)
    assert errors(run(both, INSTALL, payload)) == []
    assert not has_clh(both)


def test_a_revert_removes_the_files_of_a_disabled_shim(tmp_path: Path, both: FakeNode, payload: Path) -> None:
    assert errors(run(both, (artifacts,), payload)) == []
    assert errors(run(both, REVERT, payload)) == []
    assert snapshot(both) == snapshot(make_node(tmp_path / "untouched"))


@pytest.mark.slow
def test_after_a_killed_run_the_next_run_removes_the_files_of_a_disabled_shim(
    tmp_path: Path, payload: Path
) -> None:
    for changes in range(200):
        node = make_node(tmp_path / str(changes))
        assert errors(run(node, (artifacts, cri), payload, shims="qemu,clh")) == []
        assert errors(run(node, (artifacts,), payload)) == []
        try:
            with killed_after(changes):
                run(node, (cri,), payload)
        except Killed:
            assert has_clh(node) or "kata-clh" not in (node.handlers or ())
            assert errors(run(node, (artifacts, cri), payload)) == []
            assert not has_clh(node)
            assert outcomes(run(node, (artifacts, cri), payload)) == ["artifacts skipped", "cri skipped"]
            continue
        assert changes > 10
        return
    pytest.fail("the run did not end")
