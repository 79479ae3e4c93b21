"""Return the result of nodes that get no Job. Pure."""

from __future__ import annotations

from typing import NamedTuple

from kata_node.dispatcher.failures import NodeProblem
from kata_node.dispatcher.kubernetes_objects import FIRST_WITH_IMAGE_VOLUMES, Action, mounts_images
from kata_node.dispatcher.nodes import Selection
from kata_node.dispatcher.rollout import Outcome
from kata_node.text import quote_foreign


class TaskResult(NamedTuple):
    """The outcome of a node and its reason."""

    outcome: Outcome
    problem: NodeProblem | None = None
    note: str = ""


def taint_not_tolerated(taint: str) -> TaskResult:
    """Return the result of a node with a taint that the Job does not tolerate.

    It is skipped and does not fail: the taint would keep the Pods of a DaemonSet away as well.
    """
    note = (
        f"its taint {taint} is not tolerated; add it to tolerations in the values, or remove it from the "
        "node, then run the helm command again"
    )
    return TaskResult(Outcome.SKIPPED, note=note)


def no_template(runtime: str) -> TaskResult:
    """Return the result of a node for whose ``runtime`` (for example ``docker://28.1``) there is no Job.

    The runtime has no template, or it is too old to mount the payload.
    """
    where = "status.nodeInfo.containerRuntimeVersion"
    what, hint = (
        f"there is no Job template for the container runtime {quote_foreign(runtime)}",
        "correct k8sDistribution or containerRuntime in the values, or exclude this node from the selection",
    )
    if not mounts_images(runtime):
        what = f"its container runtime {quote_foreign(runtime)} cannot mount the payload, which is an image"
        oldest = " or ".join(f"{name} {a}.{b}" for name, (a, b) in FIRST_WITH_IMAGE_VOLUMES.items())
        hint = (
            f"use {oldest}, or a later one, or build one image of kata-node and the payload, name it in "
            "nodeImage and set image.volume: never"
        )
    if not runtime:
        what = "its Node does not name its container runtime"
        hint = "check its kubelet, and run the helm command again when the Node names its runtime"
    return TaskResult(Outcome.FAILED, NodeProblem(what, where=where, hint=hint))


def not_labeled() -> TaskResult:
    """Return the result of a node that has no label of node-feature-discovery yet."""
    note = (
        "node-feature-discovery has not labeled it, so it may not be selected; when it has labels, run the "
        "helm command again"
    )
    return TaskResult(Outcome.SKIPPED, note=note)


def no_longer_selected() -> TaskResult:
    """Return the result of a node that the configuration selected at the start of the run and not now."""
    return TaskResult(Outcome.SKIPPED, note="its labels have changed, and it is no longer selected")


def unready_result(action: Action, found: Selection, left: float, waited: float) -> TaskResult | None:
    """Return the result of a node that is not eligible; ``None`` while the dispatcher still waits for it.

    ``found`` is the selection of this one node, read again. ``left`` is the remaining time of the ``waited``
    seconds.
    """
    for _, taint in found.tainted:
        return taint_not_tolerated(taint)
    for _, runtime in found.without_template:
        return no_template(runtime)
    if left > 0:
        return None
    for target, taint in found.unready:
        what = f"it still has the taint {taint} after {waited:g} s"
        then = "when it is Ready, the next upgrade or the CronJob of job.reconcileSchedule installs it"
        if action == "cleanup":
            then = (
                "run the helm command again when it is Ready; if the machine is gone, delete its Node first"
            )
        hint = f"run `kubectl describe node {target.name}` to see the cause; {then}"
        return TaskResult(Outcome.NOT_READY, NodeProblem(what, hint=hint))
    if found.unlabeled:
        return not_labeled()
    return TaskResult(Outcome.GONE, note="its Node no longer exists")
