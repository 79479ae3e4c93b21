"""Why a node gets no Job, and how it ends for that. Pure."""

from __future__ import annotations

from typing import NamedTuple

from kata_node.dispatcher.failures import NodeProblem
from kata_node.dispatcher.kubernetes_objects import Action
from kata_node.dispatcher.nodes import Selection
from kata_node.dispatcher.rollout import Outcome


class TaskResult(NamedTuple):
    """How a node ends, and why."""

    outcome: Outcome
    problem: NodeProblem | None = None
    note: str = ""


def taint_not_tolerated(taint: str) -> TaskResult:
    """Somebody's taint keeps the Job away, as it keeps a DaemonSet's Pods away: no failure."""
    note = f"its taint {taint} is not tolerated; add a toleration to the values, or lift it and run again"
    return TaskResult(Outcome.SKIPPED, note=note)


def no_template(runtime: str) -> TaskResult:
    """There is no template for what the Node says it runs, such as ``docker://28.1``."""
    where = "status.nodeInfo.containerRuntimeVersion"
    what, hint = (
        f"there is no Job for nodes that run {runtime}",
        "correct k8sDistribution or containerRuntime in the values, or do not select this node",
    )
    if not runtime:
        what = "its Node does not say which container runtime it has"
        hint = "see that its kubelet works, and run again when it has reported"
    return TaskResult(Outcome.FAILED, NodeProblem(what, where=where, hint=hint))


def unready_result(action: Action, found: Selection, left: float, waited: float) -> TaskResult | None:
    """How a node that was not ready ends, by what there is ``found`` of it; ``None`` while it is waited for.

    ``left`` seconds of the ``waited`` ones may still pass.
    """
    for _, taint in found.tainted:
        return taint_not_tolerated(taint)
    for _, runtime in found.without_template:
        return no_template(runtime)
    if left > 0:
        return None
    for _, taint in found.unready:
        what = f"its taint {taint} has not gone within {waited:g} s"
        then = "the next upgrade, or job.reconcileSchedule, comes back to it when it is Ready"
        if action == "cleanup":
            then = "run again when it is Ready, or when its Node is deleted because the machine is gone"
        hint = f"see what keeps it: kubectl describe node; {then}"
        return TaskResult(Outcome.NOT_READY, NodeProblem(what, hint=hint))
    return TaskResult(Outcome.GONE, note="its Node is no longer there")
