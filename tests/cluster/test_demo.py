"""scripts/demo: what it shows, and what it leaves."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import cluster_records
from kata_node import __version__
from node import node_records
from node.cache import CHECKOUT

pytestmark = pytest.mark.extended


@pytest.fixture
def name() -> Iterator[str]:
    """The name of a cluster; nothing of it is left after the test."""
    name = f"demo-{os.getpid()}"
    yield name
    names = [record.name for record in cluster_records.running()]
    names += [record.name for record in node_records.running()]
    assert [each for each in names if each.startswith(name)] == []


@contextlib.contextmanager
def demo(name: str) -> Iterator[subprocess.Popen[str]]:
    """Run the demo. If the test ends first, interrupt it as Ctrl-C does, and wait until it has cleaned up."""
    process = subprocess.Popen(
        [CHECKOUT / "scripts/demo", f"--name={name}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
            process.communicate()


def test_the_demo_runs_a_pod_and_removes_everything(needs_nodes: None, image: Path, name: str) -> None:
    with demo(name) as process:
        shown, _ = process.communicate()
    assert process.returncode == 0, shown
    assert f"Kata 4.1.0 is the payload of this release, installed by kata-node {__version__} from" in shown
    assert f"\n$ kubectl logs in-kata\n{os.uname().release}\n" in shown
    assert "this sample has no VM" in shown
    assert 'release "kata-deploy" uninstalled' in shown


def test_an_interrupted_demo_leaves_nothing(needs_nodes: None, name: str) -> None:
    with demo(name) as process:
        assert process.stdout is not None
        joined = any(f"{name}-worker: joined {name}" in line for line in process.stdout)
        os.killpg(process.pid, signal.SIGINT)
        rest, _ = process.communicate()
    assert joined
    assert "Removing the cluster" in rest
    assert process.returncode == 130
