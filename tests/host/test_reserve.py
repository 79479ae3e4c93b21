"""Replacing files so that the previous one comes back without space, with any help of the file system."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kata_node.errors import HostError, NoSpaceError
from kata_node.host import files, reserve
from kata_node.host.files import FileState, Root

PATH = "/etc/config.toml"
DROP_IN = "/etc/conf.d/mine.toml"


@pytest.fixture
def root(tmp_path: Path) -> Root:
    (tmp_path / "etc/conf.d").mkdir(parents=True)
    (tmp_path / "etc/config.toml").write_bytes(b"previous")
    (tmp_path / "etc/conf.d/mine.toml").write_bytes(b"previous")
    return Root(tmp_path)


def names(root: Root) -> set[str]:
    return {path.name for path in root.base.rglob("*") if path.is_file()}


def failing(number: int) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def change(root: Root, path: str) -> FileState:
    previous = root.read_state(path)
    assert previous is not None
    reserve.replace(root, path, b"new", mode=0o644, previous=previous)
    assert root.read(path) == b"new"
    return previous


@pytest.mark.parametrize("path", [PATH, DROP_IN])
@pytest.mark.parametrize(
    "cannot_link", [None, errno.EPERM, errno.EXDEV, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSPC]
)
def test_the_previous_file_comes_back_by_a_rename(
    root: Root, monkeypatch: pytest.MonkeyPatch, path: str, cannot_link: int | None
) -> None:
    inode = root.resolve(path).stat().st_ino
    if cannot_link:
        monkeypatch.setattr(os, "link", failing(cannot_link))
    previous = change(root, path)
    for module in (files, reserve):
        monkeypatch.setattr(module, "write_new", failing(errno.ENOSPC))
    reserve.restore(root, path, previous)
    assert root.read_state(path) == previous
    assert names(root) == {"config.toml", "mine.toml"}
    if cannot_link is None:
        assert root.resolve(path).stat().st_ino == inode


def test_a_reserve_in_another_mount_is_written_back(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory for drop-ins can be a mount of its own."""
    previous = change(root, DROP_IN)
    real = Path.rename

    def rename(path: Path, target: Path) -> Path:
        if path.name.endswith("-reserve"):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return real(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    reserve.restore(root, DROP_IN, previous)
    assert root.read_state(DROP_IN) == previous


def test_a_removed_file_comes_back_by_a_rename(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    previous = root.read_state(DROP_IN)
    assert previous is not None
    reserve.remove(root, DROP_IN, previous=previous)
    assert root.read(DROP_IN) is None
    assert root.list_dir("/etc/conf.d") == []  # CRI-O reads every file in it
    monkeypatch.setattr(files, "write_new", failing(errno.ENOSPC))
    reserve.restore(root, DROP_IN, previous)
    assert root.read_state(DROP_IN) == previous


def test_a_write_without_space_changes_nothing(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reserve, "write_new", failing(errno.ENOSPC))
    with pytest.raises(NoSpaceError):
        change(root, PATH)
    assert root.read(PATH) == b"previous"
    assert names(root) == {"config.toml", "mine.toml"}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_without_space_the_allocated_reserve_becomes_the_file(
    root: Root, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    reserve.allocate(root, PATH, 5000)
    monkeypatch.setattr(reserve, "write_new", failing(number))
    with pytest.raises(NoSpaceError):
        reserve.replace(root, PATH, b"n" * 4000, mode=0o600)
    reserve.replace(root, PATH, b"n" * 4000, mode=0o600, use_reserve=True)
    assert root.read_state(PATH) == FileState(b"n" * 4000, 0o600, os.getuid(), os.getgid())
    with pytest.raises(NoSpaceError):
        reserve.replace(root, PATH, b"again", mode=0o600, use_reserve=True)


def test_the_only_copy_of_the_previous_file_does_not_become_another_one(
    root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    previous = change(root, PATH)
    monkeypatch.setattr(reserve, "write_new", failing(errno.ENOSPC))
    with pytest.raises(NoSpaceError):
        reserve.replace(root, PATH, b"third", mode=0o644, previous=previous, use_reserve=True)
    assert reserve.read(root, PATH) == previous


@pytest.mark.parametrize("content", [b"", b"new", b"as long", b"longer than before"])
def test_the_last_resort_writes_into_the_existing_file(root: Root, content: bytes) -> None:
    inode = root.resolve(PATH).stat().st_ino
    reserve.overwrite(root, PATH, content, mode=0o640, owner=(os.getuid(), os.getgid()))
    assert root.read_state(PATH) == FileState(content, 0o640, os.getuid(), os.getgid())
    assert root.resolve(PATH).stat().st_ino == inode


def test_the_last_resort_changes_nothing_without_the_blocks(
    root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "posix_fallocate", failing(errno.ENOSPC))
    with pytest.raises(NoSpaceError):
        reserve.overwrite(root, PATH, b"longer than before", mode=0o644, owner=(0, 0))
    assert root.read(PATH) == b"previous"


def test_the_last_resort_refuses_a_file_with_another_name(root: Root) -> None:
    copy = root.base / "etc/copy"
    copy.hardlink_to(root.base / "etc/config.toml")
    with pytest.raises(HostError, match="hard links"):
        reserve.overwrite(root, PATH, b"new", mode=0o644, owner=(0, 0))
    assert copy.read_bytes() == b"previous"


def test_extended_attributes_survive_every_way_of_writing(
    root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, name = root.resolve(PATH), "user.note"
    try:
        os.setxattr(real, name, b"of the administrator")
    except OSError:
        pytest.skip("this file system has no extended attributes of users")
    previous = change(root, PATH)
    assert os.getxattr(real, name) == b"of the administrator"
    reserve.restore(root, PATH, previous)
    assert os.getxattr(real, name) == b"of the administrator"
    root.write(PATH, b"third")
    assert os.getxattr(real, name) == b"of the administrator"
    monkeypatch.setattr(os, "link", failing(errno.EPERM))
    change(root, PATH)
    assert os.getxattr(reserve.reserve_of(real), name) == b"of the administrator"


def test_a_reserve_that_is_another_file_does_not_grow(root: Root) -> None:
    victim = root.base / "etc/victim"
    victim.write_bytes(b"victim")
    os.link(victim, root.base / "etc/.config.toml.kata-node-reserve")
    reserve.allocate(root, PATH, 4096)
    assert victim.read_bytes() == b"victim"
    assert (root.base / "etc/.config.toml.kata-node-reserve").stat().st_size == 4096


def test_a_directory_in_place_of_the_reserve_stays_and_stops_nothing(root: Root) -> None:
    directory = root.base / "etc/.config.toml.kata-node-reserve"
    directory.mkdir()
    state = root.read_state(PATH)
    reserve.replace(root, PATH, b"new", mode=0o644, previous=state)
    assert root.read(PATH) == b"new"
    assert state is not None
    reserve.restore(root, PATH, state)
    reserve.forget(root, PATH)
    assert (root.read(PATH), directory.is_dir()) == (b"previous", True)
