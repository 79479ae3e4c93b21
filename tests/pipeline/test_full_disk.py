"""A disk without space: rollbacks and reverts, each also killed after every change."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fakes import FakeNode
from kata_node.host import files, reserve
from kata_node.host.atomic_replace import write_new
from kata_node.plan import receipt as receipts
from pipeline.harness import (
    INSTALL,
    REVERT,
    Killed,
    errors,
    exit_code,
    killed_after,
    make_node,
    run,
    small_payload,
    snapshot,
)

DEBUG = "[debug]\n  level = 'debug'\n"
"""A drop-in of the user, which an update adds."""

RESERVE = 4  # the size of the receipt's reserve, in files
RECEIPT = receipts.path("/opt/kata")


@pytest.fixture(autouse=True)
def no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip fsync, as in the tests of killed runs."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)


@pytest.fixture
def payload(tmp_path: Path) -> Path:
    return small_payload(tmp_path / "payload")


@pytest.fixture
def before(tmp_path: Path) -> dict[str, tuple[object, ...]]:
    return snapshot(make_node(tmp_path / "untouched"))


@contextmanager
def full_disk() -> Iterator[None]:
    """Let a file be created only after another was removed or replaced. A receipt's reserve is 4 files."""
    free = 0
    create, unlink, rename = write_new, Path.unlink, Path.rename

    def space_of(path: Path) -> int:
        if not os.path.lexists(path) or path.lstat().st_nlink > 1:
            return 0
        return RESERVE if path.name == ".receipt.json.kata-node-reserve" else 1

    def take(wanted: int) -> None:
        nonlocal free
        if free < wanted:
            raise OSError(errno.ENOSPC, "No space left on device")
        free -= wanted

    def create_if_free(path: Path, *args: Any, **more: Any) -> None:
        take(1)
        create(path, *args, **more)

    def unlink_and_free(path: Path, *args: Any, **more: Any) -> None:
        nonlocal free
        freed = space_of(path)
        unlink(path, *args, **more)
        free += freed

    def rename_and_free(path: Path, target: Path) -> Path:
        nonlocal free
        freed = space_of(target) + max(0, space_of(path) - 1)
        result = rename(path, target)
        free += freed
        return result

    def allocate(fd: int, offset: int, size: int) -> None:
        if offset + size > os.fstat(fd).st_size:
            take(RESERVE)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(files, "write_new", create_if_free)
        patched.setattr(reserve, "write_new", create_if_free)
        patched.setattr(os, "posix_fallocate", allocate)
        patched.setattr(Path, "unlink", unlink_and_free)
        patched.setattr(Path, "rename", rename_and_free)
        yield


def installed(base: Path, payload: Path, *, has_reserve: bool = True) -> FakeNode:
    node = make_node(base)
    assert errors(run(node, INSTALL, payload)) == []
    if not has_reserve:  # an earlier version made none
        reserve.forget(node.root, RECEIPT)
    return node


def every_cut(base: Path, make: Any, action: Any) -> Iterator[FakeNode]:
    """Yield a node for each change after which ``action`` can be killed, until it ends by itself."""
    for changes in range(300):
        node = make(base / f"host-{changes}")
        try:
            with killed_after(changes):
                action(node)
        except Killed:
            yield node
            continue
        assert changes > 8, "too few changes: killed_after does not guard the functions that kata-node calls"
        return
    pytest.fail("the run did not end")


def test_an_install_is_rolled_back_on_a_disk_that_became_full_at_the_restart(
    tmp_path: Path, payload: Path, before: dict[str, tuple[object, ...]]
) -> None:
    node = make_node(tmp_path / "host")
    with full_disk_from_first_restart(node):
        reports = run(node, INSTALL, payload)
    assert exit_code(reports) == 4, reports
    assert node.handlers == ("runc",)
    assert snapshot(node, "etc") == snapshot(make_node(tmp_path / "other"), "etc")
    assert errors(run(node, REVERT, payload)) == []
    assert snapshot(node) == before


@contextmanager
def full_disk_from_first_restart(node: FakeNode) -> Iterator[None]:
    """Fill the disk at the first restart, which fails."""
    disk, restart = full_disk(), node.restart

    def fill_and_refuse(name: str, timeout: float) -> None:
        del node.restart
        disk.__enter__()
        node.refusals = 1
        restart(name, timeout)

    node.restart = fill_and_refuse  # type: ignore[method-assign]
    yield
    disk.__exit__(None, None, None)


def test_an_update_is_rolled_back_on_a_full_disk_to_what_served_before(tmp_path: Path, payload: Path) -> None:
    node = installed(tmp_path / "host", payload)
    served = snapshot(node, "etc"), node.handlers
    with full_disk_from_first_restart(node):
        reports = run(node, INSTALL, payload, user_drop_in=DEBUG)
    assert exit_code(reports) == 4, reports
    assert (snapshot(node, "etc"), node.handlers) == served
    assert errors(run(node, INSTALL, payload)) == []


@pytest.mark.slow
def test_a_rollback_that_was_killed_can_be_reverted_and_completed(
    tmp_path: Path, payload: Path, before: dict[str, tuple[object, ...]]
) -> None:
    def install(node: FakeNode) -> None:
        node.refusals = 1  # the first restart, not that of the rollback
        run(node, INSTALL, payload)

    for at, node in enumerate(every_cut(tmp_path, make_node, install)):
        node.refusals = 0
        if at % 2:
            assert errors(run(node, INSTALL, payload)) == []
            assert [path for path in snapshot(node, "etc") if path.endswith(("-tmp", "-reserve"))] == []
        assert errors(run(node, REVERT, payload)) == []
        assert node.handlers == ("runc",)
        assert snapshot(node) == before


@pytest.mark.slow
@pytest.mark.parametrize("has_reserve", [True, False])
def test_a_full_disk_can_be_reverted_even_if_the_revert_was_killed(
    tmp_path: Path, payload: Path, before: dict[str, tuple[object, ...]], has_reserve: bool
) -> None:
    def make(base: Path) -> FakeNode:
        return installed(base, payload, has_reserve=has_reserve)

    def revert(node: FakeNode) -> None:
        with full_disk():
            assert errors(run(node, REVERT, payload)) == []

    for node in every_cut(tmp_path, make, revert):
        with full_disk():
            assert errors(run(node, REVERT, payload)) == []
        assert node.handlers == ("runc",)
        assert snapshot(node) == before


def test_a_revert_that_fails_on_a_full_disk_leaves_what_served(tmp_path: Path, payload: Path) -> None:
    node = installed(tmp_path / "host", payload)
    served = snapshot(node, "etc")
    node.refusals = 1
    with full_disk():
        reports = run(node, REVERT, payload)
    assert exit_code(reports) == 4, reports
    assert snapshot(node, "etc") == served
    assert "kata-qemu" in (node.handlers or ())
    assert errors(run(node, REVERT, payload)) == []
