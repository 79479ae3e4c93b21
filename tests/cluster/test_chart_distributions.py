"""The Jobs that the chart renders for each distribution, on a node that imitates the distribution.

There is neither a kubelet nor an image: the command of each container runs with the container's mounts,
variables, settings and capabilities, in the Job's order. A mount that the kubelet would refuse fails a test.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from cluster.chart_objects import JOB, Document, dispatcher_configs, documents, job_for, one
from cluster.control_plane import Cluster
from node import crio
from node.commands import CommandResult
from node.conftest import BootNode
from node.cri import status
from node.debian_node import Node
from node.distributions import Layout, k0s, lay_out, microk8s, rancher
from node.installation import HANDLERS, UNIT, VALUES, WATCHED, fake_kvm, make_payload, outcomes
from node.mounts import HostPath
from node.snapshot import Snapshot, changes

FEW: Mapping[str, Any] = {"snapshotter": {"setup": []}, "shims": {"disableAll": True, **VALUES["shims"]}}
INSTALL = ("host-check", "artifacts", "cri")
REVERT = ("revert-cri", "remove-artifacts")


@dataclass(frozen=True)
class Host:
    """A node and its container runtime."""

    node: Node
    unit: str
    socket: str
    watched: tuple[str, ...]
    runtime: str = "containerd"
    left: tuple[str, ...] = ()
    """Changes that stay after the revert: directories that the kubelet creates for the pods."""

    def handlers(self) -> tuple[str, ...]:
        """Return the served Kata handlers; fails if the runtime does not serve the CRI."""
        answer = status(self.node.root / self.socket.lstrip("/"))
        assert answer.serving, f"{answer.error}\n{self.node.journal(self.unit, lines=40)}"
        return tuple(name for name in answer.handlers if name.startswith("kata-"))

    def snapshot(self) -> Snapshot:
        """Return a snapshot of the watched directories, which contain the runtime's configuration."""
        return self.node.snapshot(*self.watched)


def debian(suite: str, before: str = "") -> Callable[[BootNode], Host]:
    """Boot a node with the suite's containerd, and restart it after the command ``before``."""

    def boot(boot_node: BootNode) -> Host:
        node = boot_node(suite)
        if before:
            node.run(["sh", "-ec", f"{before}; systemctl restart {UNIT}"])
            node.wait_for_containerd()
        return Host(node, UNIT, "/run/containerd/containerd.sock", WATCHED)

    return boot


def unconfigured(boot: BootNode) -> Host:
    """Boot a node with a containerd without configuration files."""
    return replace(debian("forky", "rm -r /etc/containerd")(boot), left=("+ /etc/containerd",))


def with_crio(boot: BootNode) -> Host:
    return Host(crio.boot(boot), crio.UNIT, crio.SOCKET, WATCHED, "cri-o")


def stood_in(layout: Layout) -> Callable[[BootNode], Host]:
    """Return a function that boots a node and turns it into a distribution."""

    def boot(boot_node: BootNode) -> Host:
        node = lay_out(boot_node(layout.suite), layout).node
        return Host(node, layout.unit, layout.socket, (*WATCHED, *layout.directories))

    return boot


CLOSED = "chmod -R a= /etc/containerd /opt"
"""A command that closes the written directories to all users, so that root needs a capability."""
LAYOUTS = (
    rancher("k3s", "k3s.service"),
    rancher("k3s", "k3s-agent.service", schema=2, imports=False, suite="trixie"),
    rancher("rke2", "rke2-server.service"),
    rancher("rke2", "rke2-agent.service", imports=False),
    k0s("k0sworker.service"),
    k0s("k0scontroller.service", schema=2, suite="trixie"),
    microk8s(),
    microk8s(suite="trixie"),
)
FIRST_LAYOUTS = {layout.name: layout for layout in reversed(LAYOUTS)}
HOSTS = [
    *(pytest.param("k8s", debian(suite), id=suite) for suite in ("bookworm", "trixie", "forky")),
    pytest.param("k8s", debian("trixie", CLOSED), id="trixie-where-files-are-closed-to-root"),
    pytest.param("k8s", unconfigured, id="forky-without-configuration"),
    pytest.param("k8s", with_crio, id="crio"),
    *(
        pytest.param(
            *(layout.name, stood_in(layout)),
            id=layout.id(),
            # tests/node has the stages on each of these. One of each distribution goes through the Jobs here.
            marks=() if layout in FIRST_LAYOUTS.values() else pytest.mark.extended,
        )
        for layout in LAYOUTS
    ),
]


