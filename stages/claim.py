"""Stage ``claim``: set the labels to ``false`` before the first change, so that a failed install is found.

It also withdraws labels that are ``true`` although the node does not serve, so that no pod comes before the
repair.
"""

from __future__ import annotations

from kata_node.cluster import facts as label_facts
from kata_node.cluster.facts import LabelFacts
from kata_node.cluster.labelling import is_labeled_as_serving, plan_labels, withdrawal_summary
from kata_node.cluster.ownership import check_suffix
from kata_node.plan.actions import Plan
from kata_node.plan.context import StageContext
from kata_node.plan.receipt import Receipt
from kata_node.settings.model import Settings

__all__ = ["NAME", "gather_facts", "plan"]

NAME = "claim"


def gather_facts(context: StageContext) -> LabelFacts:
    """Read the Node, except that of a new node: its labels can be added without that."""
    return label_facts.gather_facts(context, unread_if_new=True)


def plan(settings: Settings, facts: LabelFacts, receipt: Receipt) -> Plan:
    """Set both labels to ``false``. One that is ``true`` stays, unless host-check found it wrong.

    Raises :class:`~kata_node.errors.SettingsError` if the release has another suffix there. The installation
    of another release is taken over: the release may be gone.
    """
    if not facts.name:
        return Plan(f"nothing to claim: {facts.reason}")
    if facts.node:
        check_suffix(facts.node, settings.instance, facts.helm_release)
    # No restart has happened yet that could undo the labels, so they need not be watched.
    withdraws = bool(facts.not_served) and is_labeled_as_serving(facts, settings.instance)
    reason = facts.not_served if withdraws else ""
    actions = plan_labels(facts, settings.instance, "claimed", stable_for=0, reason=reason)
    if actions and withdraws:
        return Plan(withdrawal_summary(facts), actions, not_served=facts.not_served)
    return Plan(f"Node {facts.name} is {'' if actions else 'already '}claimed", actions)
