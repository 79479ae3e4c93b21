"""Stage ``unclaim``: remove the labels from the Node when nothing of the installation is left on it."""

from __future__ import annotations

from kata_node.cluster.facts import LabelFacts, gather_facts
from kata_node.cluster.labelling import plan_labels, why_not_ours
from kata_node.plan.actions import Plan
from kata_node.plan.receipt import Receipt
from kata_node.settings.model import Settings

__all__ = ["NAME", "gather_facts", "plan"]

NAME = "unclaim"


def plan(settings: Settings, facts: LabelFacts, receipt: Receipt) -> Plan:
    """Remove the installation label, and the shared label with the last installation label.

    A shared label that another program set or needs stays.
    """
    if not facts.name:
        return Plan(f"nothing to unclaim: {facts.reason}")
    actions = plan_labels(facts, receipt.instance, "released")
    if reason := why_not_ours(facts, receipt.instance):
        return Plan(reason, actions)
    label_state = "no longer has" if actions else "does not have"
    return Plan(f"Node {facts.name} {label_state} the labels of {receipt.instance}", actions)
