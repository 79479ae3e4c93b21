"""Fixtures: a control plane that all tests share, and nodes. A failed test shows the servers' logs."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import prerequisites as needs
from cluster import programs
from cluster.control_plane import Cluster
from cluster.helm_releases import CONTROL_PLANE, CiCluster, Images, Releases
from cluster.joined_node import JoinedNode, kubelets_user
from cluster.simulated_release import NODES
from cluster.stage_runner import StageRunner
from node import images
from node.cache import missing_prerequisites
from node.debian_node import Node


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this directory ``cluster`` or ``release``, and ``commands``: they start programs.

    Files with real nodes alternate with the others, from the largest to the smallest. The former mostly wait,
    and the latter compute, so that tests which run side by side use the machine evenly.
    """
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        if Path(__file__).parent in item.path.parents:
            if item.get_closest_marker("release") is None:
                item.add_marker(pytest.mark.cluster)
            item.add_marker(pytest.mark.commands)
            files.setdefault(item.path, []).append(item)
    largest_first = sorted(files.values(), key=len, reverse=True)
    waiting = [tests for tests in largest_first if any(_has_node(test) for test in tests)]
    computing = [tests for tests in largest_first if tests not in waiting]
    pairs = itertools.zip_longest(waiting, computing, fillvalue=())
    ordered = [test for pair in pairs for tests in pair for test in tests]
    items[:] = [*(item for item in items if item.path not in files), *ordered]


def _has_node(test: pytest.Item) -> bool:
    return "needs_nodes" in getattr(test, "fixturenames", ())


def skip_if_missing(reason: str) -> None:
    """Skip the test if ``reason`` is not empty; fail it if ``KATA_NODE_REQUIRE_CLUSTER`` is set."""
    needs.skip_if_missing(reason, "KATA_NODE_REQUIRE_CLUSTER")


@pytest.fixture(scope="session")
def machine() -> Iterator[None]:
    """Skip the test on a machine that cannot run a cluster, or fail it where clusters are required."""
    skip_if_missing(programs.missing_prerequisites(programs.BUILT_PROGRAMS))
    # A time limit ends the tests with SIGTERM. Handle it like Ctrl-C, so that the cluster is removed.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="session")
def cluster(machine: None) -> Iterator[Cluster]:
    """The control plane that all tests share; each test creates its own objects."""
    with Cluster.start(users={"system:node:restricted": ("system:nodes",)}) as cluster:
        yield cluster


@pytest.fixture
def stage_runner(cluster: Cluster, tmp_path: Path) -> Iterator[StageRunner]:
    """A runner of stages for one Node of the shared cluster, through a proxy that can inject faults."""
    with StageRunner(cluster, tmp_path) as stage_runner:
        yield stage_runner


@pytest.fixture
def own_cluster(machine: None) -> Iterator[Cluster]:
    """A control plane of this test alone, which the test may damage."""
    with Cluster.start() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def workers(machine: None) -> Iterator[Cluster]:
    """A control plane with two Nodes without machines, for the simulated releases of one module."""
    with Cluster.start() as cluster:
        for name in sorted(NODES):
            info = {"containerRuntimeVersion": "containerd://2.3.4", "machineID": "0" * 32}
            cluster.node(name, labels={"kubernetes.io/os": "linux"}, status={"nodeInfo": info})
        yield cluster


@pytest.fixture(scope="session")
def image(machine: None) -> Path:
    """The archive of kata-node's image, built from the current checkout."""
    skip_if_missing(images.missing_prerequisites())
    return images.kata_node()


@pytest.fixture(scope="session")
def needs_nodes(machine: None) -> None:
    """Skip the test on a machine that cannot boot nodes."""
    skip_if_missing(missing_prerequisites())


@contextmanager
def boot_joined_node(
    name: str, *others: str, scheduler: bool = False, containerd: str = ""
) -> Iterator[JoinedNode]:
    """Boot a node in a new cluster; the nodes ``others`` may join the cluster later."""
    with (
        Cluster.start(users=kubelets_user(name, *others), scheduler=scheduler) as cluster,
        Node.boot(name=name, packages=images.PACKAGES, containerd=containerd) as node,
        JoinedNode(cluster, node) as joined,
    ):
        yield joined


@pytest.fixture
def joined(needs_nodes: None) -> Iterator[JoinedNode]:
    """A fresh node with a kubelet, in a new cluster."""
    with boot_joined_node(f"joined-{os.getpid()}") as joined:
        yield joined


@pytest.fixture(scope="session")
def shared_node(needs_nodes: None) -> Iterator[JoinedNode]:
    """A node with a kubelet, in a cluster with a scheduler, for tests that do not change the node."""
    with boot_joined_node(f"shared-{os.getpid()}", f"second-{os.getpid()}", scheduler=True) as joined:
        yield joined


@pytest.fixture
def second_node(shared_node: JoinedNode) -> Iterator[JoinedNode]:
    """A second node in the cluster of ``shared_node``."""
    cluster = shared_node.cluster
    with (
        Node.boot(name=f"second-{os.getpid()}", packages=images.PACKAGES) as node,
        JoinedNode(cluster, node, number=2) as joined,
    ):
        yield joined
        cluster.kubectl("delete", "node", node.name)


@pytest.fixture
def ci_cluster(needs_nodes: None, image: Path, tmp_path: Path) -> Iterator[CiCluster]:
    """A control-plane node as in CI, in a cluster with a scheduler, which the pods of helm's hooks need."""
    with boot_joined_node(f"ci-{os.getpid()}", f"late-{os.getpid()}", scheduler=True) as joined:
        images = Images.made(joined.node, tmp_path)
        joined.cluster.kubectl("label", "node", joined.node.name, f"{CONTROL_PLANE}=")
        yield CiCluster(images.on(joined), Releases(joined.cluster, tmp_path), images)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the logs of the servers to the report of a failed test, before they end."""
    report = yield
    if report.failed and report.when == "call" and isinstance(item, pytest.Function):
        for value in item.funcargs.values():
            if isinstance(value, Cluster | JoinedNode):
                report.sections += value.report()
    return report
