"""The Job template, and the manifest of the Job for one Node. Pure."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from msgspec import Struct, field

from kata_node.dispatcher.kubernetes_objects import (
    ACTION_LABEL,
    GENERATION_ANNOTATION,
    NODE_KEY,
    NODE_UID_ANNOTATION,
    TEMPLATE_DIGEST_LABEL,
    Action,
    Toleration,
)

NAME_LIMIT = 63
"""Maximum length of a Job name. Its Pods have the name as a label value."""

PLACEHOLDERS = ("@NODE_NAME@", "@NODE_UID@", "@MACHINE_ID@", "@JOB_NAME@")

_PLACEHOLDER = re.compile(r"@[A-Z][A-Z_]*@")
_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_HASH_LENGTH = 10


class Target(Struct, frozen=True):
    """The properties of a Node that its Job needs."""

    name: str
    uid: str = ""
    machine_id: str = ""
    runtime: str = ""
    """The name of its container runtime, see :class:`Templates`; empty when the Node does not name it."""
    marked: bool = True
    """Whether the Node has the installation label, or it is not known."""
    hostname: str = ""
    """The value of its label ``kubernetes.io/hostname``, by which several Nodes can be listed."""


class Owner(Struct, frozen=True):
    """The Job in which the dispatcher runs."""

    name: str
    uid: str


class JobIdentity(Struct, frozen=True):
    """The metadata that all Jobs of a run share."""

    namespace: str
    labels: Mapping[str, str]
    generation: str = ""
    owner: Owner | None = None


def job_name(prefix: str, node: str) -> str:
    """Return the name of the Job for a Node: always the same, and different for every Node.

    A name that is too long or contains a dot is shortened and ends with a part of its sha256. A dot is not
    valid in the host name of a Pod.
    """
    full_name = f"{prefix}-{node}"
    if len(full_name) <= NAME_LIMIT and _DNS_LABEL.fullmatch(node):
        return full_name
    digest = hashlib.sha256(node.encode()).hexdigest()[:_HASH_LENGTH]
    readable = f"{prefix}-{node.replace('.', '-')}"[: NAME_LIMIT - _HASH_LENGTH - 1].rstrip("-")
    return f"{readable}-{digest}"


class Template:
    """A Job manifest that is not bound to a Node yet."""

    def __init__(self, manifest: Mapping[Any, Any]) -> None:
        self._manifest = manifest
        self._text = msgspec.json.encode(manifest, order="deterministic")

    @property
    def digest(self) -> str:
        """The first 16 hex digits of the sha256 of the manifest; used as a label value."""
        return hashlib.sha256(self._text).hexdigest()[:16]

    @functools.cached_property
    def tolerations(self) -> tuple[Toleration, ...]:
        """The tolerations of its Pods."""
        pod = _submapping(self._manifest, "spec", "template", "spec")
        return msgspec.convert(pod.get("tolerations") or [], tuple[Toleration, ...])

    @functools.cached_property
    def mounts_images(self) -> bool:
        """Whether its Pods mount an image as a volume, which not every container runtime can."""
        volumes = _submapping(self._manifest, "spec", "template", "spec").get("volumes") or []
        return any(isinstance(volume, dict) and "image" in volume for volume in volumes)

    def tolerating_everything(self) -> Template:
        """Return the template with a toleration of every taint, in addition to its own."""
        manifest = msgspec.json.decode(self._text)
        pod = manifest["spec"]["template"]["spec"]
        pod["tolerations"] = [*(pod.get("tolerations") or []), {"operator": "Exists"}]
        return Template(manifest)

    @property
    def deadline(self) -> float | None:
        """``activeDeadlineSeconds`` of the Job; ``None`` when it is not set."""
        seconds = _submapping(self._manifest, "spec").get("activeDeadlineSeconds")
        return seconds if isinstance(seconds, int) else None

    @property
    def termination_grace_period(self) -> float:
        """``terminationGracePeriodSeconds`` of its Pods; 30 (the default of Kubernetes) when not set."""
        seconds = _submapping(self._manifest, "spec", "template", "spec").get("terminationGracePeriodSeconds")
        return seconds if isinstance(seconds, int) else 30

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield the key and the problem of each violated requirement of the dispatcher.

        The API server checks everything else.
        """
        manifest = self._manifest
        if (manifest.get("apiVersion"), manifest.get("kind")) != ("batch/v1", "Job"):
            yield "kind", "is not Job, or apiVersion is not batch/v1"
            return
        spec, pod = _submapping(manifest, "spec"), _submapping(manifest, "spec", "template", "spec")
        if not pod:
            yield "spec.template.spec", "is missing"
            return
        yield from _metadata_problems(manifest)
        for key in ("completions", "parallelism"):
            if spec.get(key, 1) != 1:
                yield f"spec.{key}", "must be 1; a node gets one Pod"
        if spec.get("suspend"):
            yield "spec.suspend", "must not be true; the dispatcher does not resume Jobs"
        if pod.get("nodeName"):
            yield "spec.template.spec.nodeName", "must not be set; the dispatcher sets it"
        try:
            _ = self.tolerations
        except msgspec.ValidationError as error:
            yield "spec.template.spec.tolerations", str(error)
        for found in sorted(set(_PLACEHOLDER.findall(self._text.decode()))):
            if found not in PLACEHOLDERS:
                yield "", f"{found} is not a placeholder; use {', '.join(PLACEHOLDERS)}"

    def render(self, name: str, action: Action, target: Target, identity: JobIdentity) -> bytes:
        """Return the manifest of the Job ``name`` for a Node, as JSON."""
        values = dict(zip(PLACEHOLDERS, (target.name, target.uid, target.machine_id, name), strict=True))
        text = _PLACEHOLDER.sub(
            lambda match: msgspec.json.encode(values.get(match[0], match[0])).decode()[1:-1],
            self._text.decode(),
        )
        job = msgspec.json.decode(text)
        labels = {
            **identity.labels,
            ACTION_LABEL: action,
            TEMPLATE_DIGEST_LABEL: self.digest,
            NODE_KEY: target.name if len(target.name) <= NAME_LIMIT else name,
        }
        metadata = job.setdefault("metadata", {})
        metadata.pop("generateName", None)
        metadata["name"], metadata["namespace"] = name, identity.namespace
        metadata["labels"] = {**(metadata.get("labels") or {}), **labels}
        annotations = {
            NODE_KEY: target.name,
            NODE_UID_ANNOTATION: target.uid,
            GENERATION_ANNOTATION: identity.generation,
        }
        metadata["annotations"] = {**(metadata.get("annotations") or {}), **annotations}
        if identity.owner:
            metadata["ownerReferences"] = [owner_reference(identity.owner)]
        pod = job["spec"]["template"]
        pod_metadata = pod.setdefault("metadata", {})
        pod_metadata["labels"] = {**(pod_metadata.get("labels") or {}), **labels}
        pod["spec"]["nodeName"] = target.name
        return msgspec.json.encode(job)


