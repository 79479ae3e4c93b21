"""The files of a change to the CRI runtime: what becomes of each, and what is on record of it. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kata_node.errors import HostError
from kata_node.host.files import FileState
from kata_node.plan.actions import Clients
from kata_node.plan.receipt import Backup, CriFile, CriRecord
from kata_node.runtime.facts import RuntimeFacts
from kata_node.runtime.model.config import FileChange


@dataclass(frozen=True)
class RestoreFile:
    """Give a file the state it had, if it is not in it."""

    path: str
    state: FileState | None

    @property
    def content(self) -> bytes | None:
        """What it held; ``None`` when it was not there."""
        return self.state.content if self.state else None

    def describe(self) -> str:
        """One line."""
        return f"put back {self.path}"

    def diff(self) -> str:
        """Undoing is never planned for its own sake."""
        return ""

    def apply(self, clients: Clients) -> None:
        """Write or remove it, unless it is as it was."""
        if clients.root.read_state(self.path) == self.state:
            return
        if self.state is None:
            clients.root.remove(self.path, follow_last=True)
        else:
            state = self.state
            clients.root.make_dirs(self.path.rpartition("/")[0])  # a revert may have removed it
            clients.root.write(self.path, state.content, mode=state.mode, owner=(state.uid, state.gid))

    def check(self, clients: Clients) -> None:
        """It must be as it was."""
        if clients.root.read_state(self.path) != self.state:
            raise HostError("the file could not be put back as it was", where=self.path)


def pending_changes(facts: RuntimeFacts, changes: Iterable[FileChange]) -> list[FileChange]:
    """Those of ``changes`` that are not on the host yet."""
    contents = facts.contents
    return [change for change in changes if contents.get(change.path) != change.content]


def original_backup(change: FileChange, cri: CriRecord | None, facts: RuntimeFacts) -> Backup | None:
    """What the file was before this instance, for the record.

    That is what was recorded, as long as nobody else has written the file since; from then on it is
    what others have in it now.
    """
    record = _recognized_record(change.path, cri, facts)
    return record.before if record else backup_without_entry(change, facts)


def revert_record(change: FileChange, cri: CriRecord, facts: RuntimeFacts) -> CriFile:
    """The record of a file that is about to lose what is ours in it: what it is before, and after it."""
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
    """What is on record of the file, that of an interrupted run before that of what it set out from."""
    found = (each.file(path) for each in (cri, cri.fallback if cri else None) if each is not None)
    return [file for file in found if file is not None]


def recorded_digests(record: CriFile) -> tuple[str, ...]:
    """Of what the file held while nobody but us wrote it."""
    return (record.after, *((record.before.sha256,) if record.before else ()))


def is_edited_by_others(
    change: FileChange, state_at_start: Backup | None, cri: CriRecord, facts: RuntimeFacts
) -> bool:
    """Whether others have written a file that is not ours alone since the interrupted run ``cri``.

    ``begun_as`` is what that run found.
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
    """The file as it is now, apart from our entries."""
    current = facts.files.get(change.path)
    if current is None or change.content_without_entry is None:
        return None
    return Backup(sha256(change.content_without_entry), current.mode, current.uid, current.gid)


def backup_with_entry(change: FileChange, facts: RuntimeFacts) -> Backup | None:
    """The file as it is now, with our entries if they are at hand."""
    current = facts.files.get(change.path)
    if current is None or change.content is None or change.content == change.content_without_entry:
        return backup_of(current)
    return Backup(sha256(change.content), current.mode, current.uid, current.gid)


def backup_of(current: FileState | None) -> Backup | None:
    """The record of a file as it is."""
    return Backup(sha256(current.content), current.mode, current.uid, current.gid) if current else None


def is_backup_available(recorded: Backup | None, facts: RuntimeFacts) -> bool:
    """Whether the content is there that a backup stands for."""
    return recorded is None or recorded.sha256 in facts.backups


def available_contents(facts: RuntimeFacts, changes: Iterable[FileChange]) -> Mapping[str, bytes]:
    """All content that is at hand and that a backup can stand for, by digest."""
    found = [state.content for state in facts.files.values()]
    for change in changes:
        found += [
            content for content in (change.content, change.content_without_entry) if content is not None
        ]
    return {**facts.backups, **{sha256(content): content for content in found}}


def restored_state(recorded: Backup | None, contents: Mapping[str, bytes]) -> FileState | None:
    """The file that a backup stands for."""
    if recorded is None:
        return None
    return FileState(contents[recorded.sha256], recorded.mode, recorded.uid, recorded.gid)


def digest(content: bytes | None) -> str:
    """The same of a file that may not be there: then it is empty."""
    return "" if content is None else sha256(content)


def sha256(content: bytes) -> str:
    """The digest the record knows a file's content by."""
    return hashlib.sha256(content).hexdigest()
