"""label: tell the cluster that this node serves the handlers."""

from __future__ import annotations

from kata_node import labels
from kata_node.actions import Action, Plan
from kata_node.facts.node import LabelFacts, look
from kata_node.handlers import names
from kata_node.labelling import AwaitNode, SettleLabels
from kata_node.receipt import Receipt
from kata_node.settings import Settings

__all__ = ["NAME", "look", "plan"]

NAME = "label"


def plan(settings: Settings, facts: LabelFacts, receipt: Receipt) -> Plan:
    """Wait for the Node to be ready with our handlers, then set both labels and see them hold."""
    if not facts.name:
        return Plan(f"nothing to label: {facts.reason}")
    node = facts.node
    handlers = names(settings)
    changes = labels.wanted(node.labels if node else {}, settings.instance)
    actions: list[Action] = []
    if changes or node is None or not node.ready or node.missing(handlers):
        actions.append(AwaitNode(facts.name, handlers, facts.timeout, facts.expected_machine_id))
    if changes:
        actions.append(
            SettleLabels(
                facts.name,
                settings.instance,
                "wanted",
                tuple(changes.items()),
                facts.timeout,
                facts.stable_for,
                facts.expected_machine_id,
            )
        )
    done = "labelled" if changes else "labelled already"
    return Plan(f"Node {facts.name} {done}", tuple(actions))
