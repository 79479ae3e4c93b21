"""unlabel: tell the cluster, before anything is taken away, that this node serves the handlers no more."""

from __future__ import annotations

from kata_node.actions import Plan
from kata_node.facts.node import OFFLINE, LabelFacts, look
from kata_node.labelling import settled
from kata_node.receipt import Receipt
from kata_node.settings import Settings

__all__ = ["NAME", "look", "plan"]

NAME = "unlabel"


def plan(settings: Settings, facts: LabelFacts, receipt: Receipt) -> Plan:
    """Take this instance's ``true`` back, and that of the shared label with the last one.

    The labels stay, as ``false``, until the node is clean: what cannot be finished now is found by them.
    """
    if not facts.name:
        left = (
            "labels that this machine may have in a cluster stay: set NODE_NAME and KUBECONFIG to remove them"
        )
        return Plan(f"nothing to unlabel: {facts.reason}", notes=() if facts.reason == OFFLINE else (left,))
    actions = settled(facts, receipt.instance, "withdrawn")
    said = "no longer labelled" if actions else "not labelled"
    return Plan(f"Node {facts.name} is {said} as serving {receipt.instance}", actions)
