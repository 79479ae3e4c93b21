"""Container images that the tests build, because no test uses a registry: busybox and kata-node's images.

An archive is an OCI image layout that contains the image names, so ``ctr images import`` finds them.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import platform
import shlex
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from node import rootfs
from node.cache import CHECKOUT, NodeError, cache_dir, key_of, locked, made_once, remove_tree
from node.debian_node import Node

_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
_INDEX = "application/vnd.oci.image.index.v1+json"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"


BUSYBOX = "localhost/busybox:test"
FOR_PODS = ("busybox-static", "containernetworking-plugins")
"""The Debian packages that a node needs to run pods: the program of their image, and network plugins."""

PACKAGES = (*rootfs.PACKAGES, *FOR_PODS)

RUNC = Path(__file__).with_name("runc.py")
"""The wrapper of a node's runc; install it as a program named ``runc`` earlier in ``PATH``."""

KATA_NODE = "localhost/kata-node:test"
WITH_PAYLOAD = "localhost/kata-node-with-payload:test"
DISPATCHER = "localhost/kata-deploy-job-dispatcher:test"
KUBECTL = "localhost/kubectl:test"
PAYLOAD = "localhost/kata-payload:4.1.0"

_APPLETS = (
    *("cat", "date", "echo", "env", "false", "grep", "id", "kill", "ls", "mkdir", "nc", "ps", "rm", "sh"),
    *("sleep", "stat", "touch", "true", "uname", "wget"),
)


def busybox(root: Path, *, pause: str) -> Path:
    """Return the archive of :data:`BUSYBOX`, made once from the busybox in the tree ``root``.

    The image also has the name ``pause``: by default it sleeps, which is all that a pause image does.
    """
    program = (root / "usr/bin/busybox").read_bytes()
    content = layer({"bin/busybox": program}, {f"bin/{name}": "bin/busybox" for name in _APPLETS})
    config = {"Entrypoint": ["/bin/sleep"], "Cmd": ["infinity"], "Env": ["PATH=/bin"]}
    names = (BUSYBOX, pause)
    key = key_of(hashlib.sha256(content).hexdigest(), config, names)

    def make(directory: Path) -> None:
        archive(directory / "busybox.tar", names, content, config)

    return made_once(cache_dir() / "images" / f"busybox-{key}", make) / "busybox.tar"


def layer(files: Mapping[str, bytes], links: Mapping[str, str]) -> bytes:
    """Return a reproducible image layer of programs (path -> content) and hard links (path -> program).

    Paths have no leading slash.
    """
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for path, data in files.items():
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(data), 0o755
            tar.addfile(entry, io.BytesIO(data))
        for path, target in links.items():
            entry = tarfile.TarInfo(path)
            entry.type, entry.linkname, entry.mode = tarfile.LNKTYPE, target, 0o755
            tar.addfile(entry)
    return content.getvalue()


def archive(target: Path, names: Sequence[str], content: bytes, config: Mapping[str, Any]) -> Path:
    """Write an image with one layer and all these ``names``, and return ``target``.

    ``config`` is the image's configuration, for example ``{"Entrypoint": ["/bin/sleep"]}``.
    """
    blobs: dict[str, bytes] = {}

    def blob(kind: str, data: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = data
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(data)}

    layers = [blob(_LAYER, content)]
    about = {
        "os": "linux",
        "architecture": _MACHINES.get(platform.machine(), platform.machine()),
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [each["digest"] for each in layers]},
    }
    described = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "config": blob(_CONFIG, _json(about)),
        "layers": layers,
    }
    manifest = blob(_MANIFEST, _json(described))
    named = [{**manifest, "annotations": {"io.containerd.image.name": name}} for name in names]
    blobs["oci-layout"] = _json({"imageLayoutVersion": "1.0.0"})
    blobs["index.json"] = _json({"schemaVersion": 2, "mediaType": _INDEX, "manifests": named})
    with tarfile.open(target, "w") as tar:
        for path, data in blobs.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return target


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def load(node: Node, archive: Path) -> None:
    """Import the image of an OCI or Docker ``archive`` into the node's containerd, with all its names."""
    there = f"/run/images/{archive.name}"
    node.mount(archive, there, read_only=True)
    node.run(["ctr", "--namespace=k8s.io", "images", "import", there])
    node.run(["umount", there])


