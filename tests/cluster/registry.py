"""A container registry on loopback: Debian's docker-registry, without TLS and accounts."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from cluster.joined_node import JoinedNode
from node.commands import wait_until

PROGRAMS = {
    "docker-registry": "docker-registry",
    "git": "git",
    "openssl": "openssl",
    "qemu-aarch64-static": "qemu-user-static",
    "skopeo": "skopeo",
}
"""The programs that the tests of a release use -> the Debian package of each."""


def missing_prerequisites() -> str:
    """Return which packages this machine lacks, with the remedy; empty when it has all."""
    packages = sorted(package for name, package in PROGRAMS.items() if shutil.which(name) is None)
    return f"{' and '.join(packages)} missing: run: apt-get install {' '.join(packages)}" if packages else ""


class Registry:
    """A running registry; ``host`` is its address, for example ``127.0.0.1:5000``."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.host = f"127.0.0.1:{port}"

    def open_to(self, joined: JoinedNode) -> None:
        """Let a node reach the registry at the same address."""
        pid = str(joined.node.leader.pid)
        joined.cluster.relay(f"registry-of-{joined.node.name}", "service", pid, str(self.port), self.host)

    def push(self, archive: Path, name: str) -> None:
        """Push the image of an OCI archive."""
        copy = ["skopeo", "copy", "--quiet", "--dest-tls-verify=false"]
        subprocess.run([*copy, f"oci-archive:{archive}", f"docker://{self.host}/{name}"], check=True)

    def copy(self, name: str, directory: Path) -> Path:
        """Copy an image to a directory of blobs, named by their digests, and return its manifest."""
        copy = ["skopeo", "copy", "--quiet", "--src-tls-verify=false"]
        subprocess.run([*copy, f"docker://{self.host}/{name}", f"dir:{directory}"], check=True)
        return directory / "manifest.json"


@contextlib.contextmanager
def serving(directory: Path) -> Iterator[Registry]:
    """Serve a registry that keeps its blobs in ``directory``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        registry = Registry(free.getsockname()[1])
    config = directory / "config.json"
    config.write_text(
        json.dumps(
            {
                "version": 0.1,
                "log": {"level": "warn"},
                "storage": {"filesystem": {"rootdirectory": str(directory / "blobs")}},
                "http": {"addr": registry.host},
            }
        )
    )
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(["docker-registry", "serve", config], stdout=log, stderr=log)
    try:
        wait_until(lambda: _answers(registry), "the registry answers")
        yield registry
    finally:
        process.terminate()
        process.wait()


def _answers(registry: Registry) -> bool:
    try:
        with urlopen(f"http://{registry.host}/v2/", timeout=5) as answer:
            return bool(answer.status == 200)
    except (URLError, OSError):
        return False
