"""Read the Nodes and the states of the releases."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from kata_node.errors import KubeError, UsageError
from kata_node.kube.node import NodeFacts
from kata_node.kube.reader import Reader
from kata_node.kube.release_state import STATE_PREFIX
from kata_node.release.model import ClusterStatus, Release, release_of, status_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wanted:
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


def read_status(reader: Reader, wanted: Wanted) -> ClusterStatus:
    """Return the status of all nodes. Raises :class:`KubeError` when the Nodes cannot be read.

    If the states of the releases cannot be read, the Nodes alone say what they can.
    """
    notes: list[str] = []
    releases: list[Release] = []
    try:
        releases = find_releases(reader, wanted)
    except UsageError:
        raise
    except KubeError as error:
        if wanted.release:
            raise
        notes.append(f"the states of the releases are not known: {error.what}")
        log.debug("%s", error)
    # Nodes without Kata are counted only.
    nodes = (NodeFacts.of(each) for each in reader.list("/api/v1/nodes"))
    is_limited = bool(wanted.release or wanted.namespace) and not notes
    only = {each.installation for each in releases} if is_limited else None
    return status_of(nodes, releases, only=only, notes=notes)
