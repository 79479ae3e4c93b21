"""The change of a CRI runtime's configuration as a plan: forward, back, and undone. Pure.

Every plan here has one shape: record the intent and the backups, check, write, check, restart and
prove, record the proof. What was there when the runtime last served is in the record from the first
step on, so that any later run, of either direction, can put it back.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kata_node.plan import blocking_pods
from kata_node.plan.actions import Action, MakeDirs, Plan, Record, RemoveDirs, RemoveFile, Sweep, WriteFile
from kata_node.plan.receipt import Backup, Cri, CriFile, Previous, Receipt
from kata_node.runtime import file_records
from kata_node.runtime.facts import RuntimeFacts
from kata_node.runtime.file_records import PutBack
from kata_node.runtime.model.config import ConfigFile as Change
from kata_node.runtime.model.config import is_drop_in
from kata_node.runtime.restart import CheckConfig, Restart, RestartRuntime

if TYPE_CHECKING:
    from kata_node.runtime.model.distributions import Applies


@dataclass(frozen=True)
class Checks:
    """Of the configuration: ``ahead`` of the writing, of what is ``written``, and of what is ``put_back``."""

    ahead: Action
    written: Action
    put_back: CheckConfig


def install(
    facts: RuntimeFacts,
    receipt: Receipt,
    changes: Sequence[Change],
    handlers: tuple[str, ...],
    checks: Checks,
    services: tuple[Action, ...] = (),
) -> Plan:
    """Bring the files to what ``changes`` says, in this order, and the runtime to serve ``handlers``.

    ``services`` are what the runtime will need by then.
    """
    cri = receipt.cri
    todo = file_records.to_do(facts, changes)
    if not todo and cri is not None and _is_served(cri, facts, changes, handlers):
        return Plan(_served(facts, handlers))
    begun = _Begun.of(cri, facts, changes)
    applies = begun.applies(facts, changes)
    written = [change for change in changes if change.content is not None]
    new = (*facts.missing_dirs, *facts.others_dirs)
    made = (path for path in new if _is_above(path, written, receipt.install_dir))
    flying = Cri(
        state="writing",
        runtime=facts.runtime.name,
        version=str(facts.runtime.version),
        unit=facts.unit,
        invocation=begun.since,
        boot=facts.boot,
        handlers=handlers,
        files=tuple(
            CriFile(change.path, file_records.before(change, cri, facts), file_records.digest(change.content))
            for change in changes
        ),
        made_dirs=tuple(sorted({*made, *(cri.made_dirs if cri else ())})),
        previous=begun.previous,
        fallback=begun.fallback,
    )
    has_read = not todo and cri is not None and _has_read(cri, flying, facts)
    # A file without an entry of ours is not ours to look after.
    ours = {change.path for change in changes if change.content != change.without}
    files = tuple(file for file in flying.files if file.path in ours)
    serving = replace(flying, state="serving", files=files, previous=(), fallback=None)
    gone = _sorted(set(_handlers(cri)).difference(handlers, _defined(facts, changes)))
    leaving = {*gone, *_undefined(facts, changes)}
    actions = (
        # With nothing to write the old record stays, which still tells what was read.
        _record(receipt, flying if todo or cri is None else cri, flying, facts, changes),
        *_swept(cri, changes),
        *((checks.ahead,) if todo else ()),
        *services,
        *(MakeDirs(path) for path in _parents(written) if path in facts.missing_dirs),
        *_writes(todo, facts),
        checks.written,
        _proof(
            facts,
            RestartRuntime(
                facts.unit,
                facts.home.socket,
                applies,
                serve=handlers,
                gone=gone,
                timeout=facts.timeout,
                pending=replace(receipt, cri=replace(flying, state="restarting")),
                proven=replace(receipt, cri=serving),
                restart="never" if has_read else "always",
                served=facts.handlers,
            ),
        ),
    )
    undo = begun.undo(facts, receipt, changes, flying.made_dirs, (*handlers, *_handlers(cri)), checks)
    return Plan(
        _served(facts, handlers),
        actions,
        undo,
        notes=blocking_pods.unknown(facts.pods, leaving),
        in_the_way=blocking_pods.in_the_way(facts.pods, leaving),
        cannot_tell=facts.pods is None and bool(leaving),
    )


def revert(
    facts: RuntimeFacts,
    receipt: Receipt,
    cri: Cri,
    changes: Sequence[Change],
    checks: Checks,
) -> Plan:
    """Bring the files to what ``changes`` says, and the runtime to serve none of the handlers of ``cri``.

    ``cri`` is the receipt's record, or what a lost one would have said. A runtime that serves no CRI
    before, and that nobody stopped, may be as it is afterwards: what is wrong with it is not ours to
    mend, and our part in it must go all the same.
    """
    broken = cri.state == "serving" and facts.handlers is None and facts.state not in ("", "inactive")
    todo = file_records.to_do(facts, changes)
    begun = _Begun.of(cri, facts, changes)
    applies = begun.applies(facts, changes)
    flying = replace(
        cri,
        state="reverting",
        invocation=begun.since,
        boot=facts.boot,
        files=tuple(file_records.until_now(change, cri, facts) for change in changes),
        previous=begun.previous,
        fallback=begun.fallback,
    )
    gone = _sorted(set(_handlers(cri)).difference(_defined(facts, changes)))
    leaving = {*gone, *_undefined(facts, changes)}
    actions = (
        _record(receipt, flying if todo or cri.state != "unloading" else cri, flying, facts, changes),
        *_swept(cri, changes),
        *((checks.ahead,) if todo and not broken else ()),
        *_writes(todo, facts),
        *((RemoveDirs(tuple(reversed(cri.made_dirs))),) if cri.made_dirs else ()),
        *(() if broken else (checks.written,)),
        _proof(
            facts,
            RestartRuntime(
                facts.unit,
                facts.home.socket,
                applies,
                serve=(),
                gone=gone,
                timeout=facts.timeout,
                pending=replace(receipt, cri=replace(flying, state="unloading")),
                proven=replace(receipt, cri=None),
                restart=_restart_back(cri, facts, bool(todo)) if applies == "restart" else "always",
                may_be_down=True,
                may_stay_broken=broken,
                served=facts.handlers,
            ),
        ),
    )
    undo = begun.undo(facts, receipt, changes, cri.made_dirs, _handlers(cri), checks)
    return Plan(
        f"{facts.unit or facts.runtime.name} serves none of our handlers",
        actions,
        undo,
        notes=blocking_pods.unknown(facts.pods, leaving),
        in_the_way=blocking_pods.in_the_way(facts.pods, leaving),
        cannot_tell=facts.pods is None and bool(leaving),
    )


@dataclass(frozen=True)
class _Begun:
    """Where the transaction began: now, or in a run that did not get to the end of it."""

    previous: tuple[Previous, ...]
    fallback: Cri | None
    since: str
    """The invocation that ran before the first byte; empty when it may have read something since."""
    served: tuple[str, ...] | None
    """What it served then; ``None`` when that is not known."""

    @classmethod
    def of(cls, cri: Cri | None, facts: RuntimeFacts, changes: Iterable[Change]) -> _Begun:
        states = {change.path: file_records.backup(facts.files.get(change.path)) for change in changes}
        if cri is None or cri.state == "serving":
            return cls(_previous(states), cri, facts.invocation, facts.handlers)
        known = {each.path: each.state for each in cri.previous if file_records.is_at_hand(each.state, facts)}
        for change in changes:
            if change.path in known and not file_records.is_edited(change, known[change.path], cri, facts):
                continue
            known.pop(change.path, None)
            # Ours is to be in it where something of ours was served before, and nowhere else.
            was_ours = cri.fallback and cri.fallback.file(change.path)
            states[change.path] = (file_records.with_us if was_ours else file_records.without_us)(
                change, facts
            )
        untouched = cri.state in ("writing", "reverting") and cri.boot == facts.boot
        since = cri.invocation if untouched else ""
        return cls(_previous(states | known), cri.fallback, since, None)

    def applies(self, facts: RuntimeFacts, changes: Sequence[Change]) -> Applies:
        """How a runtime that serves what was there takes up what is to be there."""
        contents = file_records.contents(facts, changes)
        now = facts.contents
        served: dict[str, bytes | None] = {**now}
        for each in self.previous:
            served[each.path] = contents.get(each.state.sha256) if each.state else None
        then: dict[str, bytes | None] = {**now, **{change.path: change.content for change in changes}}
        reloads = facts.config.reloads(_there(served), _there(then))
        if facts.home.applies == "signal":
            # With a handler that is not served, a file may be there that was never read: of another run.
            reloads &= facts.config.defined(_there(served)) <= set(facts.handlers or ())
        return facts.home.applies if reloads else "restart"

    def undo(
        self,
        facts: RuntimeFacts,
        receipt: Receipt,
        changes: Sequence[Change],
        made_dirs: Sequence[str],
        handlers: Iterable[str],
        checks: Checks,
    ) -> tuple[Action, ...]:
        """Put back all files, in the opposite order, and see the runtime serve as it did.

        ``made_dirs`` and ``handlers`` are all that may have come of the transaction until then.
        """
        applies = self.applies(facts, changes)
        contents = file_records.contents(facts, changes)
        order = {change.path: at for at, change in enumerate(changes)}
        previous = sorted(self.previous, key=lambda each: order.get(each.path, -1), reverse=True)
        put_back = [PutBack(each.path, file_records.state(each.state, contents)) for each in previous]
        kept, served = (self.fallback.made_dirs, self.fallback.handlers) if self.fallback else ((), ())
        # Somebody may have removed a drop-in whose handlers were still served, or the other way round.
        defined = _defined(facts, (Change(each.path, each.content) for each in put_back))
        known = defined if self.served is None else self.served
        serve = tuple(name for name in served if name in defined and name in known)
        emptied = tuple(path for path in reversed(made_dirs) if path not in kept)
        return (
            *put_back,
            *((RemoveDirs(emptied),) if emptied else ()),
            _proof(
                facts,
                RestartRuntime(
                    facts.unit,
                    facts.home.socket,
                    applies,
                    serve=serve,
                    gone=_sorted(set(handlers).difference(defined, known)),
                    timeout=facts.timeout,
                    proven=replace(receipt, cri=self.fallback),
                    restart="if-read",
                    since=self.since,
                    may_be_down=facts.state == "inactive",
                    unless=checks.put_back,
                    served=None if applies == "restart" else facts.handlers,
                ),
            ),
        )


def _previous(states: Mapping[str, Backup | None]) -> tuple[Previous, ...]:
    return tuple(Previous(path, state) for path, state in states.items())


def _record(
    receipt: Receipt, cri: Cri, flying: Cri, facts: RuntimeFacts, changes: Iterable[Change]
) -> Record:
    """Record ``cri``, with the backups of all that the transaction will record."""
    contents = file_records.contents(facts, changes)
    digests = dict.fromkeys(backup.sha256 for backup in flying.backups())
    return Record(replace(receipt, cri=cri), tuple(contents[each] for each in digests if each in contents))


def _proof(facts: RuntimeFacts, restart: RestartRuntime) -> Action:
    """Restart and prove; without a runtime to restart, record how far this got."""
    if facts.unit:
        return restart
    recorded = restart.pending if restart.pending is not None and restart.serve else restart.proven
    assert recorded is not None
    return Record(recorded)


def _there(files: Mapping[str, bytes | None]) -> dict[str, bytes]:
    return {path: content for path, content in files.items() if content is not None}


def _defined(facts: RuntimeFacts, changes: Iterable[Change]) -> Collection[str]:
    """The handlers that all configuration files define once ``changes`` are made."""
    now = facts.contents
    then = now | {change.path: change.content for change in changes}
    return facts.config.defined(_there(then))


def _undefined(facts: RuntimeFacts, changes: Iterable[Change]) -> set[str]:
    """The handlers that ``changes`` take out of the files, whatever a record says: it may be lost."""
    return set(facts.config.defined(facts.contents)).difference(_defined(facts, changes))


def _is_served(cri: Cri, facts: RuntimeFacts, changes: Iterable[Change], handlers: tuple[str, ...]) -> bool:
    """Whether the running invocation is known to serve exactly these files.

    Of what others write as well it is enough that nothing is to be done about it.
    """
    drop_ins = {each.path: file_records.digest(each.content) for each in changes if is_drop_in(each.path)}
    recorded = {file.path: file.after for file in cri.files if file.after and file.path in drop_ins}
    if cri.handlers != handlers or recorded != {path: after for path, after in drop_ins.items() if after}:
        return False
    if not facts.unit:
        return cri.state in ("serving", "restarting")
    return cri.state == "serving" and facts.handlers is not None and set(handlers) <= set(facts.handlers)


def _has_read(cri: Cri, wanted: Cri, facts: RuntimeFacts) -> bool:
    """Whether the running invocation began with the files as they are ``wanted``, which they are now.

    The record tells that of what its own run wrote, and of nothing that a rollback put back.
    """
    recorded, now = ({file.path: file.after for file in each.files} for each in (cri, wanted))
    same = cri.state == "restarting" and recorded == now
    return same and not is_owed(cri, facts.boot, facts.invocation)


def is_owed(cri: Cri, boot: str, invocation: str) -> bool:
    """Whether the runtime that is up as ``invocation`` has yet to read the files on the disk.

    Only for states in which all files are written does the record tell; for others a restart is due.
    An ``invocation`` that is not known has read nothing since the boot.
    """
    if cri.state not in ("restarting", "unloading"):
        return True
    return cri.boot == boot and (not invocation or cri.invocation in ("", invocation))


def _restart_back(cri: Cri, facts: RuntimeFacts, changed: bool) -> Restart:
    if cri.state == "unloading":
        return "always" if changed or is_owed(cri, facts.boot, facts.invocation) else "never"
    if cri.state in ("writing", "reverting") and cri.fallback is None:
        # Killed before the restart: the runtime never read what is taken back now.
        return "never" if (cri.invocation, cri.boot) == (facts.invocation, facts.boot) else "always"
    return "always"


def _sorted(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(names))


def _handlers(cri: Cri | None) -> tuple[str, ...]:
    """Every handler of ours that may be loaded."""
    return cri.may_be_loaded if cri else ()


def _swept(cri: Cri | None, changes: Iterable[Change]) -> tuple[Action, ...]:
    if cri is None or cri.state == "serving":
        return ()
    return (Sweep(tuple(dict.fromkeys((*(change.path for change in changes), *cri.paths())))),)


def _served(facts: RuntimeFacts, handlers: tuple[str, ...]) -> str:
    listed = ", ".join(handlers)
    if not facts.unit:
        return f"{facts.runtime.name} {facts.runtime.version} will serve {listed} when it starts"
    return f"{facts.unit} ({facts.runtime.name} {facts.runtime.version}) serves {listed}"


def _writes(todo: Iterable[Change], facts: RuntimeFacts) -> Iterator[Action]:
    for change in todo:
        there = facts.files.get(change.path)
        if change.content is None:
            yield RemoveFile(change.path, there.content if there else b"")
        elif there is None:
            yield WriteFile(change.path, change.content)
        else:
            owner = (there.uid, there.gid)
            yield WriteFile(change.path, change.content, there.mode, owner, before=there.content)


def _parents(written: Iterable[Change]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(change.path.rpartition("/")[0] for change in written))


def _is_above(directory: str, written: Iterable[Change], install_dir: str) -> bool:
    """Whether ``directory`` is made for these files; the install dir and above is the artifacts stage's."""
    if f"{install_dir}/".startswith(f"{directory}/"):
        return False
    return any(change.path.startswith(f"{directory}/") for change in written)
