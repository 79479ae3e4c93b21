"""A DaemonSet with an account, as the chart makes them, and the question that its pods ask."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from node.commands import wait_until

from cluster.control_plane import Cluster

NAME = "kata-deploy"
ZONE = "example.org/zone"

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
    """The exit code of a question, and all that was printed."""

    code: int
    text: str


@dataclass(frozen=True)
class DaemonSetFixture:
    """A namespace with the account and the DaemonSet in it, and a Node that this one selects."""

    cluster: Cluster
    namespace: str
    node: str

    def prepare(self) -> DaemonSetFixture:
        """Make all of it; a Node that is there already gets a label."""
        self.kubectl("create", "namespace", self.namespace)
        self.kubectl("apply", "--filename=-", text=RIGHTS.format(name=NAME, namespace=self.namespace))
        self.register("a")
        self.deploy()
        # Rights are in force a moment after they are made.
        wait_until(lambda: self.ask_wanted().code == 0, "the account may ask")
        return self

    @property
    def account(self) -> str:
        """Who the pods are."""
        return f"system:serviceaccount:{self.namespace}:{NAME}"

    @property
    def daemonset(self) -> str:
        """As an option of the daemon."""
        return f"--daemonset={self.namespace}/{NAME}"

    def kubectl(self, *arguments: str, text: str | None = None) -> str:
        """Run it as the administrator."""
        return self.cluster.kubectl(*arguments, text=text).stdout

    def register(self, zone: str) -> None:
        """Have the Node in that zone; the DaemonSet selects ``a``."""
        self.kubectl("label", "node", self.node, f"{ZONE}={zone}", "--overwrite")

    def deploy(self, image: str = "one", **pod: Any) -> None:
        """Apply the DaemonSet, with ``pod`` in the specification of its pods."""
        labels = {"app": NAME}
        spec = {
            "containers": [{"name": "kata", "image": f"example.org/{image}"}],
            "tolerations": [{"operator": "Exists"}],
            **({"nodeSelector": {ZONE: "a"}} | pod),
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
        """Delete the DaemonSet, and do not wait."""
        self.kubectl("delete", "daemonset", NAME, f"--namespace={self.namespace}", "--wait=false", *how)

    def pods(self) -> list[Mapping[str, Any]]:
        """Those that are not on their way out."""
        listed = json.loads(self.kubectl("get", "pods", f"--namespace={self.namespace}", "--output=json"))
        return [pod for pod in listed["items"] if "deletionTimestamp" not in pod["metadata"]]

    @property
    def environment(self) -> dict[str, str]:
        """A token of the account in it, which is asked for now."""
        path = {"PYTHONPATH": os.environ["PYTHONPATH"]} if "PYTHONPATH" in os.environ else {}
        return {**self.cluster.environment(self.account), **path}

    @property
    def wanted_command(self) -> list[str]:
        """The command that asks it."""
        command = [sys.executable, "-P", "-m", "kata_node", "wanted", f"--node-name={self.node}"]
        return [*command, self.daemonset]

    def ask_wanted(self, *options: str, environment: Mapping[str, str] | None = None) -> WantedAnswer:
        """Ask, with a token of now or the ``environment`` of before."""
        done = subprocess.run(
            [*self.wanted_command, *options],
            env=environment or self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return WantedAnswer(done.returncode, done.stdout + done.stderr)
