"""The change of a CRI runtime's configuration as a plan: forward, back, and undone. Pure.

Every plan here has one shape: record the intent and the backups, write, check, restart and prove,
record the proof. What was there when the runtime last served is in the record from the first step
on, so that any later run, of either direction, can put it back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from kata_node.actions import Action, MakeDirs, Plan, Record, RemoveDirs, RemoveFile, Sweep, Tools, WriteFile
from kata_node.errors import HostError
from kata_node.facts.runtime import RuntimeFacts
from kata_node.host.files import FileState
from kata_node.receipt import Backup, Cri, CriFile, Previous, Receipt
from kata_node.restart import RestartRuntime

Restart = Literal["always", "never", "if-read"]


@dataclass(frozen=True)
class Change:
    """What a configuration file shall hold; ``None``: it shall not be there.

    ``without`` is what it holds, as it is now, apart from our entries; ``None`` when all of it is ours.
    """

    path: str
    content: bytes | None = field(repr=False)
    without: bytes | None = field(repr=False, default=None)


@dataclass(frozen=True)
class PutBack:
    """Give a file the state it had, if it is not in it."""

    path: str
    state: FileState | None

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
            tools.root.write(self.path, state.content, mode=state.mode, owner=(state.uid, state.gid))

    def check(self, tools: Tools) -> None:
        """It must be as it was."""
        if tools.root.read_state(self.path) != self.state:
            raise HostError("the file could not be put back as it was", where=self.path)


def install(
    facts: RuntimeFacts,
    receipt: Receipt,
    changes: Sequence[Change],
    handlers: tuple[str, ...],
    check: Action,
) -> Plan:
    """Bring the files to what ``changes`` says, in this order, and the runtime to serve ``handlers``."""
    cri = receipt.cri
    todo = [change for change in changes if _content(facts, change.path) != change.content]
    if not todo and cri is not None and _is_served(cri, facts, handlers):
        return Plan(_served(facts, handlers))
    begun = _Begun.of(cri, facts, [change.path for change in changes])
    written = [change for change in changes if change.content is not None]
    made = tuple(path for path in facts.missing_dirs if _is_above(path, written, receipt.install_dir))
    after = Cri(
        state="serving",
        runtime=facts.runtime.name,
        version=str(facts.runtime.version),
        unit=facts.unit,
        invocation=facts.invocation,
        boot=facts.boot,
        handlers=handlers,
        files=tuple(_record(change, cri, facts) for change in written),
        made_dirs=tuple(sorted({*made, *(cri.made_dirs if cri else ())})),
    )
    flying = replace(after, previous=begun.previous, fallback=begun.fallback)
    writing = replace(receipt, cri=replace(flying, state="writing", invocation=begun.since))
    pending = replace(receipt, cri=replace(flying, state="restarting"))
    gone = tuple(name for name in (cri.handlers if cri else ()) if name not in handlers)
    backups = begun.backups(facts) + _befores(written, after.files, facts)
    actions = (
        *((Record(writing, backups),) if todo or not cri else ()),
        *_swept(cri, changes),
        *(MakeDirs(path) for path in _parents(written) if path in facts.missing_dirs),
        *_writes(todo, facts),
        check,
        *_proof(
            facts,
            serve=handlers,
            gone=gone,
            restart="never"
            if not todo and cri and not is_owed(cri, facts.boot, facts.invocation)
            else "always",
            pending=pending,
            proven=replace(receipt, cri=after),
        ),
    )
    undo = begun.undo(facts, receipt, [change.path for change in changes], made, gone=handlers)
    return Plan(_served(facts, handlers), actions, undo)


def revert(facts: RuntimeFacts, receipt: Receipt, changes: Sequence[Change], check: Action) -> Plan:
    """Bring the files to what ``changes`` says, and the runtime to serve none of our handlers."""
    cri = receipt.cri
    assert cri is not None
    todo = [change for change in changes if _content(facts, change.path) != change.content]
    begun = _Begun.of(cri, facts, [change.path for change in changes])
    flying = replace(cri, previous=begun.previous, fallback=begun.fallback)
    gone = tuple(dict.fromkeys((*cri.handlers, *(cri.fallback.handlers if cri.fallback else ()))))
    actions: tuple[Action, ...] = (
        Record(
            replace(receipt, cri=replace(flying, state="reverting", invocation=begun.since, boot=facts.boot)),
            begun.backups(facts),
        ),
        *_swept(cri, changes),
        *_writes(todo, facts),
        *((RemoveDirs(tuple(reversed(cri.made_dirs))),) if cri.made_dirs else ()),
        check,
        *_proof(
            facts,
            serve=(),
            gone=gone,
            restart=_restart_back(cri, facts, bool(todo)),
            pending=replace(receipt, cri=replace(flying, state="unloading", boot=facts.boot)),
            proven=replace(receipt, cri=None),
        ),
    )
    undo = begun.undo(facts, receipt, [change.path for change in changes], (), gone=())
    return Plan(f"{facts.unit or facts.runtime.name} serves none of our handlers", actions, undo)


@dataclass(frozen=True)
class _Begun:
    """Where the transaction began: now, or in a run that did not get to the end of it."""

    previous: tuple[Previous, ...]
    fallback: Cri | None
    since: str
    """The invocation that ran before the first byte; empty when it may have read something since."""

    @classmethod
    def of(cls, cri: Cri | None, facts: RuntimeFacts, paths: Iterable[str]) -> _Begun:
        now = {path: _backup(facts.files.get(path)) for path in paths}
        if cri is None or cri.state == "serving":
            return cls(tuple(Previous(path, now[path]) for path in now), cri, facts.invocation)
        before = {previous.path: previous.state for previous in cri.previous}
        states = {**now, **before}
        untouched = cri.state in ("writing", "reverting") and cri.boot == facts.boot
        return cls(
            tuple(Previous(path, states[path]) for path in states),
            cri.fallback,
            cri.invocation if untouched else "",
        )

    def backups(self, facts: RuntimeFacts) -> tuple[bytes, ...]:
        """The bytes the record refers to."""
        return tuple(_bytes(previous.state, facts) for previous in self.previous if previous.state)

    def undo(
        self,
        facts: RuntimeFacts,
        receipt: Receipt,
        order: Sequence[str],
        made_dirs: tuple[str, ...],
        *,
        gone: tuple[str, ...],
    ) -> tuple[Action, ...]:
        """Put back all files, in the opposite order, and see the runtime serve as it did."""
        states = {previous.path: previous.state for previous in self.previous}
        paths = sorted(states, key=lambda path: order.index(path) if path in order else -1, reverse=True)
        serve = self.fallback.handlers if self.fallback else ()
        return (
            *(PutBack(path, _state(states[path], facts)) for path in paths),
            *((RemoveDirs(tuple(reversed(made_dirs))),) if made_dirs else ()),
            *_proof(
                facts,
                serve=serve,
                gone=tuple(name for name in gone if name not in serve),
                restart="if-read",
                pending=None,
                proven=replace(receipt, cri=self.fallback),
                since=self.since,
            ),
        )


def _proof(
    facts: RuntimeFacts,
    *,
    serve: tuple[str, ...],
    gone: tuple[str, ...],
    restart: Restart,
    pending: Receipt | None,
    proven: Receipt,
    since: str = "",
) -> tuple[Action, ...]:
    """Restart and prove; without a runtime to restart, record how far this got."""
    # One that somebody stopped has nothing loaded, and is not ours to start when we leave.
    if facts.unit and (serve or facts.state != "inactive"):
        return (RestartRuntime(facts.unit, serve, gone, facts.timeout, proven, pending, restart, since),)
    return (Record(pending if pending is not None and serve else proven),)


def _is_served(cri: Cri, facts: RuntimeFacts, handlers: tuple[str, ...]) -> bool:
    """Whether the running invocation is known to serve exactly these files."""
    if cri.handlers != handlers:
        return False
    if not facts.unit:
        return cri.state in ("serving", "restarting")
    return cri.state == "serving" and facts.handlers is not None and set(handlers) <= set(facts.handlers)


def is_owed(cri: Cri, boot: str, invocation: str) -> bool:
    """Whether the runtime that is up as ``invocation`` has yet to read the files on the disk.

    Only for states in which all files are written does the record tell; for others a restart is due.
    """
    if cri.state not in ("restarting", "unloading"):
        return True
    return cri.boot == boot and cri.invocation in ("", invocation)


def _restart_back(cri: Cri, facts: RuntimeFacts, changed: bool) -> Restart:
    if cri.state == "unloading":
        return "always" if changed or is_owed(cri, facts.boot, facts.invocation) else "never"
    if cri.state == "writing" and cri.fallback is None:
        # Killed before the restart: the runtime never read what is taken back now.
        return "never" if (cri.invocation, cri.boot) == (facts.invocation, facts.boot) else "always"
    return "always"


def _swept(cri: Cri | None, changes: Sequence[Change]) -> tuple[Action, ...]:
    if cri is None or cri.state == "serving":
        return ()
    return (Sweep(tuple(change.path for change in changes)),)


def _served(facts: RuntimeFacts, handlers: tuple[str, ...]) -> str:
    listed = ", ".join(handlers)
    if not facts.unit:
        return f"{facts.runtime.name} {facts.runtime.version} will serve {listed} when it starts"
    return f"{facts.unit} ({facts.runtime.name} {facts.runtime.version}) serves {listed}"


def _writes(todo: Iterable[Change], facts: RuntimeFacts) -> Iterable[Action]:
    for change in todo:
        there = facts.files.get(change.path)
        if change.content is None:
            yield RemoveFile(change.path, there.content if there else b"")
        elif there is None:
            yield WriteFile(change.path, change.content)
        else:
            owner = (there.uid, there.gid)
            yield WriteFile(change.path, change.content, there.mode, owner, before=there.content)


def _record(change: Change, cri: Cri | None, facts: RuntimeFacts) -> CriFile:
    known = cri.file(change.path) if cri else None
    before = known.before if known else _without_us(change, facts)
    return CriFile(change.path, before, sha256(change.content or b""))


def _without_us(change: Change, facts: RuntimeFacts) -> Backup | None:
    there = facts.files.get(change.path)
    if there is None or change.without is None:
        return None
    return Backup(sha256(change.without), there.mode, there.uid, there.gid)


def _befores(written: Iterable[Change], files: Iterable[CriFile], facts: RuntimeFacts) -> tuple[bytes, ...]:
    own = {sha256(change.without): change.without for change in written if change.without is not None}
    return tuple(own.get(file.before.sha256) or _bytes(file.before, facts) for file in files if file.before)


def _parents(written: Iterable[Change]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(change.path.rpartition("/")[0] for change in written))


def _is_above(directory: str, written: Iterable[Change], install_dir: str) -> bool:
    """Whether ``directory`` is made for these files; the install dir and above is the artifacts stage's."""
    if f"{install_dir}/".startswith(f"{directory}/"):
        return False
    return any(change.path.startswith(f"{directory}/") for change in written)


def _content(facts: RuntimeFacts, path: str) -> bytes | None:
    there = facts.files.get(path)
    return there.content if there else None


def _backup(there: FileState | None) -> Backup | None:
    return Backup(sha256(there.content), there.mode, there.uid, there.gid) if there else None


def _bytes(backup: Backup, facts: RuntimeFacts) -> bytes:
    if backup.sha256 in facts.backups:
        return facts.backups[backup.sha256]
    return next(state.content for state in facts.files.values() if sha256(state.content) == backup.sha256)


def _state(backup: Backup | None, facts: RuntimeFacts) -> FileState | None:
    return FileState(_bytes(backup, facts), backup.mode, backup.uid, backup.gid) if backup else None


def sha256(content: bytes) -> str:
    """The digest the record knows a file's content by."""
    return hashlib.sha256(content).hexdigest()
