"""unclaim: take the labels off the Node, now that nothing of this instance is on it."""

from __future__ import annotations

from kata_node.cluster.facts import LabelFacts, gather_facts
from kata_node.cluster.labelling import plan_labels
from kata_node.plan.actions import Plan
from kata_node.plan.receipt import Receipt
from kata_node.settings.model import Settings

__all__ = ["NAME", "gather_facts", "plan"]

NAME = "unclaim"


def plan(settings: Settings, facts: LabelFacts, receipt: Receipt) -> Plan:
    """Remove this instance's mark, and the shared label with the last mark."""
    if not facts.name:
        return Plan(f"nothing to unclaim: {facts.reason}")
    actions = plan_labels(facts, receipt.instance, "released")
    return Plan(
        f"Node {facts.name} "
        + ("unclaimed" if actions else f"does not carry the labels of {receipt.instance}"),
        actions,
    )
