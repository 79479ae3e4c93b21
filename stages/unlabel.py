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
    node = facts.node
    if node is None:
        return Plan(f"nothing to unlabel: {facts.reason}")
    changes = labels.unwanted(node.labels, receipt.instance)
    if not changes:
        return Plan(f"Node {node.name} does not carry our labels")
    return Plan(
        f"Node {node.name} unlabelled",
        (
            SettleLabels(
                node.name,
                receipt.instance,
                "unwanted",
                tuple(changes.items()),
                facts.timeout,
                facts.stable_for,
                facts.expected_machine_id,
            ),
        ),
    )
