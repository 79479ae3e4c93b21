"""Decide whether a DaemonSet still wants its pod on a node, like the DaemonSet controller but without taints.

Kata is no longer wanted when the DaemonSet is gone or selects other nodes. A taint that evicts the pod, a
drain, a shutdown of the node and a rolling restart do not mean that Kata should be removed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Labels = Mapping[str, str]


@dataclass(frozen=True)
class WantedResult:
    """The decision and its reason, a sentence without a full stop.

    ``permanent`` means that no label of the Node can change the decision.
    """

    wanted: bool
    reason: str
    permanent: bool = False


def still_wanted(
    daemonset: Mapping[str, Any] | None, node: str, labels: Callable[[], Labels]
) -> WantedResult:
    """Return whether ``daemonset`` selects the Node ``node``.

    ``daemonset`` is an object of apps/v1, or ``None`` if it does not exist. ``labels`` returns the labels of
    the Node; it is called only if the decision depends on them. An unknown requirement counts as met, because
    a needless revert does more harm than a needless installation.
    """
    if daemonset is None:
        return WantedResult(False, "the DaemonSet is gone", permanent=True)
    if daemonset["metadata"].get("deletionTimestamp"):
        return WantedResult(False, "the DaemonSet is being deleted", permanent=True)
    return _selects(daemonset["spec"]["template"]["spec"], node, labels())


def _selects(pod: Mapping[str, Any], node: str, labels: Labels) -> WantedResult:
    if pod.get("nodeName", "") not in ("", node):
        return WantedResult(False, f"the DaemonSet selects only the node {pod['nodeName']}")
    for key, value in (pod.get("nodeSelector") or {}).items():
        if labels.get(key) != value:
            found = f"{key}={labels[key]}" if key in labels else f"no label {key}"
            return WantedResult(
                False, f"the DaemonSet selects nodes with {key}={value}, and this one has {found}"
            )
    if not _affinity_matches(pod, node, labels):
        return WantedResult(False, "the node affinity of the DaemonSet does not match this node")
    return WantedResult(True, "the DaemonSet exists and selects this node")


def _affinity_matches(pod: Mapping[str, Any], node: str, labels: Labels) -> bool:
    affinity = (pod.get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution")
    if required is None:
        return True
    return any(_term_matches(term, node, labels) for term in required.get("nodeSelectorTerms") or ())


def _term_matches(term: Mapping[str, Any], node: str, labels: Labels) -> bool:
    """Return whether the node meets all requirements of a term. An empty term matches no node."""
    by_label, by_field = term.get("matchExpressions") or (), term.get("matchFields") or ()
    if not by_label and not by_field:
        return False
    # metadata.name is the only field that Kubernetes supports here.
    return _requirements_match(by_label, labels) and _requirements_match(by_field, {"metadata.name": node})


def _requirements_match(requirements: Sequence[Mapping[str, Any]], labels: Labels) -> bool:
    return all(
        # An unknown operator of a newer Kubernetes counts as met.
        OPERATORS.get(each["operator"], _always_matches)(labels.get(each["key"]), each.get("values") or ())
        for each in requirements
    )


def _always_matches(_value: str | None, _values: Sequence[str]) -> bool:
    return True


def _compares(value: str | None, values: Sequence[str], *, sign: int) -> bool:
    """Return whether ``value`` is above (``sign`` 1) or below (-1) the single integer in ``values``.

    It is false when either of them is not an integer.
    """
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
"""Each operator of the API as a function of a label's value (``None`` if it is missing) and the values."""
