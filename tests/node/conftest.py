"""Nodes as fixtures: fresh for each test, explained when a test fails, gone when it ends."""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import prerequisites as needs
import pytest

from node.cache import missing_prerequisites
from node.debian_node import Node
from node.gomodule import missing_go
from node.installation import PAYLOAD, fake_kvm, make_payload

_nodes = pytest.StashKey[list[Node]]()


class BootNode(Protocol):
    """Boots a node that ends with the test; takes what :meth:`node.debian_node.Node.boot` takes."""

    def __call__(self, suite: str = ..., **options: Any) -> Node: ...


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this directory, so that a plain run passes over them and ``-m node`` picks them."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.node)


def skip_if_missing(reason: str) -> None:
    """Skip the test for ``reason`` if there is one; fail it where nodes are required."""
    needs.skip_if_missing(reason, "KATA_NODE_REQUIRE_NODES")


@pytest.fixture(scope="session")
def machine() -> Iterator[None]:
    """A machine that can boot nodes; elsewhere the test is skipped, or failed where nodes are required."""
    skip_if_missing(missing_prerequisites())
    # Whoever loses patience with the tests sends SIGTERM: let it end them as Ctrl-C does, tidily.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="session")
def go(machine: None) -> None:
    """A machine that can build what no Debian suite has; see :mod:`node.gomodule`."""
    skip_if_missing(missing_go())


@pytest.fixture
def boot_node(machine: None, request: pytest.FixtureRequest) -> Iterator[BootNode]:
    """A function that boots nodes for this test."""
    nodes = request.node.stash.setdefault(_nodes, [])
    with ExitStack() as stack:

        def boot(suite: str = "", **options: Any) -> Node:
            if options.get("containerd"):
                skip_if_missing(missing_go())
            node = stack.enter_context(Node.boot(suite, **options) if suite else Node.boot(**options))
            nodes.append(node)
            return node

        yield boot


@pytest.fixture
def node(boot_node: BootNode) -> Node:
    """A fresh Debian node whose containerd serves."""
    return boot_node()


@pytest.fixture(scope="session")
def payload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sample payload."""
    return make_payload(tmp_path_factory.mktemp("payload"))


@pytest.fixture
def ready(node: Node, payload: Path) -> Node:
    """A fresh node that Kata can be installed on, with the payload mounted."""
    node.mount(payload, PAYLOAD)
    return fake_kvm(node)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what the nodes of a failed test have to say, while they are still there."""
    report = yield
    if report.failed and report.when == "call":
        for node in item.stash.get(_nodes, []):
            report.sections += node.report()
    return report
