#!/usr/bin/python3 -IS
"""A wrapper of a node's runc that removes settings which the machine does not support.

On a machine with legacy cgroup controllers, the node's cgroup2 hierarchy has no controllers. Without
CAP_SYS_RESOURCE, nobody can lower an OOM score. The real runc refuses a container that asks for either,
and every container of a pod does.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

RUNC = "/usr/sbin/runc"

CONTROLLERS = {
    "cpu": "cpu",
    "memory": "memory",
    "pids": "pids",
    "blockIO": "io",
    "hugepageLimits": "hugetlb",
    "unified": "memory",
}
"""Key of ``resources`` in a bundle -> the cgroup controller that it needs."""


def main() -> None:
    """Change the bundle of ``runc create``, and become runc."""
    if "create" in sys.argv:
        config = Path(sys.argv[sys.argv.index("--bundle") + 1], "config.json")
        config.write_text(json.dumps(possible(json.loads(config.read_text()))))
    os.execv(RUNC, ["runc", *sys.argv[1:]])


def possible(spec: dict[str, Any]) -> dict[str, Any]:
    """Return ``spec`` without the settings that this machine does not support."""
    present = Path("/sys/fs/cgroup/cgroup.controllers").read_text().split()
    resources = spec["linux"].get("resources", {})
    for kind, controller in CONTROLLERS.items():
        if controller not in present:
            resources.pop(kind, None)
    least = int(Path("/proc/self/oom_score_adj").read_text())
    process = spec["process"]
    process["oomScoreAdj"] = max(process.get("oomScoreAdj", least), least)
    return spec


if __name__ == "__main__":
    main()
