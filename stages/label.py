"""label: tell the cluster that this node serves the handlers."""

from __future__ import annotations

from kata_node.cluster import taints
from kata_node.cluster.facts import LabelFacts, gather_facts
from kata_node.cluster.labelling import RemoveTaint, WaitForNode, plan_labels
from kata_node.plan.actions import Plan
from kata_node.plan.receipt import Receipt
from kata_node.settings.handlers import handler_names
from kata_node.settings.model import Settings

__all__ = ["NAME", "gather_facts", "plan"]

NAME = "label"


def plan(settings: Settings, facts: LabelFacts, receipt: Receipt) -> Plan:
    """Wait for the Node to be ready with our handlers, set both labels and see them hold.

    Only then are the startup taints lifted, and that this fails is no reason to call the node unfit.
    """
    if not facts.name:
        return Plan(f"nothing to label: {facts.reason}")
    node = facts.node
    handlers = handler_names(settings)
    label_actions = plan_labels(facts, settings.instance, "served", handlers=handlers)
    missing = node.missing(handlers) if node else ()
    ready = node is not None and node.ready and not missing
    # What is left of the time when the Node is ready has to be enough for the labels to hold.
    ready_deadline = facts.deadline - facts.stable_for if label_actions else facts.deadline
    wait_actions = (
        WaitForNode(facts.name, handlers, facts.timeout, ready_deadline, facts.expected_machine_id, missing),
    )
    node_taints = node.taints if node else ()
    return Plan(
        f"Node {facts.name} labelled" + ("" if label_actions else " already"),
        (*(() if ready and not label_actions else wait_actions), *label_actions),
        # One by one, so that one which may not be lifted keeps no other.
        best_effort=tuple(
            RemoveTaint(facts.name, taints.name(each), facts.expected_machine_id)
            for each in node_taints
            if taints.is_startup_taint(each, settings.startup_taints)
        ),
        notes=tuple(
            f"the taint {name} stays: startupTaints has its key with another effect"
            for name in taints.mismatched_taints(node_taints, settings.startup_taints)
        ),
    )
