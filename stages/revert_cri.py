"""Stage ``revert-cri``: remove this installation from the runtime's configuration, as one transaction."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from kata_node.plan.actions import Plan
from kata_node.plan.receipt import Receipt
from kata_node.plan.report import NOT_OURS
from kata_node.runtime import file_records, install_dirs, removal, transaction
from kata_node.runtime.check_config import CheckConfig
from kata_node.runtime.facts import RuntimeFacts
from kata_node.runtime.facts import gather_facts_for_revert as gather_facts
from kata_node.runtime.file_actions import RemoveReserves
from kata_node.runtime.model.config import FileChange, files_after
from kata_node.runtime.rollback import ConfigChecks
from kata_node.settings.handlers import handler_names
from kata_node.settings.model import Settings
from kata_node.snapshotters import nydus

__all__ = ["NAME", "gather_facts", "plan"]

NAME = "revert-cri"


def plan(settings: Settings, facts: RuntimeFacts, receipt: Receipt) -> Plan:
    """Restore the backup of each unedited file. Remove only our entry from a file that was edited since.

    Without a receipt and without a file of this installation, the node stays as it is: handlers in the
    install dir are then those of another program.

    Raises :class:`IneligibleNodeError` when the runtime would not serve after that, although it serves now.
    """
    if not removal.has_traces(facts, receipt):
        others = install_dirs.other_install_dirs(facts.contents)
        summary = f"{NOT_OURS}: no receipt and no file of {receipt.instance} is on this node"
        return Plan(f"{summary}; {_summary(facts)}", other_install_dirs=others)
    changes, notes = removal.removal_changes(facts, receipt)
    changes, copy_notes = removal.without_own_handlers(facts, changes)
    removal.refuse_linked_handlers(facts, changes)
    is_served = bool(facts.own_served)
    others = install_dirs.other_install_dirs(files_after(facts.contents, changes), receipt.install_dir)
    cri = receipt.cri
    if cri is None and (changes or is_served):  # the record that a lost receipt would have had
        cri = file_records.serving_record(facts, handler_names(settings))
    services = nydus.revert_actions(settings, facts.nydus) if facts.nydus else ()
    notes += [*copy_notes, *(nydus.notes(settings, facts.nydus) if facts.nydus else ())]
    if cri is None:
        return Plan(
            _summary(facts),
            (*((RemoveReserves(facts.reserves),) if facts.reserves else ()), *services),
            notes=tuple(notes),
            other_install_dirs=others,
        )
    if not transaction.is_broken(cri, facts):
        removal.refuse_worse_config(facts, changes)
    check = CheckConfig(facts.config, (), (), {}, before=_contents_before(facts, changes))
    plan = transaction.revert(
        facts,
        receipt,
        cri,
        changes,
        ConfigChecks(
            planned=replace(check, planned={each.path: each.content for each in changes}),
            written=check,
            restored=replace(check, before=None, is_old=True),
        ),
    )
    return replace(
        plan,
        actions=(*plan.actions, *services),
        notes=(*plan.notes, *notes),
        other_install_dirs=others,
        is_forecast=True,
    )


def _summary(facts: RuntimeFacts) -> str:
    """Return what the CRI lists; without an answer of it, what the files say."""
    if facts.handlers is None:
        return "the runtime's configuration has no entry of this installation"
    if not facts.handlers:
        return f"{facts.unit or facts.runtime.name} serves no handler"
    return f"{facts.unit or facts.runtime.name} serves {', '.join(facts.handlers)}, none of this installation"


def _contents_before(facts: RuntimeFacts, changes: Sequence[FileChange]) -> dict[str, bytes | None]:
    contents = facts.contents
    return {change.path: contents.get(change.path) for change in changes}
