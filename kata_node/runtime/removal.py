"""Find the runtime's files that have an entry of this installation, and their content without it. Pure.

The receipt lists the files. If it is lost or incomplete after an interrupted run, the files themselves show
it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from kata_node.errors import IneligibleNodeError
from kata_node.host.files import FileState
from kata_node.plan.receipt import Receipt
from kata_node.runtime.config_selection import config_that_edited
from kata_node.runtime.facts import RuntimeFacts
from kata_node.runtime.file_records import (
    file_records,
    has_installation,
    is_backup_available,
    recorded_digests,
    sha256,
)
from kata_node.runtime.model.config import FileChange, is_drop_in, is_drop_in_of


def removal_changes(facts: RuntimeFacts, receipt: Receipt) -> tuple[list[FileChange], list[str]]:
    """Return the change that removes our entry from each file, and a note for each edited file.

    Shared files come first, because they import the drop-ins.
    """
    recorded = dict.fromkeys(receipt.cri.paths() if receipt.cri else ())
    paths = recorded | dict.fromkeys(_paths_with_entry(facts, receipt, recorded))
    changes: list[FileChange] = []
    notes: list[str] = []
    for path in sorted(paths, key=is_drop_in):
        content, note = _removal_change(path, facts, receipt)
        changes.append(FileChange(path, content, content))
        notes += [note] if note else []
    return changes, notes


def refuse_foreign_drop_ins(facts: RuntimeFacts, receipt: Receipt) -> None:
    """Raise :class:`IneligibleNodeError` when another installation has drop-ins at the paths of this one."""
    recorded = set(receipt.cri.paths()) if receipt.cri else set()
    for location in facts.config.drop_in_locations():
        current = facts.files.get(location.drop_in)
        if (
            current
            and location.drop_in not in recorded
            and not is_drop_in_of(receipt.install_dir, current.content)
        ):
            raise IneligibleNodeError(
                "this drop-in belongs to another installation",
                where=location.drop_in,
                hint="run `kata-node revert` for that installation, or set env.multiInstallSuffix here",
            )


def _paths_with_entry(facts: RuntimeFacts, receipt: Receipt, recorded: Collection[str]) -> Iterator[str]:
    """Yield the drop-ins, and the shared files with our entry that are not ``recorded``.

    A recorded file is compared by its digest first, so that an unedited one need not be parsed.
    """
    install_dir = receipt.install_dir
    for location in facts.config.drop_in_locations():
        drop_in = facts.files.get(location.drop_in)
        if location.directory.startswith(f"{install_dir}/") or (
            drop_in and is_drop_in_of(install_dir, drop_in.content)
        ):
            yield from (path for path in location.paths if path in facts.files)
    for path in facts.config.shared_paths():
        current = None if path in recorded else facts.files.get(path)
        if (
            current
            and not _is_foreign_import(current, facts, receipt)
            and facts.config.without_entry(path, current.content) != current.content
        ):
            yield path


def _is_foreign_import(current: FileState, facts: RuntimeFacts, receipt: Receipt) -> bool:
    """Return whether the entry in a shared file can only be an import that was there before.

    The receipt is there and has no record of the runtime's files, and nothing shows that one was lost.
    """
    return receipt.artifacts is not None and receipt.cri is None and not has_installation(facts, current)


def _removal_change(path: str, facts: RuntimeFacts, receipt: Receipt) -> tuple[bytes | None, str]:
    current, recorded_files = facts.files.get(path), file_records(receipt.cri, path)
    if current is None:
        had_foreign_content = any(each.before is not None for each in recorded_files)
        return (
            None,
            f"{path} does not exist any more; kata-node did not restore it" if had_foreign_content else "",
        )
    digest = sha256(current.content)
    matching_records = [each for each in recorded_files if digest in recorded_digests(each)]
    for each in matching_records:
        if each.before is None:
            return None, ""
        if is_backup_available(each.before, facts):
            return facts.backups[each.before.sha256], ""
    edited = bool(recorded_files and not matching_records)
    if is_drop_in(path):
        return None, f"kata-node removed its drop-in {path}, although it was edited" if edited else ""
    remaining = config_that_edited(facts.config, path, receipt).without_entry(path, current.content)
    if not edited or remaining == current.content:
        return remaining, ""
    other = facts.other_writers.get((path, digest))
    # An installation that was reverted has no receipt, so its changes look like those of a person.
    who = f"the installation {other}" if other else "a person or a reverted installation"
    return remaining, f"{who} changed {path}; kata-node removed only its own entry"
