"""Fixtures: a fresh node for each test, which ends with the test. A failed test shows the node's logs."""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import pytest

import prerequisites as needs
from node.cache import missing_prerequisites
from node.debian_node import Node
from node.gomodule import missing_go
from node.installation import PAYLOAD, fake_kvm, make_payload

_nodes = pytest.StashKey[list[Node]]()


class BootNode(Protocol):
    """A function that boots a node, which ends with the test; arguments of ``Node.boot``."""

    def __call__(self, suite: str = ..., **options: Any) -> Node: ...


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this directory ``node``: a plain run deselects them, ``-m node`` selects them."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.node)


def skip_if_missing(reason: str) -> None:
    """Skip the test if ``reason`` is not empty; fail it if ``KATA_NODE_REQUIRE_NODES`` is set."""
    needs.skip_if_missing(reason, "KATA_NODE_REQUIRE_NODES")


@pytest.fixture(scope="session")
def machine() -> Iterator[None]:
    """Skip the test on a machine that cannot boot nodes, or fail it where nodes are required."""
    skip_if_missing(missing_prerequisites())
    # A time limit ends the tests with SIGTERM. Handle it like Ctrl-C, so that the nodes are removed.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="session")
def go(machine: None) -> None:
    """Skip the test on a machine that cannot build Go programs; see :mod:`node.gomodule`."""
    skip_if_missing(missing_go())


@pytest.fixture
def boot_node(machine: None, request: pytest.FixtureRequest) -> Iterator[BootNode]:
    """Return a function that boots nodes for this test."""
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
    """Return a fresh Debian node with a containerd that serves the CRI."""
    return boot_node()


@pytest.fixture(scope="session")
def payload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a sample payload."""
    return make_payload(tmp_path_factory.mktemp("payload"))


@pytest.fixture
def ready(node: Node, payload: Path) -> Node:
    """Return a fresh node with the payload mounted and a fake ``/dev/kvm``, ready for an install."""
    node.mount(payload, PAYLOAD)
    return fake_kvm(node)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the logs of its nodes to the report of a failed test, before the nodes end."""
    report = yield
    if report.failed and report.when == "call":
        for node in item.stash.get(_nodes, []):
            report.sections += node.report()
    return report
