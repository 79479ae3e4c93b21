"""Join a node of tests/node to a cluster: a real kubelet beside its containerd registers it and runs pods.

There is no registry: the tests build the images (see images.py) and import them. A pod finds the API server
at the address of the ``kubernetes`` service, as in every cluster.
"""

from __future__ import annotations

import contextlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from types import TracebackType
from typing import Any

from cluster import flags, programs
from cluster.control_plane import ADMIN, Cluster
from node import images
from node.cache import NodeError
from node.commands import WAIT_TIMEOUT, wait_until
from node.debian_node import Node

KUBELET = "/usr/local/bin/kubelet"
UNIT = "kubelet.service"

_HOME = "/etc/kubernetes"
_PODS_LOGS = "var/log/pods"
_PAUSE = 0.2  # seconds between two checks of a joining Node
_RESTARTS = 2
"""How often systemd may restart the kubelet, which exits if a busy containerd answers too late."""

_CONFIG = {
    "apiVersion": "kubelet.config.k8s.io/v1beta1",
    "kind": "KubeletConfiguration",
    "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
    # Everything is allowed, because only the node and the API server reach the node's network.
    "authentication": {"webhook": {"enabled": False}, "anonymous": {"enabled": True}},
    "authorization": {"mode": "AlwaysAllow"},
    "resolvConf": "",
    "failSwapOn": False,
    # Without a threshold for the disk, so that the tests run on a machine with a full disk.
    "evictionHard": {"memory.available": "1Mi"},
    "nodeStatusUpdateFrequency": "1s",
}

_PREPARE = """\
import fcntl, os, pathlib, socket, struct, subprocess, sys

# Add the addresses as lo:1, lo:2, ...; the node does not have `ip address add`.
for number, address in enumerate(sys.argv[1:], 1):
    request = struct.pack("16sHH4s8x", b"lo:%d" % number, socket.AF_INET, 0, socket.inet_aton(address))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, 0x8916, request)  # SIOCSIFADDR

# A kubelet sets these for the whole machine if they have other values. It finds the wanted values here.
found = pathlib.Path("/run/kubelet-finds")
found.mkdir()
for name, value in {
    "vm/overcommit_memory": 1, "vm/panic_on_oom": 0, "kernel/panic": 10, "kernel/panic_on_oops": 1,
    "kernel/keys/root_maxkeys": 1000000, "kernel/keys/root_maxbytes": 25000000,
}.items():
    file = found / name.replace("/", ".")
    file.write_text(f"{value}\\n")
    subprocess.run(["mount", "--bind", file, f"/proc/sys/{name}"], check=True)

# The kubelet reads the kernel's out-of-memory messages there.
os.path.lexists("/dev/kmsg") or os.symlink("/dev/null", "/dev/kmsg")
"""


def kubelets_user(*nodes: str) -> Mapping[str, Sequence[str]]:
    """Return the users of the kubelets of ``nodes``, for :meth:`Cluster.start`."""
    return {f"system:node:{node}": ("system:nodes",) for node in nodes}


def nodes_of(cluster: Cluster) -> list[str]:
    """Return the names of the nodes that have joined ``cluster``, ordered by number."""
    files = sorted((cluster.directory / flags.NODES).iterdir(), key=lambda file: int(file.suffix[1:]))
    return [file.read_text().split()[1] for file in files]


