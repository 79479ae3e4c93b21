"""What a Node of the API says, and what is wrong with it when it does not say what it must."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from kata_node.errors import IneligibleNodeError, KubeError

Taint = Mapping[str, str]
"""As the API has it: ``key``, ``effect``, and perhaps ``value`` and ``timeAdded``."""


@dataclass(frozen=True)
class NodeFacts:
    """What a Node says of itself at one ``resource_version``.

    ``handlers`` is ``None`` when the kubelet reports none at all: it, or the CRI runtime, is older
    than that report (Kubernetes 1.31, containerd 2.0, CRI-O 1.30). ``not_ready_because`` is the
    kubelet's own text, empty when it is ready. ``machine_id`` is empty when it is not reported.
    """

    name: str
    labels: Mapping[str, str]
    ready: bool
    handlers: tuple[str, ...] | None
    machine_id: str
    resource_version: str
    not_ready_reason: str = ""
    taints: tuple[Taint, ...] = ()

    @classmethod
    def of(cls, node: Mapping[str, Any]) -> NodeFacts:
        """Read a Node object of the API."""
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
        )

    def missing(self, handlers: Collection[str]) -> tuple[str, ...]:
        """Which of ``handlers`` the Node does not report; none of them when it reports nothing."""
        return () if self.handlers is None else tuple(sorted(set(handlers) - set(self.handlers)))


def check_machine_id(facts: NodeFacts, expected: str | None) -> None:
    """Raise :class:`UnfitNodeError` when the Node is not, or not known to be, on the machine ``expected``."""
    if expected and _machine(facts.machine_id) != _machine(expected):
        raise IneligibleNodeError(
            f"the Node is on another machine than the one meant: its machine id is "
            f"{facts.machine_id or 'not reported'}, expected was {expected}",
            where=f"node/{facts.name}",
            hint="the name has passed to a new machine; start anew for that one",
        )


def check_host(facts: NodeFacts, host: str) -> None:
    """Raise :class:`UnfitNodeError` when the Node says that it is on another machine than this one, ``host``.

    Where one of the two is not known there is nothing to compare.
    """
    if host and facts.machine_id and _machine(facts.machine_id) != _machine(host):
        raise IneligibleNodeError(
            f"the Node is another machine, {facts.machine_id}, and this one is {host}",
            where=f"node/{facts.name}",
            hint="set NODE_NAME to the name that this machine has in the cluster",
        )


def _machine(machine_id: str) -> str:
    """A machine id as systemd writes it; some kubelets report it in the form of a UUID."""
    return machine_id.strip().replace("-", "").lower()


def waiting_for(facts: NodeFacts, missing: Collection[str]) -> str:
    """What a Node without ``missing`` handlers, or not Ready, is being waited for; goes on after its name."""
    if not facts.ready:
        return f"it is not Ready ({facts.not_ready_reason})"
    reported = ", ".join(facts.handlers or ()) or "no handler that has a name"
    return f"it does not report {', '.join(missing)} (it reports {reported})"


def node_not_ready(facts: NodeFacts, missing: Collection[str], timeout: float) -> KubeError:
    """The error for a Node that was not as it must be within ``timeout`` seconds."""
    what = waiting_for(facts, missing).removeprefix("it ")
    if facts.ready:
        hint = (
            "the kubelet passes on what the CRI runtime serves: see that the runtime was restarted with the "
            "handlers in its configuration, and look at the kubelet's log"
        )
    else:
        hint = "look at the kubelet's log on the node, then run again"
    return KubeError(f"after {timeout:g} s the Node {what}", where=f"node/{facts.name}", hint=hint)


def taints_not_removed(name: str, timeout: float, conflicts: int) -> KubeError:
    """The error for taints that are still there after ``timeout`` seconds."""
    return KubeError(
        f"the startup taints were still there after {timeout:g} s; {conflicts} changes met a conflict",
        where=f"node/{name}",
        hint="find what else writes this Node's taints, or lift them with `kubectl taint node`",
    )


def labels_not_stable(
    name: str, window: float, timeout: float, overwritten: int, conflicts: int
) -> KubeError:
    """The error for changes that did not last for ``window`` seconds within ``timeout`` seconds."""
    return KubeError(
        f"its labels did not stay as set for {window:g} s within {timeout:g} s: they were undone "
        f"{overwritten} times, and {conflicts} changes met a conflict",
        where=f"node/{name}",
        hint="find what else writes this Node's labels (a kubelet that keeps restarting, a cloud "
        "controller, another installer); its managedFields name the writers",
    )
