"""A dispatcher whose pod is lost goes on in a new pod; only its own failure fails the release."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.control_plane import Cluster
from cluster.fake_kubelet import failed
from cluster.helm_releases import evict
from cluster.simulated_release import DISPATCHERS, SimulatedRelease
from node.commands import wait_until

VALUES: dict[str, Any] = {
    "deploymentMode": "job",
    "job": {"waitForNodesSeconds": 0, "nodeSettleSeconds": 0, "backoffLimit": 0},
    "shims": {"disableAll": True, "qemu": {"enabled": True}},
}
_numbers = itertools.count()


@pytest.fixture
def release(workers: Cluster, tmp_path: Path) -> Iterator[SimulatedRelease]:
    """A namespace for a release; it is uninstalled at the end."""
    with SimulatedRelease(workers, f"lost-{next(_numbers)}", tmp_path, VALUES) as release:
        yield release
        release.held.clear()
        release.helm("uninstall")


def dispatcher_pods(release: SimulatedRelease) -> list[str]:
    """Return the names of the running pods of dispatchers."""
    found = release.items("pods", f"--selector={DISPATCHERS}", "--field-selector=status.phase=Running")
    return [pod["metadata"]["name"] for pod in found if "deletionTimestamp" not in pod["metadata"]]


def test_a_lost_dispatcher_is_replaced_and_goes_on_with_the_running_node_jobs(
    release: SimulatedRelease,
) -> None:
    release.held.add("worker-2")
    # A restart of the runtime has lost this container. That is no failure of the node.
    release.answers["worker-1"] = [failed("artifacts", 255, "")]
    output: list[str] = []
    helm = threading.Thread(target=lambda: output.append(release.helm("install", "--timeout=5m")))
    helm.start()
    wait_until(lambda: release.history == [("install", "worker-1")], "the first node is done")
    before = release.uids("jobs")
    node_jobs = {job["metadata"]["uid"] for job in release.items("jobs")}
    for way in ("evict", "delete"):
        [pod] = dispatcher_pods(release)
        if way == "evict":
            evict(release.cluster, release.namespace, pod)
        else:
            release.kubectl("delete", "pod", pod, "--wait=false")
        wait_until(lambda pod=pod: dispatcher_pods(release) not in ([pod], []), "another pod runs")  # type: ignore[misc]
    release.held.clear()
    helm.join()
    assert "STATUS: deployed" in output[0]
    assert sorted(release.history) == [("install", "worker-1"), ("install", "worker-2")]
    assert release.uids("jobs") == before
    assert {job["metadata"]["uid"] for job in release.items("jobs")} == node_jobs
    stopped = "the dispatcher was asked to stop; running Jobs that continue by themselves: "
    assert stopped in release.logs["kata-deploy-install-dispatcher"]


def test_a_failure_of_the_dispatcher_fails_the_release_at_once(release: SimulatedRelease) -> None:
    release.answers["worker-1"] = [failed("host-check", 3, "no /dev/kvm")]
    assert "Failed" in release.helm("install", check=False)
    [job] = release.items("jobs", "--selector=!job.katacontainers.io/node")
    [condition] = [each for each in job["status"]["conditions"] if each["type"] == "Failed"]
    assert condition["reason"] == "PodFailurePolicy"
    assert "exit code 1" in condition["message"]
    assert job["status"]["failed"] == 1
