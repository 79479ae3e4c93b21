"""Find the runtime's files that have an entry of this installation, and their content without it. Pure.

The receipt lists the files. If it is lost or incomplete after an interrupted run, the files themselves show
it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from kata_node.errors import HostError, IneligibleNodeError
from kata_node.host.files import FileState
from kata_node.plan.receipt import Receipt
from kata_node.runtime.config_selection import config_that_edited
from kata_node.runtime.defined_handlers import handler_tables
from kata_node.runtime.facts import RuntimeFacts
from kata_node.runtime.file_records import (
    file_records,
    has_installation,
    is_backup_available,
    recorded_digests,
    sha256,
)
from kata_node.runtime.model.config import (
    FileChange,
    StartProblem,
    files_after,
    is_drop_in,
    is_drop_in_of,
    is_written_by_us,
    writer_of,
)
from kata_node.toml.edit import BrokenTomlError


def has_traces(facts: RuntimeFacts, receipt: Receipt) -> bool:
    """Return whether a receipt, or what is left without it, shows that the installation is on this node."""
    if receipt.artifacts is not None or receipt.cri is not None or facts.has_state_dir or facts.reserves:
        return True
    for location in facts.config.drop_in_locations():
        drop_in = facts.files.get(location.drop_in)
        if (
            drop_in
            and is_written_by_us(drop_in.content)
            and is_drop_in_of(receipt.install_dir, drop_in.content)
        ):
            return True
    shared = ((path, facts.files.get(path)) for path in facts.config.shared_paths())
    return any(
        state is not None and facts.config.without_entry(path, state.content) != state.content
        for path, state in shared
    )


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


def without_own_handlers(
    facts: RuntimeFacts, changes: Sequence[FileChange]
) -> tuple[list[FileChange], list[str]]:
    """Return ``changes`` of a revert, and in addition no file with a handler of this installation.

    After a revert nothing may be served that needs the files in the install dir. So the handlers also leave
    the files of other programs, and the backups that are restored. If such a file makes one of them the
    default handler, that setting leaves with it: the runtime would not serve. The notes name them. Raises
    :class:`IneligibleNodeError` when a file cannot be edited safely.
    """
    notes: list[str] = []
    planned = {change.path: change.content for change in changes}
    copies = {path: state.content for path, state in facts.files.items() if path not in planned}
    after: dict[str, bytes | None] = {**planned, **copies}
    removed: dict[str, frozenset[str]] = {}
    for path, content in after.items():
        if content is None:
            continue
        removed[path], after[path] = _without_own_handlers(facts, path, content)
        if removed[path]:
            notes.append(
                f"kata-node removed {', '.join(sorted(removed[path]))} from {path}, because they use files "
                "of this installation"
            )
    left = facts.config.defined_handlers({path: each for path, each in after.items() if each is not None})
    for path, content in after.items():
        if content is None or not (names := removed[path].difference(left)):
            continue
        after[path] = _without_default_handler(facts, path, content, names)
        if after[path] != content:
            notes.append(f"kata-node removed the setting of the default handler from {path}")
    cleaned = [
        FileChange(path, content, content)
        for path, content in after.items()
        if path in planned or content != copies[path]
    ]
    cleaned.sort(key=lambda change: is_drop_in(change.path))
    return cleaned, notes


def _without_own_handlers(facts: RuntimeFacts, path: str, content: bytes) -> tuple[frozenset[str], bytes]:
    """Return the handlers of this installation in a file, and the file without them.

    A broken file has none: the check of the whole configuration finds it.
    """
    try:
        handlers = facts.config.own_handlers(path, content)
        return handlers, facts.config.without_own_handlers(path, content) if handlers else content
    except BrokenTomlError:
        return frozenset(), content
    except HostError as error:
        raise _edit_by_hand(path, content, error) from error


def _without_default_handler(facts: RuntimeFacts, path: str, content: bytes, names: Collection[str]) -> bytes:
    try:
        return facts.config.without_default_handler(path, content, names) if names else content
    except BrokenTomlError:  # the check of the whole configuration finds it
        return content
    except HostError as error:
        raise _edit_by_hand(path, content, error) from error


def _edit_by_hand(path: str, content: bytes, error: HostError) -> IneligibleNodeError:
    return IneligibleNodeError(
        f"handlers of this installation are in this file: {error.what}",
        where=path,
        hint=f"{error.hint}; or uninstall {writer_of(path, content)}",
    )


def refuse_linked_handlers(facts: RuntimeFacts, changes: Iterable[FileChange]) -> None:
    """Raise :class:`IneligibleNodeError` if after ``changes`` a handler reaches our files by a link.

    The runtime would serve it, and its pods would not start. Only its owner knows what else the link is for.
    """
    after = files_after(facts.contents, changes)
    for path, links in facts.linked.items():
        left = handler_tables(facts.config, path, after.get(path, b""))
        if names := sorted(left.keys() & links):
            paths = ", ".join(dict.fromkeys(links[name] for name in names))
            raise IneligibleNodeError(
                f"this file has {', '.join(names)}, which uses files of this installation through {paths}",
                where=path,
                hint=f"remove {', '.join(names)} from this file and end its pods, then run the command again",
            )


def refuse_worse_config(facts: RuntimeFacts, changes: Iterable[FileChange]) -> None:
    """Raise :class:`IneligibleNodeError` if ``changes`` would keep the runtime from serving.

    What was wrong before is no reason, with one exception: a runtime that serves is not restarted with a
    configuration with which it does not start.
    """
    contents_after = files_after(facts.contents, changes)
    before, after = (
        facts.config.check(files, own_paths=(), handlers=(), labels={}, exists=files.__contains__)
        for files in (facts.contents, contents_after)
    )
    if worse := [problem for problem in after if problem not in before]:
        raise IneligibleNodeError(
            f"without this installation the runtime would not serve: {'; '.join(worse)}",
            where=facts.config_path,
            hint=_correction_hint(facts, contents_after),
        )
    fatal = [problem for problem in after if isinstance(problem, StartProblem)]
    if fatal and facts.handlers is not None:
        raise IneligibleNodeError(
            f"{facts.runtime.name} would not start again, with this installation or without it: "
            + "; ".join(fatal),
            where=facts.config_path,
            hint="correct the named files before anything restarts the runtime, then run the command again",
        )


def _correction_hint(facts: RuntimeFacts, after: Mapping[str, bytes]) -> str:
    unit = facts.unit or facts.runtime.name
    gone = facts.config.defined_handlers(facts.contents) - facts.config.defined_handlers(after)
    if facts.config.default_handler(after) not in gone:
        return "correct the named files, then run the command again"
    with_default = [
        path
        for path, content in after.items()
        if _without_default_handler(facts, path, content, gone) != content
    ]
    if with_default:
        change = f"remove the setting of the default handler from {', '.join(with_default)}, or name another"
    else:
        change = f"take the default handler out of the options of {unit}, which renders {facts.config_path}"
    return f"{change}; restart {unit}, end the pods that run on it, then run the command again"


def refuse_foreign_drop_ins(facts: RuntimeFacts, receipt: Receipt) -> None:
    """Raise :class:`IneligibleNodeError` when others have drop-ins at the paths of this installation."""
    recorded = set(receipt.cri.paths()) if receipt.cri else set()
    for location in facts.config.drop_in_locations():
        if location.directory.startswith(f"{receipt.install_dir}/"):
            continue
        found = [path for path in location.paths if path in facts.files and path not in recorded]
        main = facts.files.get(location.drop_in)
        if (
            main
            and location.drop_in in found
            and is_written_by_us(main.content)
            and not is_drop_in_of(receipt.install_dir, main.content)
        ):
            raise IneligibleNodeError(
                "this drop-in belongs to another installation",
                where=location.drop_in,
                hint="run `kata-node revert` for that installation, with its env.installationPrefix; or set "
                "env.multiInstallSuffix here",
            )
        # With a lost receipt, the drop-in with the handlers shows that the others are ours too.
        if found and (receipt.cri is not None or main is None or not is_written_by_us(main.content)):
            raise IneligibleNodeError(
                "another program wrote this drop-in, which has the name of a drop-in of kata-node",
                where=found[0],
                hint="remove this file with the program that wrote it, or by hand; or set "
                "env.multiInstallSuffix here",
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
