"""The records of the runtime's configuration files: original content and backups. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from kata_node.host.files import FileState
from kata_node.plan.receipt import Backup, CriFile, CriRecord
from kata_node.runtime.facts import RuntimeFacts
from kata_node.runtime.model.config import FileChange, own_paths


def pending_changes(facts: RuntimeFacts, changes: Iterable[FileChange]) -> list[FileChange]:
    """Return those of ``changes`` that are not on the node yet."""
    contents = facts.contents
    return [change for change in changes if contents.get(change.path) != change.content]


def original_backup(change: FileChange, cri: CriRecord | None, facts: RuntimeFacts) -> Backup | None:
    """Return the backup of a file as it was before this installation.

    That is the recorded backup, as long as only kata-node has written the file since then. Otherwise it is
    the current content without our entry. An import that was there before any installation is not our entry.
    """
    record = _recognized_record(change.path, cri, facts)
    if record:
        return record.before
    current = facts.files.get(change.path)
    if cri is None and current and current.content == change.content and not has_installation(facts, current):
        return backup_of(current)
    return backup_without_entry(change, facts)


def install_records(
    changes: Iterable[FileChange], cri: CriRecord | None, facts: RuntimeFacts
) -> tuple[CriFile, ...]:
    """Return the records of the files that an install is about to change."""
    return tuple(
        CriFile(change.path, original_backup(change, cri, facts), digest(change.content))
        for change in changes
    )


def serving_record(
    facts: RuntimeFacts, handlers: tuple[str, ...], files: tuple[CriFile, ...] = ()
) -> CriRecord:
    """Return the record of the running runtime that serves ``handlers`` with ``files``."""
    return CriRecord(
        "serving",
        facts.runtime.name,
        str(facts.runtime.version),
        facts.unit,
        facts.invocation,
        facts.boot,
        handlers,
        files,
    )


def has_installation(facts: RuntimeFacts, current: FileState) -> bool:
    """Return whether a drop-in, or a managed block in a shared file, shows an installation."""
    return b"# >>> kata-node " in current.content or any(
        path in facts.files for path in own_paths(facts.config)
    )


def revert_record(change: FileChange, cri: CriRecord, facts: RuntimeFacts) -> CriFile:
    """Return the record of a file that a revert is about to change."""
    current = facts.files.get(change.path)
    record = _recognized_record(change.path, cri, facts)
    return record or CriFile(
        change.path, backup_without_entry(change, facts), digest(current.content if current else None)
    )


def _recognized_record(path: str, cri: CriRecord | None, facts: RuntimeFacts) -> CriFile | None:
    current = facts.files.get(path)
    if current is None:
        return None
    found = (
        record for record in file_records(cri, path) if sha256(current.content) in recorded_digests(record)
    )
    return next((record for record in found if is_backup_available(record.before, facts)), None)


def file_records(cri: CriRecord | None, path: str) -> list[CriFile]:
    """Return the records of a file: that of an interrupted run first, then that of the run before it."""
    found = (each.file(path) for each in (cri, cri.fallback if cri else None) if each is not None)
    return [file for file in found if file is not None]


def recorded_digests(record: CriFile) -> tuple[str, ...]:
    """Return the digests of the content that a file has while only kata-node writes it."""
    return (record.after, *((record.before.sha256,) if record.before else ()))


def is_edited_by_others(
    change: FileChange, state_at_start: Backup | None, cri: CriRecord, facts: RuntimeFacts
) -> bool:
    """Return whether a shared file has foreign changes since the interrupted run ``cri``.

    ``state_at_start`` is the file as that run found it.
    """
    record = cri.file(change.path)
    if record is None or (record.before is None and change.content_without_entry is None):
        return False
    current = facts.files.get(change.path)
    return digest(current.content if current else None) not in {
        *recorded_digests(record),
        state_at_start.sha256 if state_at_start else "",
    }


def backup_without_entry(change: FileChange, facts: RuntimeFacts) -> Backup | None:
    """Return the backup of the current file without our entry; ``None`` when the whole file is ours."""
    current = facts.files.get(change.path)
    if current is None or change.content_without_entry is None:
        return None
    return Backup(sha256(change.content_without_entry), current.mode, current.uid, current.gid)


def backup_with_entry(change: FileChange, facts: RuntimeFacts) -> Backup | None:
    """Return the backup of the file with our entry, or of the current file if there is no entry to add."""
    current = facts.files.get(change.path)
    if current is None or change.content is None or change.content == change.content_without_entry:
        return backup_of(current)
    return Backup(sha256(change.content), current.mode, current.uid, current.gid)


def backup_of(current: FileState | None) -> Backup | None:
    """Return the backup of a file as it is."""
    return Backup(sha256(current.content), current.mode, current.uid, current.gid) if current else None


def is_backup_available(recorded: Backup | None, facts: RuntimeFacts) -> bool:
    """Return whether the content of a backup is available. A file that did not exist needs none."""
    return recorded is None or recorded.sha256 in facts.backups


def available_contents(facts: RuntimeFacts, changes: Iterable[FileChange]) -> Mapping[str, bytes]:
    """Return by digest all content that a backup may refer to."""
    found = [state.content for state in facts.files.values()]
    for change in changes:
        found += [
            content for content in (change.content, change.content_without_entry) if content is not None
        ]
    return {**facts.backups, **{sha256(content): content for content in found}}


def restored_state(recorded: Backup | None, contents: Mapping[str, bytes]) -> FileState | None:
    """Return the file state of a backup; ``None`` for a file that did not exist."""
    if recorded is None:
        return None
    return FileState(contents[recorded.sha256], recorded.mode, recorded.uid, recorded.gid)


def digest(content: bytes | None) -> str:
    """Return the sha256 of the content; empty for a file that does not exist."""
    return "" if content is None else sha256(content)


def sha256(content: bytes) -> str:
    """Return the sha256 of a file's content, as the receipt has it."""
    return hashlib.sha256(content).hexdigest()
