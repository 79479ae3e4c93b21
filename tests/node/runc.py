#!/usr/bin/python3 -IS
"""Stands before a node's runc, and asks it for nothing that the machine below cannot give.

A machine may have its controllers in the old cgroup hierarchy, so that the node's has none, and its
root may lack CAP_SYS_RESOURCE, so that nobody can be made less likely to be killed for memory. The
real runc refuses containers there that want either, and every container of a pod does.
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
"""A kind of resources, by its name in a bundle, and the controller it needs."""


def main() -> None:
    """Become runc."""
    if "create" in sys.argv:
        config = Path(sys.argv[sys.argv.index("--bundle") + 1], "config.json")
        config.write_text(json.dumps(possible(json.loads(config.read_text()))))
    os.execv(RUNC, ["runc", *sys.argv[1:]])


def possible(spec: dict[str, Any]) -> dict[str, Any]:
    """``spec`` without what is impossible here."""
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
