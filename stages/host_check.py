"""The stage host-check: report every reason why this node cannot run Kata with the settings. Reads only."""

from __future__ import annotations

from collections import Counter

from kata_node.checks.facts import HostCheckFacts, gather_facts
from kata_node.checks.table import all_findings
from kata_node.payload.facts import ArtifactFacts
from kata_node.plan.actions import Plan
from kata_node.plan.receipt import Receipt
from kata_node.runtime.facts import RuntimeFacts
from kata_node.runtime.not_served import why_not_served
from kata_node.settings.handlers import handler_names
from kata_node.settings.model import Settings

__all__ = ["NAME", "gather_facts", "plan"]

NAME = "host-check"


def plan(settings: Settings, facts: HostCheckFacts, receipt: Receipt) -> Plan:
    """Return a plan with findings and without actions. It also says whether the installation is served."""
    checks = all_findings(settings, facts, receipt)
    counts = Counter(check.status for check in checks)
    summary = f"{counts['pass']} passed"
    if counts["warn"]:
        summary += f", {counts['warn']} warning{'s' if counts['warn'] > 1 else ''}"
    if counts["fail"]:
        summary += f", {counts['fail']} failed"
    served = facts.runtime.handlers if isinstance(facts.runtime, RuntimeFacts) else None
    not_served = (
        "" if facts.offline or facts.untrusted else why_not_served(receipt, served, handler_names(settings))
    )
    recorded = receipt.artifacts.release if receipt.artifacts else ""
    offered = facts.artifacts.release if isinstance(facts.artifacts, ArtifactFacts) else ""
    is_new = receipt.artifacts is None and receipt.cri is None
    return Plan(
        summary, checks=checks, kata_version=offered or recorded, not_served=not_served, is_new=is_new
    )
