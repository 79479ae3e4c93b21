"""A node whose container runtime is CRI-O, built from its Go module; no Debian suite packages it.

:data:`NEWEST` is the newest release at the last update of this file (``go list -m -versions
github.com/cri-o/cri-o``). After :func:`allow_pods` it runs pods, but only in the node's own namespaces:
there is no network plugin, and a script replaces ``pinns``, which creates the namespaces of a pod.
"""

from __future__ import annotations

import http.client
import shutil
import socket
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from node import images
from node.cache import NodeError
from node.commands import wait_until
from node.cri import CriStatus
from node.cri import status as cri_status
from node.gomodule import Program, built, missing_go

if TYPE_CHECKING:
    from node.conftest import BootNode
    from node.debian_node import Node

NEWEST = "1.36.3"

UNIT = "crio.service"
SOCKET = "run/crio/crio.sock"
CONF_D = "etc/crio/crio.conf.d"

PACKAGES = ("systemd-sysv", "dbus", "conmon", "crun", "nftables", "python3", "procps", "strace")
"""What CRI-O needs to start, and the packages of every node."""

PROGRAM = "/usr/local/bin/crio"

_PINNS = """\
#!/bin/sh -e
# -d DIRECTORY -f NAME --KIND[=host]...: keep the node's own namespaces of these kinds there, under that name.
directory=$2 name=$4
shift 4
for kind; do
  kind=${kind#--} kind=${kind%%=*}
  mkdir -p "$directory/${kind}ns"
  touch "$directory/${kind}ns/$name"
  mount --bind "/proc/self/ns/$kind" "$directory/${kind}ns/$name"
done
"""

_FOR_PODS = """\
[crio.image]
pause_image = "127.0.0.1:5000/pause:test"
pause_command = ""

[crio.runtime]
cgroup_manager = "cgroupfs"
conmon_cgroup = "pod"
"""

CRUN = "/usr/local/bin/crun"
"""A wrapper of the node's crun that removes settings which the machine does not support; see runc.py."""

OWN = """\
[crio.runtime]
default_runtime = "crun"

[crio.runtime.runtimes.crun]
runtime_path = "/usr/bin/crun"
monitor_path = "/usr/bin/conmon"
"""
"""The content of ``10-crio.conf``, a drop-in that upstream's packages of CRI-O contain."""

SERVICE = f"""\
[Unit]
Description=CRI-O

[Service]
Type=notify
ExecStartPre=/bin/sh -c 'mountpoint -q /var/lib/containers || mount -t tmpfs tmpfs /var/lib/containers'
ExecStart={PROGRAM}
ExecReload=/bin/kill -s HUP $MAINPID
Restart=on-failure
RestartSec=1
"""
"""Upstream's unit, plus a tmpfs for the storage: the node's root is an overlay, which cannot hold another."""


def release(version: str) -> Program:
    """Return the build description of ``crio`` of a release, for example ``1.36.3``; it needs only libc."""
    tags = "containers_image_openpgp exclude_graphdriver_btrfs"
    return Program("github.com/cri-o/cri-o", f"v{version}", "./cmd/crio", tags, cgo=True, ldflags="-s -w")


def missing_compiler() -> str:
    """Return why this machine cannot build CRI-O with Go, with the remedy; empty when it can."""
    if shutil.which("gcc") is None:
        return "the C compiler that builds CRI-O is missing: run: apt-get install gcc libc6-dev"
    return ""


def boot(boot_node: BootNode, version: str = NEWEST, *, drop_ins: bool = True, main: str = "") -> Node:
    """Boot a fresh node with a CRI-O that serves the CRI, and return it.

    ``drop_ins`` creates ``crio.conf.d``; ``main`` is the content of ``crio.conf``. The test is skipped on a
    machine that cannot build CRI-O, or fails where nodes are required.
    """
    from node.conftest import skip_if_missing

    skip_if_missing(missing_go() or missing_compiler())
    program = built(release(version))
    node = boot_node(packages=PACKAGES)
    node.mount(program, PROGRAM)
    pinns = node.root / "usr/local/bin/pinns"
    pinns.write_text(_PINNS)
    pinns.chmod(0o755)
    (node.root / "var/lib/containers").mkdir(exist_ok=True)
    (node.root / "etc/crio").mkdir()
    if drop_ins:
        write(node, "10-crio.conf", OWN)
    if main:
        (node.root / "etc/crio/crio.conf").write_text(main)
    (node.root / f"etc/systemd/system/{UNIT}").write_text(SERVICE)
    node.run(["systemctl", "daemon-reload"])
    restart(node)
    return node


def allow_pods(node: Node, pause: Path) -> None:
    """Let CRI-O run pods from the image in the archive ``pause``, with the crun at :data:`CRUN`."""
    here = Path(__file__).parent
    runc = images.RUNC.read_text()
    files = {
        CRUN: runc.replace("/usr/sbin/runc", "/usr/bin/crun"),
        "/run/registry.py": (here / "registry.py").read_text(),
        "/etc/containers/policy.json": '{"default": [{"type": "insecureAcceptAnything"}]}',
        "/etc/containers/registries.conf": '[[registry]]\nlocation = "127.0.0.1:5000"\ninsecure = true\n',
        # On a machine with legacy control groups conmon stays in the control group of CRI-O's unit.
        f"/etc/systemd/system/{UNIT}.d/pods.conf": "[Service]\nKillMode=process\n",
        "/etc/hosts": "",
        "/etc/resolv.conf": "",
    }
    for name, content in files.items():
        path = node.root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        path.chmod(0o755)
    node.mount(pause, "/run/pause.tar", read_only=True)
    node.run(["systemctl", "daemon-reload"])
    node.run(["systemd-run", "--quiet", "python3", "/run/registry.py", "/run/pause.tar"])
    write(node, "20-pods.conf", _FOR_PODS)


def write(node: Node, name: str, content: str) -> None:
    """Write a drop-in of the administrator below ``crio.conf.d``."""
    path = node.root / CONF_D / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def restart(node: Node) -> CriStatus:
    """Restart CRI-O and wait until it serves the CRI; raises :class:`NodeError` with its journal if not."""
    node.run(["systemctl", "reset-failed", UNIT], check=False)  # a test may start it often
    node.run(["systemctl", "restart", UNIT], check=False)
    answers: list[CriStatus] = []

    def serving() -> bool:
        answers[:] = [status(node)]
        return answers[0].serving

    try:
        wait_until(serving, "CRI-O serves the CRI")
    except NodeError as error:
        raise NodeError(f"{error}\n{node.journal(UNIT, lines=40)}") from error
    return answers[0]


def status(node: Node) -> CriStatus:
    """Ask CRI-O for its CRI status, without any code of kata-node."""
    return cri_status(node.root / SOCKET)


def handlers(node: Node) -> tuple[str, ...]:
    """Return the Kata handlers that CRI-O serves, sorted; raises :class:`NodeError` if the CRI fails."""
    answer = status(node)
    if not answer.serving:
        raise NodeError(f"CRI-O does not serve: {answer.error}\n{node.journal(UNIT, lines=40)}")
    return tuple(name for name in answer.handlers if name.startswith("kata-"))


def running(node: Node) -> dict[str, Any]:
    """Return the configuration that CRI-O runs with: the ``crio`` table from its HTTP API."""
    connection = http.client.HTTPConnection("crio")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(node.root / SOCKET))
    try:
        connection.request("GET", "/config")
        table: dict[str, Any] = tomllib.loads(connection.getresponse().read().decode())["crio"]
        return table
    finally:
        connection.close()
