"""Stage ``check-pods``: fail while pods run on handlers that ``revert-cri`` would remove. Changes nothing."""

from __future__ import annotations

from kata_node.plan.actions import Plan
from kata_node.plan.receipt import Receipt
from kata_node.runtime.facts import RuntimeFacts
from kata_node.runtime.facts import gather_facts_for_revert as gather_facts
from kata_node.settings.model import Settings
from stages import revert_cri

__all__ = ["NAME", "gather_facts", "plan"]

NAME = "check-pods"


def plan(settings: Settings, facts: RuntimeFacts, receipt: Receipt) -> Plan:
    """Return a plan without actions, with the pods that block the plan of ``revert-cri``."""
    found = revert_cri.plan(settings, facts, receipt)
    summary = "no pod runs on a handler that would be removed"
    return Plan(
        summary, notes=found.notes, blocking_pods=found.blocking_pods, pods_unknown=found.pods_unknown
    )
