"""label: tell the cluster that this node serves the handlers."""

from __future__ import annotations

from kata_node import taints
from kata_node.actions import Plan
from kata_node.facts.node import LabelFacts, look
from kata_node.handlers import names
from kata_node.labelling import AwaitNode, LiftTaints, settled
from kata_node.receipt import Receipt
from kata_node.settings import Settings

__all__ = ["NAME", "look", "plan"]

NAME = "label"


def plan(settings: Settings, facts: LabelFacts, receipt: Receipt) -> Plan:
    """Wait for the Node to be ready with our handlers, set both labels and see them hold.

    Only then are the startup taints lifted, and that this fails is no reason to call the node unfit.
    """
    if not facts.name:
        return Plan(f"nothing to label: {facts.reason}")
    node = facts.node
    handlers = names(settings)
    labelled = settled(facts, settings.instance, "served")
    ready = node is not None and node.ready and not node.missing(handlers)
    awaited = (AwaitNode(facts.name, handlers, facts.timeout, facts.deadline, facts.expected_machine_id),)
    return Plan(
        f"Node {facts.name} labelled" + ("" if labelled else " already"),
        (*(() if ready and not labelled else awaited), *labelled),
        afterwards=_lifted(settings, facts),
    )


def _lifted(settings: Settings, facts: LabelFacts) -> tuple[LiftTaints, ...]:
    there = facts.node.taints if facts.node else ()
    startup = tuple(taints.name(each) for each in there if taints.is_startup(each, settings.startup_taints))
    if not startup:
        return ()
    return (LiftTaints(facts.name, settings.startup_taints, startup, facts.expected_machine_id),)
