"""A DaemonSet and a ServiceAccount as in the chart, and the command ``kata-node wanted`` of its pods."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cluster.control_plane import Cluster
from node.commands import wait_until

NAME = "kata-deploy"
RACK = "example.org/rack"

RIGHTS = """\
apiVersion: v1
kind: ServiceAccount
metadata: {{name: {name}, namespace: {namespace}}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {{name: {name}, namespace: {namespace}}}
rules: [{{apiGroups: [apps], resources: [daemonsets], resourceNames: [{name}], verbs: [get]}}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {{name: {name}, namespace: {namespace}}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: Role, name: {name}}}
subjects: [{{kind: ServiceAccount, name: {name}, namespace: {namespace}}}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {{name: {namespace}}}
rules: [{{apiGroups: [""], resources: [nodes], verbs: [get, patch]}}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {{name: {namespace}}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: {namespace}}}
subjects: [{{kind: ServiceAccount, name: {name}, namespace: {namespace}}}]
"""


@dataclass(frozen=True)
class WantedAnswer:
    """The exit code and the whole output of ``kata-node wanted``."""

    code: int
    text: str


@dataclass(frozen=True)
class DaemonSetFixture:
    """A namespace with the account and the DaemonSet, and a Node that the DaemonSet selects."""

    cluster: Cluster
    namespace: str
    node: str

    def prepare(self) -> DaemonSetFixture:
        """Create the namespace, the account and the DaemonSet, and label the Node."""
        self.kubectl("create", "namespace", self.namespace)
        self.kubectl("apply", "--filename=-", text=RIGHTS.format(name=NAME, namespace=self.namespace))
        self.register("a")
        self.deploy()
        # The API server applies new roles after a moment.
        wait_until(lambda: self.ask_wanted().code == 0, "the account may read the DaemonSet")
        return self

    @property
    def account(self) -> str:
        """The user name of the pods."""
        return f"system:serviceaccount:{self.namespace}:{NAME}"

    @property
    def daemonset(self) -> str:
        """The option that names the DaemonSet."""
        return f"--daemonset={self.namespace}/{NAME}"

    def kubectl(self, *arguments: str, text: str | None = None) -> str:
        """Run kubectl as the administrator and return its output."""
        return self.cluster.kubectl(*arguments, text=text).stdout

    def register(self, rack: str) -> None:
        """Set the label `rack` of the Node; the DaemonSet selects rack ``a``."""
        self.kubectl("label", "node", self.node, f"{RACK}={rack}", "--overwrite")

    def deploy(self, image: str = "one", **pod: Any) -> None:
        """Apply the DaemonSet; ``pod`` is added to the pod spec."""
        labels = {"app": NAME}
        spec = {
            "containers": [{"name": "kata", "image": f"example.org/{image}"}],
            "tolerations": [{"operator": "Exists"}],
            **({"nodeSelector": {RACK: "a"}} | pod),
        }
        template = {"metadata": {"labels": labels}, "spec": spec}
        daemonset = {
            "apiVersion": "apps/v1",
            "kind": "DaemonSet",
            "metadata": {"name": NAME, "namespace": self.namespace},
            "spec": {"selector": {"matchLabels": labels}, "template": template},
        }
        self.kubectl("apply", "--server-side", "--filename=-", text=json.dumps(daemonset))

    def delete(self, *how: str) -> None:
        """Delete the DaemonSet without waiting; ``how`` are options of kubectl."""
        self.kubectl("delete", "daemonset", NAME, f"--namespace={self.namespace}", "--wait=false", *how)

    def pods(self) -> list[Mapping[str, Any]]:
        """Return the pods that are not terminating."""
        listed = json.loads(self.kubectl("get", "pods", f"--namespace={self.namespace}", "--output=json"))
        return [pod for pod in listed["items"] if "deletionTimestamp" not in pod["metadata"]]

    @property
    def environment(self) -> dict[str, str]:
        """The environment of the command, with a new token of the account."""
        path = {"PYTHONPATH": os.environ["PYTHONPATH"]} if "PYTHONPATH" in os.environ else {}
        return {**self.cluster.environment(self.account), **path}

    @property
    def wanted_command(self) -> list[str]:
        """The command ``kata-node wanted`` for this Node and DaemonSet."""
        command = [sys.executable, "-P", "-m", "kata_node", "wanted", f"--node-name={self.node}"]
        return [*command, self.daemonset]

    def ask_wanted(self, *options: str, environment: Mapping[str, str] | None = None) -> WantedAnswer:
        """Run ``kata-node wanted``, with a new token unless ``environment`` is given."""
        done = subprocess.run(
            [*self.wanted_command, *options],
            env=environment or self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return WantedAnswer(done.returncode, done.stdout + done.stderr)
