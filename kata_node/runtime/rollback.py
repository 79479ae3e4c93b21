"""The start of a transaction, and the rollback to it. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from kata_node.plan.actions import (
    Action,
    RemoveDirs,
    WriteReceipt,
)
from kata_node.plan.receipt import Backup, CriRecord, PreviousFile, Receipt
from kata_node.runtime import file_records
from kata_node.runtime.check_config import CheckConfig
from kata_node.runtime.facts import RuntimeFacts
from kata_node.runtime.file_actions import RemoveReserves, RestoreFile
from kata_node.runtime.model.config import FileChange
from kata_node.runtime.restart import RestartRuntime

if TYPE_CHECKING:
    from kata_node.host.files import FileState
    from kata_node.runtime.model.distributions import LoadMethod


class ConfigChecks(Struct, frozen=True):
    """The checks of the configuration in one transaction."""

    planned: Action
    """Of the planned content, before any file is written."""
    written: Action
    """Of the written files, before the restart."""
    restored: CheckConfig
    """Of the files that a rollback restored, before the restart."""


class TransactionStart(Struct, frozen=True):
    """The state at the start of the transaction, which an interrupted run may have begun."""

    previous: tuple[PreviousFile, ...]
    fallback: CriRecord | None
    invocation_before: str
    """The invocation that ran before the first write; empty when it may have read a new file since."""
    served_before: tuple[str, ...] | None
    """The handlers that it served then; ``None`` when not known."""

    @classmethod
    def of(
        cls, cri: CriRecord | None, facts: RuntimeFacts, changes: Iterable[FileChange]
    ) -> TransactionStart:
        """Return the current state, or that at the start of the interrupted run that ``cri`` records."""
        states = {change.path: file_records.backup_of(facts.files.get(change.path)) for change in changes}
        if cri is None or cri.state == "serving":
            return cls(_previous(states), cri, facts.invocation, facts.handlers)
        recorded_states = {
            each.path: each.state
            for each in cri.previous
            if file_records.is_backup_available(each.state, facts)
        }
        for change in changes:
            if change.path in recorded_states and not file_records.is_edited_by_others(
                change, recorded_states[change.path], cri, facts
            ):
                continue
            recorded_states.pop(change.path, None)
            # Keep our entry only in a file that had it before the interrupted run.
            was_ours = cri.fallback and cri.fallback.file(change.path)
            states[change.path] = (
                file_records.backup_with_entry if was_ours else file_records.backup_without_entry
            )(change, facts)
        untouched = cri.state in ("writing", "reverting") and cri.boot == facts.boot
        invocation_before = cri.invocation if untouched else ""
        return cls(_previous(states | recorded_states), cri.fallback, invocation_before, None)

    def load_method(self, facts: RuntimeFacts, changes: Sequence[FileChange]) -> LoadMethod:
        """Return how a runtime that has loaded the previous files loads the changed ones."""
        contents = file_records.available_contents(facts, changes)
        current_files = facts.contents
        files_before: dict[str, bytes | None] = {**current_files}
        for each in self.previous:
            files_before[each.path] = contents.get(each.state.sha256) if each.state else None
        files_after: dict[str, bytes | None] = {
            **current_files,
            **{change.path: change.content for change in changes},
        }
        loads_without_restart = facts.config.loads_without_restart(
            _existing_files(files_before), _existing_files(files_after)
        )
        if facts.distribution_runtime.load_method == "signal":
            # If a defined handler is not served, the runtime may not have read all files of an earlier run.
            loads_without_restart &= facts.config.defined_handlers(_existing_files(files_before)) <= set(
                facts.handlers or ()
            )
        return facts.distribution_runtime.load_method if loads_without_restart else "restart"

    def previous_files(
        self, facts: RuntimeFacts, changes: Iterable[FileChange]
    ) -> dict[str, FileState | None]:
        """Return by path what a rollback restores; ``None`` for a file that did not exist."""
        contents = file_records.available_contents(facts, changes)
        return {each.path: file_records.restored_state(each.state, contents) for each in self.previous}

    def rollback(
        self,
        facts: RuntimeFacts,
        receipt: Receipt,
        changes: Sequence[FileChange],
        made_dirs: Sequence[str],
        handlers: Iterable[str],
        checks: ConfigChecks,
    ) -> tuple[Action, ...]:
        """Return the actions that restore all files, in the opposite order, and the previous handlers.

        ``made_dirs`` and ``handlers`` are all that the transaction may have added.
        """
        load_method = self.load_method(facts, changes)
        order = {change.path: at for at, change in enumerate(changes)}
        previous = self.previous_files(facts, changes)
        restored = [
            RestoreFile(path, previous[path])
            for path in sorted(previous, key=lambda path: order.get(path, -1), reverse=True)
        ]
        fallback_dirs, served_before = (
            (self.fallback.made_dirs, self.fallback.handlers) if self.fallback else ((), ())
        )
        # A person may have removed a drop-in while the runtime still served its handlers, or the reverse.
        defined_handlers = handlers_defined_after(
            facts, (FileChange(each.path, each.content) for each in restored)
        )
        known_handlers = defined_handlers if self.served_before is None else self.served_before
        expected_handlers = tuple(
            name for name in served_before if name in defined_handlers and name in known_handlers
        )
        emptied = tuple(path for path in reversed(made_dirs) if path not in fallback_dirs)
        return (
            *restored,
            *restart_or_record(
                facts,
                RestartRuntime(
                    facts.unit,
                    facts.distribution_runtime.socket,
                    load_method,
                    expected_handlers=expected_handlers,
                    removed_handlers=sorted_names(set(handlers).difference(defined_handlers, known_handlers)),
                    timeout=facts.timeout,
                    receipt_after_proof=replace(receipt, cri=self.fallback),
                    cleanup=(
                        RemoveReserves(tuple(previous)),
                        *((RemoveDirs(emptied),) if emptied else ()),
                    ),
                    restart="if-read",
                    invocation_before=self.invocation_before,
                    may_be_down=facts.state == "inactive",
                    check_before_restart=checks.restored,
                    served_before=None if load_method == "restart" else facts.handlers,
                ),
            ),
        )


def _previous(states: Mapping[str, Backup | None]) -> tuple[PreviousFile, ...]:
    return tuple(PreviousFile(path, state) for path, state in states.items())


def restart_or_record(facts: RuntimeFacts, restart: RestartRuntime) -> tuple[Action, ...]:
    """Return ``restart``; without a unit to restart, the actions that record the written files."""
    if facts.unit:
        return (restart,)
    recorded = (
        restart.receipt_before_restart
        if restart.receipt_before_restart is not None and restart.expected_handlers
        else restart.receipt_after_proof
    )
    return (*restart.cleanup, *((WriteReceipt(recorded),) if recorded is not None else ()))


def _existing_files(files: Mapping[str, bytes | None]) -> dict[str, bytes]:
    return {path: content for path, content in files.items() if content is not None}


def handlers_defined_after(facts: RuntimeFacts, changes: Iterable[FileChange]) -> Collection[str]:
    """Return the handlers that all configuration files define after ``changes``."""
    current_files = facts.contents
    planned_files = current_files | {change.path: change.content for change in changes}
    return facts.config.defined_handlers(_existing_files(planned_files))


def sorted_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names as a sorted tuple."""
    return tuple(sorted(names))
