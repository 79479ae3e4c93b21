"""Install Kata offline into the file tree of a node; the node serves the handlers from its first boot on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from node.cache import CHECKOUT, remove_tree
from node.conftest import BootNode
from node.containerd_build import DEBIAN, NEWEST
from node.installation import (
    HANDLERS,
    MAIN,
    PAYLOAD,
    UNIT,
    VALUES,
    assert_nothing_to_do,
    fake_kvm,
    install,
    kata_handlers,
)
from node.rootfs import build_rootfs
from node.snapshot import changes, take

WATCHED = ("/etc/containerd", "/opt/kata")
"""The directories that kata-node changes; a boot changes others by itself."""


class NodeSetup(NamedTuple):
    suite: str
    version: str
    release: str = ""
    """A release of containerd instead of the suite's package."""
    config: str = ""
    """A main file instead of the suite's."""


@pytest.fixture(
    params=[
        *(pytest.param(NodeSetup(suite, version), id=suite) for suite, version in DEBIAN.items()),
        pytest.param(NodeSetup("forky", NEWEST, NEWEST), id="newest"),
        pytest.param(
            NodeSetup("forky", NEWEST, NEWEST, 'version = 4\nimports = ["/etc/containerd/conf.d/*.toml"]\n'),
            id="newest-with-conf.d",
        ),
    ]
)
def kind(request: pytest.FixtureRequest) -> NodeSetup:
    chosen: NodeSetup = request.param
    return chosen


@pytest.fixture
def image(machine: None, kind: NodeSetup, tmp_path: Path) -> Iterator[Path]:
    """A writable copy of the tree of a node."""
    tree = tmp_path / "image"
    subprocess.run(["cp", "--archive", "--reflink=auto", build_rootfs(kind.suite), tree], check=True)
    if kind.config:
        (tree / MAIN.lstrip("/")).write_text(kind.config)
    yield tree
    remove_tree(tree)


def bake(image: Path, payload: Path, kind: NodeSetup, *command: str) -> None:
    """Run ``kata-node`` offline with this Python on the tree ``image``."""
    values = image.with_name("values.yaml")
    values.write_text(json.dumps(VALUES))
    options = ["--offline", f"--host-root={image}", f"--config={values}"]
    done = subprocess.run(
        [
            sys.executable,
            "-P",
            "-m",
            "kata_node",
            *command,
            *options,
            f"--runtime=containerd://{kind.version}",
        ],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), "KATA_NODE_PAYLOAD": str(payload)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_baked_node_serves_from_its_first_boot_and_a_run_on_it_restarts_nothing(
    boot_node: BootNode, image: Path, kind: NodeSetup, payload: Path
) -> None:
    before = take(image, WATCHED)
    bake(image, payload, kind, "install")
    node = fake_kvm(boot_node(kind.suite, tree=image, containerd=kind.release))
    node.mount(payload, PAYLOAD)
    assert node.cri().version.removeprefix("containerd://").lstrip("v").startswith(kind.version)
    assert node.cri_handlers() == (*HANDLERS, "runc")
    (only,) = json.loads(node.kata_node("status", "--output", "json").stdout)["installations"]
    assert (only["artifacts"], only["drift"]) == ("placed", [])
    etc = node.snapshot("/etc/containerd")
    install(node)
    assert changes(etc, node.snapshot("/etc/containerd"), times=True) == []
    assert node.activations(UNIT) == 1
    assert_nothing_to_do(node)
    node.kata_node("revert", check=True)
    assert kata_handlers(node) == ()
    assert node.activations(UNIT) == 2
    assert changes(before, node.snapshot(*WATCHED)) == []


def test_a_revert_of_an_image_removes_everything_that_was_baked(
    image: Path, kind: NodeSetup, payload: Path
) -> None:
    before = take(image, ("/",))
    bake(image, payload, kind, "install")
    bake(image, payload, kind, "install")
    bake(image, payload, kind, "revert")
    assert changes(before, take(image, ("/",))) == []
