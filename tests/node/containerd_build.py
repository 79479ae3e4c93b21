"""Build containerd releases that Debian does not package, from their Go module.

:data:`NEWEST` is the newest release at the last update of this file (``go list -m -versions
github.com/containerd/containerd/v2``).
"""

from __future__ import annotations

from pathlib import Path

from node import gomodule
from node.gomodule import Program

NEWEST = "2.4.2"
OLDEST = "2.0.14"
"""The newest patch of the oldest 2.x."""
WITH_CONF_D = "2.2.9"
"""The oldest release line that reads conf.d, and the newest that migrates all files together."""

DEBIAN = {"bookworm": "1.6.20", "trixie": "1.7.24", "forky": "2.1.9"}
"""Debian suite -> the release of containerd that its package has."""

PROGRAM = "/usr/bin/containerd"
"""The path in the unit of Debian's package."""

_TAGS = "no_btrfs no_devmapper no_zfs"  # leave out the snapshotters that need C libraries


def release(version: str) -> Program:
    """Return the build description of the static ``containerd`` of a release, for example ``2.4.2``."""
    major = version.partition(".")[0]
    module = "github.com/containerd/containerd" + (f"/v{major}" if major != "1" else "")
    # Upstream's releases set this too. Without it the version that containerd reports ends in "+unknown".
    ldflags = f"-s -w -X {module}/version.Version=v{version}"
    return Program(module, f"v{version}", "./cmd/containerd", tags=_TAGS, ldflags=ldflags)


def built(version: str) -> Path:
    """Return the path of that program; build it if it is not cached. See :func:`node.gomodule.build`."""
    return gomodule.built(release(version))


def binds(version: str) -> list[str]:
    """Return the systemd-nspawn option that mounts release ``version`` over the node's containerd."""
    return [f"--bind-ro={built(version)}:{PROGRAM}"]
