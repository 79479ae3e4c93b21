"""Stage ``claim``: set the labels to ``false`` before the first change, so that a failed install is found."""

from __future__ import annotations

from kata_node.cluster.facts import LabelFacts, gather_facts
from kata_node.cluster.labelling import plan_labels
from kata_node.plan.actions import Plan
from kata_node.plan.receipt import Receipt
from kata_node.settings.model import Settings

__all__ = ["NAME", "gather_facts", "plan"]

NAME = "claim"


def plan(settings: Settings, facts: LabelFacts, receipt: Receipt) -> Plan:
    """Set both labels to ``false``. A label that is ``true`` stays, because the node still serves."""
    if not facts.name:
        return Plan(f"nothing to claim: {facts.reason}")
    # No restart has happened yet that could undo the labels, so they need not be watched.
    actions = plan_labels(facts, settings.instance, "claimed", stable_for=0)
    return Plan(f"Node {facts.name} is {'' if actions else 'already '}claimed", actions)
