"""The file tree of a node: a Debian suite with systemd, containerd and the packages a test needs."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

from node.cache import NodeError, cache_dir, key_of, made_once

SUITE = "forky"

PACKAGES = ("systemd-sysv", "dbus", "containerd", "runc", "python3", "procps", "strace")
"""strace can kill a run at a chosen system call: ``-e inject=…:signal=KILL:when=N``."""

OPTIONS = (
    "--quiet",
    "--variant=minbase",
    "--format=directory",
    # The index of an unreleased suite is sometimes older than its Valid-Until date.
    '--aptopt=Acquire::Check-Valid-Until "false"',
    '--aptopt=Acquire::Retries "5"',
    # Both are copies from the machine. A node has its own name and no network.
    '--customize-hook=rm -f "$1/etc/hostname" "$1/etc/resolv.conf"',
)


def rootfs_path(suite: str = SUITE, packages: Sequence[str] = PACKAGES) -> Path:
    """Return the path of the tree of these packages in the cache, whether it exists yet or not."""
    key = key_of(suite, platform.machine(), sorted(packages), OPTIONS)
    return cache_dir() / "trees" / f"{suite}-{key}"


def build_rootfs(suite: str = SUITE, packages: Sequence[str] = PACKAGES, *, anew: bool = False) -> Path:
    """Return the tree of these packages; build it if it is not cached, in about 20 seconds plus download.

    mmdebstrap uses Debian's default mirror and the machine's apt configuration (proxy, trusted keys).
    Raises :class:`NodeError` with the last lines of its log.
    """

    def make(directory: Path) -> None:
        command = ["mmdebstrap", *OPTIONS, f"--include={','.join(packages)}", suite, str(directory)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode:
            log = "\n".join(done.stderr.splitlines()[-15:])
            raise NodeError(f"mmdebstrap cannot build {suite} with {', '.join(packages)}:\n{log}")

    return made_once(rootfs_path(suite, packages), make, anew=anew)
