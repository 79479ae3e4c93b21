"""Remove many files or directories, and force each changed directory to the disk once, at the end.

The order of the removals does not matter: the receipt says that they are under way, and the next run
continues an interrupted one.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from kata_node.host.atomic_replace import fsync_dir, sibling_path
from kata_node.host.files import Root
from kata_node.host.host_errors import host_errors
from kata_node.host.open_dirs import OpenDirs, by_directory, names_in, parents_of
from kata_node.host.real_paths import remove_empty_dir, remove_tree


def remove_files(root: Root, base: str, paths: Collection[str], directories: Iterable[str] = ()) -> None:
    """Remove the files and links ``paths`` below the host directory ``base``, and what was to become them.

    These are their temporary files, and the temporary directories, with all that is in them, of
    ``directories`` and of those above the paths. A directory at one of the paths is foreign and stays, and so
    does what a symlink in place of a directory below ``base`` leads to. Missing files are no error. Raises
    :class:`HostError`.
    """
    with OpenDirs(root, base) as dirs:
        changed = _remove_temp_dirs(dirs, base, {*directories, *parents_of(paths)})
        for directory, fd, names in _existing_files(dirs, base, _with_temps(paths)):
            for name in names:
                where = posixpath.join(base, directory, name)
                with host_errors(where), contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=fd)
            changed.append(directory)
        for directory in changed:
            with host_errors(posixpath.join(base, directory).rstrip("/")):
                os.fsync(dirs.open(directory))


def existing_files(root: Root, base: str, paths: Iterable[str]) -> list[str]:
    """Return those of ``paths`` that :func:`remove_files` would remove."""
    with OpenDirs(root, base) as dirs:
        return [
            f"{directory}/{name}".lstrip("/")
            for directory, _, names in _existing_files(dirs, base, paths)
            for name in names
        ]


def remove_dirs(root: Root, paths: Iterable[str]) -> None:
    """Remove directories in this order, each like :meth:`Root.remove_dir`. Raises :class:`HostError`."""
    changed: dict[Path, str] = {}
    for path in paths:
        real = root.resolve(path, follow_last=False)
        with host_errors(path):
            if remove_empty_dir(real):
                changed.pop(real, None)
                changed[real.parent] = path
    for parent, path in changed.items():
        with host_errors(path), contextlib.suppress(FileNotFoundError):
            fsync_dir(parent)


def temp_paths(paths: Collection[str]) -> set[str]:
    """Return the paths of what an interrupted run may have left of ``paths``: files and directories."""
    return {sibling_path(path) for path in {*paths, *parents_of(paths)}}


def _remove_temp_dirs(dirs: OpenDirs, base: str, paths: Iterable[str]) -> list[str]:
    """Remove the temporary directories of the directories ``paths``; return those that they were in."""
    changed: list[str] = []
    for directory, names in by_directory(map(sibling_path, paths)):
        with host_errors(posixpath.join(base, directory).rstrip("/")):
            fd = dirs.find(directory)
            found = names_in(fd, directories=True).intersection(names) if fd is not None else ()
        for name in found:
            with host_errors(posixpath.join(base, directory, name)):
                remove_tree(name, dirs.open(directory))
            changed.append(directory)
    return changed


def _with_temps(paths: Iterable[str]) -> Iterator[str]:
    for path in paths:
        yield path
        yield sibling_path(path)


def _existing_files(dirs: OpenDirs, base: str, paths: Iterable[str]) -> Iterator[tuple[str, int, list[str]]]:
    """Yield each directory, its descriptor, and its names of ``paths`` that exist and are no directories."""
    for directory, names in by_directory(paths):
        with host_errors(posixpath.join(base, directory).rstrip("/")):
            fd = dirs.find(directory)
            if fd is None:
                continue
            files = names_in(fd, directories=False)
        if found := [name for name in names if name in files]:
            yield directory, fd, found
