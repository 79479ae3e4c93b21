"""artifacts: place the Kata files the enabled shims need below the install dir."""

from __future__ import annotations

from dataclasses import replace

from kata_node.errors import UnfitNodeError
from kata_node.payload import layout
from kata_node.payload.actions import PlaceFiles
from kata_node.payload.facts import ArtifactFacts, look
from kata_node.plan.actions import (
    Action,
    Forget,
    MakeDirs,
    MakeLinks,
    Plan,
    Record,
    RemoveDirs,
    RemoveFiles,
    WriteFile,
)
from kata_node.plan.receipt import Artifacts, Receipt
from kata_node.settings.handlers import names
from kata_node.settings.model import Settings
from kata_node.text import counted, human

__all__ = ["NAME", "look", "plan"]

NAME = "artifacts"


def plan(settings: Settings, facts: ArtifactFacts, receipt: Receipt) -> Plan:
    """Place what is missing, repair what changed, remove what is no longer wanted.

    While the runtime serves a handler that is to go, what that needs stays: the stage cri removes it.
    """
    before = receipt.artifacts
    placed = before.files if before else {}
    count = before.count if before else 0
    in_place = "the one file in place" if count == 1 else f"all {count} files in place"
    if facts.wanted is None:
        return Plan(in_place)
    difference = layout.compare(facts.wanted, facts.found, placed, facts.digests)
    if difference.conflicts:
        raise UnfitNodeError(
            f"{layout.in_the_way(difference.conflicts)}: {', '.join(difference.conflicts[:5])}",
            where=settings.install_dir,
            hint="remove the earlier installation with the tool that made it, or set env.installationPrefix",
        )
    if _is_to_lose_a_handler(settings, receipt):
        difference = layout.put_off(difference, placed)
    made_dirs = before.made_dirs if before else facts.missing_dirs
    artifacts = Artifacts("placed", facts.release, facts.inputs, difference.keep, made_dirs)
    done = replace(receipt, artifacts=artifacts)
    if not difference:
        if before is not None and before.state == "placed" and before == artifacts:
            return Plan(in_place)
        return Plan("all files in place, taken into the record", (Record(done),))
    repaired = (f"changed on the host since it was placed, repaired: {path}" for path in difference.drifted)
    notes = (*repaired, *facts.doubts)
    announced = replace(artifacts, state="placing", files=layout.announce(difference, placed))
    steps = _steps(settings.install_dir, difference, facts)
    return Plan(
        _summary(difference),
        (Record(replace(receipt, artifacts=announced)), *steps, Record(done)),
        undo=() if before else _undo(settings.install_dir, difference, facts),
        notes=notes,
    )


def _is_to_lose_a_handler(settings: Settings, receipt: Receipt) -> bool:
    return receipt.cri is not None and not set(receipt.cri.may_be_loaded) <= set(names(settings))


def _steps(install_dir: str, difference: layout.Difference, facts: ArtifactFacts) -> list[Action]:
    missing = difference.missing
    entries = tuple(want.entry for want in missing if want.entry is not None)
    steps: list[Action] = []
    if entries:
        # First: it is what a full disk stops, and it leaves nothing behind when it fails.
        steps.append(PlaceFiles(install_dir, entries, facts.payload()))
    steps += [
        MakeDirs(f"{install_dir}/{want.path}", want.mode)
        for want in missing
        if want.kind == "dir" and want.entry is None
    ]
    steps += [
        WriteFile(f"{install_dir}/{want.path}", want.content, want.mode, mtime=want.mtime)
        for want in missing
        if want.content is not None
    ]
    links = tuple(
        (f"{install_dir}/{want.path}", want.link)
        for want in missing
        if want.kind == "link" and want.entry is None
    )
    if links:
        steps.append(MakeLinks(links))
    if difference.stale:
        steps.append(RemoveFiles(install_dir, difference.stale))
    if difference.stale_dirs:
        steps.append(RemoveDirs(tuple(f"{install_dir}/{path}" for path in difference.stale_dirs)))
    return steps


def _undo(install_dir: str, difference: layout.Difference, facts: ArtifactFacts) -> tuple[Action, ...]:
    """A first installation that fails leaves no trace; an upgrade goes on from where it stopped."""
    new = [want for want in difference.missing if want.path not in facts.found]
    dirs = sorted((want.path for want in new if want.kind == "dir"), reverse=True)
    return (
        RemoveFiles(install_dir, tuple(want.path for want in new if want.kind != "dir")),
        RemoveDirs(tuple(f"{install_dir}/{path}" for path in dirs)),
        Forget(install_dir),
        RemoveDirs(tuple(reversed(facts.missing_dirs))),
    )


def _summary(difference: layout.Difference) -> str:
    size = human(sum(want.size for want in difference.missing))
    files = sum(want.kind != "dir" for want in difference.missing)
    removed = f", {len(difference.stale)} no longer wanted removed" if difference.stale else ""
    return f"{counted(files, 'file')} placed ({size}){removed}"