class Templates(Struct, frozen=True):
    """One template for all nodes, or one for each container runtime."""

    common: Template | None = None
    by_runtime: Mapping[str, Template] = field(default_factory=dict)
    """Keys are the part of ``status.nodeInfo.containerRuntimeVersion`` before ``://``."""

    def find(self, target: Target) -> Template | None:
        """Return the template for a Node; ``None`` when there is none for its runtime."""
        return self.common or self.by_runtime.get(target.runtime)

    def tolerating_everything(self) -> Templates:
        """Return the templates, each with a toleration of every taint."""
        return Templates(
            self.common and self.common.tolerating_everything(),
            {runtime: each.tolerating_everything() for runtime, each in self.by_runtime.items()},
        )


def owner_reference(owner: Owner) -> dict[str, object]:
    """Return the reference with which the garbage collector deletes a node Job after the dispatcher's Job.

    The dispatcher's Job is not the controller of the node Job.
    """
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "name": owner.name,
        "uid": owner.uid,
        "controller": False,
        "blockOwnerDeletion": False,
    }


def _metadata_problems(manifest: Mapping[Any, Any]) -> Iterator[tuple[str, str]]:
    """Yield the key and the problem of metadata to which the dispatcher cannot add its own."""
    for keys in (("metadata",), ("spec", "template", "metadata")):
        name = ".".join(keys)
        metadata = _submapping(manifest, *keys[:-1]).get(keys[-1], {})
        if not isinstance(metadata, dict):
            yield name, "is not a mapping"
            continue
        for key in ("labels", "annotations"):
            if not isinstance(metadata.get(key) or {}, dict):
                yield f"{name}.{key}", "is not a mapping"


def _submapping(value: Mapping[Any, Any], *keys: str) -> Mapping[Any, Any]:
    """Return the mapping at the path ``keys``; an empty mapping when there is none."""
    for key in keys:
        below = value.get(key)
        value = below if isinstance(below, dict) else {}
    return value
