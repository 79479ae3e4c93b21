"""What of the CRI runtime's configuration is this instance's, and how each file is without it. Pure.

The record tells, and where it does not (it was lost, or a run was interrupted that did not get to
keep it), the files themselves.
"""

from __future__ import annotations

from collections.abc import Iterator

from kata_node.errors import IneligibleNodeError
from kata_node.plan.receipt import Receipt
from kata_node.runtime.config_selection import config_that_edited
from kata_node.runtime.facts import RuntimeFacts
from kata_node.runtime.file_records import file_records, is_backup_available, recorded_digests, sha256
from kata_node.runtime.model.config import FileChange, is_drop_in, is_drop_in_of


def removal_changes(facts: RuntimeFacts, receipt: Receipt) -> tuple[list[FileChange], list[str]]:
    """Every file with something of this instance as it is to be without, and what there is to say of it.

    Those that others write as well come first, for they import the rest.
    """
    recorded = receipt.cri.paths() if receipt.cri else ()
    paths = dict.fromkeys((*recorded, *_paths_with_entry(facts, receipt.install_dir)))
    changes: list[FileChange] = []
    notes: list[str] = []
    for path in sorted(paths, key=is_drop_in):
        content, note = _removal_change(path, facts, receipt)
        changes.append(FileChange(path, content, content))
        notes += [f"{note}: {path}"] if note else []
    return changes, notes


def refuse_foreign_drop_ins(facts: RuntimeFacts, receipt: Receipt) -> None:
    """Raise :class:`UnfitNodeError` when another installation has drop-ins where this one needs them."""
    recorded = set(receipt.cri.paths()) if receipt.cri else set()
    for location in facts.config.drop_in_locations():
        current = facts.files.get(location.drop_in)
        if (
            current
            and location.drop_in not in recorded
            and not is_drop_in_of(receipt.install_dir, current.content)
        ):
            raise IneligibleNodeError(
                "this drop-in is of another installation",
                where=location.drop_in,
                hint="revert that one first, or give this one an env.multiInstallSuffix",
            )


def _paths_with_entry(facts: RuntimeFacts, install_dir: str) -> Iterator[str]:
    for location in facts.config.drop_in_locations():
        drop_in = facts.files.get(location.drop_in)
        if location.directory.startswith(f"{install_dir}/") or (
            drop_in and is_drop_in_of(install_dir, drop_in.content)
        ):
            yield from (path for path in location.paths if path in facts.files)
    for path in facts.config.shared_paths():
        current = facts.files.get(path)
        if current and facts.config.without_entry(path, current.content) != current.content:
            yield path


def _removal_change(path: str, facts: RuntimeFacts, receipt: Receipt) -> tuple[bytes | None, str]:
    current, recorded_files = facts.files.get(path), file_records(receipt.cri, path)
    if current is None:
        had_foreign_content = any(each.before is not None for each in recorded_files)
        return None, "removed by somebody since, left so" if had_foreign_content else ""
    digest = sha256(current.content)
    matching_records = [each for each in recorded_files if digest in recorded_digests(each)]
    for each in matching_records:
        if each.before is None:
            return None, ""
        if is_backup_available(each.before, facts):
            return facts.backups[each.before.sha256], ""
    edited = bool(recorded_files and not matching_records)
    if is_drop_in(path):
        return None, "edited by somebody since, removed all the same for it was ours" if edited else ""
    remaining = config_that_edited(facts.config, path, receipt).without_entry(path, current.content)
    if not edited or remaining == current.content:
        return remaining, ""
    other = facts.other_writers.get((path, digest))
    # Of an installation that has gone again there is no record to tell it from a person.
    who = f"by the installation {other}" if other else "by somebody, or by an installation that has gone,"
    return remaining, f"changed {who} since, only our entry taken out"
