"""Stage ``unlabel``: withdraw the labels before the revert changes the node."""

from __future__ import annotations

from kata_node.cluster.facts import OFFLINE, LabelFacts, gather_facts
from kata_node.cluster.labelling import plan_labels, why_not_ours
from kata_node.cluster.labels import installation_label
from kata_node.cluster.ownership import find_other_release, release_error
from kata_node.kube.node import SHARED_LABEL
from kata_node.plan.actions import Plan
from kata_node.plan.receipt import Receipt
from kata_node.settings.model import Settings

__all__ = ["NAME", "gather_facts", "plan"]

NAME = "unlabel"


def plan(settings: Settings, facts: LabelFacts, receipt: Receipt) -> Plan:
    """Set the installation label to ``false``, and the shared label too when no other installation serves.

    The labels stay until the node is clean, so that an unfinished revert can be found by them. A shared label
    that another program set keeps its value. Raises :class:`~kata_node.errors.SettingsError` on a Node of
    another release, so that nothing of it is reverted.
    """
    if not facts.name:
        notes = (
            ()
            if facts.reason == OFFLINE
            else (_manual_removal_note(receipt.instance, facts.has_other_installations),)
        )
        return Plan(f"nothing to unlabel: {facts.reason}", notes=notes)
    if node := facts.node:
        other = find_other_release(node.annotations, receipt.instance, facts.helm_release)
        if other:
            raise release_error(other, node.name, receipt.instance, facts.helm_release)
    actions = plan_labels(facts, receipt.instance, "withdrawn")
    if reason := why_not_ours(facts, receipt.instance):
        return Plan(reason)
    label_state = "no longer labeled" if actions else "not labeled"
    return Plan(f"Node {facts.name} is {label_state} as serving {receipt.instance}", actions)


def _manual_removal_note(instance: str, has_other_installations: bool) -> str:
    """Return how to remove the labels with kubectl. The shared label stays for other installations."""
    keys = (
        (installation_label(instance),)
        if has_other_installations
        else (installation_label(instance), SHARED_LABEL)
    )
    command = " ".join(("kubectl label node NAME", *(f"{key}-" for key in keys)))
    return (
        f"the labels that this node may have in a cluster stay: remove them with `{command}`, where NAME is "
        "its name in `kubectl get nodes`, or set NODE_NAME and KUBECONFIG and revert again"
    )
