"""The cache of everything nodes are made of: trees, libraries, programs, images. Each is made once."""

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
"""The programs that build and boot nodes -> the Debian package of each."""


class NodeError(Exception):
    """A node cannot be built, booted or used; the message says why."""


def missing_prerequisites() -> str:
    """Return why this machine cannot boot nodes, with the remedy; empty when it can."""
    if os.geteuid() != 0:
        return "booting a node needs root, for mounts, namespaces and a second systemd; run this with sudo"
    packages = sorted({package for name, package in PROGRAMS.items() if shutil.which(name) is None})
    if packages:
        return f"programs that build and boot nodes are missing: run: apt-get install {' '.join(packages)}"
    return ""


def cache_dir() -> Path:
    """Return the directory of the cache and of running nodes (``KATA_NODE_TEST_CACHE``, ``.cache/nodes``)."""
    return Path(os.environ.get("KATA_NODE_TEST_CACHE") or CHECKOUT / ".cache" / "nodes").absolute()


def key_of(*parts: object) -> str:
    """Return a cache key, 12 hex digits, for something made of ``parts``; it changes with each of them."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file ``path``, and wait while another process holds it.

    The kernel releases the lock of a process that dies. Raises :class:`NodeError` when this user may not
    write there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        opened = path.open("w")
    except PermissionError as error:
        raise NodeError(
            f"{error.filename}: this user may not write here\n"
            "  hint: Run this as the owner of the directory, often root, or set KATA_NODE_TEST_CACHE to a "
            "directory of your own"
        ) from error
    with opened as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def made_once(target: Path, make: Callable[[Path], None], *, anew: bool = False) -> Path:
    """Return the directory ``target``; call ``make(directory)`` to fill it if it does not exist.

    The directory is renamed to ``target`` when it is complete; the next call removes the leftovers of an
    interrupted ``make``. Two processes that want the same directory make it once. ``anew`` makes it again.
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
    """Remove the directory ``path`` if it exists; another process may remove it at the same time."""
    while path.is_dir():
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(path)
