"""The facts of a Node object that kata-node needs, and the errors about them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from msgspec import Struct, field

from kata_node.errors import IneligibleNodeError, KubeError, UsageError
from kata_node.text import foreign_words, quote_foreign

SHARED_LABEL = "katacontainers.io/kata-runtime"
"""The label that RuntimeClasses select. ``true``: an installation serves Kata handlers on this node. Other
programs can set and remove it."""

STABLE_FOR = 10.0
"""Seconds that changed labels must stay unchanged. A kubelet that registers again restores old labels."""

_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?")

Taint = Mapping[str, str]
"""A taint as in the API: ``key`` and ``effect``, and optionally ``value`` and ``timeAdded``."""


class MetadataChanges(Struct, frozen=True):
    """Changes of a Node's labels and annotations; ``None`` removes a key. False without a change."""

    labels: Mapping[str, str | None] = field(default_factory=dict)
    annotations: Mapping[str, str | None] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.labels or self.annotations)

    def __str__(self) -> str:
        return ", ".join(
            f"{key} removed" if value is None else f"{key}={value}"
            for key, value in (*self.labels.items(), *self.annotations.items())
        )

    def patch(self) -> dict[str, Any]:
        """Return the metadata of a merge patch."""
        return {
            key: dict(changes)
            for key, changes in (("labels", self.labels), ("annotations", self.annotations))
            if changes
        }

    def json_patch(self) -> list[dict[str, Any]]:
        """Return the operations of a JSON patch, which fails if one of the keys exists."""
        operations: list[dict[str, Any]] = []
        for section, changes in self.patch().items():
            for key, value in changes.items():
                path = f"/metadata/{section}/{key.replace('~', '~0').replace('/', '~1')}"
                # For the API server, null is also the value of a missing key.
                operations.append({"op": "test", "path": path, "value": None})
                operations.append({"op": "add", "path": path, "value": value})
        return operations


class NodeFacts(Struct, frozen=True):
    """The state of a Node at one ``resource_version``.

    ``handlers`` is ``None`` when the kubelet reports none at all, because it or the runtime is too old
    to report them (before Kubernetes 1.31, containerd 2.0, CRI-O 1.30). ``not_ready_reason`` is the
    kubelet's message, empty when the Node is Ready. ``machine_id`` is empty when it is not reported.
    """

    name: str
    labels: Mapping[str, str]
    ready: bool
    handlers: tuple[str, ...] | None
    machine_id: str
    resource_version: str
    not_ready_reason: str = ""
    taints: tuple[Taint, ...] = ()
    annotations: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, node: Mapping[str, Any]) -> NodeFacts:
        """Create the facts from a Node object of the API."""
        metadata, status = node["metadata"], node.get("status") or {}
        conditions = {each.get("type"): each for each in status.get("conditions") or ()}
        ready = conditions.get("Ready", {"message": "the kubelet has not reported yet"})
        handlers = status.get("runtimeHandlers")
        return cls(
            name=metadata["name"],
            labels=metadata.get("labels") or {},
            ready=ready.get("status") == "True",
            # The default handler is listed without a name.
            handlers=tuple(each["name"] for each in handlers if each.get("name")) if handlers else None,
            machine_id=(status.get("nodeInfo") or {}).get("machineID", ""),
            resource_version=metadata["resourceVersion"],
            not_ready_reason="" if ready.get("status") == "True" else str(ready.get("message", "")),
            taints=tuple((node.get("spec") or {}).get("taints") or ()),
            annotations=metadata.get("annotations") or {},
        )

    def missing(self, handlers: Collection[str]) -> tuple[str, ...]:
        """Return the ``handlers`` that the Node does not report, sorted; none if it reports no handlers."""
        return () if self.handlers is None else tuple(sorted(set(handlers) - set(self.handlers)))


