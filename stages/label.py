"""Stage ``label``: label the Node as serving the handlers, then remove its startup taints."""

from __future__ import annotations

from kata_node.cluster import taints
from kata_node.cluster.facts import LabelFacts, gather_facts
from kata_node.cluster.labelling import RemoveTaint, WaitForNode, plan_labels
from kata_node.plan.actions import Plan
from kata_node.plan.receipt import Receipt
from kata_node.settings.handlers import handlers as all_handlers
from kata_node.settings.handlers import is_asked_for
from kata_node.settings.model import Settings

__all__ = ["NAME", "gather_facts", "plan"]

NAME = "label"


def plan(settings: Settings, facts: LabelFacts, receipt: Receipt) -> Plan:
    """Wait until the Node is Ready and reports the handlers, set both labels, and prove that they stay.

    The startup taints are removed after that. A failure to remove them does not fail the stage.
    """
    if not facts.name:
        return Plan(f"nothing to label: {facts.reason}")
    node = facts.node
    handlers = _handlers_to_wait_for(settings, receipt)
    label_actions = plan_labels(facts, settings.instance, "served", handlers=handlers)
    missing = node.missing(handlers) if node else ()
    ready = node is not None and node.ready and not missing
    # After the wait for the Node there must be time left to watch the labels.
    ready_deadline = facts.deadline - facts.stable_for if label_actions else facts.deadline
    wait_actions = (
        WaitForNode(facts.name, handlers, facts.timeout, ready_deadline, facts.expected_machine_id, missing),
    )
    node_taints = node.taints if node else ()
    return Plan(
        f"Node {facts.name} is {'' if label_actions else 'already '}labeled",
        (*(() if ready else wait_actions), *label_actions),
        # One action for each taint, so that a failure leaves no other taint behind.
        best_effort=tuple(
            RemoveTaint(facts.name, taints.name(each), facts.expected_machine_id)
            for each in node_taints
            if taints.is_startup_taint(each, settings.startup_taints)
        ),
        notes=tuple(
            f"the taint {name} stays because startupTaints lists its key only with another effect"
            for name in taints.mismatched_taints(node_taints, settings.startup_taints)
        ),
    )


def _handlers_to_wait_for(settings: Settings, receipt: Receipt) -> tuple[str, ...]:
    """Return the handlers of the settings, without those that the stage cri left out on this node."""
    if receipt.cri is None or receipt.cri.state != "serving":
        return tuple(handler.name for handler in all_handlers(settings))
    if settings.is_fallback:
        return receipt.cri.handlers
    return tuple(
        handler.name
        for handler in all_handlers(settings)
        if is_asked_for(settings, handler) or handler.name in receipt.cri.handlers
    )
