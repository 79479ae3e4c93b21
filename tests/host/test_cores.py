"""The cores that a process may use, in cgroups of both versions, and in containers."""

from __future__ import annotations

import os

import pytest

from kata_node.host import kernel
from kata_node.host.cores import usable_cores

V1 = "4:memory:/a\n3:cpu,cpuacct:/kubepods/pod/main\n0::/\n"
V1_QUOTA, V1_PERIOD = "/cpu.cfs_quota_us", "/cpu.cfs_period_us"


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        pytest.param({}, 8, id="no-cgroups"),
        pytest.param({"cgroup": "0::/a", "/a/cpu.max": "max 100000"}, 8, id="no-quota"),
        pytest.param({"cgroup": "0::/a", "/a/cpu.max": "200000 100000"}, 2, id="quota"),
        pytest.param({"cgroup": "0::/a", "/a/cpu.max": "150000 100000"}, 2, id="one-and-a-half"),
        pytest.param({"cgroup": "0::/a", "/a/cpu.max": "5000 100000"}, 1, id="less-than-one"),
        pytest.param({"cgroup": "0::/a", "/a/cpu.max": "1600000 100000"}, 8, id="more-than-the-affinity"),
        pytest.param(
            {"cgroup": "0::/a/b", "/a/cpu.max": "300000 100000", "/a/b/cpu.max": "max 100000"}, 3, id="above"
        ),
        pytest.param({"cgroup": "0::/", "/cpu.max": "300000 100000"}, 3, id="a-container"),
        pytest.param({"cgroup": "0::/../x", "/cpu.max": "broken"}, 8, id="not-a-number"),
        pytest.param(
            {"cgroup": V1, f"/cpu{V1_QUOTA}": "400000", f"/cpu{V1_PERIOD}": "100000"}, 4, id="v1-container"
        ),
        pytest.param(
            {
                "cgroup": V1,
                f"/cpu/kubepods/pod{V1_QUOTA}": "-1",
                f"/cpu/kubepods/pod{V1_PERIOD}": "100000",
                f"/cpu/kubepods/pod/main{V1_QUOTA}": "250000",
                f"/cpu/kubepods/pod/main{V1_PERIOD}": "100000",
            },
            3,
            id="v1-node",
        ),
    ],
)
def test_the_smallest_limit_counts(
    monkeypatch: pytest.MonkeyPatch, files: dict[str, str], cores: int
) -> None:
    paths = {"/proc/self/cgroup": files.get("cgroup", "")}
    paths |= {f"/sys/fs/cgroup{path}": text for path, text in files.items()}
    monkeypatch.setattr(kernel, "read", lambda path: paths.get(path, ""))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert usable_cores() == cores