def check_name(name: str) -> None:
    """Raise :class:`UsageError` unless ``name`` can be the name of a Node."""
    if not name:
        raise UsageError(
            "NODE_NAME is not set, and there are credentials of a cluster",
            where="NODE_NAME",
            hint="set NODE_NAME to metadata.name of the Node, or unset KUBECONFIG to keep the labels as "
            "they are",
        )
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is not a valid name of a Node",
            where="NODE_NAME",
            hint="set NODE_NAME to metadata.name of the Node; in a pod, take it from spec.nodeName",
        )


def check_machine_id(facts: NodeFacts, expected: str | None) -> None:
    """Raise :class:`IneligibleNodeError` unless the Node reports the machine id ``expected``.

    ``None`` or an empty string expects nothing.
    """
    if expected and not is_same_machine(facts.machine_id, expected):
        raise IneligibleNodeError(
            "the Node is not the expected machine: its machine id is "
            f"{foreign_words(facts.machine_id) or 'not reported'}, "
            f"the expected one is {expected}",
            where=f"node/{facts.name}",
            hint="find out which machine has this Node name now, then start again for that machine",
        )


def check_host(facts: NodeFacts, host: str) -> None:
    """Raise :class:`IneligibleNodeError` when the Node reports a machine id other than ``host``.

    ``host`` is the machine id of the node that this process runs on. An unknown id matches any other.
    """
    if host and facts.machine_id and not is_same_machine(facts.machine_id, host):
        raise IneligibleNodeError(
            f"the Node object has the machine id {foreign_words(facts.machine_id)}, but this node has {host}",
            where=f"node/{facts.name}",
            hint="set NODE_NAME to the name that this node has in the cluster",
        )


def is_same_machine(one: str, other: str) -> bool:
    """Return whether two machine ids are the same, whatever form they have."""
    return _machine(one) == _machine(other)


def _machine(machine_id: str) -> str:
    """Return a machine id as systemd writes it. Some kubelets report it in the form of a UUID."""
    return machine_id.strip().replace("-", "").lower()


def waiting_for(facts: NodeFacts, missing: Collection[str]) -> str:
    """Return why the Node is being waited for: it is not Ready, or does not report ``missing`` handlers."""
    if not facts.ready:
        return f"it is not Ready ({quote_foreign(facts.not_ready_reason)})"
    reported = foreign_words(", ".join(facts.handlers or ())) or "only the default handler"
    return f"it does not report {', '.join(missing)} (it reports {reported})"


def node_not_ready(facts: NodeFacts, missing: Collection[str], timeout: float) -> KubeError:
    """Return the error for a Node that was not Ready, or missed handlers, after ``timeout`` seconds."""
    what = waiting_for(facts, missing).removeprefix("it ")
    if facts.ready:
        hint = (
            "check that the runtime was restarted with these handlers in its configuration, and look at the "
            "kubelet's log; the kubelet reports the handlers that the runtime serves"
        )
    else:
        hint = "look at the kubelet's log on the node, then run again"
    return KubeError(f"after {timeout:g} s the Node {what}", where=f"node/{facts.name}", hint=hint)


def taints_not_removed(name: str, timeout: float, conflicts: int) -> KubeError:
    """Return the error for taints that were not removed within ``timeout`` seconds."""
    return KubeError(
        f"the startup taints are still there after {timeout:g} s because {conflicts} changes met a conflict",
        where=f"node/{name}",
        hint="find what else changes this Node's taints, or remove them with `kubectl taint node`",
    )


def labels_not_stable(
    name: str, window: float, timeout: float, overwritten: int, conflicts: int
) -> KubeError:
    """Return the error for changes that did not last ``window`` seconds, after ``timeout`` seconds."""
    return KubeError(
        f"the labels did not stay unchanged for {window:g} s within {timeout:g} s: they were undone "
        f"{overwritten} times, and {conflicts} changes met a conflict",
        where=f"node/{name}",
        hint="find what else changes this Node's labels (a kubelet that keeps restarting, a cloud "
        "controller, another installer); metadata.managedFields of the Node names the writers",
    )
