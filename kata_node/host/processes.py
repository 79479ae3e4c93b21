"""Read what a process of a systemd unit was started with, from /proc."""

from __future__ import annotations

import os
from pathlib import Path

from msgspec import Struct

from kata_node.bounded_read import open_plain
from kata_node.errors import HostError
from kata_node.host.files import Root

_LIMIT = 1 << 20  # bytes; the kernel allows more, but no runtime has such a command line


class Process(Struct, frozen=True):
    """A running process. A part that this process may not see is empty."""

    argv: tuple[str, ...]
    working_directory: str
    program: str = ""
    """The path of the file that it executes."""


def process_of_unit(root: Root, pid: int, unit: str) -> Process | None:
    """Return the process ``pid`` of the node, which must belong to ``unit``; ``None`` if it is not visible.

    The node's /proc can be below the host root. Otherwise it is our own, if this container shares the pid
    namespace of the node. The control group shows whether the process is the one of the unit: a container
    with its own pid namespace has other processes under the same numbers.
    """
    if pid <= 0:
        return None
    for proc in dict.fromkeys((root.base / "proc", Path("/proc"))):
        directory = proc / str(pid)
        groups = _read(directory / "cgroup").decode(errors="replace").splitlines()
        if not any(unit in line.split("/") for line in groups):
            continue
        if arguments := _read(directory / "cmdline"):
            argv = tuple(os.fsdecode(argument) for argument in arguments.removesuffix(b"\0").split(b"\0"))
            return Process(argv, _link(directory / "cwd"), _link(directory / "exe"))
    return None


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_LIMIT)
    except OSError:
        return b""


def _link(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def is_script(root: Root, path: str) -> bool | None:
    """Return whether the program at the host path ``path`` is a script; ``None`` if it is not visible."""
    try:
        with open_plain(root.resolve(path)) as file:
            return file.read(2) == b"#!"
    except (OSError, HostError):
        return None
