"""What nodes are made of is made once and kept: where it is kept, and how it gets there whole."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]

PROGRAMS = {
    "mmdebstrap": "mmdebstrap",
    "systemd-nspawn": "systemd-container",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "setpriv": "util-linux",
    "mount": "mount",
}
"""What a machine needs to build and boot nodes: the program, and the Debian package that has it."""


class NodeError(Exception):
    """A node could not be built, booted or used; says what is missing or what it answered."""


def missing_prerequisites() -> str:
    """Why this machine cannot boot nodes, with the remedy; empty when it can."""
    if os.geteuid() != 0:
        return "booting a node needs root: mounts, namespaces and a second systemd; run it with sudo"
    packages = sorted({package for name, package in PROGRAMS.items() if shutil.which(name) is None})
    if packages:
        return f"programs are missing that build and boot nodes: apt-get install {' '.join(packages)}"
    return ""


def cache_dir() -> Path:
    """The directory of everything kept or running: ``.cache/nodes``, or ``KATA_NODE_TEST_CACHE``."""
    return Path(os.environ.get("KATA_NODE_TEST_CACHE") or CHECKOUT / ".cache" / "nodes").absolute()


def key_of(*parts: object) -> str:
    """A short name for what is made of ``parts``: other parts, another name, so a change is made anew."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file ``path``, waiting for whoever has it; the kernel drops a dead holder's.

    Raises :class:`NodeError` when this user may not write there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        opened = path.open("w")
    except PermissionError as error:
        raise NodeError(
            f"{error.filename}: this user may not write here\n"
            "  hint: Run this as the user who made it, often root, or set KATA_NODE_TEST_CACHE to a "
            "directory of your own"
        ) from error
    with opened as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def made_once(target: Path, make: Callable[[Path], None], *, anew: bool = False) -> Path:
    """The directory ``target``, made by ``make(directory)`` when it is not there yet.

    It appears whole or not at all: what an interrupted ``make`` left is thrown away by the next.
    Two processes that want the same one make it once.
    """
    with locked(target.with_name(f".{target.name}.lock")):
        if anew:
            remove_tree(target)
        if not target.is_dir():
            making = target.with_name(f".{target.name}.making")
            remove_tree(making)
            making.mkdir()
            make(making)
            making.rename(target)
    return target


def remove_tree(path: Path) -> None:
    """Remove the directory ``path`` with all in it, if it is there; another may be doing the same."""
    while path.is_dir():
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(path)
