"""A node that looks like one of k3s, rke2, k0s or microk8s, in everything that concerns containerd.

Unit names, paths, the socket and the start of containerd are those of the distribution; its program is
:mod:`node.distribution_launchers`. The node's plain ``containerd.service`` is masked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from node.cache import NodeError
from node.commands import wait_until
from node.cri import CriStatus
from node.cri import status as cri_status
from node.debian_node import Node
from node.distribution_launchers import SNAP_COMMON, SNAP_DATA, base_template, rancher_dir, rendered
from node.snapshot import Snapshot

STARTERS = Path(__file__).with_name("distribution_launchers.py")

UNIT = """\
[Service]
{environment}
ExecStart={start}
Type={kind}
KillMode=process
Delegate=yes
Restart=always
RestartSec=1
TimeoutStartSec=0

[Install]
WantedBy=multi-user.target
"""

MICROK8S_ARGS = f"{SNAP_DATA}/args"
MICROK8S_CURRENT = f"{Path(SNAP_DATA).with_name('current')}/args"
"""The same directory by the link ``current``, which stays after an upgrade of the snap."""
MICROK8S_TEMPLATE = """\
# The schema of this file.
version = 2
oom_score = 0

[grpc]
  uid = 0
  gid = 0

[plugins."io.containerd.grpc.v1.cri"]
  enable_selinux = false

  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "${SNAPSHOTTER}"
    default_runtime_name = "${RUNTIME}"

    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "${RUNTIME_TYPE}"

  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "${SNAP_DATA}/opt/cni/bin"
    conf_dir = "${SNAP_DATA}/args/cni-network"
"""


@dataclass(frozen=True)
class Layout:
    """The unit, paths and files of a distribution, which runs the containerd of the Debian ``suite``."""

    name: str
    suite: str
    unit: str
    start: str
    """The unit's command line."""
    socket: str
    data: str
    """containerd's root directory."""
    directories: tuple[str, ...]
    """Paths outside /etc that hold containerd's configuration."""
    environment: Mapping[str, str]
    files: Mapping[str, str] = field(default_factory=dict)
    notifies: bool = False
    """Whether the unit has ``Type=notify``."""
    restarts: bool = True
    """Whether a configuration change needs a restart of the unit."""

    @property
    def imports(self) -> bool:
        """Whether the base template of k3s or rke2 imports the drop-in directory."""
        return self.environment.get("IMPORTS") == "yes"

    @property
    def schema(self) -> int:
        """The schema of the configuration that the distribution renders."""
        return int(self.environment.get("SCHEMA", "2"))

    def id(self) -> str:
        """Return a short, unique name for test ids."""
        shown = {"SCHEMA": "schema-{}", "IMPORTS": "imports-{}", "WATCH": "watch-{}"}
        details = [shown[key].format(value) for key, value in self.environment.items()]
        return "-".join((self.unit.removesuffix(".service"), self.suite, *details))


def rancher(name: str, unit: str, *, schema: int = 3, imports: bool = True, suite: str = "forky") -> Layout:
    """Return the layout of k3s or rke2."""
    return Layout(
        name=name,
        suite=suite,
        unit=unit,
        start=f"/usr/local/bin/{name} {'agent' if 'agent' in unit else 'server'}",
        socket="/run/k3s/containerd/containerd.sock",
        data=f"/var/lib/rancher/{name}/agent/containerd",
        directories=(str(rancher_dir(name)),),
        environment={"SCHEMA": str(schema), "IMPORTS": "yes" if imports else "no"},
        notifies=True,
    )


def k0s(unit: str, *, schema: int = 3, watch: bool = True, suite: str = "forky") -> Layout:
    """Return the layout of k0s; without ``watch`` k0s does not notice changed drop-ins."""
    return Layout(
        name="k0s",
        suite=suite,
        unit=unit,
        start=f"/usr/local/bin/k0s {'worker' if 'worker' in unit else 'controller --enable-worker'}",
        socket="/run/k0s/containerd.sock",
        data="/var/lib/k0s/containerd",
        directories=("/run/k0s/containerd-cri.toml",),
        environment={"SCHEMA": str(schema), "WATCH": "yes" if watch else "no"},
        restarts=not watch,
    )


def microk8s(*, suite: str = "forky", template: str = MICROK8S_TEMPLATE) -> Layout:
    """Return the layout of microk8s; its template has schema 2 with every containerd."""
    return Layout(
        name="microk8s",
        suite=suite,
        unit="snap.microk8s.daemon-containerd.service",
        start="/usr/local/bin/microk8s daemon-containerd",
        socket=f"{SNAP_COMMON}/run/containerd.sock",
        data=f"{SNAP_COMMON}/var/lib/containerd",
        directories=(MICROK8S_ARGS,),
        environment={},
        files={f"{MICROK8S_ARGS}/containerd-template.toml": template},
    )