@pytest.fixture
def boot_node(needs_nodes: None) -> Iterator[BootNode]:
    with ExitStack() as stack:

        def boot(suite: str = "forky", **options: Any) -> Node:
            return fake_kvm(stack.enter_context(Node.boot(suite, **options)))

        yield boot


@pytest.fixture(scope="module")
def payload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_payload(tmp_path_factory.mktemp("payload"))


class NodeJob:
    """A node Job of the dispatcher, whose containers run as commands on the node."""

    def __init__(self, host: Host, release: list[Document], file: str, payload: Path, reports: Path) -> None:
        manifest = json.dumps(job_for(dispatcher_configs(release)[file], host.runtime))
        machine = (host.node.root / "etc/machine-id").read_text().strip()
        pod = json.loads(manifest.replace("@MACHINE_ID@", machine))["spec"]["template"]["spec"]
        self.containers = {each["name"]: each for each in (*pod["initContainers"], *pod["containers"])}
        self._volumes = {each["name"]: each for each in pod["volumes"]}
        self._config = one(release, "ConfigMap", "-node")["data"]["values.yaml"]
        self._node, self._payload, self._reports = host.node, payload, reports

    def run(self, name: str) -> CommandResult:
        """Run the command of the container ``stage`` on the node; its result is printed as JSON."""
        container = self.containers[name]
        env = {each["name"]: each.get("value", self._node.name) for each in container["env"]}
        root, context = env.pop("KATA_NODE_HOST_ROOT"), container["securityContext"]
        assert (context["privileged"], context["capabilities"]["drop"]) == (False, ["ALL"])
        places = {"values": Path(env["KATA_NODE_CONFIG"]).parent, "reports": Path(env["KATA_NODE_REPORTS"])}
        if name in ("host-check", "artifacts"):
            places["payload"] = Path("/opt/kata-payload")
        mounts = []
        for mount in container["volumeMounts"]:
            host_path = self._volumes[mount["name"]].get("hostPath")
            if host_path is None:
                assert mount["mountPath"] == str(places.pop(mount["name"]))
                continue
            assert mount["mountPath"] == root + host_path["path"]
            mounts.append(HostPath(**host_path, read_only=mount.get("readOnly", False)))
        assert not places
        return self._node.kata_node_outside(
            *(*container["args"], "--output", "json"),
            config=self._config,
            payload=self._payload,
            env={**env, "KATA_NODE_REPORTS": str(self._reports)},
            mounts=mounts,
            capabilities=context["capabilities"].get("add", []),
        )


def run_all(job: NodeJob, *stages: str) -> dict[str, str]:
    """Run these containers in the Job's order, and return stage -> outcome."""
    found: dict[str, str] = {}
    assert tuple(name for name in job.containers if name in (*INSTALL, *REVERT)) == stages
    for stage in stages:
        done = job.run(stage)
        assert done.returncode == 0, f"{stage}\n{done.stdout}\n{done.stderr}"
        found |= outcomes(done)
    return found


