"""cri: make the CRI runtime serve the handlers, as one transaction."""

from __future__ import annotations

from dataclasses import replace

from kata_node.errors import KataNodeError, UnfitNodeError
from kata_node.plan.actions import Action, ForgetObsolete, Plan, RemoveDirs, RemoveFiles
from kata_node.plan.receipt import Receipt
from kata_node.runtime import compatibility, removal, transaction
from kata_node.runtime.facts import RuntimeFacts, look
from kata_node.runtime.model.config import own_paths
from kata_node.runtime.restart import CheckConfig
from kata_node.settings.model import Settings
from kata_node.snapshotters import mapping, nydus
from kata_node.snapshotters.mapping import NYDUS
from kata_node.snapshotters.nydus import NydusFacts

__all__ = ["NAME", "look", "plan"]

NAME = "cri"


def plan(settings: Settings, facts: RuntimeFacts, receipt: Receipt) -> Plan:
    """Write the drop-in, make the main file import it where it must, restart, and see it serve."""
    if receipt.artifacts is None or receipt.artifacts.state != "placed":
        raise KataNodeError(
            "the Kata files are not in place, so a handler would point at nothing",
            where=settings.install_dir,
            hint="run the stage artifacts first",
        )
    compatibility.require(settings, facts, receipt)
    removal.refuse_others(facts, receipt)
    config = facts.config
    wanted = config.wanted(settings, facts.contents)
    changes = list(wanted.files)
    # What this instance wrote while the runtime had another main file, or was another one.
    elsewhere, _ = removal.hand_back(facts, receipt)
    changes += [change for change in elsewhere if change.path not in {each.path for each in changes}]
    check = CheckConfig(config, own_paths(config), wanted.handlers, wanted.labels)
    services = nydus.install_actions(settings, facts.nydus) if facts.nydus else ()
    plan = transaction.install(
        facts,
        receipt,
        changes,
        wanted.handlers,
        transaction.Checks(
            ahead=replace(check, ahead={each.path: each.content for each in changes}),
            written=check,
            put_back=replace(check, own_paths=(), handlers=(), labels={}),
        ),
        services,
    )
    if facts.nydus:
        plan = _with_nydus(plan, services, settings, facts.nydus)
    if plan.actions:
        _refuse_what_cannot_be_restarted(facts, receipt)
    return replace(plan, actions=(*plan.actions, *_removal_of_obsolete(receipt)))


def _removal_of_obsolete(receipt: Receipt) -> tuple[Action, ...]:
    """Of what the artifacts stage left for handlers that were served until now."""
    placed = receipt.artifacts.files if receipt.artifacts else {}
    paths = tuple(path for path in placed if placed[path].obsolete and placed[path].kind != "dir")
    dirs = tuple(path for path in placed if placed[path].obsolete and path not in paths)
    if not paths and not dirs:
        return ()
    below = tuple(f"{receipt.install_dir}/{path}" for path in sorted(dirs, reverse=True))
    return (
        RemoveFiles(receipt.install_dir, paths),
        *((RemoveDirs(below),) if below else ()),
        ForgetObsolete(receipt.install_dir),
    )


def _with_nydus(plan: Plan, services: tuple[Action, ...], settings: Settings, facts: NydusFacts) -> Plan:
    """``plan`` with the snapshotter up before the runtime needs it, and gone after it does no more."""
    before = () if plan.actions else services
    after = () if mapping.sets_up(settings, NYDUS) else nydus.revert_actions(settings, facts)
    return replace(
        plan,
        actions=(*before, *plan.actions, *after),
        undo=(*plan.undo, *nydus.undo_actions(settings, facts)),
        notes=(*plan.notes, *(nydus.notes(settings, facts) if after else ())),
    )


def _refuse_what_cannot_be_restarted(facts: RuntimeFacts, receipt: Receipt) -> None:
    """A restart is of use only where the unit is what answers on the CRI socket."""
    if facts.offline:
        return
    if not facts.unit:
        raise UnfitNodeError(
            f"systemd knows no unit of {facts.runtime.name}",
            hint="start the CRI runtime as one of: " + ", ".join(facts.home.units),
        )
    finished = receipt.cri is None or receipt.cri.state == "serving"
    if facts.state == "inactive" and finished:
        raise KataNodeError(
            "the CRI answers, but this unit is not running",
            where=facts.unit,
            hint="start the CRI runtime as this unit; it must be restarted through it",
        )
