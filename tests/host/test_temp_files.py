"""What becomes a placed directory is on the disk before it gets its name."""

from __future__ import annotations

import os

import pytest

from kata_node.host.files import Root
from kata_node.host.open_dirs import OpenDirs
from kata_node.host.temp_files import TempFiles


@pytest.mark.parametrize("is_of_another_file_system", [False, True])
def test_a_directory_that_was_not_forced_with_the_files_is_forced_before_its_rename(
    root: Root, monkeypatch: pytest.MonkeyPatch, is_of_another_file_system: bool
) -> None:
    forced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda fd: forced.append(os.fstat(fd).st_ino))
    root.make_dirs("/opt/kata")
    forced.clear()
    device = root.base.stat().st_dev + is_of_another_file_system
    with OpenDirs(root, "/opt/kata") as dirs:
        temps = TempFiles("/opt/kata", synced_later=device)
        temps.new_dir(dirs, "share", 0o755)
        temps.force_dirs(dirs, files_are_forced=True)
        temps.rename(dirs)
    made = root.resolve("/opt/kata/share").stat().st_ino
    assert (made in forced) == is_of_another_file_system
