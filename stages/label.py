"""label: tell the cluster that this node serves the handlers."""

from __future__ import annotations

from kata_node import labels
from kata_node.actions import Action, Plan
from kata_node.facts.node import LabelFacts, look
from kata_node.labelling import AwaitNode, SettleLabels
from kata_node.receipt import Receipt
from kata_node.settings import Settings

__all__ = ["NAME", "look", "plan"]

NAME = "label"


def plan(settings: Settings, facts: LabelFacts, receipt: Receipt) -> Plan:
    """Wait for the Node to be ready with our handlers, then set both labels and see them hold."""
    node = facts.node
    if node is None:
        return Plan(f"nothing to label: {facts.reason}")
    handlers = tuple(shim.handler(settings.suffix) for shim in settings.shims)
    changes = labels.wanted(node.labels, settings.instance)
    actions: list[Action] = []
    if changes or not node.ready or node.missing(handlers):
        actions.append(AwaitNode(node.name, handlers, facts.timeout, facts.expected_machine_id))
    if changes:
        actions.append(
            SettleLabels(
                node.name,
                settings.instance,
                "wanted",
                tuple(changes.items()),
                facts.timeout,
                facts.stable_for,
                facts.expected_machine_id,
            )
        )
    done = "labelled" if changes else "labelled already"
    return Plan(f"Node {node.name} {done}", tuple(actions))
