"""Plan the change of a runtime's configuration: install, revert, and the rollback of both. Pure.

Every plan has the same order: record the intent and the backups, check, write, check, restart and prove,
record the proof. From the first action on, the receipt has the state in which the runtime last served. So
any later install or revert can restore it.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence

from msgspec.structs import replace

from kata_node.host.files import FileState
from kata_node.plan import blocking_pods
from kata_node.plan import receipt as receipts
from kata_node.plan.actions import (
    DEFAULT_MODE,
    Action,
    MakeDirs,
    Plan,
    RemoveDirs,
    RemoveLeftovers,
    RemoveReceipt,
    WriteReceipt,
)
from kata_node.plan.receipt import ArtifactsRecord, CriRecord, Receipt
from kata_node.runtime import file_records
from kata_node.runtime.facts import RuntimeFacts
from kata_node.runtime.file_actions import (
    SECRET_MODE,
    RemoveConfig,
    RemoveReserves,
    WriteConfig,
    make_private,
)
from kata_node.runtime.model.config import FileChange, is_drop_in, is_user_drop_in
from kata_node.runtime.restart import RestartPolicy, RestartRuntime
from kata_node.runtime.rollback import (
    ConfigChecks,
    TransactionStart,
    handlers_defined_after,
    restart_or_record,
    sorted_names,
)

MAX_EXPENDABLE = 8  # files; each can be smaller than the receipt


def install(
    facts: RuntimeFacts,
    receipt: Receipt,
    changes: Sequence[FileChange],
    handlers: tuple[str, ...],
    checks: ConfigChecks,
    services: tuple[Action, ...] = (),
) -> Plan:
    """Return the plan that makes ``changes``, in this order, and makes the runtime serve ``handlers``.

    ``services`` are actions that start what the runtime needs before it serves.
    """
    cri = receipt.cri
    pending_changes = file_records.pending_changes(facts, changes)
    if not pending_changes and cri is not None and _is_served(cri, facts, changes, handlers):
        return Plan(_summary(facts, handlers), make_private(facts.files, [each.path for each in changes]))
    start = TransactionStart.of(cri, facts, changes)
    load_method = start.load_method(facts, changes)
    written = [change for change in changes if change.content is not None]
    candidate_dirs = (*facts.missing_dirs, *facts.foreign_dirs)
    created_dirs = (
        path for path in candidate_dirs if _is_parent_of_written(path, written, receipt.install_dir)
    )
    in_progress = CriRecord(
        state="writing",
        runtime=facts.runtime.name,
        version=str(facts.runtime.version),
        unit=facts.unit,
        invocation=start.invocation_before,
        boot=facts.boot,
        handlers=handlers,
        files=file_records.install_records(changes, cri, facts),
        made_dirs=tuple(sorted({*created_dirs, *(cri.made_dirs if cri else ())})),
        previous=start.previous,
        fallback=start.fallback,
        config=facts.config_path,
        drop_in_dir=facts.drop_in_dir,
    )
    recorded = replace(receipt, socket=facts.distribution_runtime.socket)
    has_read = not pending_changes and cri is not None and _has_read(cri, in_progress, facts)
    # A file without our entry needs no record.
    paths_with_entry = {change.path for change in changes if change.content != change.content_without_entry}
    files = tuple(file for file in in_progress.files if file.path in paths_with_entry)
    serving = replace(in_progress, state="serving", files=files, previous=(), fallback=None)
    defined_before = set(facts.config.defined_handlers(facts.contents))
    defined_after = set(handlers_defined_after(facts, changes))
    removed_handlers = sorted_names(set(_loadable_handlers(cri)).difference(handlers, defined_after))
    handlers_to_remove = {*removed_handlers, *(defined_before - defined_after)}
    actions = (
        # With nothing to write, keep the old record: it shows which files the runtime has read.
        _record_action(
            recorded, in_progress if pending_changes or cri is None else cri, in_progress, facts, changes
        ),
        *_remove_leftovers(cri, changes),
        *((checks.planned,) if pending_changes else ()),
        *services,
        *(MakeDirs(path) for path in _parents(written) if path in facts.missing_dirs),
        *_writes(pending_changes, facts, start.previous_files(facts, changes)),
        checks.written,
        *restart_or_record(
            facts,
            RestartRuntime(
                facts.unit,
                facts.distribution_runtime.socket,
                load_method,
                expected_handlers=handlers,
                removed_handlers=removed_handlers,
                timeout=facts.timeout,
                receipt_before_restart=replace(recorded, cri=replace(in_progress, state="restarting")),
                receipt_after_proof=replace(recorded, cri=serving),
                restart="never" if has_read else "always",
                cleanup=(RemoveReserves(_all_paths(changes, cri)),),
                served_before=facts.handlers,
            ),
        ),
    )
    rollback = start.rollback(
        facts, receipt, changes, in_progress.made_dirs, (*handlers, *_loadable_handlers(cri)), checks
    )
    return Plan(
        _summary(facts, handlers),
        actions,
        rollback,
        notes=blocking_pods.unknown_pods_notes(facts.pods, handlers_to_remove),
        blocking_pods=blocking_pods.blocking_pods(facts.pods, handlers_to_remove),
        pods_unknown=facts.pods is None and bool(handlers_to_remove),
        added_handlers=sorted_names(defined_after - defined_before),
        removed_handlers=sorted_names(handlers_to_remove),
    )


def revert(
    facts: RuntimeFacts,
    receipt: Receipt,
    cri: CriRecord,
    changes: Sequence[FileChange],
    checks: ConfigChecks,
) -> Plan:
    """Return the plan that makes ``changes``, and makes the runtime serve no handler of ``cri``.

    ``cri`` is the record of the receipt, or a reconstruction of it. If the runtime runs but serves no CRI,
    the plan removes our entry all the same and accepts that the runtime stays broken.
    """
    broken = is_broken(cri, facts)
    pending_changes = file_records.pending_changes(facts, changes)
    start = TransactionStart.of(cri, facts, changes)
    load_method = start.load_method(facts, changes)
    in_progress = replace(
        cri,
        state="reverting",
        invocation=start.invocation_before,
        boot=facts.boot,
        files=tuple(file_records.revert_record(change, cri, facts) for change in changes),
        previous=start.previous,
        fallback=start.fallback,
    )
    # Without the receipt, the files show which handlers were there before.
    defined_before = set(facts.config.defined_handlers(facts.contents))
    defined_after = set(handlers_defined_after(facts, changes))
    removed_handlers = sorted_names({*_loadable_handlers(cri), *facts.own_handlers} - defined_after)
    handlers_to_remove = {*removed_handlers, *facts.own_handlers, *(defined_before - defined_after)}
    # Without a record of placed files, this stage alone leaves nothing behind, and makes what it needs.
    artifacts = receipt.artifacts or ArtifactsRecord(
        "removing", "", "", {}, _missing_install_dirs(facts, receipt)
    )
    if artifacts.made_dirs:
        receipt = replace(receipt, artifacts=artifacts)
    has_files = artifacts.state != "removing" or bool(artifacts.files)
    final_receipt = replace(receipt, cri=None)
    actions = (
        replace(
            _record_action(
                receipt,
                in_progress if pending_changes or cri.state != "unloading" else cri,
                in_progress,
                facts,
                changes,
            ),
            optional=True,
        ),
        *_remove_leftovers(cri, changes),
        *((checks.planned,) if pending_changes and not broken else ()),
        *_writes(
            pending_changes,
            facts,
            start.previous_files(facts, changes),
            receipts.path(receipt.install_dir),
        ),
        *(() if broken else (checks.written,)),
        *restart_or_record(
            facts,
            RestartRuntime(
                facts.unit,
                facts.distribution_runtime.socket,
                load_method,
                expected_handlers=(),
                removed_handlers=removed_handlers,
                timeout=facts.timeout,
                receipt_before_restart=replace(receipt, cri=replace(in_progress, state="unloading")),
                receipt_after_proof=None,
                record_is_optional=True,
                restart=_restart_on_revert(cri, facts, bool(pending_changes))
                if load_method == "restart"
                else "always",
                may_be_down=True,
                may_fail=broken,
                served_before=facts.handlers,
                unused_dir=receipt.install_dir,
                search_path=facts.search_path,
            ),
        ),
        RemoveReserves(_all_paths(changes, cri)),
        *((RemoveDirs(tuple(reversed(cri.made_dirs))),) if cri.made_dirs else ()),
        *(
            (WriteReceipt(final_receipt, expendable=_expendable_files(receipt)),)
            if has_files
            else (
                RemoveReceipt(receipt.install_dir),
                RemoveDirs(tuple(dict.fromkeys((receipt.install_dir, *reversed(artifacts.made_dirs))))),
            )
        ),
    )
    rollback = start.rollback(facts, receipt, changes, cri.made_dirs, _loadable_handlers(cri), checks)
    return Plan(
        f"{facts.unit or facts.runtime.name} will serve no handler of this installation",
        actions,
        rollback,
        notes=blocking_pods.unknown_pods_notes(facts.pods, handlers_to_remove),
        blocking_pods=blocking_pods.blocking_pods(facts.pods, handlers_to_remove),
        pods_unknown=facts.pods is None and bool(handlers_to_remove),
        added_handlers=sorted_names(defined_after - defined_before),
        removed_handlers=sorted_names(handlers_to_remove),
    )


def is_broken(cri: CriRecord, facts: RuntimeFacts) -> bool:
    """Return whether the runtime served after the last run, and now serves no CRI although it should run."""
    return cri.state == "serving" and facts.handlers is None and facts.state not in ("", "inactive")


def _record_action(
    receipt: Receipt,
    cri: CriRecord,
    in_progress: CriRecord,
    facts: RuntimeFacts,
    changes: Iterable[FileChange],
) -> WriteReceipt:
    """Return the action that saves ``cri`` and every backup that ``in_progress`` refers to."""
    contents = file_records.available_contents(facts, changes)
    digests = dict.fromkeys(backup.sha256 for backup in in_progress.backups())
    return WriteReceipt(
        replace(receipt, cri=cri), tuple(contents[each] for each in digests if each in contents)
    )


def _is_served(
    cri: CriRecord, facts: RuntimeFacts, changes: Iterable[FileChange], handlers: tuple[str, ...]
) -> bool:
    """Return whether the running invocation serves exactly these files, judged by the receipt.

    Only drop-ins are compared. Foreign changes of shared files do not count.
    """
    drop_ins = {each.path: file_records.digest(each.content) for each in changes if is_drop_in(each.path)}
    recorded = {file.path: file.after for file in cri.files if file.after and file.path in drop_ins}
    if cri.handlers != handlers or recorded != {path: after for path, after in drop_ins.items() if after}:
        return False
    if not facts.unit:
        return cri.state in ("serving", "restarting")
    return cri.state == "serving" and facts.handlers is not None and set(handlers) <= set(facts.handlers)


def _has_read(cri: CriRecord, desired: CriRecord, facts: RuntimeFacts) -> bool:
    """Return whether the running invocation started with the current files, which are those of ``desired``.

    The record ``cri`` shows that only for files that its own run wrote, not for restored files.
    """
    recorded, now = ({file.path: file.after for file in each.files} for each in (cri, desired))
    same = cri.state == "restarting" and recorded == now
    return same and not is_restart_owed(cri, facts.boot, facts.invocation)


def is_restart_owed(cri: CriRecord, boot: str, invocation: str) -> bool:
    """Return whether the running ``invocation`` has not read the files on disk yet.

    The record shows that only for states in which all files are written; in other states a restart is owed.
    An unknown ``invocation`` has read nothing since the boot.
    """
    if cri.state not in ("restarting", "unloading"):
        return True
    return cri.boot == boot and (not invocation or cri.invocation in ("", invocation))


def _restart_on_revert(cri: CriRecord, facts: RuntimeFacts, changed: bool) -> RestartPolicy:
    if cri.state == "unloading":
        return "always" if changed or is_restart_owed(cri, facts.boot, facts.invocation) else "never"
    if cri.state in ("writing", "reverting") and cri.fallback is None:
        # The run was killed before its restart, so the runtime never read the files that are reverted now.
        return "never" if (cri.invocation, cri.boot) == (facts.invocation, facts.boot) else "always"
    return "always"


def _loadable_handlers(cri: CriRecord | None) -> tuple[str, ...]:
    """Return every handler of this installation that the runtime may have loaded."""
    return cri.possibly_loaded_handlers if cri else ()


def _remove_leftovers(cri: CriRecord | None, changes: Iterable[FileChange]) -> tuple[Action, ...]:
    if cri is None or cri.state == "serving":
        return ()
    return (RemoveLeftovers(_all_paths(changes, cri)),)


def _summary(facts: RuntimeFacts, handlers: tuple[str, ...]) -> str:
    listed = ", ".join(handlers)
    if not facts.unit:
        return f"{facts.runtime.name} {facts.runtime.version} will serve {listed} when it starts"
    return f"{facts.unit} ({facts.runtime.name} {facts.runtime.version}) serves {listed}"


def _writes(
    pending_changes: Iterable[FileChange],
    facts: RuntimeFacts,
    previous: Mapping[str, FileState | None],
    receipt_path: str = "",
) -> Iterator[Action]:
    """Yield the changes of the files; ``receipt_path`` only for a revert."""
    for change in pending_changes:
        path, current = change.path, facts.files.get(change.path)
        mode = SECRET_MODE if is_user_drop_in(path) else None
        if change.content is None:
            yield RemoveConfig(path, current.content if current else b"", previous.get(path))
        elif current is None:
            yield WriteConfig(
                path,
                change.content,
                mode or DEFAULT_MODE,
                previous=previous.get(path),
                receipt_path=receipt_path,
            )
        else:
            yield WriteConfig(
                path,
                change.content,
                mode or current.mode,
                (current.uid, current.gid),
                before=current.content,
                previous=previous.get(path),
                receipt_path=receipt_path,
            )


def _all_paths(changes: Iterable[FileChange], cri: CriRecord | None) -> tuple[str, ...]:
    """Return every file that this or an interrupted transaction changes."""
    return tuple(dict.fromkeys((*(change.path for change in changes), *(cri.paths() if cri else ()))))


def _missing_install_dirs(facts: RuntimeFacts, receipt: Receipt) -> tuple[str, ...]:
    """Return the missing directories that the receipt needs, outermost first."""
    return tuple(path for path in facts.missing_dirs if f"{receipt.install_dir}/".startswith(f"{path}/"))


def _expendable_files(receipt: Receipt) -> tuple[str, ...]:
    """Return the placed files that a full disk may lose once no handler is served, the largest first.

    An installation of an earlier version has no reserve for its receipt. The next stage removes these files.
    """
    placed = receipt.artifacts.files if receipt.artifacts else {}
    files = sorted((-placed[path].size, path) for path in placed if placed[path].kind == "file")
    return tuple(f"{receipt.install_dir}/{path}" for _, path in files[:MAX_EXPENDABLE])


def _parents(written: Iterable[FileChange]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(posixpath.dirname(change.path) for change in written))


def _is_parent_of_written(directory: str, written: Iterable[FileChange], install_dir: str) -> bool:
    """Return whether ``directory`` is made for these files.

    The stage ``artifacts`` makes the install dir and the directories above it.
    """
    if f"{install_dir}/".startswith(f"{directory}/"):
        return False
    return any(change.path.startswith(f"{directory}/") for change in written)
