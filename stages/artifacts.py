"""artifacts: place the Kata files that the enabled shims need below the install dir."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from kata_node.errors import IneligibleNodeError
from kata_node.payload import facts as artifact_facts
from kata_node.payload import layout
from kata_node.payload.actions import PlaceFiles, SetDirModes
from kata_node.payload.facts import ArtifactFacts
from kata_node.payload.ownership import MADE_DIR_MODE
from kata_node.plan.actions import (
    Action,
    MakeDirs,
    MakeLinks,
    Plan,
    RemoveDirs,
    RemoveReceipt,
    WriteFile,
    WriteReceipt,
)
from kata_node.plan.context import StageContext
from kata_node.plan.receipt import ArtifactsRecord, Receipt
from kata_node.plan.remove_files import RemoveFiles
from kata_node.settings.handlers import handler_names
from kata_node.settings.model import Settings
from kata_node.text import human_size, pluralize

__all__ = ["NAME", "gather_facts", "plan"]

NAME = "artifacts"


def gather_facts(context: StageContext) -> ArtifactFacts:
    """Return the facts, see :func:`kata_node.payload.facts.gather_facts`."""
    will_place = not (context.is_dry_run or context.plans_again)
    return artifact_facts.gather_facts(context, will_place=will_place)


def plan(settings: Settings, facts: ArtifactFacts, receipt: Receipt) -> Plan:
    """Return the plan that places missing files, repairs changed files and removes obsolete files.

    If the runtime can still serve a handler that the settings remove, obsolete files stay; the stage cri
    removes them later. Raises :class:`IneligibleNodeError` if foreign files are in the install dir.
    """
    recorded = receipt.artifacts.release if receipt.artifacts else ""
    return replace(_plan(settings, facts, receipt), kata_version=facts.release or recorded)


def _plan(settings: Settings, facts: ArtifactFacts, receipt: Receipt) -> Plan:
    before = receipt.artifacts
    if facts.untrusted:
        raise facts.untrusted.error()
    placed = before.files if before else {}
    count = before.count if before else 0
    in_place = "1 file is in place" if count == 1 else f"all {count} files are in place"
    if facts.desired_files is None:
        return Plan(in_place)
    difference = layout.compare(facts.desired_files, facts.observed_files, placed, facts.digests)
    if difference.conflicts:
        raise IneligibleNodeError(
            f"{layout.conflict_summary(difference.conflicts)}: {', '.join(difference.conflicts[:5])}",
            where=settings.install_dir,
            hint="remove the earlier installation with the tool that made it, or set env.installationPrefix",
        )
    served = facts.settings or settings
    if _removes_handlers(served, receipt):
        difference = layout.defer_removals(difference, placed)
    made_dirs = before.made_dirs if before else facts.missing_dirs
    artifacts = ArtifactsRecord("placed", facts.release, facts.inputs, difference.resulting_record, made_dirs)
    done = replace(receipt, artifacts=artifacts)
    if not difference and not facts.changed_made_dirs:
        if before is not None and before.state == "placed" and before == artifacts:
            return Plan(in_place, notes=_record_notes(settings, facts, receipt))
        return Plan("all files are in place; the receipt is updated", (WriteReceipt(done),))
    drifted = (*facts.changed_made_dirs, *(f"{settings.install_dir}/{path}" for path in difference.drifted))
    pending_artifacts = replace(
        artifacts, state="placing", files=layout.record_before_placing(difference, placed)
    )
    sizes = {path: placed[path].size for path in difference.stale}
    placing_actions = _placing_actions(settings.install_dir, difference, facts, sizes)
    return Plan(
        _summary(difference, facts),
        (WriteReceipt(replace(receipt, artifacts=pending_artifacts)), *placing_actions, WriteReceipt(done)),
        rollback=() if before else _rollback_actions(settings.install_dir, difference, facts),
        notes=(
            *served.left_out_since(settings),
            *facts.drop_in_warnings,
            *_record_notes(settings, facts, receipt),
        ),
        drifted=drifted,
    )


def _record_notes(settings: Settings, facts: ArtifactFacts, receipt: Receipt) -> tuple[str, ...]:
    """Return what a plan without the payload does not know."""
    if not facts.by_record:
        return ()
    release = facts.release or "an unknown release"
    note = (
        f"planned without the payload, from the record of {release}: the content of the files comes from the "
        "payload, so this plan shows no diff of them, and does not see settings that change them"
    )
    if not _removes_handlers(facts.settings or settings, receipt):
        return (note,)
    return (note, "the files of the removed handlers will be removed too; the payload says which ones")


def _removes_handlers(settings: Settings, receipt: Receipt) -> bool:
    return receipt.cri is not None and not set(receipt.cri.possibly_loaded_handlers) <= set(
        handler_names(settings)
    )


def _placing_actions(
    install_dir: str, difference: layout.Difference, facts: ArtifactFacts, stale_sizes: Mapping[str, int]
) -> list[Action]:
    existing_dirs = _existing_dirs(difference, facts)
    existing = {desired.path for desired in existing_dirs}
    missing = [desired for desired in difference.missing if desired.path not in existing]
    entries = tuple(desired.entry for desired in missing if desired.entry is not None)
    placing_actions: list[Action] = []
    modes = [(path, MADE_DIR_MODE) for path in facts.changed_made_dirs]
    modes += [(f"{install_dir}/{desired.path}", desired.mode) for desired in existing_dirs]
    if modes:
        placing_actions.append(SetDirModes(tuple(modes)))
    if entries:
        # First, because it is the action that fails on a full disk, and then leaves no files behind.
        placing_actions.append(PlaceFiles(install_dir, entries, facts.payload(), facts.observed_files))
    placing_actions += [
        MakeDirs(f"{install_dir}/{desired.path}", desired.mode)
        for desired in missing
        if desired.kind == "dir" and desired.entry is None
    ]
    placing_actions += [
        WriteFile(
            f"{install_dir}/{desired.path}",
            desired.content,
            desired.mode,
            mtime=desired.mtime,
            before=facts.contents.get(desired.path),
        )
        for desired in missing
        if desired.content is not None
    ]
    links = tuple(
        (f"{install_dir}/{desired.path}", desired.link)
        for desired in missing
        if desired.kind == "link" and desired.entry is None
    )
    if links:
        placing_actions.append(MakeLinks(links))
    if difference.stale:
        placing_actions.append(RemoveFiles(install_dir, difference.stale, stale_sizes))
    if difference.stale_dirs:
        placing_actions.append(RemoveDirs(tuple(f"{install_dir}/{path}" for path in difference.stale_dirs)))
    return placing_actions


def _existing_dirs(difference: layout.Difference, facts: ArtifactFacts) -> list[layout.DesiredFile]:
    """Return the directories that only need another mode, parents first."""
    return [
        desired
        for desired in difference.missing
        if desired.kind == "dir" and desired.path in facts.observed_files
    ]


def _rollback_actions(
    install_dir: str, difference: layout.Difference, facts: ArtifactFacts
) -> tuple[Action, ...]:
    """Return the actions that remove everything after a failed first installation.

    An upgrade has no rollback; the next run continues it.
    """
    new = [desired for desired in difference.missing if desired.path not in facts.observed_files]
    dirs = sorted((desired.path for desired in new if desired.kind == "dir"), reverse=True)
    return (
        RemoveFiles(install_dir, tuple(desired.path for desired in new if desired.kind != "dir")),
        RemoveDirs(tuple(f"{install_dir}/{path}" for path in dirs)),
        RemoveReceipt(install_dir),
        RemoveDirs(tuple(reversed(facts.missing_dirs))),
    )


def _summary(difference: layout.Difference, facts: ArtifactFacts) -> str:
    repaired = len(facts.changed_made_dirs) + len(_existing_dirs(difference, facts))
    size = human_size(sum(desired.size for desired in difference.missing))
    files = sum(desired.kind != "dir" for desired in difference.missing)
    removed = f", {pluralize(len(difference.stale), 'obsolete file')} removed" if difference.stale else ""
    dirs = pluralize(repaired, "directory", "directories")
    modes = f", the mode of {dirs} set" if repaired else ""
    release = f", release {facts.release}" if facts.release else ""
    return f"{pluralize(files, 'file')} placed ({size}){release}{removed}{modes}"
