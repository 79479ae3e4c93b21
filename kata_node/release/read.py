"""Read the Nodes and the states of the releases."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from kata_node.errors import KubeError, UsageError
from kata_node.kube.node import NodeFacts
from kata_node.kube.reader import Reader
from kata_node.kube.release_state import STATE_PREFIX
from kata_node.release.model import (
    ClusterStatus,
    DaemonSetPods,
    Release,
    notes_on_left_installations,
    release_of,
    status_of,
)
from kata_node.text import foreign_words

REASON_LIMIT = 256
"""Characters of the reason why a pod is not ready."""

log = logging.getLogger(__name__)


class Wanted(Struct, frozen=True):
    """Which releases a command is about: all, those of a namespace, or one."""

    release: str = ""
    namespace: str = ""


def find_releases(reader: Reader, wanted: Wanted) -> list[Release]:
    """Return the releases, sorted. Raises :class:`UsageError` when there is none of the given name."""
    path = f"/api/v1/namespaces/{wanted.namespace}/configmaps" if wanted.namespace else "/api/v1/configmaps"
    name = f"{STATE_PREFIX}{wanted.release}"
    query = (
        {"fieldSelector": f"metadata.name={name}"}
        if wanted.release
        else {"labelSelector": "app.kubernetes.io/name=kata-deploy"}
    )
    found = [release for each in reader.list(path, query) if (release := release_of(each))]
    if wanted.release and not found:
        place = f" in the namespace {wanted.namespace}" if wanted.namespace else ""
        raise UsageError(
            f"there is no release {wanted.release}{place}: no ConfigMap {name}",
            where="--release",
            hint="run without --release to see all releases; `helm list --all-namespaces` shows them too",
        )
    return sorted(found, key=lambda each: (each.namespace, each.name))


def with_pods(reader: Reader, releases: Sequence[Release], notes: list[str]) -> list[Release]:
    """Return the releases, with their pods in the mode ``daemonset``. Add to ``notes`` what cannot be read.

    No dispatcher records a rollout there, and a pod that cannot start leaves nothing on its Node.
    """
    found = []
    for release in releases:
        if release.deployment_mode == "daemonset":
            try:
                release = replace(release, pods=_pods(reader, release))
            except KubeError as error:
                notes.append(f"the DaemonSet of the release {release.name} is not known: {error.what}")
        found.append(release)
    return found


def _pods(reader: Reader, release: Release) -> DaemonSetPods | None:
    labels = f"app.kubernetes.io/name=kata-deploy,app.kubernetes.io/instance={release.name}"
    path = f"/apis/apps/v1/namespaces/{release.namespace}/daemonsets"
    sets = reader.list(path, {"labelSelector": labels})
    component = "app.kubernetes.io/component"
    mine = next(
        (each for each in sets if each["spec"]["selector"].get("matchLabels", {}).get(component) == "node"),
        None,
    )
    if mine is None:
        return None
    status = mine.get("status") or {}
    wanted, ready = int(status.get("desiredNumberScheduled", 0)), int(status.get("numberReady", 0))
    not_ready: dict[str, str] = {}
    if ready < wanted:
        query = {"labelSelector": f"{labels},{component}=node"}
        for pod in reader.list(f"/api/v1/namespaces/{release.namespace}/pods", query):
            if (node := _node_of(pod)) and (reason := _why_not_ready(pod)):
                not_ready[node] = reason
    return DaemonSetPods(mine["metadata"]["name"], wanted, ready, not_ready)


def _node_of(pod: Mapping[str, Any]) -> str:
    """Return the Node of a DaemonSet's pod, also of one that is not bound to it yet."""
    spec = pod["spec"]
    if spec.get("nodeName"):
        return str(spec["nodeName"])
    affinity = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    fields = [
        each for term in required.get("nodeSelectorTerms") or () for each in term.get("matchFields") or ()
    ]
    return next((str(each["values"][0]) for each in fields if each.get("key") == "metadata.name"), "")


def _why_not_ready(pod: Mapping[str, Any]) -> str:
    """Return why a pod is not ready; empty if it is."""
    status = pod.get("status") or {}
    conditions = {each["type"]: each for each in status.get("conditions") or ()}
    if conditions.get("Ready", {}).get("status") == "True":
        return ""
    waiting = [
        (each.get("state") or {}).get("waiting") or {} for each in status.get("containerStatuses") or ()
    ]
    unbound = (
        [conditions["PodScheduled"]] if conditions.get("PodScheduled", {}).get("status") == "False" else []
    )
    reasons = [
        foreign_words(": ".join(filter(None, (each.get("reason"), each.get("message")))), REASON_LIMIT)
        for each in (*waiting, *unbound)
        if each.get("reason")
    ]
    return f"its pod {pod['metadata']['name']} is not ready" + (f" ({reasons[0]})" if reasons else "")


def read_status(reader: Reader, wanted: Wanted) -> ClusterStatus:
    """Return the status of all nodes. Raises :class:`KubeError` when the Nodes cannot be read.

    If the states of the releases cannot be read, the Nodes alone say what they can.
    """
    notes: list[str] = []
    releases: list[Release] = []
    known = True
    try:
        releases = with_pods(reader, find_releases(reader, wanted), notes)
    except UsageError:
        raise
    except KubeError as error:
        if wanted.release:
            raise
        known = False
        notes.append(f"the states of the releases are not known: {error.what}")
        log.debug("%s", error)
    is_limited = bool(wanted.release or wanted.namespace) and known
    # Nodes without Kata are counted only.
    nodes = (NodeFacts.of(each) for each in reader.list("/api/v1/nodes"))
    only = {each.installation for each in releases} if is_limited else None
    status = status_of(nodes, releases, only=only, notes=notes)
    if known and only is None:
        status = replace(status, notes=(*status.notes, *notes_on_left_installations(status.rows)))
    return status
