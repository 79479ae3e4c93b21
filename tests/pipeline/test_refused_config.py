"""A configuration that the runtime refused is not tried again on that node."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fakes import MAIN, FakeNode
from kata_node.plan import refusal
from kata_node.plan.report import StageReport
from pipeline.harness import REVERT, Killed, errors, exit_code, make_node, run, snapshot
from stages import artifacts, cri

STAGES = (artifacts, cri)
NO_CRI = "[plugins.'io.containerd.cri.v1.images']\nsnapshotter = 'nobody'\n"
NOT_TRIED = "refused this configuration at"


pytestmark = pytest.mark.usefixtures("no_waits")


@pytest.fixture
def node(tmp_path: Path) -> FakeNode:
    return make_node(tmp_path)


def crashes(node: FakeNode) -> Callable[[], tuple[str, ...] | None]:
    """Return a runtime that ends when it reads the handlers of kata-node."""
    load = node.load

    def start() -> tuple[str, ...] | None:
        handlers = load()
        if "kata-qemu" in (handlers or ()):
            raise ValueError("it crashed")
        return handlers

    return start


def try_once(node: FakeNode, payload: Path, drop_in: str = NO_CRI, **options: bool) -> list[StageReport]:
    return run(node, STAGES, payload, user_drop_in=drop_in, **options)  # type: ignore[arg-type]


def recorded(node: FakeNode) -> bool:
    return node.root.exists(refusal.path("/opt/kata"))


@pytest.mark.parametrize("drop_in", [NO_CRI, ""], ids=["does not serve", "does not start"])
def test_a_refused_configuration_is_not_written_and_not_tried_again(
    node: FakeNode, payload: Path, monkeypatch: pytest.MonkeyPatch, drop_in: str
) -> None:
    if not drop_in:
        monkeypatch.setattr(node, "load", crashes(node))
    first = try_once(node, payload, drop_in)
    assert exit_code(first) == 4
    before, restarts = snapshot(node), node.restarts
    again = try_once(node, payload, drop_in)
    assert exit_code(again) == 4
    error = again[-1].error
    assert error is not None
    assert NOT_TRIED in error.what
    assert first[-1].error is not None
    assert first[-1].error.what.partition(";")[0] in error.what
    assert "--retry-refused" in error.hint
    assert (snapshot(node), node.restarts) == (before, restarts)
    assert NOT_TRIED in str(try_once(node, payload, drop_in, dry_run=True)[-1].error)


def test_by_hand_a_refused_configuration_is_tried_again(node: FakeNode, payload: Path) -> None:
    try_once(node, payload)
    restarts = node.restarts
    again = try_once(node, payload, retry_refused=True)
    assert (exit_code(again), node.restarts) == (4, restarts + 2)
    assert NOT_TRIED not in str(again[-1].error)


def test_a_run_that_was_killed_is_repaired_although_its_configuration_was_refused(
    node: FakeNode, payload: Path
) -> None:
    try_once(node, payload)

    def die() -> None:
        raise Killed

    node.on_restart = die
    with pytest.raises(Killed):
        try_once(node, payload, retry_refused=True)
    node.on_restart = lambda: None
    assert node.handlers is None  # the runtime runs with the configuration that it refuses
    assert exit_code(try_once(node, payload)) == 4
    assert node.handlers == ("runc",)


@pytest.mark.parametrize("what", ["value", "foreign file", "version"])
def test_another_configuration_or_runtime_is_tried_and_its_success_forgets_the_refusal(
    node: FakeNode, payload: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    try_once(node, payload)
    assert recorded(node)
    load = FakeNode.load
    if what == "foreign file":
        node.root.write(MAIN, (node.root.read(MAIN) or b"") + b"# mended\n")
    elif what == "version":
        node.version = "2.1.10"
    if what != "value":  # now it serves with it
        monkeypatch.setattr(node, "load", lambda: load(node) or ("kata-qemu", "runc"))
    assert errors(try_once(node, payload, "" if what == "value" else NO_CRI)) == []
    assert not recorded(node)


def test_a_revert_forgets_the_refusal(node: FakeNode, payload: Path) -> None:
    before = snapshot(node)
    try_once(node, payload)
    assert recorded(node)
    assert errors(run(node, REVERT, payload)) == []
    assert snapshot(node) == before


@pytest.mark.parametrize("what", ["resources", "timeout", "oom-kill", "start of another command"])
def test_a_failure_that_is_not_the_configurations_is_tried_again(
    node: FakeNode, payload: Path, what: str
) -> None:
    if what == "timeout":
        node.on_restart = lambda: setattr(node, "cri_hangs", node.restarts == 1)
    else:
        node.refusals = 1
    if what == "oom-kill":
        node.refused_as = what
    elif what == "start of another command":
        node.refused_as = "exit-code"  # for example ExecStartPre; the runtime itself did not start
    assert exit_code(run(node, STAGES, payload, restart_timeout=0.1)) == 4
    assert not recorded(node)
    assert errors(run(node, STAGES, payload)) == []


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"config": 1}', b"\xff"])
def test_a_damaged_record_counts_as_none(node: FakeNode, payload: Path, content: bytes) -> None:
    try_once(node, payload)
    node.root.write(refusal.path("/opt/kata"), content)
    again = try_once(node, payload)
    assert NOT_TRIED not in str(again[-1].error)


@pytest.mark.parametrize("what", ["too large", "a symlink", "of every user"])
def test_a_record_that_kata_node_did_not_write_counts_as_none(
    node: FakeNode, payload: Path, what: str
) -> None:
    try_once(node, payload)
    record = node.root.resolve(refusal.path("/opt/kata"))
    if what == "too large":
        record.write_bytes(record.read_bytes().rstrip() + b" " * (1 << 20))
    elif what == "a symlink":
        record.rename(record.with_suffix(".moved"))
        record.symlink_to("refused.moved")
    else:
        record.chmod(0o666)
    assert refusal.load(node.root, "/opt/kata") is None
