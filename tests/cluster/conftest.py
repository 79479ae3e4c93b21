"""A control plane for the tests of this directory: one for all of them, explained when a test fails."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from node.cache import missing_parts
from node.machine import Node

from cluster import parts
from cluster.control_plane import Cluster
from cluster.joining import Joined, kubelets_user

_running = pytest.StashKey[Cluster | Joined]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "cluster: runs a real Kubernetes control plane; builds it with Go once"
    )


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    """Pass over this directory unless the tests were asked for by their mark."""
    return None if "cluster" in config.option.markexpr else True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this directory: ``-m cluster`` picks them; they start programs of this machine."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.cluster)
            item.add_marker(pytest.mark.commands)


def needs_no(reason: str) -> None:
    """Skip the test for ``reason`` if there is one; fail it where clusters are required."""
    if reason and os.environ.get("KATA_NODE_REQUIRE_CLUSTER") == "1":
        pytest.fail(f"clusters are required here (KATA_NODE_REQUIRE_CLUSTER=1): {reason}", pytrace=False)
    if reason:
        pytest.skip(reason)


@pytest.fixture(scope="session")
def machine() -> Iterator[None]:
    """A machine that can run one; elsewhere a test is skipped, or failed where one is required."""
    needs_no(parts.missing_parts(parts.PARTS))
    # Whoever loses patience with the tests sends SIGTERM: let it end them as Ctrl-C does, tidily.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="session")
def cluster(machine: None, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """The control plane that all tests share; each makes objects of its own in it."""
    with Cluster.start(users={"system:node:restricted": ("system:nodes",)}) as cluster:
        request.session.stash[_running] = cluster
        yield cluster
        del request.session.stash[_running]


@pytest.fixture
def own_cluster(machine: None, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A control plane of the test's own, to be treated badly."""
    with Cluster.start() as cluster:
        request.node.stash[_running] = cluster
        yield cluster


@pytest.fixture
def joined(machine: None, request: pytest.FixtureRequest) -> Iterator[Joined]:
    """A fresh node with a kubelet, in a cluster of its own."""
    needs_no(missing_parts())
    name = f"joined-{os.getpid()}"
    with (
        Cluster.start(users=kubelets_user(name)) as cluster,
        Node.boot(name=name) as node,
        Joined(cluster, node) as joined,
    ):
        request.node.stash[_running] = joined
        yield joined


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what the servers of a failed test have logged, while they are still there."""
    report = yield
    if report.failed and report.when == "call":
        running = item.stash.get(_running, None) or item.session.stash.get(_running, None)
        if running is not None:
            report.sections += running.report()
    return report
