"""Archives without a manifest are decompressed once. Where that does not work, twice, to the same end."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import payloads
from host.faults import fail_with
from kata_node.errors import HostError
from kata_node.host import spool
from kata_node.host.files import Root
from kata_node.host.place import place
from kata_node.host.spool import Spool
from kata_node.payload import index
from payloads import FILES, QEMU, tarballs

INSTALL_DIR = "/opt/kata"


@pytest.fixture
def node(tmp_path: Path) -> Path:
    (tmp_path / "node/opt").mkdir(parents=True)
    return tmp_path / "node"


def install(tmp_path: Path, node: Path, is_known: Callable[[str, int, int], bool] = lambda *_: False) -> None:
    """Place a payload of archives, and compare what is placed with what is in them."""
    directory = tmp_path / "payload"
    if not directory.exists():
        tarballs(directory)
    index._cache.clear()
    payload = index.load(directory, spool=Spool.open(Root(node), INSTALL_DIR, is_known))
    place(Root(node), payload, payload.select([QEMU], "x86_64"), INSTALL_DIR)
    placed = {
        path: found for path, found in payloads.snapshot(node / "opt/kata").items() if found[0] != "dir"
    }
    assert {path: found[-2] if found[0] == "file" else found[1] for path, found in placed.items()} == FILES
    assert {found[1] for found in placed.values() if found[0] == "file"} <= {"0o100644", "0o100755"}


def test_each_archive_is_decompressed_once(tmp_path: Path, node: Path, opened_archives: list[str]) -> None:
    install(tmp_path, node)
    assert sorted(opened_archives) == sorted(
        path.name for path in (tmp_path / "payload/tarballs").glob("*.zst")
    )


def test_nothing_is_seen_before_it_is_placed_or_after_it_is_given_up(tmp_path: Path, node: Path) -> None:
    before, descriptors = payloads.snapshot(node), len(os.listdir("/proc/self/fd"))
    kept = Spool.open(Root(node), INSTALL_DIR, lambda *_: False)
    assert kept
    index.build_manifest(tarballs(tmp_path / "payload"), spool=kept)
    assert len(os.listdir("/proc/self/fd")) > descriptors + 5
    assert payloads.snapshot(node) == before
    del kept
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_without_unnamed_files_the_archives_are_decompressed_twice(
    tmp_path: Path, node: Path, opened_archives: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Spool, "_unnamed", fail_with(errno.EOPNOTSUPP))
    assert Spool.open(Root(node), INSTALL_DIR, lambda *_: False) is None
    install(tmp_path, node)
    assert len(opened_archives) == 2 * len(set(opened_archives))


@pytest.mark.parametrize("code", spool.NOT_LINKABLE)
def test_a_file_that_can_get_no_name_is_copied(
    tmp_path: Path, node: Path, opened_archives: list[str], monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(os, "link", fail_with(code))
    install(tmp_path, node)
    assert len(opened_archives) == len(set(opened_archives))


def test_a_disk_that_would_be_nearly_full_gets_no_unnamed_files(
    tmp_path: Path, node: Path, opened_archives: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "LEFT_FREE", 1.0)
    install(tmp_path, node)
    assert len(opened_archives) == 2 * len(set(opened_archives))


@pytest.mark.parametrize("writes", [0, 1, 5])
def test_a_disk_that_gets_full_meanwhile_is_no_error_of_the_scan(
    tmp_path: Path, node: Path, opened_archives: list[str], monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    real, count = os.pwrite, iter(range(10**6))

    def pwrite(*arguments: Any) -> int:
        if next(count) >= writes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments)

    kept = Spool.open(Root(node), INSTALL_DIR, lambda *_: False)
    assert kept
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", pwrite)
        manifest = index.build_manifest(tarballs(tmp_path / "payload"), spool=kept)
    assert manifest == index.build_manifest(tmp_path / "payload")
    payload = index.Payload(tmp_path / "payload", manifest, kept)
    place(Root(node), payload, payload.select([QEMU], "x86_64"), INSTALL_DIR)
    assert (node / "opt/kata/bin/qemu-system-x86_64").read_bytes() == FILES["bin/qemu-system-x86_64"]


def test_few_descriptors_are_enough(
    tmp_path: Path, node: Path, opened_archives: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = (spool.SPARE_DESCRIPTORS + 2, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    install(tmp_path, node)
    assert len(opened_archives) > len(set(opened_archives))


def test_files_that_the_node_has_are_not_written_before_they_differ(
    tmp_path: Path, node: Path, opened_archives: list[str]
) -> None:
    asked: list[tuple[str, int, int]] = []

    def is_known(path: str, size: int, mtime: int) -> bool:
        asked.append((path, size, mtime))
        return path.startswith("bin/")

    install(tmp_path, node, is_known)
    qemu = FILES["bin/qemu-system-x86_64"]
    assert ("bin/qemu-system-x86_64", len(qemu), payloads.MTIME) in asked
    assert opened_archives.count("kata-static-qemu.tar.zst") == 2
    assert opened_archives.count("kata-static-virtiofsd.tar.zst") == 1


@pytest.mark.parametrize("setgid", [False, True])
def test_a_file_gets_the_group_that_a_new_one_there_would_have(
    tmp_path: Path, node: Path, setgid: bool
) -> None:
    """As below /usr/local, which has the mode 2775 on some distributions."""
    if os.geteuid() != 0:
        pytest.skip("only root can give a directory another group")
    os.chown(node / "opt", -1, 50)
    (node / "opt").chmod(0o2775 if setgid else 0o775)
    (node / "opt/kata").mkdir()
    (node / "opt/kata").chmod(0o755)
    install(tmp_path, node)
    assert {path.lstat().st_gid for path in (node / "opt/kata").rglob("*")} == {0}


def test_a_failed_placement_gives_up_the_space(tmp_path: Path, node: Path) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    kept = Spool.open(Root(node), INSTALL_DIR, lambda *_: False)
    payload = index.load(tarballs(tmp_path / "payload"), spool=kept)
    (node / "opt/kata/bin/qemu-system-x86_64").mkdir(parents=True)
    with pytest.raises(HostError):
        place(Root(node), payload, payload.select([QEMU], "x86_64"), INSTALL_DIR)
    assert len(os.listdir("/proc/self/fd")) <= descriptors + 1, "its directory alone is open"


def test_without_space_for_one_file_none_of_its_archive_is_written(
    tmp_path: Path, node: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, tried = Spool._unnamed_with_space, list[str]()

    def refuse(self: Spool, path: str, size: int) -> int | None:
        tried.append(path)
        return None if path == "share/kata-containers/vmlinux-6.18" else real(self, path, size)

    monkeypatch.setattr(Spool, "_unnamed_with_space", refuse)
    files = {"share/kata-containers/vmlinux-6.18": b"kernel", "bin/other": b"other"}
    directory = tarballs(tmp_path / "payload", {"a": payloads.members(files)}, {"qemu": {"x86_64": ["a"]}})
    index.load(directory, spool=Spool.open(Root(node), INSTALL_DIR, lambda *_: False))
    assert tried == ["share/kata-containers/vmlinux-6.18"]


def test_a_file_that_two_archives_have_is_placed_from_one(tmp_path: Path, node: Path) -> None:
    same = {"bin/one": b"same" * 1000, "bin/two": b"same" * 1000}
    one, two = ({path: same[path]} for path in same)
    packed = {"a": payloads.members(one), "b": payloads.members(two)}
    directory = tarballs(tmp_path / "payload", packed, {"qemu": {"x86_64": ["a", "b"]}})
    payload = index.load(directory, spool=Spool.open(Root(node), INSTALL_DIR, lambda *_: False))
    place(Root(node), payload, payload.manifest.entries, INSTALL_DIR)
    placed = [(node / "opt/kata" / path) for path in same]
    assert [path.read_bytes() for path in placed] == list(same.values())
    assert placed[0].stat().st_ino != placed[1].stat().st_ino
