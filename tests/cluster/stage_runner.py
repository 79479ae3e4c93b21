"""Run kata-node's stages for one Node of a test, as a container of a Job runs them."""

from __future__ import annotations

import functools
import json
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from cluster import flags
from cluster.control_plane import ADMIN, Cluster
from cluster.faulty_proxy import FaultyProxy
from cluster.node_writers import NodeWriter
from kata_node.kube import node_status
from kata_node.kube.node_status import NodeStatus
from node.cache import CHECKOUT
from node.commands import CommandResult, RunningCommand, describe_result, wait_until

LABELLER = "system:serviceaccount:labelling:labeller"

SHARED_LABEL = "katacontainers.io/kata-runtime"
INSTALLATION_LABEL_PREFIX = "kata-deploy.katacontainers.io/"
LABELED = {SHARED_LABEL: "true", f"{INSTALLATION_LABEL_PREFIX}default": "true"}
CLAIMED = {SHARED_LABEL: "false", f"{INSTALLATION_LABEL_PREFIX}default": "false"}

RIGHTS = """\
{apiVersion: v1, kind: Namespace, metadata: {name: labelling}}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: labeller, namespace: labelling}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: labelling}
rules: [{apiGroups: [""], resources: [nodes], verbs: [get, patch]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: labelling}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: labelling}
subjects: [{kind: ServiceAccount, name: labeller, namespace: labelling}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: labelling, namespace: default}
rules: [{apiGroups: [""], resources: [events], verbs: [create]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: labelling, namespace: default}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: labelling}
subjects: [{kind: ServiceAccount, name: labeller, namespace: labelling}]
"""


def without_records(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the Kata labels or annotations of a Node, without those of :mod:`kata_node.kube.node_status`."""
    records = ("status.", "version.", "outcome.")
    return {
        key: each
        for key, each in metadata.items()
        if "katacontainers.io/" in key
        if not key.startswith(records)
    }


@functools.cache
def labellers_token(cluster: Cluster) -> str:
    """Return a token of the label container's account, which may get and patch nodes and create Events."""
    cluster.kubectl("apply", "--filename=-", text=RIGHTS)
    token = cluster.token(LABELLER)

    def known() -> bool:  # the API server applies new roles after a moment
        return cluster.get("/api/v1/nodes/nobody", token=token)[0] == 404

    wait_until(known, "the labeller may read nodes")
    return token


@dataclass(frozen=True)
class Outcome:
    """The result of a stage. ``error`` is the error of the report, or empty."""

    code: int
    outcome: str
    summary: str
    error: Mapping[str, Any]
    log: str
    done: CommandResult

    @classmethod
    def of(cls, done: CommandResult) -> Outcome:
        """Parse the output of a run with ``--output json``."""
        assert "Traceback" not in done.stderr, describe_result(done)
        document = json.loads(done.stdout)
        stages = document.get("stages") or [{}]
        stage = stages[-1]
        error = stage.get("error") or document.get("error") or {}
        return cls(
            done.returncode, stage.get("outcome", ""), stage.get("summary", ""), error, done.stderr, done
        )

    def succeeded(self) -> Outcome:
        """Fail the test with the whole output unless the stage succeeded; return self."""
        assert self.code == 0, describe_result(self.done)
        return self

    def failed(self, code: int = 1) -> Outcome:
        """Fail the test unless the stage failed with ``code``; return self."""
        assert self.code == code, describe_result(self.done)
        return self

    @property
    def text(self) -> str:
        """The error and its hint."""
        return f"{self.error.get('what', '')}\n{self.error.get('hint', '')}"


class StageRunner:
    """Runs stages for the Node ``name`` through a :class:`FaultyProxy` of the API server.

    ``node_writer`` writes to the Node without the proxy. Stages have the rights of the label container
    unless ``env`` has another kubeconfig.
    """

    def __init__(self, cluster: Cluster, directory: Path) -> None:
        self.cluster, self.directory = cluster, directory
        self.name = f"worker-{secrets.token_hex(4)}"
        self.host = directory / "host"
        self.host.mkdir()
        self.token = labellers_token(cluster)
        self.proxy = FaultyProxy.to(cluster)
        self.node_writer = NodeWriter(cluster)
        self.kubeconfig = self.proxy.kubeconfig(directory / "kubeconfig", self.token)
        self._running: list[RunningCommand] = []

    def __enter__(self) -> StageRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for each in self._running:
            each.close()
        self.proxy.close()
        self.node_writer.close()

    def register(self, labels: Mapping[str, str] | None = None, **status: object) -> None:
        """Create the Node; it is Ready unless ``status`` has other conditions."""
        self.node_writer.register(self.name, labels, status)

    def as_holder_of(self, token: str) -> dict[str, str]:
        """Return the environment variables of a run with another ``token``."""
        return {"KUBECONFIG": str(self.proxy.kubeconfig(self.directory / "another-kubeconfig", token))}

    @property
    def key(self) -> Path:
        """The file of the key that signs the tokens of ServiceAccounts."""
        return self.cluster.directory / flags.KEY

    @property
    def labels(self) -> dict[str, str]:
        """The Kata labels of the Node, of all installations, without those of the records."""
        return without_records(self.node_writer.node(self.name)["metadata"]["labels"])

    @property
    def annotations(self) -> dict[str, str]:
        """The Kata annotations of the Node, without the records."""
        return without_records(self.node_writer.node(self.name)["metadata"].get("annotations", {}))

    def record(self, instance: str = "default") -> NodeStatus | None:
        """Return the record of an installation on the Node, whose labels must say the same."""
        metadata = self.node_writer.node(self.name)["metadata"]
        found = node_status.read(metadata.get("annotations", {}), instance)
        labels = metadata["labels"]
        keys = node_status.version_label(instance), node_status.outcome_label(instance)
        said = tuple(labels.get(key) for key in keys)
        assert said == ((found.kata_version or "unknown", found.outcome) if found else (None, None))
        return found

    @property
    def version(self) -> str:
        """The Node's resourceVersion, which changes with every write."""
        return str(self.node_writer.node(self.name)["metadata"]["resourceVersion"])

    def start(
        self,
        stage: str,
        *options: str,
        instance: str = "",
        env: Mapping[str, str] | None = None,
        entering: tuple[str, ...] = (),
    ) -> RunningCommand:
        """Start a stage without waiting.

        ``options`` come after options that keep waits short. ``env`` replaces environment variables.
        ``entering`` is a command prefix.
        """
        command = [sys.executable, "-m", "kata_node", "stage", stage, "--output=json", "--shims=qemu"]
        command += [f"--host-root={self.host}", "--label-timeout=120", "--label-stable-for=0.2"]
        if instance:
            command.append(f"--multi-install-suffix={instance}")
        environment = {
            **self.cluster.environment(ADMIN),
            "KUBECONFIG": str(self.kubeconfig),
            "NODE_NAME": self.name,
            "PYTHONPATH": str(CHECKOUT),  # the program that these tests belong to
            **(env or {}),
        }
        running = RunningCommand(entering, [*command, *options], env=environment, depth=0)
        self._running.append(running)
        return running

    def run(
        self,
        stage: str,
        *options: str,
        instance: str = "",
        env: Mapping[str, str] | None = None,
        entering: tuple[str, ...] = (),
    ) -> Outcome:
        """Run a stage, see :meth:`start`, and return its result."""
        return Outcome.of(self.start(stage, *options, instance=instance, env=env, entering=entering).wait())
