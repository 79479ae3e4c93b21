"""A power cut after each operation of the stages that place and remove files. The next run completes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes import FakeNode
from kata_node.host import barrier
from payloads import members, tarballs
from pipeline.harness import SMALL, errors, make_node, outcomes, run, small_payload, snapshot
from power_cut import SURVIVALS, Disk, PowerCut, Survival
from stages import artifacts, remove_artifacts

EMPTY_DIRS = {"opt/kata/.kata-node", "opt/kata/.kata-node/backups"}
"""They stay beside foreign files if the power was cut between the removal of the receipt and their own."""


@pytest.fixture
def payload(tmp_path: Path) -> Path:
    return small_payload(tmp_path / "payload")


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    """A payload without a manifest, so that its files are unnamed on the node before they are placed."""
    shims = {name: {"x86_64": ["all"]} for name in ("qemu", "clh")}
    return tarballs(tmp_path / "archives", {"all": members(SMALL)}, shims)


@pytest.fixture(autouse=True, params=["each file by itself", "all files at once"])
def barrier_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(barrier, "is_possible", lambda *_: request.param == "all files at once")
    monkeypatch.setattr(barrier, "MAX_FOREIGN_DIRTY", 1 << 60)


@pytest.fixture(params=["payload", "archives"])
def any_payload(request: pytest.FixtureRequest) -> Path:
    payload: Path = request.getfixturevalue(request.param)
    return payload


def every_power_cut(
    tmp_path: Path,
    payload: Path,
    prepare: Callable[[FakeNode], object],
    stage: Any,
    survival: Callable[[int], Survival],
) -> Iterator[FakeNode]:
    """Yield a node after each power cut, and last one on which the stage had ended before it."""
    for operations in range(500):
        node = make_node(tmp_path / f"host-{operations}")
        prepare(node)
        disk = Disk(node.root.base, tmp_path / f"attic-{operations}")
        try:
            with disk.power(operations):
                assert errors(run(node, (stage,), payload)) == []
        except PowerCut:
            disk.come_back(survival(operations))
            yield node
            continue
        assert operations > 30, "too few: the disk does not see the operations of kata-node"
        disk.come_back("lost")
        yield node
        return
    pytest.fail("the stage did not end")


@pytest.mark.slow
def test_after_a_power_cut_the_next_install_places_all_files(tmp_path: Path, any_payload: Path) -> None:
    done = make_node(tmp_path / "done")
    assert errors(run(done, (artifacts,), any_payload)) == []
    wanted = files_in(done)
    found: list[str] = []
    for node in every_power_cut(
        tmp_path, any_payload, lambda _: None, artifacts, lambda number: SURVIVALS[number % 3]
    ):
        found = outcomes(run(node, (artifacts,), any_payload))
        assert found in (["artifacts done"], ["artifacts skipped"])
        assert files_in(node) == wanted
    assert found == ["artifacts skipped"], "what a finished stage placed survives"


@pytest.mark.slow
@pytest.mark.parametrize("survival", SURVIVALS)
def test_after_a_power_cut_the_next_revert_removes_all_files(
    tmp_path: Path, payload: Path, survival: Survival
) -> None:
    def install(node: FakeNode) -> None:
        assert errors(run(node, (artifacts,), payload)) == []
        (node.root.base / "opt/kata/bin/theirs").touch()  # keeps its directory

    for node in every_power_cut(tmp_path, payload, install, remove_artifacts, lambda _: survival):
        assert errors(run(node, (remove_artifacts,), payload)) == []
        left = snapshot(node, "opt").keys() - EMPTY_DIRS
        assert left == {"opt/kata", "opt/kata/bin", "opt/kata/bin/theirs"}


@pytest.mark.slow
def test_after_a_power_cut_while_placing_the_next_revert_leaves_nothing(
    tmp_path: Path, any_payload: Path
) -> None:
    for node in every_power_cut(
        tmp_path, any_payload, lambda _: None, artifacts, lambda number: SURVIVALS[number % 3]
    ):
        began = (node.root.base / "opt/kata/.kata-node/receipt.json").exists()
        report = run(node, (remove_artifacts,), any_payload)
        assert errors(report) == []
        assert "not placed by kata-node" not in str(report)
        if began:
            assert snapshot(node, "opt").keys() <= {"opt"}


def files_in(node: FakeNode) -> dict[str, tuple[object, ...]]:
    """Return all paths below the install dir except those of the receipt."""
    return {path: each for path, each in snapshot(node, "opt").items() if ".kata-node" not in path}
