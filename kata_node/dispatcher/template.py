"""A Job's manifest, and the copy of it for one Node. Pure."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

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
"""The longest name of a Job: its Pods have it as a label."""

PLACEHOLDERS = ("@NODE_NAME@", "@NODE_UID@", "@MACHINE_ID@", "@JOB_NAME@")

_PLACEHOLDER = re.compile(r"@[A-Z][A-Z_]*@")
_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_HASH_LENGTH = 10


@dataclass(frozen=True, slots=True)
class Target:
    """A Node, as far as it matters to a Job."""

    name: str
    uid: str = ""
    machine_id: str = ""
    runtime: str = ""
    """Its CRI runtime, see :class:`Templates`; empty where the Node does not say."""


@dataclass(frozen=True, slots=True)
class Owner:
    """The Job of the dispatcher itself."""

    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class JobIdentity:
    """What all Jobs of a run have in common."""

    namespace: str
    labels: Mapping[str, str]
    generation: str = ""
    owner: Owner | None = None


def job_name(prefix: str, node: str) -> str:
    """The one name of the Job for a Node: always the same, and no other Node's.

    Names that are too long, or have dots, which a Pod's host name may not have, get a part of their
    sha256 in place of what does not fit.
    """
    full_name = f"{prefix}-{node}"
    if len(full_name) <= NAME_LIMIT and _DNS_LABEL.fullmatch(node):
        return full_name
    digest = hashlib.sha256(node.encode()).hexdigest()[:_HASH_LENGTH]
    readable = f"{prefix}-{node.replace('.', '-')}"[: NAME_LIMIT - _HASH_LENGTH - 1].rstrip("-")
    return f"{readable}-{digest}"


class Template:
    """The manifest of a Job without a Node."""

    def __init__(self, manifest: Mapping[Any, Any]) -> None:
        self._manifest = manifest
        self._text = msgspec.json.encode(manifest, order="deterministic")

    @property
    def digest(self) -> str:
        """What tells it from every other template: 16 hex digits, good for a label."""
        return hashlib.sha256(self._text).hexdigest()[:16]

    @functools.cached_property
    def tolerations(self) -> tuple[Toleration, ...]:
        """The taints its Pods do not mind."""
        pod = _submapping(self._manifest, "spec", "template", "spec")
        return msgspec.convert(pod.get("tolerations") or [], tuple[Toleration, ...])

    @property
    def deadline(self) -> float | None:
        """Seconds that it may take in all, if there is a limit."""
        seconds = _submapping(self._manifest, "spec").get("activeDeadlineSeconds")
        return seconds if isinstance(seconds, int) else None

    @property
    def termination_grace_period(self) -> float:
        """Seconds that its Pods have to end when they are told to; 30 is Kubernetes' own."""
        seconds = _submapping(self._manifest, "spec", "template", "spec").get("terminationGracePeriodSeconds")
        return seconds if isinstance(seconds, int) else 30

    def problems(self) -> Iterator[tuple[str, str]]:
        """Where and why it is no Job for one Node; the API server looks at everything else."""
        manifest = self._manifest
        if (manifest.get("apiVersion"), manifest.get("kind")) != ("batch/v1", "Job"):
            yield "kind", "is not that of a Job of batch/v1"
            return
        spec, pod = _submapping(manifest, "spec"), _submapping(manifest, "spec", "template", "spec")
        if not pod:
            yield "spec.template.spec", "is missing"
            return
        for key in ("completions", "parallelism"):
            if spec.get(key, 1) != 1:
                yield f"spec.{key}", "must be 1: there is one Pod for a Node"
        if spec.get("suspend"):
            yield "spec.suspend", "must not be true: nobody would ever resume the Job"
        if pod.get("nodeName"):
            yield "spec.template.spec.nodeName", "is set by the dispatcher"
        try:
            _ = self.tolerations
        except msgspec.ValidationError as error:
            yield "spec.template.spec.tolerations", str(error)
        for found in sorted(set(_PLACEHOLDER.findall(self._text.decode()))):
            if found not in PLACEHOLDERS:
                yield "", f"{found} is no placeholder; known are {', '.join(PLACEHOLDERS)}"

    def render(self, name: str, action: Action, target: Target, identity: JobIdentity) -> bytes:
        """The manifest of the Job ``name`` for a Node, as JSON."""
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


@dataclass(frozen=True)
class Templates:
    """The template for all nodes, or one for those of each CRI runtime."""

    common: Template | None = None
    by_runtime: Mapping[str, Template] = field(default_factory=dict)
    """By the scheme of ``status.nodeInfo.containerRuntimeVersion``."""

    def find(self, target: Target) -> Template | None:
        """The template for a Node; ``None`` when there is none for its runtime."""
        return self.common or self.by_runtime.get(target.runtime)


def owner_reference(owner: Owner) -> dict[str, object]:
    """Has the garbage collector take a Job away with the dispatcher's, which does not control it."""
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "name": owner.name,
        "uid": owner.uid,
        "controller": False,
        "blockOwnerDeletion": False,
    }


def _submapping(value: Mapping[Any, Any], *keys: str) -> Mapping[Any, Any]:
    """The mapping below ``keys``; an empty one where there is none."""
    for key in keys:
        below = value.get(key)
        value = below if isinstance(below, dict) else {}
    return value
