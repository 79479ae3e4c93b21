"""The changes of the runtime's configuration by an install, and by the install after it. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from kata_node.errors import HostError
from kata_node.host.files import FileState
from kata_node.plan.receipt import Receipt
from kata_node.runtime import file_records, removal
from kata_node.runtime.config_selection import config_for
from kata_node.runtime.facts import RuntimeFacts
from kata_node.runtime.model.config import DesiredConfig, FileChange
from kata_node.settings.model import Settings


def planned_changes(
    settings: Settings, facts: RuntimeFacts, receipt: Receipt
) -> tuple[DesiredConfig, tuple[FileChange, ...]]:
    """Return what ``settings`` ask for, and the changes for it, in a safe order.

    The changes also remove entries that this installation wrote for another main file or another runtime.
    Raises :class:`KataNodeError` when a file is broken or not safe to edit.
    """
    desired_config = facts.config.desired_config(settings, facts.contents)
    return desired_config, _all_changes(desired_config, facts, receipt)


def _all_changes(
    desired_config: DesiredConfig, facts: RuntimeFacts, receipt: Receipt
) -> tuple[FileChange, ...]:
    removals, _ = removal.removal_changes(facts, receipt)
    wanted = {change.path for change in desired_config.changes}
    return (*desired_config.changes, *(change for change in removals if change.path not in wanted))


def check_repeatable(
    desired_config: DesiredConfig, settings: Settings, facts: RuntimeFacts, receipt: Receipt
) -> None:
    """Raise the error of a second install, which finds the files and the record of the first one.

    ``desired_config`` is what ``settings`` ask for. The second plan of the stage cri proves the first one.
    What it cannot do is known before the first byte.
    """
    changes = _all_changes(desired_config, facts, receipt)
    if not file_records.pending_changes(facts, changes) and receipt.cri is not None:
        return  # the files are in place, and the plan was made with the record
    # A file without our entry needs no record.
    with_entry = [change for change in changes if change.content != change.content_without_entry]
    files = file_records.install_records(with_entry, receipt.cri, facts)
    record = file_records.serving_record(facts, desired_config.handlers, files)
    receipt_after = replace(receipt, cri=record)
    facts_after = replace(
        facts,
        config=config_for(receipt_after, settings.suffix, facts.runtime, facts.distribution_runtime),
        files=_files_after(facts, changes),
        backups=file_records.available_contents(facts, changes),
    )
    _, second_changes = planned_changes(settings, facts_after, receipt_after)
    if repeated := file_records.pending_changes(facts_after, second_changes):
        raise HostError(
            "a second install would change this file again",
            where=repeated[0].path,
            hint="write the tables of the CRI plugin in this file as plain [tables], then run again",
        )


def _files_after(facts: RuntimeFacts, changes: Sequence[FileChange]) -> dict[str, FileState]:
    new_file = FileState(b"", 0o644, 0, 0)
    after = dict(facts.files)
    for change in changes:
        if change.content is None:
            after.pop(change.path, None)
        else:
            after[change.path] = replace(after.get(change.path, new_file), content=change.content)
    return after
