"""What nodes need to run pods on Kata's handlers without VMs.

containerd's shim for runc replaces Kata's, and a user drop-in sets its runtime type.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from node import images
from node.debian_node import Node
from node.installation import PAYLOAD, VALUES, configure, fake_kvm, index, make_payload
from node.rootfs import build_rootfs

RUNTIMES = 'plugins."io.containerd.grpc.v1.cri".containerd.runtimes'
RUNTIMES_3 = "plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes"
PAUSE = "localhost/pause:test"
MAIN_2 = f'version = 2\nplugins."io.containerd.grpc.v1.cri".sandbox_image = "{PAUSE}"\n'
MAIN_3 = f"version = 3\nplugins.'io.containerd.cri.v1.images'.pinned_images.sandbox = '{PAUSE}'\n"


def payload_with_shim(directory: Path) -> Path:
    """Make a sample payload with a shim that runs containers."""
    make_payload(directory, "--no-index")
    shim = build_rootfs(packages=images.PACKAGES) / "usr/bin/containerd-shim-runc-v2"
    shutil.copy(shim, directory / "opt/kata/bin/containerd-shim-kata-v2")
    return index(directory)


def allow_pods(node: Node, payload: Path, main: str = MAIN_2) -> Node:
    """Let the node with this main file run pods, and mount the payload; return the node."""
    fake_kvm(node)
    node.mount(payload, PAYLOAD)
    node.mount(
        images.busybox(build_rootfs(packages=images.PACKAGES), pause=PAUSE),
        "/run/busybox.tar",
        read_only=True,
    )
    node.run(["ctr", "--namespace=k8s.io", "images", "import", "/run/busybox.tar"])
    for name in ("hosts", "resolv.conf"):
        (node.root / "etc" / name).touch()
    # A wrapper that removes settings which this machine does not support.
    runc = node.root / "usr/local/sbin/runc"
    runc.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(images.RUNC, runc)
    runc.chmod(0o755)
    configure(node, main.encode())
    return node


def values(*shims: str, runtimes: str = RUNTIMES) -> Mapping[str, Any]:
    """Return values that enable only these shims, with the runtime type of runc.

    ``runtimes`` is the key of the handlers in a user drop-in.
    """
    tables = "".join(f'{runtimes}.kata-{shim}.runtime_type = "io.containerd.runc.v2"\n' for shim in shims)
    return {
        "shims": {name: {"enabled": name in shims} for name in VALUES["shims"]},
        "containerd": {"userDropIn": tables},
    }
