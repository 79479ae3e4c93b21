"""Removing many files: only ours, each directory forced to the disk once, and never through a symlink."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from kata_node.errors import HostError
from kata_node.host.files import Root
from kata_node.host.open_dirs import OpenDirs, by_directory
from kata_node.host.removal import existing_files, remove_dirs, remove_files

BASE = "/opt/kata"


def put(root: Root, *paths: str) -> None:
    for path in paths:
        real = root.base / "opt/kata" / path
        real.parent.mkdir(parents=True, exist_ok=True)
        real.write_text(path)


def files(root: Root) -> list[str]:
    return sorted(
        str(path.relative_to(root.base))
        for path in root.base.rglob("*")
        if path.is_symlink() or path.is_file()
    )


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The removals and forced directories, in order."""
    found: list[str] = []
    unlink, rmdir, fsync = os.unlink, Path.rmdir, os.fsync

    def log_unlink(path: str, *, dir_fd: int | None = None) -> None:
        unlink(path, dir_fd=dir_fd)
        found.append(f"remove {path}")

    def log_rmdir(path: Path) -> None:
        rmdir(path)
        found.append(f"remove {path.name}")

    def log_fsync(fd: int) -> None:
        assert stat.S_ISDIR(os.fstat(fd).st_mode)
        found.append(f"force {Path(os.readlink(f'/proc/self/fd/{fd}')).name}")
        fsync(fd)

    monkeypatch.setattr(os, "unlink", log_unlink)
    monkeypatch.setattr(Path, "rmdir", log_rmdir)
    monkeypatch.setattr(os, "fsync", log_fsync)
    return found


def test_each_changed_directory_is_forced_to_the_disk_once_after_all_removals(
    root: Root, syncs: list[str]
) -> None:
    names = [f"{directory}/{number}" for directory in ("b", "a") for number in range(50)]
    put(root, *names, "kept/theirs")
    remove_files(root, BASE, [*names, "kept/gone", "no/dir"])
    assert files(root) == ["opt/kata/kept/theirs"]
    assert len(syncs) == 102
    assert syncs[100:] == ["force a", "force b"]


def test_a_missing_install_dir_has_nothing_to_remove(root: Root) -> None:
    remove_files(root, BASE, ["bin/a"])
    assert existing_files(root, BASE, ["bin/a"]) == []


def test_the_temporary_file_of_a_drop_in_is_removed_from_beside_its_directory(root: Root) -> None:
    put(root, "config.d/.theirs", "config.d/10-a.toml", ".config.d.10-a.toml.kata-node-tmp")
    remove_files(root, BASE, ["config.d/10-a.toml"])
    assert files(root) == ["opt/kata/config.d/.theirs"]


@pytest.mark.parametrize("target", ["/precious", "../../precious"])
def test_files_behind_a_symlink_in_place_of_a_directory_stay(root: Root, target: str) -> None:
    (root.base / "precious/deep").mkdir(parents=True)
    (root.base / "precious/deep/a").touch()
    put(root, "b")
    (root.base / "opt/kata/bin").symlink_to(target)
    paths = ["b", "bin/deep/a", "b/not/a/directory"]
    assert existing_files(root, BASE, paths) == ["b"]
    remove_files(root, BASE, paths)
    assert files(root) == ["opt/kata/bin", "precious/deep/a"]


def test_a_symlink_that_appears_on_the_way_to_the_install_dir_is_not_followed(root: Root) -> None:
    put(root, "bin/a")
    with OpenDirs(root, BASE) as dirs:
        (root.base / "opt").rename(root.base / "moved")
        (root.base / "opt").symlink_to("moved")
        assert dirs.find("bin") is None
    assert existing_files(root, BASE, ["bin/a"]) == ["bin/a"], "an earlier symlink is followed"


def test_directories_that_somebody_moved_are_not_left_by_dots(root: Root) -> None:
    put(root, "bin/a")
    with OpenDirs(root, BASE) as dirs, pytest.raises(ValueError, match="not a path below"):
        dirs.open("bin/../..")


@pytest.mark.parametrize("path", ["bin/a", "VERSION"])
def test_an_error_names_the_file(root: Root, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    put(root, path)
    monkeypatch.setattr(os, "unlink", fail)
    with pytest.raises(HostError, match="not permitted") as caught:
        remove_files(root, BASE, [path])
    assert caught.value.where == f"/opt/kata/{path}"


def test_no_more_directories_are_open_than_a_path_has_levels(root: Root) -> None:
    paths = [f"{first}/{second}/{third}" for first in "abc" for second in "abc" for third in "abc"]
    put(root, *paths)
    before = len(os.listdir("/proc/self/fd"))
    with OpenDirs(root, BASE) as dirs:
        for directory, _ in by_directory(paths):
            dirs.open(directory)
            assert len(os.listdir("/proc/self/fd")) <= before + 3
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_directory_that_had_the_removed_ones_is_forced_once(root: Root, syncs: list[str]) -> None:
    (root.base / "opt/kata/share/deep").mkdir(parents=True)
    (root.base / "opt/kata/bin").mkdir()
    put(root, "used/file")
    remove_dirs(root, [f"{BASE}/{path}" for path in ("used", "share/deep", "share", "bin", "gone")])
    assert syncs == ["remove deep", "remove share", "remove bin", "force kata"]


def test_what_an_interrupted_run_wrote_for_a_directory_is_removed(root: Root) -> None:
    put(root, "share/.new.kata-node-tmp/deep/half", ".empty.kata-node-tmp/half", "share/theirs")
    (root.base / "opt/kata/share/.new.kata-node-tmp/link").symlink_to(root.base)
    remove_files(root, BASE, ["share/new/deep/half"], ["empty"])
    assert files(root) == ["opt/kata/share/theirs"]
    assert {path.name for path in root.resolve(BASE).iterdir()} == {"share"}


def test_a_directory_with_a_temporary_name_stays_where_no_placed_one_is(root: Root) -> None:
    put(root, "etc/.containerd.kata-node-tmp/theirs", ".other.kata-node-tmp/theirs")
    (root.base / "srv/.ovmf.kata-node-tmp").mkdir(parents=True)
    (root.base / "opt/kata/share").symlink_to("/srv")
    before = {str(path) for path in root.base.rglob("*")}
    remove_files(root, BASE, ["share/ovmf/code", "etc/x"])
    remove_dirs(root, [f"{BASE}/etc/containerd", f"{BASE}/other", f"{BASE}/share/ovmf"])
    assert {str(path) for path in root.base.rglob("*")} == before