class Distribution:
    """A node that runs a distribution."""

    def __init__(self, node: Node, layout: Layout) -> None:
        self.node = node
        self.layout = layout

    def path(self, path: str) -> Path:
        """Return the path on the machine of a file of the node."""
        return self.node.root / path.lstrip("/")

    def cri(self) -> CriStatus:
        """Return the CRI status from the distribution's socket."""
        return cri_status(self.path(self.layout.socket))

    def handlers(self) -> tuple[str, ...]:
        """Return the handlers it serves, sorted; raises :class:`NodeError` if the CRI fails."""
        answer = self.cri()
        if not answer.serving:
            raise NodeError(f"{self.layout.unit} does not serve the CRI: {answer.error}")
        return answer.handlers

    def kata_handlers(self) -> tuple[str, ...]:
        """Return the Kata handlers it serves, sorted."""
        return tuple(name for name in self.handlers() if name.startswith("kata-"))

    def snapshot(self) -> Snapshot:
        """Return a snapshot of the install dirs and of all files that a configuration change can touch."""
        return self.node.snapshot("/etc", "/opt", *self.layout.directories)

    def values(self, **more: Any) -> dict[str, Any]:
        """Return values for an install on this node."""
        shims = {"qemu": {"enabled": True}, "clh": {"enabled": True}}
        return {"k8sDistribution": self.layout.name, "shims": shims, **more}

    def restart(self, **environment: str) -> None:
        """Restart the distribution; ``environment`` changes its release, as an upgrade does."""
        self._write_unit({**self.layout.environment, **environment})
        self.node.run(["systemctl", "daemon-reload"])
        self.node.run(["systemctl", "restart", self.layout.unit])
        self.wait()

    def wait(self) -> None:
        """Wait until it serves the CRI; raises :class:`NodeError` with its journal if it does not."""
        try:
            wait_until(lambda: self.cri().serving, f"{self.layout.unit} serves the CRI")
        except NodeError as error:
            raise NodeError(f"{error}\n{self.journal()}") from error

    def journal(self) -> str:
        """Return the journal of its unit without containerd's info lines."""
        lines = self.node.journal(self.layout.unit).splitlines(keepends=True)
        return "".join(line for line in lines if " level=info " not in line)

    def _write_unit(self, environment: Mapping[str, str]) -> None:
        text = UNIT.format(
            start=self.layout.start,
            environment="\n".join(f"Environment={key}={value}" for key, value in environment.items()),
            kind="notify" if self.layout.notifies else "simple",
        )
        self.path(f"/etc/systemd/system/{self.layout.unit}").write_text(text)


def lay_out(
    node: Node, layout: Layout, files: Mapping[str, str] | None = None, *, plain: bool = False
) -> Distribution:
    """Turn a fresh node into the distribution, and wait until it serves the CRI.

    ``files`` are the administrator's files: path -> text. ``plain`` leaves the node's own containerd running
    beside the distribution, as on a node with Docker.
    """
    distribution = Distribution(node, layout)
    if not plain:
        node.run(["systemctl", "disable", "--now", "containerd.service"])
        node.run(["systemctl", "mask", "containerd.service"])
        node.run(["rm", "-rf", "/etc/containerd", "/run/containerd"])
    # The node's root is an overlay, which cannot hold containerd's overlay snapshots.
    own = f"/var/lib/containerd/{layout.name}"
    node.run(["mkdir", "-p", own, layout.data])
    node.run(["mount", "--bind", own, layout.data])
    program = distribution.path(layout.start.split()[0])
    program.write_bytes(STARTERS.read_bytes())
    program.chmod(0o755)
    for path, text in {**layout.files, **(files or {})}.items():
        distribution.path(path).parent.mkdir(parents=True, exist_ok=True)
        distribution.path(path).write_text(text)
    for directory in layout.directories:
        distribution.path(directory).parent.mkdir(parents=True, exist_ok=True)
    if layout.name in ("k3s", "rke2"):
        distribution.path(str(rancher_dir(layout.name))).mkdir(parents=True, exist_ok=True)
    if layout.name == "microk8s":
        distribution.path(SNAP_DATA).with_name("current").symlink_to(Path(SNAP_DATA).name)
    distribution.restart()
    node.run(["systemctl", "enable", layout.unit])
    return distribution


def rendered_base(layout: Layout) -> str:
    """Return the configuration that k3s or rke2 renders without a template of the administrator."""
    base = base_template(layout.name, layout.schema, imports=layout.imports)
    return rendered(layout.name, base, base)
