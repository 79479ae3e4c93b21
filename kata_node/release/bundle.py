"""Collect what a maintainer asks for: objects, logs and Nodes, without secrets."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from kata_node import __version__
from kata_node.errors import KubeError
from kata_node.kube.node import NodeFacts
from kata_node.kube.reader import NotFoundError, Reader
from kata_node.release import text
from kata_node.release.masking import mask_object, mask_text
from kata_node.release.model import Release, status_of
from kata_node.release.read import Wanted, find_releases, with_pods

LOG_LIMIT = 1 << 20
"""Characters of the end of each log."""

MAX_PODS_WITH_LOGS = 500
"""Pods whose logs are read. After a rollout to thousands of nodes, reading all of them would take hours."""

NAMESPACED = {
    "configmaps": "/api/v1/namespaces/{namespace}/configmaps",
    "pods": "/api/v1/namespaces/{namespace}/pods",
    "serviceaccounts": "/api/v1/namespaces/{namespace}/serviceaccounts",
    "jobs": "/apis/batch/v1/namespaces/{namespace}/jobs",
    "cronjobs": "/apis/batch/v1/namespaces/{namespace}/cronjobs",
    "daemonsets": "/apis/apps/v1/namespaces/{namespace}/daemonsets",
    "roles": "/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/roles",
}
CLUSTER_WIDE = {
    "runtimeclasses": "/apis/node.k8s.io/v1/runtimeclasses",
    "clusterroles": "/apis/rbac.authorization.k8s.io/v1/clusterroles",
    "policies": "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies",
    "policybindings": "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings",
}
EVENTS = "/api/v1/namespaces/{namespace}/events"
NODE_EVENTS = EVENTS.format(namespace="default")

Contents = dict[str, bytes]


def collect(reader: Reader, wanted: Wanted) -> tuple[Contents, tuple[str, ...]]:
    """Return the files of the bundle by their paths, and what could not be read.

    Raises :class:`KubeError` when the API server cannot be used at all, or there is no such release.
    """
    releases = find_releases(reader, wanted)
    found = _Collection(reader)
    for release in releases:
        found.add_release(release)
    found.add_nodes(releases)
    found.add_text("version.txt", f"kata-node {__version__}\n")
    found.attempt("version.json", lambda: reader.get("/version"))
    found.add_text("missing.txt", "".join(f"{each}\n" for each in found.missing))
    return found.contents, tuple(found.missing)


class _Collection:
    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self.contents: Contents = {}
        self.missing: list[str] = []

    def add_text(self, path: str, content: str) -> None:
        self.contents[path] = mask_text(content).encode("utf-8", "backslashreplace")

    def attempt(self, path: str, read: Callable[[], Any]) -> Any:
        """Add what ``read`` returns as JSON, and return it; ``None`` and a note if it cannot be read."""
        try:
            found = read()
        except KubeError as error:
            self.missing.append(f"{path}: {error.what}")
            return None
        self.contents[path] = _json(found)
        return found

    def add_release(self, release: Release) -> None:
        directory = f"{release.namespace}/{release.name}"
        query = {
            "labelSelector": f"app.kubernetes.io/name=kata-deploy,app.kubernetes.io/instance={release.name}"
        }
        found: dict[str, Any] = {}
        for kind, path in (*NAMESPACED.items(), *CLUSTER_WIDE.items()):
            read = partial(self._objects, path.format(namespace=release.namespace), query)
            found[kind] = self.attempt(f"{directory}/{kind}.json", read)
        pods = sorted(found["pods"] or (), key=_rank_of_log)
        for pod in pods[:MAX_PODS_WITH_LOGS]:
            self._add_logs(directory, pod)
        if left_out := len(pods[MAX_PODS_WITH_LOGS:]):
            self.missing.append(
                f"{directory}/logs: the logs of {left_out} more pods; `kubectl logs` shows them"
            )
        names = {each["metadata"]["name"] for objects in found.values() for each in objects or ()}

        def is_ours(event: Mapping[str, Any]) -> bool:
            return (event.get("involvedObject") or {}).get("name") in names

        events = EVENTS.format(namespace=release.namespace)
        self.attempt(
            f"{directory}/events.json", lambda: [each for each in self._objects(events) if is_ours(each)]
        )

    def _objects(self, path: str, query: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
        found = [mask_object(each) for each in self._reader.list(path, query)]
        return sorted(
            found, key=lambda each: (each["metadata"].get("namespace", ""), each["metadata"]["name"])
        )

    def _add_logs(self, directory: str, pod: Mapping[str, Any]) -> None:
        name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
        status = pod.get("status") or {}
        for each in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
            if not {"running", "terminated"} & set(each.get("state") or {}):
                continue  # it has no log yet
            tries = (("", "false"), ("-previous", "true")) if each.get("restartCount") else (("", "false"),)
            for suffix, previous in tries:
                # The limit of bytes of the API would cut the end.
                query = {"container": each["name"], "previous": previous, "tailLines": "20000"}
                path = f"/api/v1/namespaces/{namespace}/pods/{name}/log"
                file = f"{directory}/logs/{name}/{each['name']}{suffix}.log"
                try:
                    self.add_text(file, self._reader.text(path, query)[-LOG_LIMIT:])
                except NotFoundError:
                    self.missing.append(f"{file}: the log does not exist any more")
                except KubeError as error:
                    self.missing.append(f"{file}: {error.what}")

    def add_nodes(self, releases: Iterable[Release]) -> None:
        facts: list[NodeFacts] = []

        def read() -> list[dict[str, Any]]:
            found = []
            for each in self._reader.list("/api/v1/nodes"):
                facts.append(NodeFacts.of(each))
                found.append(_node(each))
            return sorted(found, key=lambda each: str(each["name"]))

        if self.attempt("nodes.json", read) is not None:
            notes: list[str] = []
            status = status_of(facts, with_pods(self._reader, list(releases), notes), notes=notes)
            self.contents["status.json"] = _json(text.to_json(status))
            self.add_text("status.txt", text.to_text(status) + "\n")
        self.attempt(
            "node-events.json",
            lambda: [
                each for each in self._objects(NODE_EVENTS) if str(each.get("reason", "")).startswith("Kata")
            ],
        )


def _rank_of_log(pod: Mapping[str, Any]) -> int:
    """Return how soon the log of a pod is read: first what tells most."""
    component = (pod["metadata"].get("labels") or {}).get("app.kubernetes.io/component")
    if component != "node-job":
        return 0
    return {"Failed": 1, "Running": 2}.get((pod.get("status") or {}).get("phase", ""), 3)


def _node(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return what concerns Kata in a Node."""
    metadata, status = node["metadata"], node.get("status") or {}

    def of_kata(values: Mapping[str, str] | None) -> dict[str, str]:
        return {key: mask_text(each) for key, each in (values or {}).items() if "kata" in key}

    return {
        "name": metadata["name"],
        "labels": of_kata(metadata.get("labels")),
        "annotations": of_kata(metadata.get("annotations")),
        "taints": (node.get("spec") or {}).get("taints") or [],
        "nodeInfo": status.get("nodeInfo") or {},
        "runtimeHandlers": status.get("runtimeHandlers") or [],
        "conditions": status.get("conditions") or [],
    }


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()
