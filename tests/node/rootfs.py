"""The file tree of a node: a Debian suite with systemd, containerd and the packages a test needs."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

from node.cache import NodeError, cache_dir, key_of, made_once

SUITE = "forky"

PACKAGES = ("systemd-sysv", "dbus", "containerd", "runc", "python3", "procps", "strace")
"""strace is there to kill a run at a system call of one's choice: ``-e inject=…:signal=KILL:when=N``."""

OPTIONS = (
    "--quiet",
    "--variant=minbase",
    "--format=directory",
    # The index of a suite that is not released yet is at times older than it says it may be.
    '--aptopt=Acquire::Check-Valid-Until "false"',
    '--aptopt=Acquire::Retries "5"',
    # Both are copies of the building machine's; a node has its own name, and no network to resolve in.
    '--customize-hook=rm -f "$1/etc/hostname" "$1/etc/resolv.conf"',
)


def rootfs_path(suite: str = SUITE, packages: Sequence[str] = PACKAGES) -> Path:
    """Where the tree of these packages is kept, whether it is there yet or not."""
    key = key_of(suite, platform.machine(), sorted(packages), OPTIONS)
    return cache_dir() / "trees" / f"{suite}-{key}"


def build_rootfs(suite: str = SUITE, packages: Sequence[str] = PACKAGES, *, anew: bool = False) -> Path:
    """The tree of these packages, built when it is not kept yet; about 20 seconds and a download.

    Debian's default mirror is used, as mmdebstrap does when it is given none, and the machine's own
    apt configuration (proxy, trusted keys). Raises :class:`NodeError` with the log's last lines.
    """

    def make(directory: Path) -> None:
        command = ["mmdebstrap", *OPTIONS, f"--include={','.join(packages)}", suite, str(directory)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode:
            log = "\n".join(done.stderr.splitlines()[-15:])
            raise NodeError(f"mmdebstrap could not build {suite} with {', '.join(packages)}:\n{log}")

    return made_once(rootfs_path(suite, packages), make, anew=anew)
