"""The payload as an image of its own, which the pods on real nodes mount as a volume."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster import programs
from cluster.chart_objects import merge
from cluster.helm_releases import JOBS, CiCluster, PreparedNode
from node import images
from node.containerd_build import NEWEST
from node.images import KATA_NODE
from node.installation import HANDLERS, make_payload
from node.snapshot import changes

PAYLOADS = ("localhost/kata-payload:4.1.0", "localhost/kata-payload:4.2.0")
NEXT_PROGRAM = "localhost/kata-node:next"
MOUNTS_IMAGES = programs.kubernetes_release() >= (1, 35)


def made(directory: Path) -> tuple[Path, ...]:
    """Return archives of :data:`PAYLOADS`, with component archives as in the public image."""
    archives = []
    for number, name in enumerate(PAYLOADS, start=1):
        options = ("--form=tarballs", "--no-index", f"--seed={number}", f"--release=sample-{number}")
        payload = make_payload(directory / f"payload-{number}", *options)
        (payload / "VERSION").unlink()  # the public image has none
        archives.append(images.payload(payload, directory / f"payload-{number}.tar", name))
    return tuple(archives)


def bring(node: PreparedNode, image: Path, payloads: tuple[Path, ...]) -> PreparedNode:
    for archive in (image, *payloads):
        node.joined.import_image(archive)
    node.node.run(["ctr", "--namespace=k8s.io", "images", "tag", KATA_NODE, NEXT_PROGRAM])
    return node


def of(program: str, payload: str) -> dict[str, str]:
    return {"HELM_NODE_IMAGE_REFERENCE": program, "HELM_IMAGE_REFERENCE": payload}


def release_on(node: PreparedNode) -> str:
    """Return the release that ``kata-node status`` would name: that of the receipt."""
    receipt = json.loads((node.node.root / "opt/kata/.kata-node/receipt.json").read_bytes())
    return str(receipt["artifacts"]["release"])


@pytest.mark.skipif(
    not MOUNTS_IMAGES, reason="Kubernetes before 1.35 does not mount images as volumes by default"
)
def test_program_and_payload_are_upgraded_separately(
    ci_cluster: CiCluster, image: Path, tmp_path: Path
) -> None:
    payloads = made(tmp_path)
    first = bring(ci_cluster.prepared_node, image, payloads)
    releases = ci_cluster.releases
    with ci_cluster.join_another(NEWEST) as another:
        nodes = (first, bring(another, image, payloads))
        before = [node.snapshot() for node in nodes]
        releases.install_checked(JOBS, environment=of(KATA_NODE, PAYLOADS[0]))
        assert [node.handlers for node in nodes] == [HANDLERS, HANDLERS]
        assert [release_on(node) for node in nodes] == ["4.1.0"] * 2
        installed, invocations = [node.snapshot() for node in nodes], [node.invocation for node in nodes]

        releases.install_checked(JOBS, environment=of(NEXT_PROGRAM, PAYLOADS[0]))
        assert [
            changes(*both, times=True) for both in zip(installed, [n.snapshot() for n in nodes], strict=True)
        ] == [
            [],
            [],
        ]

        releases.install_checked(JOBS, environment=of(NEXT_PROGRAM, PAYLOADS[1]))
        assert [release_on(node) for node in nodes] == ["4.2.0"] * 2
        releases.rollback()
        assert [release_on(node) for node in nodes] == ["4.1.0"] * 2
        assert [node.invocation for node in nodes] == invocations

        releases.uninstall()
        assert [changes(*both) for both in zip(before, [n.snapshot() for n in nodes], strict=True)] == [
            [],
            [],
        ]
        assert all(node.is_clean for node in nodes)


@pytest.mark.extended
def test_pods_without_a_payload_say_which_image_they_need(ci_cluster: CiCluster, image: Path) -> None:
    # Kubernetes before 1.31 drops the source of the volume, and the pods start with an empty one.
    volume = "never" if MOUNTS_IMAGES else "always"
    node, releases = ci_cluster.prepared_node, ci_cluster.releases
    node.joined.import_image(image)
    before = node.snapshot()
    values = merge(JOBS, {"image": {"volume": volume}})
    done = releases.install(values, environment=of(KATA_NODE, PAYLOADS[0]))
    assert done.returncode == 1
    assert "/opt/kata-payload" in done.stderr
    assert (
        "an image of both kata-node and the payload in nodeImage and set image.volume: never" in done.stderr
    )
    assert node.handlers == ()
    # The kubelet has made the directory that host-check mounts. No other stage has begun.
    assert changes(before, node.snapshot()) == ["+ /opt/kata"]
    releases.uninstall()
    assert node.is_clean
