"""A control plane for the tests of this directory: one for all of them, explained when a test fails."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import prerequisites as needs
import pytest
from node import images
from node.cache import missing_prerequisites
from node.debian_node import Node

from cluster import programs
from cluster.control_plane import Cluster
from cluster.helm_releases import CONTROL_PLANE, CiCluster, Images, Releases
from cluster.joined_node import JoinedNode, kubelets_user
from cluster.stage_runner import StageRunner


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this directory: ``-m cluster`` picks them; they start programs of this machine."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.cluster)
            item.add_marker(pytest.mark.commands)


def skip_if_missing(reason: str) -> None:
    """Skip the test for ``reason`` if there is one; fail it where clusters are required."""
    needs.skip_if_missing(reason, "KATA_NODE_REQUIRE_CLUSTER")


@pytest.fixture(scope="session")
def machine() -> Iterator[None]:
    """A machine that can run one; elsewhere a test is skipped, or failed where one is required."""
    skip_if_missing(programs.missing_prerequisites(programs.BUILT_PROGRAMS))
    # Whoever loses patience with the tests sends SIGTERM: let it end them as Ctrl-C does, tidily.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="session")
def cluster(machine: None) -> Iterator[Cluster]:
    """The control plane that all tests share; each makes objects of its own in it."""
    with Cluster.start(users={"system:node:restricted": ("system:nodes",)}) as cluster:
        yield cluster


@pytest.fixture
def stage_runner(cluster: Cluster, tmp_path: Path) -> Iterator[StageRunner]:
    """A Node's name in the shared cluster, and the stages run for it past what goes wrong on the way."""
    with StageRunner(cluster, tmp_path) as stage_runner:
        yield stage_runner


@pytest.fixture
def own_cluster(machine: None) -> Iterator[Cluster]:
    """A control plane of the test's own, to be treated badly."""
    with Cluster.start() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def image(machine: None) -> Path:
    """The archive of kata-node's own image, as the checkout is now."""
    skip_if_missing(images.missing_prerequisites())
    return images.kata_node()


@pytest.fixture(scope="session")
def needs_nodes(machine: None) -> None:
    """A machine that can boot nodes as well."""
    skip_if_missing(missing_prerequisites())


@contextmanager
def boot_joined_node(name: str, *others: str, scheduler: bool = False) -> Iterator[JoinedNode]:
    """A node in a cluster of its own, which knows of ``others`` that may join it."""
    with (
        Cluster.start(users=kubelets_user(name, *others), scheduler=scheduler) as cluster,
        Node.boot(name=name, packages=images.PACKAGES) as node,
        JoinedNode(cluster, node) as joined,
    ):
        yield joined


@pytest.fixture
def joined(needs_nodes: None) -> Iterator[JoinedNode]:
    """A fresh node with a kubelet, in a cluster of its own."""
    with boot_joined_node(f"joined-{os.getpid()}") as joined:
        yield joined


@pytest.fixture(scope="session")
def shared_node(needs_nodes: None) -> Iterator[JoinedNode]:
    """A node with a kubelet, in a cluster with a scheduler, for tests that leave the node as it was."""
    with boot_joined_node(f"shared-{os.getpid()}", f"second-{os.getpid()}", scheduler=True) as joined:
        yield joined


@pytest.fixture
def second_node(shared_node: JoinedNode) -> Iterator[JoinedNode]:
    """Another node beside it."""
    cluster = shared_node.cluster
    with (
        Node.boot(name=f"second-{os.getpid()}", packages=images.PACKAGES) as node,
        JoinedNode(cluster, node, number=2) as joined,
    ):
        yield joined
        cluster.kubectl("delete", "node", node.name)


@pytest.fixture
def ci_cluster(needs_nodes: None, image: Path, tmp_path: Path) -> Iterator[CiCluster]:
    """The node of a CI, in a cluster with a scheduler: helm's hooks are pods that somebody has to place."""
    with boot_joined_node(f"ci-{os.getpid()}", f"late-{os.getpid()}", scheduler=True) as joined:
        images = Images.made(joined.node, tmp_path)
        joined.cluster.kubectl("label", "node", joined.node.name, f"{CONTROL_PLANE}=")
        yield CiCluster(images.on(joined), Releases(joined.cluster, tmp_path), images)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what the servers of a failed test have logged, while they are still there."""
    report = yield
    if report.failed and report.when == "call" and isinstance(item, pytest.Function):
        for value in item.funcargs.values():
            if isinstance(value, Cluster | JoinedNode):
                report.sections += value.report()
    return report
