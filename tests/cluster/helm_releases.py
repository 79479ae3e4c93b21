"""Releases of the chart on real nodes, installed as a CI does: by scripts/helm-install, with real images.

The first node is the control plane's, as far as its labels tell, for that is what a CI has.
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

from node import images
from node.cache import CHECKOUT
from node.commands import CommandResult, checked
from node.debian_node import Node
from node.images import DISPATCHER, KUBECTL, PACKAGES, WITH_PAYLOAD
from node.installation import UNIT, VALUES, fake_kvm, kata_handlers
from node.snapshot import Snapshot

from cluster import programs as parts
from cluster.chart_objects import merge
from cluster.control_plane import Cluster
from cluster.joined_node import JoinedNode
from cluster.test_stages import WATCHED, labels, payload_that_runs

NAMESPACE = "kata-system"
INSTALLATION_LABEL_PREFIX = "kata-deploy.katacontainers.io/"
CONTROL_PLANE = "node-role.kubernetes.io/control-plane"
COMMON: Mapping[str, Any] = {
    "imagePullPolicy": "Never",
    "snapshotter": {"setup": []},
    "shims": {"disableAll": True, **VALUES["shims"]},
    # There is no VM to book anything for.
    "runtimeClasses": {"overheadEnabled": False},
}
# The nodes are there before helm is.
JOBS: Mapping[str, Any] = merge(
    COMMON, {"deploymentMode": "job", "job": {"waitForNodesSeconds": 0, "backoffLimit": 0}}
)
LIMIT = "600"
"""Seconds that helm, and then the wait, may take."""


@dataclass(frozen=True)
class PreparedNode:
    """A node that has the images a registry would have."""

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
        """Another one after each start of containerd."""
        return self.node.unit(UNIT).invocation

    @property
    def labels(self) -> dict[str, str]:
        return labels(self.joined)

    @property
    def is_clean(self) -> bool:
        """Whether nothing of Kata is served or said of the node."""
        return self.node.cri_handlers() == ("runc",) and self.labels == {}


@dataclass(frozen=True)
class Images:
    """What the nodes of a test pull from nowhere; with a payload whose VMs are containers."""

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
    """The administrator of a cluster, who has a directory for values."""

    cluster: Cluster
    directory: Path

    def start(
        self, values: Mapping[str, Any], *options: str, release: str = "kata-deploy"
    ) -> subprocess.Popen[str]:
        """Start the helper, and wait for nothing."""
        file = self.directory / f"{release}.values.yaml"
        file.write_text(json.dumps(values))
        command = [sys.executable, str(CHECKOUT / "scripts/helm-install"), str(file)]
        programs = [str(parts.program(name).parent) for name in ("helm", "kubectl")]
        environment = self.cluster.environment()
        return subprocess.Popen(
            [*command, f"--release={release}", f"--namespace={NAMESPACE}", "--interval=0.2", *options],
            env={
                **environment,
                "PATH": ":".join([*programs, environment.get("PATH", os.defpath)]),
                "HELM_IMAGE_REFERENCE": WITH_PAYLOAD,
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
        self, values: Mapping[str, Any], *options: str, release: str = "kata-deploy"
    ) -> CommandResult:
        """Run the helper to its end."""
        return ended(self.start(values, *options, release=release))

    def install_checked(
        self, values: Mapping[str, Any], *options: str, release: str = "kata-deploy"
    ) -> CommandResult:
        """The same, which has to go well; else the test fails with all that the helper has shown."""
        return checked(self.install(values, *options, release=release), check=True)

    def uninstall(self, release: str = "kata-deploy", *options: str, check: bool = True) -> CommandResult:
        return self._helm("uninstall", release, *options, check=check)

    def rollback(self, revision: str = "0", release: str = "kata-deploy") -> CommandResult:
        """To the revision before, unless another is given."""
        return self._helm("rollback", release, revision)

    def _helm(self, *arguments: str, check: bool = True) -> CommandResult:
        where = (f"--namespace={NAMESPACE}", f"--timeout={LIMIT}s")
        return self.cluster.helm(*arguments, *where, check=check)


@dataclass(frozen=True)
class CiCluster:
    """The machine of a CI, whoever administers it, and what another one would need."""

    prepared_node: PreparedNode
    releases: Releases
    images: Images

    @property
    def joined(self) -> JoinedNode:
        return self.prepared_node.joined

    @contextmanager
    def join_another(self) -> Iterator[PreparedNode]:
        """A second node joins the cluster."""
        with (
            Node.boot(name=f"late-{os.getpid()}", packages=PACKAGES) as node,
            JoinedNode(self.joined.cluster, node, number=2) as joined,
        ):
            yield self.images.on(joined)


def ended(process: subprocess.Popen[str]) -> CommandResult:
    """What has become of a helper that was started."""
    stdout, stderr = process.communicate()
    return CommandResult(["helm-install"], process.returncode, stdout, stderr)
