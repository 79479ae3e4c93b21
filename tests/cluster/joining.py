"""A node of tests/node joins a cluster: a real kubelet beside its containerd registers it.

No pod runs there: there is no scheduler, no network for pods and no registry. What is real is what
the kubelet makes of its container runtime, and how the Node gets to say it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from node.boot import program_path
from node.cache import NodeError
from node.machine import Node
from node.running import CommandFailed

from cluster import parts
from cluster.control_plane import ADMIN, Cluster

KUBELET = "/usr/local/bin/kubelet"
UNIT = "kubelet.service"

_ADDRESS = "192.0.2.1"  # for documentation; a kubelet takes no loopback address for its node's
_HOME = "/etc/kubernetes"

_CONFIG = {
    "apiVersion": "kubelet.config.k8s.io/v1beta1",
    "kind": "KubeletConfiguration",
    "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
    "authentication": {"webhook": {"enabled": False}},
    "authorization": {"mode": "AlwaysAllow"},
    "resolvConf": "",
    "failSwapOn": False,
    # A machine with a full disk runs the tests just as well.
    "evictionHard": {"memory.available": "1Mi"},
    "nodeStatusUpdateFrequency": "1s",
}

_PREPARE = f"""\
import fcntl, os, pathlib, socket, struct, subprocess

# Its own address, as `ip address add` does, which the node does not have.
request = struct.pack("16sHH4s8x", b"lo:1", socket.AF_INET, 0, socket.inet_aton("{_ADDRESS}"))
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
    fcntl.ioctl(any_socket, 0x8916, request)  # SIOCSIFADDR

# A kubelet sets these for the whole machine unless they are so already; here it finds them so.
found = pathlib.Path("/run/kubelet-finds")
found.mkdir()
for name, value in {{
    "vm/overcommit_memory": 1, "vm/panic_on_oom": 0, "kernel/panic": 10, "kernel/panic_on_oops": 1,
    "kernel/keys/root_maxkeys": 1000000, "kernel/keys/root_maxbytes": 25000000,
}}.items():
    file = found / name.replace("/", ".")
    file.write_text(f"{{value}}\\n")
    subprocess.run(["mount", "--bind", file, f"/proc/sys/{{name}}"], check=True)

# It listens there for the kernel having run out of memory.
os.path.lexists("/dev/kmsg") or os.symlink("/dev/null", "/dev/kmsg")
"""


def kubelets_user(node: str) -> Mapping[str, Sequence[str]]:
    """The user that the kubelet of ``node`` is, for :meth:`Cluster.start`."""
    return {f"system:node:{node}": ("system:nodes",)}


class Joined:
    """A node that is part of a cluster until the ``with`` statement ends; the kubelet ends with the node.

    The cluster has to have the :func:`kubelets_user` of the node. In the node the API server is at the
    same address as on the machine. Raises :class:`NodeError`, with the kubelet's journal, when the Node
    is not Ready within ``timeout`` seconds.
    """

    def __init__(self, cluster: Cluster, node: Node, *, timeout: int = 60) -> None:
        self.cluster = cluster
        self.node = node
        self._relay = self._start_relay()
        try:
            self._start_kubelet()
            self._wait(timeout)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Joined:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cut the node off from the API server."""
        self._relay.kill()
        self._relay.communicate()

    def kubeconfig(self, who: str = ADMIN) -> str:
        """Put a kubeconfig of ``who`` into the node and return its path there."""
        path = f"{_HOME}/{self.cluster.kubeconfig_of(who).name}"
        (self.node.root / path.lstrip("/")).write_text(self.cluster.kubeconfig_of(who).read_text())
        return path

    def journal(self) -> str:
        """What the kubelet logged last."""
        return self.node.journal(UNIT, lines=60)

    def report(self) -> list[tuple[str, str]]:
        """Title and text of what one wants to see when a test of this node failed."""
        kubelet = (f"{self.node.name}: journal of the kubelet", self.journal())
        return [*self.cluster.report(), *self.node.report(), kubelet]

    def _start_relay(self) -> subprocess.Popen[str]:
        relay = [sys.executable, "-P", str(Path(__file__).with_name("relay.py"))]
        port = self.cluster.url.rpartition(":")[2]
        started = subprocess.Popen(
            [program_path("setpriv"), "--pdeathsig=KILL", *relay, str(self.node.leader.pid), port],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        assert started.stdout is not None
        if (said := started.stdout.readline()) != "listening\n":
            started.kill()
            raise NodeError(
                f"the way to the API server could not be opened: {said}{started.communicate()[0]}"
            )
        return started

    def _start_kubelet(self) -> None:
        node = self.node
        node.mount(parts.program("kubelet"), KUBELET, read_only=True)
        node.run(["python3", "-"], text=_PREPARE)
        network = {"cniVersion": "1.0.0", "name": "none", "plugins": [{"type": "none"}]}
        for place, content in (
            (f"{_HOME}/kubelet.json", _CONFIG),
            # A node without any is not Ready.
            ("/etc/cni/net.d/10-none.conflist", network),
        ):
            path = node.root / place.lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content))
        flags = [
            f"--config={_HOME}/kubelet.json",
            f"--kubeconfig={self.kubeconfig(f'system:node:{node.name}')}",
        ]
        flags += [f"--hostname-override={node.name}", f"--node-ip={_ADDRESS}"]
        unit = [f"--unit={UNIT}", "--property=Delegate=yes", "--property=Restart=always"]
        node.run(["systemd-run", "--quiet", *unit, KUBELET, *flags])

    def _wait(self, timeout: int) -> None:
        name, limit = f"node/{self.node.name}", f"--timeout={timeout}s"
        try:
            self.cluster.kubectl("wait", name, "--for=create", limit)
            self.cluster.kubectl("wait", name, "--for=condition=Ready", limit)
        except CommandFailed as error:
            raise NodeError(f"{error}\nthe kubelet logged:\n{self.journal()}") from error
