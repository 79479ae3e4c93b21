"""A node on which another program, for example the public kata-deploy, has installed Kata."""

from __future__ import annotations

from pathlib import Path

import pytest

from fakes import MAIN, FakeKube, FakeNode
from kata_node.cluster.labels import SETTER_ANNOTATION
from pipeline.harness import INSTALL, REVERT, errors, make_node, run, snapshot
from stages import artifacts, cri, revert_cri, unclaim

SHARED_LABEL = "katacontainers.io/kata-runtime"
DEFAULT, BLUE = (f"kata-deploy.katacontainers.io/{instance}" for instance in ("default", "blue"))
DROP_IN = "/opt/kata/containerd/config.d/kata-deploy.toml"
HANDLER = b"""\
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.kata-qemu]
runtime_type = "io.containerd.kata-qemu.v2"
runtime_path = "/opt/kata/bin/containerd-shim-kata-v2"
"""


pytestmark = pytest.mark.usefixtures("no_waits")


@pytest.fixture
def node(tmp_path: Path) -> FakeNode:
    made = make_node(tmp_path)
    made.kube = FakeKube(made, {SHARED_LABEL: "true"})
    return made


def kube(node: FakeNode) -> FakeKube:
    assert isinstance(node.kube, FakeKube)
    return node.kube


def install_other(node: FakeNode) -> None:
    """Install Kata as the public kata-deploy does: files, a drop-in, and an import of that drop-in."""
    for directory in ("/opt/kata/bin", "/opt/kata/containerd/config.d"):
        node.root.make_dirs(directory)
    for name in ("containerd-shim-kata-v2", "qemu-system-x86_64"):
        node.root.write(f"/opt/kata/bin/{name}", b"of the other program", mode=0o755)
    node.root.write(DROP_IN, HANDLER)
    main = node.root.read(MAIN) or b""
    imported = f'imports = ["{DROP_IN}", '.encode()
    main = main if b"imports = [" in main else b"imports = []\n" + main
    node.root.write(MAIN, main.replace(b"imports = [", imported))
    node.restart(node.unit_name, 1)
    assert "kata-qemu" in (node.handlers or ())


def test_a_revert_leaves_a_node_alone_on_which_only_another_program_installed_kata(
    node: FakeNode, payload: Path
) -> None:
    install_other(node)
    before, restarts = snapshot(node), node.restarts
    [refused] = run(node, INSTALL, payload, node_name="n1", has_host_root=True)
    assert refused.error is not None
    reports = run(node, REVERT, payload, node_name="n1", has_host_root=True)
    assert errors(reports) == []
    assert {report.outcome for report in reports} == {"skipped"}
    assert all("not ours" in report.summary for report in reports)
    assert (snapshot(node), node.restarts) == (before, restarts)
    assert kube(node).labels == {SHARED_LABEL: "true"}


@pytest.mark.parametrize("first", ["ours", "the other"])
def test_a_revert_beside_another_program_keeps_the_shared_label(
    node: FakeNode, payload: Path, first: str
) -> None:
    if first == "ours":
        kube(node).labels.clear()
    else:
        install_other(node)
    options = {"multi_install_suffix": "blue", "node_name": "n1"}
    ours = INSTALL[1:]  # host-check looks at the devices of this machine
    assert errors(run(node, ours, payload, has_host_root=True, **options)) == []  # type: ignore[arg-type]
    assert kube(node).marks == {SHARED_LABEL: "true", BLUE: "true"}
    assert kube(node).annotations[SETTER_ANNOTATION] == ("kata-node" if first == "ours" else "other")
    if first == "ours":
        install_other(node)
    reverted = run(node, REVERT, payload, has_host_root=True, **options)  # type: ignore[arg-type]
    assert errors(reverted) == []
    assert (kube(node).labels, kube(node).annotations) == ({SHARED_LABEL: "true"}, {})
    assert "kata-qemu" in (node.handlers or ())


def test_a_revert_by_receipt_removes_a_shared_label_whose_installation_label_is_lost(
    node: FakeNode, payload: Path
) -> None:
    kube(node).labels.clear()
    assert errors(run(node, INSTALL[1:], payload, node_name="n1", has_host_root=True)) == []
    del kube(node).labels[DEFAULT]
    assert errors(run(node, REVERT, payload, node_name="n1", has_host_root=True)) == []
    assert (kube(node).labels, kube(node).annotations) == ({}, {})


def test_a_dry_run_of_a_revert_knows_that_another_program_needs_the_shared_label(
    node: FakeNode, payload: Path
) -> None:
    kube(node).labels.clear()
    options = {"multi_install_suffix": "blue", "node_name": "n1"}
    assert errors(run(node, INSTALL[1:], payload, **options)) == []  # type: ignore[arg-type]
    install_other(node)
    reports = run(node, REVERT, payload, dry_run=True, **options)  # type: ignore[arg-type]
    assert reports[-1].stage == unclaim.NAME
    assert reports[-1].changes == (f"label Node n1: remove {BLUE}",)


def test_the_configuration_of_another_installation_is_not_that_of_another_program(
    node: FakeNode, payload: Path
) -> None:
    for suffix in ("", "blue"):
        assert errors(run(node, (artifacts, cri), payload, multi_install_suffix=suffix)) == []
    [report] = run(node, (revert_cri,), payload)
    assert (report.error, report.other_install_dirs) == (None, ())
