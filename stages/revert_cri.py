"""Stage ``revert-cri``: remove this installation from the runtime's configuration, as one transaction."""

from __future__ import annotations

from dataclasses import replace

from kata_node.plan.actions import Plan
from kata_node.plan.receipt import CriRecord, Receipt
from kata_node.runtime import removal, transaction
from kata_node.runtime.facts import RuntimeFacts
from kata_node.runtime.facts import gather_facts_for_revert as gather_facts
from kata_node.runtime.file_actions import RemoveReserves
from kata_node.runtime.restart import CheckConfig
from kata_node.runtime.rollback import ConfigChecks
from kata_node.settings.handlers import handler_names
from kata_node.settings.model import Settings
from kata_node.snapshotters import nydus

__all__ = ["NAME", "gather_facts", "plan"]

NAME = "revert-cri"


def plan(settings: Settings, facts: RuntimeFacts, receipt: Receipt) -> Plan:
    """Restore the backup of each unedited file. Remove only our entry from a file that was edited since."""
    changes, notes = removal.removal_changes(facts, receipt)
    cri = receipt.cri or (_reconstructed_record(settings, facts) if changes else None)
    services = nydus.revert_actions(settings, facts.nydus) if facts.nydus else ()
    notes += nydus.notes(settings, facts.nydus) if facts.nydus else ()
    if cri is None:
        return Plan(
            "the runtime's configuration has no entry of this installation",
            (*((RemoveReserves(facts.reserves),) if facts.reserves else ()), *services),
            notes=tuple(notes),
        )
    check = CheckConfig(facts.config, (), (), {})
    plan = transaction.revert(
        facts,
        receipt,
        cri,
        changes,
        ConfigChecks(
            planned=replace(check, planned={each.path: each.content for each in changes}),
            written=check,
            restored=check,
        ),
    )
    return replace(plan, actions=(*plan.actions, *services), notes=(*plan.notes, *notes))


def _reconstructed_record(settings: Settings, facts: RuntimeFacts) -> CriRecord:
    """Return the record that a lost receipt would have had."""
    return CriRecord(
        "serving",
        facts.runtime.name,
        str(facts.runtime.version),
        facts.unit,
        facts.invocation,
        facts.boot,
        handler_names(settings),
        (),
    )
