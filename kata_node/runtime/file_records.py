"""The files of a change to the CRI runtime: what becomes of each, and what is on record of it. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kata_node.errors import HostError
from kata_node.host.files import FileState
from kata_node.plan.actions import Tools
from kata_node.plan.receipt import Backup, Cri, CriFile
from kata_node.runtime.facts import RuntimeFacts
from kata_node.runtime.model.config import ConfigFile as Change


@dataclass(frozen=True)
class PutBack:
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

    def apply(self, tools: Tools) -> None:
        """Write or remove it, unless it is as it was."""
        if tools.root.read_state(self.path) == self.state:
            return
        if self.state is None:
            tools.root.remove(self.path, follow_last=True)
        else:
            state = self.state
            tools.root.make_dirs(self.path.rpartition("/")[0])  # a revert may have removed it
            tools.root.write(self.path, state.content, mode=state.mode, owner=(state.uid, state.gid))

    def check(self, tools: Tools) -> None:
        """It must be as it was."""
        if tools.root.read_state(self.path) != self.state:
            raise HostError("the file could not be put back as it was", where=self.path)


def to_do(facts: RuntimeFacts, changes: Iterable[Change]) -> list[Change]:
    """Those of ``changes`` that are not on the host yet."""
    contents = facts.contents
    return [change for change in changes if contents.get(change.path) != change.content]


def before(change: Change, cri: Cri | None, facts: RuntimeFacts) -> Backup | None:
    """What the file was before this instance, for the record.

    That is what was recorded, as long as nobody else has written the file since; from then on it is
    what others have in it now.
    """
    known = _recognised(change.path, cri, facts)
    return known.before if known else without_us(change, facts)


def until_now(change: Change, cri: Cri, facts: RuntimeFacts) -> CriFile:
    """The record of a file that is about to lose what is ours in it: what it is before, and after it."""
    there = facts.files.get(change.path)
    known = _recognised(change.path, cri, facts)
    return known or CriFile(change.path, without_us(change, facts), digest(there.content if there else None))


def _recognised(path: str, cri: Cri | None, facts: RuntimeFacts) -> CriFile | None:
    there = facts.files.get(path)
    if there is None:
        return None
    found = (known for known in records(cri, path) if sha256(there.content) in digests(known))
    return next((known for known in found if is_at_hand(known.before, facts)), None)


def records(cri: Cri | None, path: str) -> list[CriFile]:
    """What is on record of the file, that of an interrupted run before that of what it set out from."""
    found = (each.file(path) for each in (cri, cri.fallback if cri else None) if each is not None)
    return [file for file in found if file is not None]


def digests(known: CriFile) -> tuple[str, ...]:
    """Of what the file held while nobody but us wrote it."""
    return (known.after, *((known.before.sha256,) if known.before else ()))


def is_edited(change: Change, begun_as: Backup | None, cri: Cri, facts: RuntimeFacts) -> bool:
    """Whether others have written a file that is not ours alone since the interrupted run ``cri``.

    ``begun_as`` is what that run found.
    """
    known = cri.file(change.path)
    if known is None or (known.before is None and change.without is None):
        return False
    there = facts.files.get(change.path)
    return digest(there.content if there else None) not in {
        *digests(known),
        begun_as.sha256 if begun_as else "",
    }


def without_us(change: Change, facts: RuntimeFacts) -> Backup | None:
    """The file as it is now, apart from our entries."""
    there = facts.files.get(change.path)
    if there is None or change.without is None:
        return None
    return Backup(sha256(change.without), there.mode, there.uid, there.gid)


def with_us(change: Change, facts: RuntimeFacts) -> Backup | None:
    """The file as it is now, with our entries if they are at hand."""
    there = facts.files.get(change.path)
    if there is None or change.content is None or change.content == change.without:
        return backup(there)
    return Backup(sha256(change.content), there.mode, there.uid, there.gid)


def backup(there: FileState | None) -> Backup | None:
    """The record of a file as it is."""
    return Backup(sha256(there.content), there.mode, there.uid, there.gid) if there else None


def is_at_hand(recorded: Backup | None, facts: RuntimeFacts) -> bool:
    """Whether the content is there that a backup stands for."""
    return recorded is None or recorded.sha256 in facts.backups


def contents(facts: RuntimeFacts, changes: Iterable[Change]) -> Mapping[str, bytes]:
    """All content that is at hand and that a backup can stand for, by digest."""
    found = [state.content for state in facts.files.values()]
    for change in changes:
        found += [content for content in (change.content, change.without) if content is not None]
    return {**facts.backups, **{sha256(content): content for content in found}}


def state(recorded: Backup | None, contents: Mapping[str, bytes]) -> FileState | None:
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
