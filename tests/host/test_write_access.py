"""What the file systems say about writing a path."""

from __future__ import annotations

import errno
import os
from collections.abc import MutableSequence
from pathlib import Path

import pytest

from kata_node.errors import HostError
from kata_node.host.files import Root
from kata_node.host.write_access import write_access


@pytest.fixture
def root(tmp_path: Path) -> Root:
    (tmp_path / "etc/containerd").mkdir(parents=True)
    (tmp_path / "etc/containerd/config.toml").write_text("version = 2\n")
    return Root(tmp_path)


def test_the_directory_is_the_nearest_one_that_exists(root: Root) -> None:
    found = write_access(root, "/etc/containerd/conf.d/x.toml")
    assert (found.directory, found.obstacle, found.missing_directory) == ("/etc/containerd", "", "")
    assert write_access(root, "/etc/containerd/config.toml").directory == "/etc/containerd"
    assert write_access(root, "/etc/containerd", is_directory=True).directory == "/etc/containerd"
    assert write_access(root, "/opt/kata", is_directory=True).directory == "/"
    assert found.free > 0
    assert found.executable
    assert found.writable
    assert not found.read_only
    assert not found.mount_point


def test_a_file_above_is_named(root: Root) -> None:
    found = write_access(root, "/etc/containerd/config.toml/a/b")
    assert (found.obstacle, found.directory) == ("/etc/containerd/config.toml", "/etc/containerd")


def test_only_the_real_path_counts(root: Root) -> None:
    (root.base / "srv").mkdir()
    (root.base / "etc/link.toml").symlink_to("/srv/c.toml")
    (root.base / "etc/gone.toml").symlink_to("/gone/c.toml")
    link, gone = (write_access(root, f"/etc/{name}.toml") for name in ("link", "gone"))
    assert (link.real_path, link.directory, link.missing_directory) == ("/srv/c.toml", "/srv", "")
    assert (gone.real_path, gone.directory, gone.missing_directory) == ("/gone/c.toml", "/", "/gone")


def test_a_loop_of_symlinks_is_an_error(root: Root) -> None:
    (root.base / "loop").symlink_to("loop")
    with pytest.raises(HostError, match="loop"):
        write_access(root, "/loop/x")


def test_a_root_that_holds_the_whole_system_shows_every_directory(root: Root) -> None:
    assert not write_access(root, "/opt/kata").visible
    (root.base / "usr").mkdir()
    assert write_access(root, "/opt/kata").visible


def test_mounts_of_a_running_system_are_seen() -> None:
    machine = Root(Path("/"))
    assert write_access(machine, "/proc/self/status").mount_point is False
    assert write_access(machine, "/proc/1/x").directory == "/proc/1"


@pytest.mark.parametrize("flags", [0x10, 0x20])
@pytest.mark.parametrize("name", ["/etc/containerd", "/etc/containerd/config.toml"])
def test_an_attribute_that_stops_even_root_is_found(
    flags: int, name: str, root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ioctl(fd: int, request: int, buffer: MutableSequence[int]) -> None:
        if os.fstat(fd).st_ino == (root.base / name[1:]).stat().st_ino:
            buffer[0] = 0x80000 | flags  # extents, as on every file of ext4

    monkeypatch.setattr("kata_node.host.write_access.fcntl.ioctl", ioctl)
    assert write_access(root, "/etc/containerd/config.toml").unchangeable == name


def test_a_file_system_without_such_attributes_is_no_problem(
    root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ioctl(*_: object) -> None:
        raise OSError(errno.ENOTTY, "Inappropriate ioctl for device")

    monkeypatch.setattr("kata_node.host.write_access.fcntl.ioctl", ioctl)
    assert write_access(root, "/etc/containerd/config.toml").unchangeable == ""
