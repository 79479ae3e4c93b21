"""Render and apply the chart in a test cluster, and call the API server with the tokens of its pods."""

from __future__ import annotations

import contextlib
import json
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from cluster import flags
from cluster.control_plane import Cluster
from node.cache import CHECKOUT

CHART = CHECKOUT / "assets/chart/kata-deploy"

MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
JSON_PATCH = "application/json-patch+json"
APPLY = "application/apply-patch+yaml"


def render(
    cluster: Cluster,
    release: str,
    namespace: str,
    *,
    values: Mapping[str, Any] | None = None,
    only: Sequence[str] = (),
    online: bool = True,
) -> str:
    """Return the manifests of the chart, or only of the templates ``only``.

    ``online`` lets helm ask the cluster for its kinds and objects.
    """
    return cluster.helm(
        "template",
        release,
        str(CHART),
        f"--namespace={namespace}",
        "--values=-",
        *(["--dry-run=server"] if online else []),
        *(f"--show-only=templates/{name}" for name in only),
        text=json.dumps(values or {}),
    ).stdout


def load_manifests(manifests: str) -> list[dict[str, Any]]:
    """Return the objects of rendered manifests."""
    # libyaml: the tests parse some hundred renderings, and the parser in Python is ten times slower.
    return [each for each in yaml.load_all(manifests, yaml.CSafeLoader) if each]


def apply(cluster: Cluster, manifests: str) -> None:
    """Apply manifests to the cluster as the administrator."""
    cluster.kubectl("apply", "--server-side", "--filename=-", text=manifests)


@dataclass(frozen=True)
class ApiResponse:
    """An answer of the API server: the HTTP status, and the object or Status."""

    status: int
    body: Mapping[str, Any]

    @property
    def message(self) -> str:
        """The reason of a refusal; empty if the request succeeded."""
        return str(self.body.get("message", "")) if self.status >= 300 else ""


@dataclass(frozen=True)
class ApiCaller:
    """A client of the API server with a token, which sends exactly the given requests."""

    cluster: Cluster
    token: str

    def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        kind: str = "application/json",
        dry: bool = False,
    ) -> ApiResponse:
        """Send one request; ``dry`` makes it a dry run, which stores nothing."""
        context = ssl.create_default_context(cafile=self.cluster.ca)
        address = urlsplit(self.cluster.url)
        connection = HTTPSConnection(address.hostname or "", address.port, timeout=30, context=context)
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": kind}
        with contextlib.closing(connection):
            text = None if body is None else json.dumps(body)
            connection.request(method, f"{path}?dryRun=All" if dry else path, text, headers)
            answer = connection.getresponse()
            text = answer.read().decode()
        try:
            return ApiResponse(answer.status, json.loads(text))
        except ValueError:
            return ApiResponse(answer.status, {"message": text})

    def node(self, name: str) -> dict[str, Any]:
        """Return the Node, which must exist and be readable."""
        answer = self.call("GET", f"/api/v1/nodes/{name}")
        assert answer.status == 200, answer
        return dict(answer.body)

    def patch(self, name: str, patch: object, *, kind: str = MERGE, dry: bool = False) -> ApiResponse:
        """Patch the Node ``name``."""
        return self.call("PATCH", f"/api/v1/nodes/{name}", patch, kind=kind, dry=dry)

    def kubeconfig(self, path: Path) -> Path:
        """Write a kubeconfig with this token to ``path`` and return ``path``."""
        path.write_text(
            flags.kubeconfig(self.cluster.url, self.cluster.ca.read_text(), self.token, "default")
        )
        return path


def admin(cluster: Cluster) -> ApiCaller:
    """Return a client with all rights."""
    return ApiCaller(cluster, cluster.token("admin"))


def unbound(cluster: Cluster, namespace: str, account: str) -> ApiCaller:
    """Return a client with a token of a ServiceAccount that is bound to no pod."""
    return ApiCaller(cluster, cluster.token(f"system:serviceaccount:{namespace}:{account}"))


def on_node(cluster: Cluster, namespace: str, account: str, node: str) -> ApiCaller:
    """Return a client with a token of a ServiceAccount that is bound to a new pod on ``node``."""
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"generateName": f"{account}-", "namespace": namespace},
        "spec": {
            "serviceAccountName": account,
            "nodeName": node,
            # Without it a taint may evict the pod, and its token becomes invalid.
            "tolerations": [{"operator": "Exists"}],
            "containers": [{"name": "label", "image": "example.org/none"}],
        },
    }
    made = json.loads(
        cluster.kubectl("create", "--filename=-", "--output=json", text=json.dumps(pod)).stdout
    )["metadata"]
    bound = (
        "--bound-object-kind=Pod",
        f"--bound-object-name={made['name']}",
        f"--bound-object-uid={made['uid']}",
    )
    done = cluster.kubectl("create", "token", account, f"--namespace={namespace}", *bound)
    return ApiCaller(cluster, done.stdout.strip())
