"""containerd in versions Debian does not have, built from its Go module.

:data:`NEWEST` is the newest release when this was last looked at (``go list -m -versions
github.com/containerd/containerd/v2``).
"""

from __future__ import annotations

from pathlib import Path

from node import gomodule
from node.gomodule import Program

NEWEST = "2.4.2"

PROGRAM = "/usr/bin/containerd"
"""Where Debian's unit starts it from."""

_TAGS = "no_btrfs no_devmapper no_zfs"  # what needs C libraries


def release(version: str) -> Program:
    """The static ``containerd`` of release ``version``, such as ``2.4.2``."""
    major = version.partition(".")[0]
    module = "github.com/containerd/containerd" + (f"/v{major}" if major != "1" else "")
    # As its own releases do: without it the answer to Version ends in "+unknown".
    ldflags = f"-s -w -X {module}/version.Version=v{version}"
    return Program(module, f"v{version}", "./cmd/containerd", tags=_TAGS, ldflags=ldflags)


def built(version: str) -> Path:
    """That program, built if it is not kept yet; see :func:`node.gomodule.build`."""
    return gomodule.built(release(version))


def binds(version: str) -> list[str]:
    """The option of systemd-nspawn that puts release ``version`` in place of the node's own."""
    return [f"--bind-ro={built(version)}:{PROGRAM}"]