@pytest.mark.parametrize(("distribution", "boot"), HOSTS)
def test_the_jobs_install_kata_and_an_uninstall_leaves_nothing(
    cluster: Cluster,
    boot_node: BootNode,
    payload: Path,
    tmp_path: Path,
    distribution: str,
    boot: Callable[[BootNode], Host],
) -> None:
    release = documents(cluster, JOB, FEW, {"k8sDistribution": distribution})
    host = boot(boot_node)
    before = host.snapshot()

    run_all(NodeJob(host, release, "install.yaml", payload, tmp_path), *INSTALL)
    assert host.handlers() == HANDLERS

    installed, invocation = host.snapshot(), host.node.unit(host.unit).invocation
    again = run_all(NodeJob(host, release, "install.yaml", payload, tmp_path), *INSTALL)
    assert again == {"host-check": "done", "artifacts": "skipped", "cri": "skipped"}
    assert changes(installed, host.snapshot(), times=True) == []
    assert host.node.unit(host.unit).invocation == invocation

    run_all(NodeJob(host, release, "cleanup.yaml", payload, tmp_path), *REVERT)
    assert host.handlers() == ()
    assert tuple(changes(before, host.snapshot())) == host.left


def test_below_a_prefix_an_uninstall_leaves_nothing_either(
    cluster: Cluster, boot_node: BootNode, payload: Path, tmp_path: Path
) -> None:
    values = {"env": {"installationPrefix": "/srv/kata", "multiInstallSuffix": "blue"}}
    release = documents(cluster, JOB, FEW, values)
    host = debian("forky")(boot_node)
    host.node.run(["mkdir", "/srv/kata"])
    before = host.node.snapshot(*WATCHED, "/srv")
    run_all(NodeJob(host, release, "install.yaml", payload, tmp_path), *INSTALL)
    assert any(path.startswith("/srv/kata/opt/kata-blue/bin/") for path in host.node.snapshot("/srv"))
    run_all(NodeJob(host, release, "cleanup.yaml", payload, tmp_path), *REVERT)
    assert changes(before, host.node.snapshot(*WATCHED, "/srv")) == []


def test_a_node_of_another_distribution_has_another_error_than_a_stopped_runtime(
    cluster: Cluster, boot_node: BootNode, payload: Path, tmp_path: Path
) -> None:
    host = stood_in(LAYOUTS[0])(boot_node)
    before = host.snapshot()
    done = NodeJob(host, documents(cluster, JOB, FEW), "install.yaml", payload, tmp_path).run("host-check")
    # claim ends the install with this error, because the node does not serve.
    assert done.returncode == 0, done.stdout + done.stderr
    error = json.loads(done.stdout)["error"]
    assert error["exit_code"] == 3
    assert "the settings are for k8s, but this node runs k3s.service" in error["what"]
    assert error["hint"] == "set k8sDistribution: k3s"
    # The kubelet creates these directories before the container can report the error.
    assert changes(before, host.snapshot()) == ["+ /etc/containerd", "+ /opt/kata"]


def test_with_the_default_values_a_payload_without_nydus_leaves_out_the_shims_that_need_it(
    cluster: Cluster, boot_node: BootNode, payload: Path, tmp_path: Path
) -> None:
    host = debian("forky")(boot_node)
    before = host.snapshot()
    done = NodeJob(host, documents(cluster, JOB), "install.yaml", payload, tmp_path).run("host-check")
    assert done.returncode == 0, done.stdout + done.stderr
    [stage] = json.loads(done.stdout)["stages"]
    [left_out] = [each for each in stage["checks"] if each["name"] == "left-out"]
    assert left_out["status"] == "warn"
    assert "qemu-coco-dev needs another snapshotter: the payload has no nydus" in left_out["reason"]
    assert changes(before, host.snapshot()) == ["+ /opt/kata"]  # the kubelet's


def test_with_the_default_values_crio_ignores_nydus(
    cluster: Cluster, boot_node: BootNode, payload: Path, tmp_path: Path
) -> None:
    host = with_crio(boot_node)
    run_all(NodeJob(host, documents(cluster, JOB), "install.yaml", payload, tmp_path), *INSTALL)
    assert {*HANDLERS, "kata-qemu-coco-dev"} <= set(host.handlers())
    assert "nydus" not in "".join(host.node.snapshot("/etc/systemd"))
