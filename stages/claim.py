"""claim: mark the Node before the first byte is written to it, so that whatever comes of it is found."""

from __future__ import annotations

from kata_node.cluster.facts import LabelFacts, gather_facts
from kata_node.cluster.labelling import plan_labels
from kata_node.plan.actions import Plan
from kata_node.plan.receipt import Receipt
from kata_node.settings.model import Settings

__all__ = ["NAME", "gather_facts", "plan"]

NAME = "claim"


def plan(settings: Settings, facts: LabelFacts, receipt: Receipt) -> Plan:
    """Both labels become ``false``, unless they are ``true``: a node that serves goes on serving."""
    if not facts.name:
        return Plan(f"nothing to claim: {facts.reason}")
    # Nothing has been restarted yet that could undo it: to see it once is enough.
    actions = plan_labels(facts, settings.instance, "claimed", stable_for=0)
    return Plan(f"Node {facts.name} claimed" + ("" if actions else " already"), actions)
