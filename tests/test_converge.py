"""Killed anywhere, the next run converges: install and revert cut short after every single write."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeNode
from payloads import tree

from kata_node import pipeline, settings
from kata_node.facts import Options
from kata_node.host.files import Root
from kata_node.report import StageReport
from stages import artifacts, cri, host_check, label, remove_artifacts, revert_cri, unlabel

INSTALL = (host_check, artifacts, cri, label)
REVERT = (unlabel, revert_cri, remove_artifacts)
CONFIG = b"# the admin's\nversion = 3\n\n[debug]\n  level = 'info' # keep\n"


class Killed(BaseException):
    """No handler of the program catches it: as good as SIGKILL, locks aside."""


@pytest.fixture(autouse=True)
def no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred runs that wait for the disk take a minute, and no power is cut here."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)


@pytest.fixture
def payload(tmp_path: Path) -> Path:
    return tree(tmp_path / "payload")


@pytest.fixture
def node(tmp_path: Path) -> FakeNode:
    return make_node(tmp_path / "host")


def make_node(base: Path) -> FakeNode:
    (base / "etc/containerd").mkdir(parents=True)
    (base / "etc/containerd/config.toml").write_bytes(CONFIG)
    (base / "dev").mkdir()
    (base / "dev/kvm").touch()
    (base / "dev/null").touch()
    (base / "run").mkdir()
    (base / "opt").mkdir()
    return FakeNode(Root(base), handlers=("runc",))


def run(node: FakeNode, stages: Any, payload: Path, **values: str) -> list[StageReport]:
    wanted = settings.load(None, overrides={"shims": "qemu", **values}, arch="x86_64")
    options = Options(payload, restart_timeout=5)
    return pipeline.run(stages, pipeline.Run(wanted, options, node.tools(), lock_timeout=1))


def snapshot(node: FakeNode) -> dict[str, tuple[object, ...]]:
    """Every path of the node with what is at it."""
    found: dict[str, tuple[object, ...]] = {}
    for directory, dirs, names in os.walk(node.root.base):
        for name in (*dirs, *names):
            path = Path(directory, name)
            info = path.lstat()
            content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
            target = os.readlink(path) if path.is_symlink() else ""
            found[str(path.relative_to(node.root.base))] = (oct(info.st_mode), content, target)
    return found


def outcomes(reports: list[StageReport]) -> list[str]:
    return [f"{report.stage} {report.outcome} {report.error or ''}".strip() for report in reports]


@contextmanager
def cut_after(changes: int) -> Iterator[None]:
    """Let so many changes of the host through, and die at the next."""
    left = iter(range(changes))

    def guard(change: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*args: Any, **kwargs: Any) -> Any:
            if next(left, None) is None:
                raise Killed
            return change(*args, **kwargs)

        return guarded

    with pytest.MonkeyPatch.context() as patched:
        for name in ("rename", "unlink", "symlink_to", "mkdir", "rmdir"):
            patched.setattr(Path, name, guard(getattr(Path, name)))
        for name in ("rename", "replace", "unlink", "symlink", "mkdir", "rmdir"):
            patched.setattr(os, name, guard(getattr(os, name)))
        patched.setattr(FakeNode, "restart", guard(FakeNode.restart))
        yield


def every_cut(
    tmp_path: Path, payload: Path, prepare: Callable[[FakeNode], None], stages: Any
) -> Iterator[FakeNode]:
    """A node for each place where the run can be cut, until it comes through uncut."""
    for changes in range(500):
        node = make_node(tmp_path / f"host-{changes}")
        prepare(node)
        try:
            with cut_after(changes):
                run(node, stages, payload)
        except Killed:
            yield node
            continue
        assert changes > 15, "hardly anything was cut: what is guarded here is not what the program calls"
        return
    pytest.fail("the run never came to its end")


def test_an_install_serves_a_second_one_skips_and_revert_leaves_the_node_as_it_was(
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


def test_an_install_killed_anywhere_is_completed_by_the_next(tmp_path: Path, payload: Path) -> None:
    for node in every_cut(tmp_path, payload, lambda _: None, INSTALL):
        assert outcomes_of_errors(run(node, INSTALL, payload)) == []
        assert node.handlers is not None
        assert "kata-qemu" in node.handlers
        assert outcomes(run(node, INSTALL, payload))[1:] == [
            "artifacts skipped",
            "cri skipped",
            "label skipped",
        ]
        assert leftovers(node) == []


def test_an_install_killed_anywhere_can_be_reverted(tmp_path: Path, payload: Path) -> None:
    before = snapshot(make_node(tmp_path / "untouched"))
    for node in every_cut(tmp_path, payload, lambda _: None, INSTALL):
        assert outcomes_of_errors(run(node, REVERT, payload)) == []
        assert node.handlers == ("runc",)
        assert snapshot(node) == before


def test_a_revert_killed_anywhere_is_completed_by_the_next(tmp_path: Path, payload: Path) -> None:
    before = snapshot(make_node(tmp_path / "untouched"))

    def install(node: FakeNode) -> None:
        assert outcomes_of_errors(run(node, INSTALL, payload)) == []

    for node in every_cut(tmp_path, payload, install, REVERT):
        assert outcomes_of_errors(run(node, REVERT, payload)) == []
        assert node.handlers == ("runc",)
        assert snapshot(node) == before


def test_a_revert_killed_anywhere_can_be_taken_back_by_an_install(tmp_path: Path, payload: Path) -> None:
    def install(node: FakeNode) -> None:
        assert outcomes_of_errors(run(node, INSTALL, payload)) == []

    for node in every_cut(tmp_path, payload, install, REVERT):
        install(node)
        assert node.handlers is not None
        assert "kata-qemu" in node.handlers
        assert leftovers(node) == []


def test_at_every_cut_the_runtime_would_start(tmp_path: Path, payload: Path) -> None:
    """A node that loses power in the middle comes up with a container runtime."""

    def install(node: FakeNode) -> None:
        assert outcomes_of_errors(run(node, INSTALL, payload)) == []

    for stages, prepare in ((INSTALL, lambda _: None), (REVERT, install)):
        for node in every_cut(tmp_path / stages[0].NAME, payload, prepare, stages):
            node.restart("containerd.service", 1)
            assert node.handlers is not None
            assert "runc" in node.handlers


def outcomes_of_errors(reports: list[StageReport]) -> list[object]:
    return [report.error for report in reports if report.error]


def leftovers(node: FakeNode) -> list[str]:
    """What a kill left half written, apart from the record's own directory, which goes with the record."""
    return [path for path in snapshot(node) if path.endswith("-tmp") and ".kata-node/" not in path]