class JoinedNode:
    """A node that is part of a cluster until the ``with`` statement ends; the kubelet ends with the node.

    The cluster needs the :func:`kubelets_user` of the node, and the node needs the
    :data:`~node.images.PACKAGES`. Each node of a cluster has another ``number``, 1 to 254. In the node the
    API server has the same address as on the machine. Raises :class:`NodeError` with the kubelet's journal
    if the Node is not Ready within ``timeout`` seconds, or if the kubelet keeps ending.
    """

    def __init__(
        self, cluster: Cluster, node: Node, *, number: int = 1, timeout: float = WAIT_TIMEOUT
    ) -> None:
        self.cluster = cluster
        self.node = node
        # A documentation address (RFC 5737), because a kubelet refuses a loopback address.
        self.address = f"192.0.2.{number}"
        self._pods = f"10.1.{number}.0/24"
        node.run(["python3", "-", self.address, flags.SERVICE], text=_PREPARE)
        self._way = f"way-of-{node.name}"
        self._known = cluster.directory / flags.NODES / self.address
        try:
            self._open_ways()
            self._import_images()
            self._start_kubelet()
            self._wait(timeout)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> JoinedNode:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cut the node off from the API server."""
        self.cluster.end_relay(self._way)
        self._known.unlink(missing_ok=True)

    def kubeconfig(self, who: str = ADMIN) -> str:
        """Write a kubeconfig of ``who`` in the node and return its path there."""
        path = f"{_HOME}/{self.cluster.kubeconfig_of(who).name}"
        (self.node.root / path.lstrip("/")).write_text(self.cluster.kubeconfig_of(who).read_text())
        return path

    def import_image(self, archive: Path) -> None:
        """Import an image into the node, see :func:`images.load`."""
        images.load(self.node, archive)

    def logs(self, namespace: str, pod: str) -> dict[str, str]:
        """Return container name -> log of a pod, from the kubelet's log files, with all restarts."""
        found: dict[str, str] = {}
        for file in sorted((self.node.root / _PODS_LOGS).glob(f"{namespace}_{pod}_*/*/*.log")):
            lines = map(_written, file.read_text(errors="replace").splitlines())
            found[file.parent.name] = found.get(file.parent.name, "") + "".join(lines)
        return found

    def journal(self) -> str:
        """Return the last 60 journal lines of the kubelet."""
        return self.node.journal(UNIT, lines=60)

    def report(self) -> list[tuple[str, str]]:
        """Return titles and texts for the report of a failed test: logs of cluster, node and kubelet."""
        kubelet = (f"{self.node.name}: journal of the kubelet", self.journal())
        return [*self.cluster.report(), *self.node.report(), kubelet]

    def _open_ways(self) -> None:
        """Start the relays by which the node and the API server reach each other."""
        pid, own = str(self.node.leader.pid), self.cluster.url.removeprefix("https://")
        self._known.write_text(f"{pid} {self.node.name}")
        self.cluster.relay("egress", "egress", flags.EGRESS_SOCKET, flags.NODES)
        self.cluster.relay(self._way, "service", pid, own.rpartition(":")[2], own, f"{flags.SERVICE}:443")

    def _import_images(self) -> None:
        done = self.node.run(["containerd", "config", "dump"])
        settings: dict[str, Any] = tomllib.loads(done.stdout)["plugins"]
        self.import_image(images.busybox(self.node.root, pause=_pause(settings)))

    def _start_kubelet(self) -> None:
        node = self.node
        node.mount(programs.program("kubelet"), KUBELET, read_only=True)
        ranges = [[{"subnet": self._pods}]]
        ipam = {"type": "host-local", "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}]}
        network = {"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "ptp", "ipam": ipam}]}
        for place, content in (
            (f"{_HOME}/kubelet.json", json.dumps(_CONFIG)),
            ("/etc/cni/net.d/10-pods.conflist", json.dumps(network)),
            ("/usr/local/sbin/runc", images.RUNC.read_text()),
        ):
            path = node.root / place.lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        (node.root / "usr/local/sbin/runc").chmod(0o755)
        options = [
            f"--config={_HOME}/kubelet.json",
            f"--kubeconfig={self.kubeconfig(f'system:node:{node.name}')}",
            f"--hostname-override={node.name}",
            f"--node-ip={self.address}",
        ]
        unit = [f"--unit={UNIT}", "--property=Delegate=yes", "--property=Restart=always"]
        node.run(["systemd-run", "--quiet", *unit, KUBELET, *options])

    def _wait(self, timeout: float) -> None:
        try:
            wait_until(self._ready, f"the Node {self.node.name} is Ready", timeout=timeout, pause=_PAUSE)
        except NodeError as error:
            raise NodeError(f"{error}\nthe kubelet logged:\n{self.journal()}") from error

    def _ready(self) -> bool:
        self.cluster.check_programs(before=f"the Node {self.node.name} is Ready")
        if (restarts := self.node.unit(UNIT).restarts) > _RESTARTS:
            raise NodeError(
                f"the kubelet of {self.node.name} ended {restarts} times before its Node was Ready"
            )
        with contextlib.suppress(OSError, HTTPException):  # a busy machine may be too slow for one request
            place = f"/api/v1/nodes/{self.node.name}"
            status, body = self.cluster.get(place, token=self.cluster.token(ADMIN))
            conditions = json.loads(body)["status"].get("conditions", ()) if status == 200 else ()
            return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
        return False


def _written(line: str) -> str:
    """Return the container's text of a log line: time, stream, F for a full line or P for a part, text."""
    _, _, kind, text = line.split(" ", 3)
    return f"{text}\n" if kind == "F" else text


def _pause(plugins: Mapping[str, Any]) -> str:
    """Return the pause image in the settings of containerd 2.x or 1.x."""
    if new := plugins.get("io.containerd.cri.v1.images"):
        return str(new["pinned_images"]["sandbox"])
    return str(plugins["io.containerd.grpc.v1.cri"]["sandbox_image"])
