"""unlabel: tell the cluster, before anything is taken away, that this node serves the handlers no more."""

from __future__ import annotations

from kata_node import labels
from kata_node.actions import Plan
from kata_node.facts.node import LabelFacts, look
from kata_node.labelling import SettleLabels
from kata_node.receipt import Receipt
from kata_node.settings import Settings

__all__ = ["NAME", "look", "plan"]

NAME = "unlabel"


def plan(settings: Settings, facts: LabelFacts, receipt: Receipt) -> Plan:
    """Remove this instance's mark, and the shared label with the last mark."""
    if not facts.name:
        return Plan(f"nothing to unlabel: {facts.reason}")
    # Of a Node that is away just now, all that it can have.
    there = facts.node.labels if facts.node else dict.fromkeys(labels.wanted({}, receipt.instance), "")
    changes = labels.unwanted(there, receipt.instance)
    if not changes:
        return Plan(f"Node {facts.name} does not carry our labels")
    return Plan(
        f"Node {facts.name} unlabelled",
        (
            SettleLabels(
                facts.name,
                receipt.instance,
                "unwanted",
                tuple(changes.items()),
                facts.timeout,
                facts.stable_for,
                facts.expected_machine_id,
            ),
        ),
    )
