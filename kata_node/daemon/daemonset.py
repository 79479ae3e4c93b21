"""Whether a DaemonSet still wants its pod on a node: what the DaemonSet controller goes by, but for taints.

A taint that drives the pod away, a node that is drained or shut down, a rolling restart: none of them
is a wish to have Kata removed. That the DaemonSet is gone, or selects other nodes now, is one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Labels = Mapping[str, str]


@dataclass(frozen=True)
class WantedResult:
    """Whether it does, and why; ``reason`` is a sentence without a full stop.

    ``for_good`` is a no that no label of the Node can change.
    """

    wanted: bool
    reason: str
    permanent: bool = False


def still_wanted(
    daemonset: Mapping[str, Any] | None, node: str, labels: Callable[[], Labels]
) -> WantedResult:
    """Whether ``daemonset``, an object of apps/v1 or ``None`` if there is none, selects the Node ``node``.

    ``labels`` are the Node's, asked for only where it comes to them. What is not understood of the object
    counts as a wish to stay: to take Kata away disturbs more than to leave it.
    """
    if daemonset is None:
        return WantedResult(False, "the DaemonSet is gone", permanent=True)
    if daemonset["metadata"].get("deletionTimestamp"):
        return WantedResult(False, "the DaemonSet is being deleted", permanent=True)
    return _selects(daemonset["spec"]["template"]["spec"], node, labels())


def _selects(pod: Mapping[str, Any], node: str, labels: Labels) -> WantedResult:
    if pod.get("nodeName", "") not in ("", node):
        return WantedResult(False, f"the DaemonSet is for the node {pod['nodeName']} alone")
    for key, value in (pod.get("nodeSelector") or {}).items():
        if labels.get(key) != value:
            found = f"{key}={labels[key]}" if key in labels else f"no label {key}"
            return WantedResult(
                False, f"the DaemonSet selects nodes with {key}={value}, and this one has {found}"
            )
    if not _affinity_matches(pod, node, labels):
        return WantedResult(False, "the node affinity of the DaemonSet does not fit this node")
    return WantedResult(True, "the DaemonSet is there and selects this node")


def _affinity_matches(pod: Mapping[str, Any], node: str, labels: Labels) -> bool:
    affinity = (pod.get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution")
    if required is None:
        return True
    return any(_term_matches(term, node, labels) for term in required.get("nodeSelectorTerms") or ())


def _term_matches(term: Mapping[str, Any], node: str, labels: Labels) -> bool:
    """Whether all of a term holds. An empty one fits no node, as in Kubernetes."""
    by_label, by_field = term.get("matchExpressions") or (), term.get("matchFields") or ()
    if not by_label and not by_field:
        return False
    # The only field that Kubernetes knows there.
    return _requirements_match(by_label, labels) and _requirements_match(by_field, {"metadata.name": node})


def _requirements_match(requirements: Sequence[Mapping[str, Any]], labels: Labels) -> bool:
    return all(
        # An operator of times to come is not understood, so it is taken to fit.
        OPERATORS.get(each["operator"], _always_matches)(labels.get(each["key"]), each.get("values") or ())
        for each in requirements
    )


def _always_matches(_value: str | None, _values: Sequence[str]) -> bool:
    return True


def _compares(value: str | None, values: Sequence[str], *, sign: int) -> bool:
    """Whether ``value`` lies beyond the one of ``values``; never so if one of them is no number."""
    try:
        (limit,) = values
        return value is not None and (int(value) - int(limit)) * sign > 0
    except ValueError:
        return False


OPERATORS: Mapping[str, Callable[[str | None, Sequence[str]], bool]] = {
    "In": lambda value, values: value is not None and value in values,
    "NotIn": lambda value, values: value is None or value not in values,
    "Exists": lambda value, _: value is not None,
    "DoesNotExist": lambda value, _: value is None,
    "Gt": lambda value, values: _compares(value, values, sign=1),
    "Lt": lambda value, values: _compares(value, values, sign=-1),
}
"""By their names in the API: whether the value of a label, ``None`` if it is not there, meets the values."""
