"""Releases of the chart on real nodes, installed as in CI: by scripts/helm-install, with real images.

The first node has the label of a control-plane node, like the only node of a CI cluster.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import programs as parts
from cluster.chart_objects import merge
from cluster.control_plane import Cluster
from cluster.joined_node import JoinedNode
from cluster.test_stages import WATCHED, labels, payload_that_runs
from node import images
from node.cache import CHECKOUT
from node.commands import CommandResult, checked
from node.debian_node import Node
from node.images import DISPATCHER, KUBECTL, PACKAGES, WITH_PAYLOAD
from node.installation import UNIT, VALUES, fake_kvm, kata_handlers
from node.snapshot import Snapshot

NAMESPACE = "kata-system"
INSTALLATION_LABEL_PREFIX = "kata-deploy.katacontainers.io/"
CONTROL_PLANE = "node-role.kubernetes.io/control-plane"
COMMON: Mapping[str, Any] = {
    "imagePullPolicy": "Never",
    "snapshotter": {"setup": []},
    "shims": {"disableAll": True, **VALUES["shims"]},
    # No test starts a VM, so there is no overhead.
    "runtimeClasses": {"overheadEnabled": False},
}
# The nodes exist before the release, so there is nothing to wait for.
JOBS: Mapping[str, Any] = merge(
    COMMON, {"deploymentMode": "job", "job": {"waitForNodesSeconds": 0, "backoffLimit": 0}}
)
WITH_ALL: Mapping[str, str] = {"HELM_IMAGE_REFERENCE": WITH_PAYLOAD}
"""One image of kata-node and the payload."""

LIMIT = "600"
"""Timeout of helm, and of the wait after it, in seconds."""


@dataclass(frozen=True)
class PreparedNode:
    """A joined node with all images imported."""

    joined: JoinedNode

    @property
    def node(self) -> Node:
        return self.joined.node

    def snapshot(self) -> Snapshot:
        return self.node.snapshot(*WATCHED)

    @property
    def handlers(self) -> tuple[str, ...]:
        return kata_handlers(self.node)

    @property
    def invocation(self) -> str:
        """The InvocationID of containerd, which changes with each start."""
        return self.node.unit(UNIT).invocation

    @property
    def labels(self) -> dict[str, str]:
        return labels(self.joined)

    @property
    def is_clean(self) -> bool:
        """Whether the node serves no Kata handler and has no Kata label."""
        return self.node.cri_handlers() == ("runc",) and self.labels == {}


@dataclass(frozen=True)
class Images:
    """The image archives that the tests import; the payload's shims start containers instead of VMs."""

    archives: tuple[Path, ...]

    @classmethod
    def made(cls, node: Node, directory: Path) -> Images:
        payload = payload_that_runs(node, directory / "payload")
        return cls(
            (
                images.with_payload(payload, directory / "with-payload.tar"),
                images.dispatcher(),
                images.kubectl(parts.program("kubectl"), directory / "kubectl.tar"),
            )
        )

    def on(self, joined: JoinedNode) -> PreparedNode:
        fake_kvm(joined.node)
        for archive in self.archives:
            joined.import_image(archive)
        return PreparedNode(joined)


@dataclass(frozen=True)
class Releases:
    """Install, roll back and uninstall releases as the administrator; ``directory`` is for values files."""

    cluster: Cluster
    directory: Path

    def start(
        self,
        values: Mapping[str, Any],
        *options: str,
        release: str = "kata-deploy",
        environment: Mapping[str, str] = WITH_ALL,
    ) -> subprocess.Popen[str]:
        """Start scripts/helm-install without waiting; ``environment`` has the variables of the images."""
        file = self.directory / f"{release}.values.yaml"
        file.write_text(json.dumps(values))
        command = [sys.executable, str(CHECKOUT / "scripts/helm-install"), str(file)]
        programs = [str(parts.program(name).parent) for name in ("helm", "kubectl")]
        inherited = self.cluster.environment()
        return subprocess.Popen(
            [*command, f"--release={release}", f"--namespace={NAMESPACE}", "--interval=0.2", *options],
            env={
                **inherited,
                "PATH": ":".join([*programs, inherited.get("PATH", os.defpath)]),
                **environment,
                "HELM_JOB_DISPATCHER_IMAGE_REFERENCE": DISPATCHER,
                "HELM_KUBECTL_IMAGE_REFERENCE": KUBECTL,
                "KATA_DEPLOY_WAIT_TIMEOUT": LIMIT,
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def install(
        self,
        values: Mapping[str, Any],
        *options: str,
        release: str = "kata-deploy",
        environment: Mapping[str, str] = WITH_ALL,
    ) -> CommandResult:
        """Run scripts/helm-install and wait for its end."""
        return ended(self.start(values, *options, release=release, environment=environment))

    def install_checked(
        self,
        values: Mapping[str, Any],
        *options: str,
        release: str = "kata-deploy",
        environment: Mapping[str, str] = WITH_ALL,
    ) -> CommandResult:
        """Run scripts/helm-install, and fail the test with its output if it fails."""
        done = self.install(values, *options, release=release, environment=environment)
        return checked(done, check=True)

    def uninstall(self, release: str = "kata-deploy", *options: str, check: bool = True) -> CommandResult:
        return self._helm("uninstall", release, *options, check=check)

    def test(self, release: str = "kata-deploy", *, check: bool = True) -> CommandResult:
        """Run `helm test`; the result has the table of the nodes."""
        return self._helm("test", release, "--logs", check=check)

    def rollback(self, revision: str = "0", release: str = "kata-deploy") -> CommandResult:
        """Roll the release back, by default to the previous revision."""
        return self._helm("rollback", release, revision)

    def _helm(self, *arguments: str, check: bool = True) -> CommandResult:
        where = (f"--namespace={NAMESPACE}", f"--timeout={LIMIT}s")
        return self.cluster.helm(*arguments, *where, check=check)


@dataclass(frozen=True)
class CiCluster:
    """The node of a CI cluster, its releases, and the images for another node."""

    prepared_node: PreparedNode
    releases: Releases
    images: Images

    @property
    def joined(self) -> JoinedNode:
        return self.prepared_node.joined

    @contextmanager
    def join_another(self, containerd: str = "") -> Iterator[PreparedNode]:
        """Boot a second node and join it to the cluster; ``containerd`` is its release, as in a boot."""
        name = f"late-{os.getpid()}"
        with (
            Node.boot(name=name, packages=PACKAGES, containerd=containerd) as node,
            JoinedNode(self.joined.cluster, node, number=2) as joined,
        ):
            yield self.images.on(joined)


def ended(process: subprocess.Popen[str]) -> CommandResult:
    """Wait for the end of scripts/helm-install, and return its result."""
    stdout, stderr = process.communicate()
    return CommandResult(["helm-install"], process.returncode, stdout, stderr)


def evict(cluster: Cluster, namespace: str, pod: str) -> None:
    """Evict a pod through the Eviction API, as `kubectl drain` does."""
    metadata = {"name": pod, "namespace": namespace}
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": metadata}
    path = f"/api/v1/namespaces/{namespace}/pods/{pod}/eviction"
    cluster.kubectl("create", f"--raw={path}", "--filename=-", text=json.dumps(eviction))
