"""When one syncfs takes the place of many fsyncs, and when not."""

from __future__ import annotations

import errno
import os
import platform
from collections.abc import Iterator
from pathlib import Path

import pytest

from kata_node.host import barrier, kernel, mounts
from kata_node.host.files import Root
from kata_node.host.open_dirs import OpenDirs
from kata_node.host.temp_files import TempFiles

MIB = 1 << 20


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY)
    yield fd
    os.close(fd)


def meminfo(dirty: int, writeback: int = 0) -> str:
    return f"MemFree: 5 kB\nDirty:  {dirty >> 10} kB\nWriteback:   {writeback >> 10} kB\nWritebackTmp: 9 kB"


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    found: list[int] = []
    monkeypatch.setattr(barrier, "_syncfs", found.append)
    return found


@pytest.mark.parametrize(
    ("release", "file_system", "files", "possible"),
    [
        pytest.param("6.1.0-38-amd64", "ext4", 256, True, id="many-files"),
        pytest.param("6.1.0-38-amd64", "ext4", 255, False, id="few-files"),
        pytest.param("5.8.0", "xfs", 10_000, True, id="the-first-kernel-that-reports-errors"),
        pytest.param("5.4.0-200-generic", "xfs", 10_000, False, id="a-kernel-that-hides-errors"),
        pytest.param("4.18.0-553.el8", "xfs", 10_000, False, id="another-one"),
        pytest.param("strange", "ext4", 10_000, False, id="an-unknown-kernel"),
        pytest.param("6.1.0", "fuse", 10_000, False, id="a-file-system-that-only-starts-to-write"),
        pytest.param("6.1.0", "", 10_000, False, id="an-unknown-file-system"),
    ],
)
def test_many_files_are_forced_together_where_that_is_as_safe(
    directory: int,
    monkeypatch: pytest.MonkeyPatch,
    release: str,
    file_system: str,
    files: int,
    possible: bool,
) -> None:
    monkeypatch.setattr(platform, "release", lambda: release)
    monkeypatch.setattr(barrier, "file_system", lambda _: file_system)
    assert barrier.is_possible(directory, files) is possible


@pytest.mark.parametrize(
    ("text", "done"),
    [
        pytest.param(meminfo(50 * MIB), True, id="little"),
        pytest.param(meminfo(200 * MIB, 150 * MIB), True, id="within-the-limit-and-our-own"),
        pytest.param(meminfo(300 * MIB, 150 * MIB), False, id="too-much"),
        pytest.param(meminfo(8192 * MIB), False, id="gigabytes"),
        pytest.param("", False, id="unknown"),
    ],
)
def test_much_data_of_other_programs_is_not_written(
    directory: int, monkeypatch: pytest.MonkeyPatch, synced: list[int], text: str, done: bool
) -> None:
    monkeypatch.setattr(kernel, "read", lambda _: text)
    assert barrier.sync_file_system(directory, 100 * MIB) is done
    assert synced == ([directory] if done else [])


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EPERM, errno.EIO, errno.ENOSPC])
def test_only_a_refusal_is_no_error(directory: int, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def fail(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(kernel, "read", lambda _: meminfo(0))
    monkeypatch.setattr(barrier, "_syncfs", fail)
    if code in (errno.ENOSYS, errno.EPERM):
        assert not barrier.sync_file_system(directory, 0)
        return
    with pytest.raises(OSError, match=os.strerror(code)):
        barrier.sync_file_system(directory, 0)


def test_the_system_call_reports_its_error(directory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "read", lambda _: meminfo(0))
    assert barrier.sync_file_system(directory, 0)
    with pytest.raises(OSError, match="Bad file descriptor"):
        barrier.sync_file_system(-1, 0)


def test_the_type_of_a_file_system_is_that_of_its_mount(directory: int) -> None:
    proc = os.open("/proc/self", os.O_RDONLY)
    assert mounts.file_system(proc) == "proc"
    os.close(proc)
    assert mounts.file_system(directory) not in ("", "proc")
    assert mounts.file_system(-1) == ""


@pytest.mark.parametrize(("other_devices", "forced"), [(0, []), (1, ["new"])])
def test_a_file_on_a_file_system_that_is_mounted_below_is_forced_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other_devices: int, forced: list[str]
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_ino))
    temps = TempFiles("/", synced_later=tmp_path.stat().st_dev + other_devices)
    with OpenDirs(Root(tmp_path), "/") as dirs:
        with temps.new_file(dirs, "new", 0o644, 0):
            pass
        temps.rename(dirs)
    assert [path.name for path in tmp_path.iterdir() if path.stat().st_ino in synced] == forced
