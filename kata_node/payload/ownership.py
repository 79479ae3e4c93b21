"""Directories of an installation that changed their mode, or that other users can write."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Mapping

from kata_node.host.files import Root
from kata_node.host.ownership import Untrusted, is_trusted_owner, untrusted
from kata_node.plan.receipt import ArtifactsRecord, PlacedFile

MADE_DIR_MODE = 0o755
"""The mode of the install dir and of the parents that kata-node makes for it."""
CRI_DIRS = ("containerd", "containerd/config.d")
"""Directories of the cri stage in the install dir. The runtime reads every file in the last one."""


def find_changed_made_dirs(root: Root, install_dir: str, placed: ArtifactsRecord | None) -> tuple[str, ...]:
    """Return the install dir and its parents with another mode than they got when kata-node made them.

    A kill between the creation of a directory and the change of its mode can leave such a directory.
    """
    if placed is None:
        return ()
    on_the_way = root.trail(install_dir)
    return tuple(
        path
        for path in placed.made_dirs
        if path in on_the_way
        and (info := root.lstat(path)) is not None
        and stat.S_ISDIR(info.st_mode)
        and stat.S_IMODE(info.st_mode) != MADE_DIR_MODE
    )


def find_untrusted(
    root: Root, install_dir: str, placed: Mapping[str, PlacedFile], desired_dirs: Iterable[str]
) -> Untrusted | None:
    """Return the first path that another user can write among the directories to use, or ``None``.

    These are ``desired_dirs``, the directories in ``placed``, and those of the cri stage. Kata and containerd
    read every file in a directory with a name that ends in ``.d``, so foreign files in it count as well.
    Placed files and the modes of placed directories do not count: the artifacts stage repairs them.
    """
    base = root.resolve(install_dir)
    placed_dirs = (path for path, record in placed.items() if record.kind == "dir")
    for path in sorted({*CRI_DIRS, *placed_dirs, *desired_dirs}):
        real = base / path
        try:
            info = real.lstat()
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise
            continue
        if not stat.S_ISDIR(info.st_mode):
            continue
        found = untrusted(f"{install_dir}/{path}", info)
        if found and (path not in placed or not is_trusted_owner(info.st_uid)):
            return found
        if path.endswith(".d"):
            for entry in sorted(os.scandir(real), key=lambda entry: entry.name):
                if f"{path}/{entry.name}" not in placed and (
                    found := untrusted(
                        f"{install_dir}/{path}/{entry.name}", entry.stat(follow_symlinks=False)
                    )
                ):
                    return found
    return None
