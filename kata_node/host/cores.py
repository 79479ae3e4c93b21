"""How many cores this process may use; in a pod with a CPU limit these are fewer than the node has."""

from __future__ import annotations

import math
import os
import posixpath
from collections.abc import Iterator

from kata_node.host import kernel

_MOUNT = "/sys/fs/cgroup"


def usable_cores() -> int:
    """Return the number of cores that the affinity and the cgroups of this process allow, rounded up."""
    return max(1, min([len(os.sched_getaffinity(0)), *map(math.ceil, _quotas())]))


def _quotas() -> Iterator[float]:
    """Yield the CPU quotas, in cores, of the cgroups of this process and of those above them."""
    for line in kernel.read("/proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:  # cgroup v2
            top, files = _MOUNT, ["cpu.max"]
        elif "cpu" in controllers.split(","):
            top, files = f"{_MOUNT}/cpu", ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
        else:
            continue
        # In a container without a cgroup namespace, the path does not exist: the top is its own cgroup.
        for directory in _upwards(path):
            values = " ".join(kernel.read(f"{top}{directory}/{name}") for name in files).split()
            if len(values) == 2 and all(value.isdecimal() and int(value) for value in values):
                yield int(values[0]) / int(values[1])


def _upwards(path: str) -> Iterator[str]:
    """Yield an absolute path and all above it, without slashes at the end."""
    while path.strip("/"):
        yield path
        path = posixpath.dirname(path)
    yield ""