def missing_prerequisites() -> str:
    """Return why this machine cannot build kata-node's image, with the remedy; empty when it can."""
    if shutil.which("buildah") is None:
        return "buildah is missing, which builds the image: run: apt-get install buildah"
    return ""


def kata_node() -> Path:
    """Return the archive of :data:`KATA_NODE`, which ``scripts/image`` builds from the current checkout.

    It is cached. Raises :class:`NodeError` with the end of the output if the build fails.
    """
    return _built("kata-node", KATA_NODE)


def dispatcher() -> Path:
    """Return the archive of :data:`DISPATCHER`; see :func:`kata_node`."""
    return _built("dispatcher", DISPATCHER, "--target=dispatcher")


def with_payload(payload: Path, target: Path) -> Path:
    """Write the archive of :data:`WITH_PAYLOAD` to ``target``: :data:`KATA_NODE` plus the ``payload``."""
    archive = kata_node()
    with _images_of_buildah():
        name = _said(["buildah", "from", "--quiet", f"docker-archive:{archive}"]).strip()
        try:
            _said(["buildah", "copy", "--quiet", name, str(payload), "/opt/kata-payload"])
            _said(["buildah", "commit", "--quiet", name, f"docker-archive:{target}:{WITH_PAYLOAD}"])
        finally:
            _said(["buildah", "rm", name])
    return target


def payload(directory: Path, target: Path, name: str) -> Path:
    """Write the archive of an image ``name`` with the payload ``directory`` at the place of the public image.

    It has no program, like that image; pods can only mount it.
    """
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        tar.add(directory, "opt/kata-artifacts")
    return archive(target, [name], content.getvalue(), {})


def kubectl(program: Path, target: Path) -> Path:
    """Write the archive of :data:`KUBECTL` to ``target``; it contains only the static ``program``."""
    content = layer({"usr/bin/kubectl": program.read_bytes()}, {})
    config = {"Entrypoint": ["/usr/bin/kubectl"], "Env": ["PATH=/usr/bin"]}
    return archive(target, [KUBECTL], content, config)


def _built(name: str, tag: str, *options: str) -> Path:
    key = key_of([(path, hashlib.sha256((CHECKOUT / path).read_bytes()).hexdigest()) for path in _sources()])

    def make(directory: Path) -> None:
        target = directory / f"{name}.tar"
        # Every change of the sources makes another archive, so keep only the last three.
        for old in sorted(directory.parent.glob(f"{name}-*"), key=lambda path: path.stat().st_mtime)[:-3]:
            remove_tree(old)
        with _images_of_buildah():
            _said([sys.executable, str(CHECKOUT / "scripts/image"), f"--tag={tag}", *options])
            _said(["buildah", "push", "--quiet", tag, f"docker-archive:{target}:{tag}"])

    return made_once(cache_dir() / "images" / f"{name}-{key}", make) / f"{name}.tar"


def _images_of_buildah() -> contextlib.AbstractContextManager[None]:
    """Hold the lock for this machine's images of buildah.

    A build reads layers that another process may remove. Another checkout builds images with the same names.
    """
    return locked(cache_dir() / "images" / ".buildah.lock")


def _sources() -> list[str]:
    """Return the sources of the image, relative to the checkout: the Containerfile and files it copies."""
    tops = ["Containerfile", "scripts/image"]
    for line in (CHECKOUT / "Containerfile").read_text().splitlines():
        if line.startswith("COPY ") and "--from" not in line and "$" not in line:
            tops += line.split()[1:-1]
    found = [file for top in tops for file in _files(CHECKOUT / top)]
    return sorted(str(file.relative_to(CHECKOUT)) for file in found)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return [file for file in path.rglob("*") if file.is_file() and "__pycache__" not in file.parts]


def _said(command: Sequence[str]) -> str:
    """Run a command and return its stdout; raises :class:`NodeError` with the end of its output."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        end = "\n".join((done.stdout + done.stderr).splitlines()[-20:])
        raise NodeError(f"{shlex.join(command)} ended with exit code {done.returncode}:\n{end}")
    return done.stdout
