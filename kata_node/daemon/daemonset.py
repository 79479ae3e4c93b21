"""Decide whether a DaemonSet still wants its pod on a node, like the DaemonSet controller but without taints.

Kata is no longer wanted when the DaemonSet is gone or selects other nodes. A taint that evicts the pod, a
drain, a shutdown of the node and a rolling restart do not mean that Kata should be removed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from msgspec import Struct

from kata_node.kube.node_affinity import Labels, any_term_matches, features_are_missing


class WantedResult(Struct, frozen=True):
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
    the Node; it is called only if the decision depends on them. An unknown requirement counts as met, and so
    does an affinity to labels that node-feature-discovery has not set yet, because a needless revert does
    more harm than a needless installation.
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
    terms = required.get("nodeSelectorTerms")
    return any_term_matches(terms, node, labels) or features_are_missing(terms, node, labels)
