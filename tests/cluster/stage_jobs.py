"""Jobs with kata-node's image, in which each stage has only the mounts that the README gives it.

The containers are unprivileged: no capability, the runtime's default seccomp profile, a read-only root.
A container with a token does not run as root.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from cluster.control_plane import Cluster
from cluster.jobs import job
from node.images import KATA_NODE
from node.installation import PAYLOAD, VALUES

ACCOUNT = "kata-node"

INSTALL = ("host-check", "claim", "artifacts", "cri", "label")
REVERT = ("unlabel", "revert-cri", "remove-artifacts", "unclaim")

CONFIGURATION = "/etc/containerd"
SOCKET = "/run/containerd"

MOUNTS: Mapping[str, Sequence[str]] = {
    "host-check": ("/opt", CONFIGURATION, "/etc/machine-id", SOCKET, "/run/dbus", "/dev", "/run/kata-node"),
    "artifacts": ("/opt", "/run/kata-node"),
    "cri": ("/opt", CONFIGURATION, SOCKET, "/run/dbus", "/run/kata-node"),
}
"""Stage -> paths of a node with containerd that are mounted below the stage's host root."""

_LIKE = {"revert-cri": "cri", "remove-artifacts": "artifacts"}
_CREDENTIALS = "/var/run/secrets/kubernetes.io/serviceaccount"
_NOBODY = 65532
_MADE = ("/opt", "/run/kata-node")  # may not exist on a node yet
_FILES = ("/etc/machine-id",)

RIGHTS = f"""\
{{apiVersion: v1, kind: ServiceAccount, metadata: {{name: {ACCOUNT}}}}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {{name: {ACCOUNT}}}
rules: [{{apiGroups: [""], resources: [nodes], verbs: [get, patch]}}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {{name: {ACCOUNT}}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: {ACCOUNT}}}
subjects: [{{kind: ServiceAccount, name: {ACCOUNT}, namespace: default}}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {{name: {ACCOUNT}, namespace: default}}
rules: [{{apiGroups: [""], resources: [events], verbs: [create]}}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {{name: {ACCOUNT}, namespace: default}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: Role, name: {ACCOUNT}}}
subjects: [{{kind: ServiceAccount, name: {ACCOUNT}, namespace: default}}]
"""


def prepare(cluster: Cluster, values: Mapping[str, Any] = VALUES) -> None:
    """Create what the Jobs refer to: the account with its rights, and a ConfigMap with the values."""
    cluster.kubectl("apply", "--filename=-", text=RIGHTS)
    settings = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "kata-node"},
        "data": {"values.yaml": json.dumps(values)},
    }
    cluster.kubectl("apply", "--filename=-", text=json.dumps(settings))


def stages_job(name: str, stages: Sequence[str]) -> dict[str, Any]:
    """Return a Job that runs these stages in order, one container each."""
    *first, last = map(_container, stages)
    token = {"serviceAccountToken": {"path": "token", "expirationSeconds": 600}}
    authority = {"configMap": {"name": "kube-root-ca.crt"}}
    namespace = {
        "downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}
    }
    paths = sorted({path for mounts in MOUNTS.values() for path in mounts})
    spec = {
        "serviceAccountName": ACCOUNT,
        "automountServiceAccountToken": False,
        "initContainers": first,
        "containers": [last],
        "volumes": [
            *({"name": _volume(path), "hostPath": {"path": path, "type": _kind(path)}} for path in paths),
            {"name": "payload", "hostPath": {"path": PAYLOAD, "type": "Directory"}},
            {"name": "values", "configMap": {"name": "kata-node"}},
            {"name": "reports", "emptyDir": {}},
            {"name": "credentials", "projected": {"sources": [token, authority, namespace]}},
        ],
    }
    return job(name, spec)


def _container(stage: str) -> dict[str, Any]:
    paths = MOUNTS.get(_LIKE.get(stage, stage))
    mounts = [
        {"name": "values", "mountPath": "/etc/kata-node", "readOnly": True},
        {"name": "reports", "mountPath": "/reports"},
    ]
    rights: dict[str, Any] = {
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    variables: list[dict[str, Any]] = [
        {"name": "KATA_NODE_CONFIG", "value": "/etc/kata-node/values.yaml"},
        {"name": "KATA_NODE_REPORTS", "value": "/reports"},
        # No other program restores old labels in these tests, so a short time is enough.
        {"name": "KATA_NODE_LABEL_STABLE_FOR", "value": "1"},
    ]
    if paths is None:  # a stage that calls the API server and has no host path
        mounts.append({"name": "credentials", "mountPath": _CREDENTIALS, "readOnly": True})
        rights |= {"runAsNonRoot": True, "runAsUser": _NOBODY, "runAsGroup": _NOBODY}
        variables.append({"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}})
    else:
        mounts.append({"name": "payload", "mountPath": "/opt/kata-payload", "readOnly": True})
        mounts += [{"name": _volume(path), "mountPath": f"/host{path}"} for path in paths]
        variables.append({"name": "KATA_NODE_HOST_ROOT", "value": "/host"})
    return {
        "name": stage,
        "image": KATA_NODE,
        "imagePullPolicy": "Never",
        "args": ["stage", stage],
        "env": variables,
        "volumeMounts": mounts,
        "securityContext": rights,
    }


def _volume(path: str) -> str:
    return path.strip("/").replace("/", "-")


def _kind(path: str) -> str:
    if path in _FILES:
        return "File"
    return "DirectoryOrCreate" if path in _MADE else "Directory"
