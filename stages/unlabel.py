"""unlabel: tell the cluster, before anything is taken away, that this node serves the handlers no more."""

from __future__ import annotations

from kata_node.cluster.facts import OFFLINE, LabelFacts, gather_facts
from kata_node.cluster.labelling import plan_labels
from kata_node.cluster.labels import SHARED_LABEL, installation_label
from kata_node.plan.actions import Plan
from kata_node.plan.receipt import Receipt
from kata_node.settings.model import Settings

__all__ = ["NAME", "gather_facts", "plan"]

NAME = "unlabel"


def plan(settings: Settings, facts: LabelFacts, receipt: Receipt) -> Plan:
    """Take this instance's ``true`` back, and that of the shared label with the last one.

    The labels stay, as ``false``, until the node is clean: what cannot be finished now is found by them.
    """
    if not facts.name:
        left = (
            ()
            if facts.reason == OFFLINE
            else (_manual_removal_note(receipt.instance, facts.has_other_installations),)
        )
        return Plan(f"nothing to unlabel: {facts.reason}", notes=left)
    actions = plan_labels(facts, receipt.instance, "withdrawn")
    label_state = "no longer labelled" if actions else "not labelled"
    return Plan(f"Node {facts.name} is {label_state} as serving {receipt.instance}", actions)


def _manual_removal_note(instance: str, has_other_installations: bool) -> str:
    """How to take the labels away without this program; the shared one is that of the others too."""
    keys = (
        (installation_label(instance),)
        if has_other_installations
        else (installation_label(instance), SHARED_LABEL)
    )
    command = " ".join(("kubectl label node NAME", *(f"{key}-" for key in keys)))
    return (
        f"labels that this machine may have in a cluster stay: remove them with `{command}`, NAME being what "
        "`kubectl get nodes` shows it as, or revert again with NODE_NAME and KUBECONFIG set"
    )
