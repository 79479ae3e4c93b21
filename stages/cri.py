"""Stage ``cri``: make the container runtime serve the handlers, as one transaction."""

from __future__ import annotations

from msgspec.structs import replace

from kata_node.checks.served import served_settings
from kata_node.errors import IneligibleNodeError, KataNodeError
from kata_node.plan.actions import Action, ForgetObsoleteFiles, Plan, RemoveDirs
from kata_node.plan.context import StageContext
from kata_node.plan.receipt import Receipt
from kata_node.plan.refusal import TriedConfig
from kata_node.plan.remove_files import RemoveFiles
from kata_node.runtime import compatibility, foreign_copies, removal, transaction
from kata_node.runtime.check_config import CheckConfig
from kata_node.runtime.facts import RuntimeFacts
from kata_node.runtime.facts import gather_facts as gather_runtime_facts
from kata_node.runtime.model.config import files_after, own_paths
from kata_node.runtime.planned_changes import planned_changes
from kata_node.runtime.rollback import ConfigChecks
from kata_node.settings.handlers import handler_names, handlers, is_asked_for
from kata_node.settings.model import Settings
from kata_node.snapshotters import facts as snapshotter_facts
from kata_node.snapshotters import mapping, nydus
from kata_node.snapshotters.mapping import EROFS, NYDUS
from kata_node.snapshotters.nydus import NydusFacts

__all__ = ["NAME", "gather_facts", "plan"]

NAME = "cri"


def gather_facts(context: StageContext) -> RuntimeFacts:
    """Return the facts of the runtime, and the settings without the shims that this node cannot serve."""
    facts = gather_runtime_facts(context)
    settings, artifacts = context.settings, context.receipt.artifacts
    if artifacts is None:
        return facts
    optional = [handler for handler in handlers(settings) if not is_asked_for(settings, handler)]
    snapshotters = None
    if any(handler.snapshotter == EROFS for handler in optional):
        snapshotters = snapshotter_facts.gather_facts(context, facts.distribution_runtime.units)
    served = served_settings(settings, facts, snapshotters, artifacts.files)
    if served is settings:
        return facts
    recorded = context.receipt.cri
    left_out = set(handler_names(settings)).difference(handler_names(served))
    if recorded and left_out.intersection(recorded.possibly_loaded_handlers):
        # Pods on a handler that is left out block its removal, so look for them as well.
        facts = gather_runtime_facts(replace(context, settings=served))
    return replace(facts, settings=served)


def plan(settings: Settings, facts: RuntimeFacts, receipt: Receipt) -> Plan:
    """Write the drop-ins, import them where necessary, load them, and prove that the handlers are served.

    Raises :class:`KataNodeError` when the artifacts are not placed or the node cannot run the settings, and
    :class:`RolledBackError` when this runtime refused exactly this configuration before.
    """
    if receipt.artifacts is None or receipt.artifacts.state != "placed":
        raise KataNodeError(
            "the Kata files are not installed, so the handlers cannot work",
            where=settings.install_dir,
            hint="run `kata-node stage artifacts` first",
        )
    asked, settings = settings, facts.settings or settings
    compatibility.require_compatible(settings, facts, receipt)
    removal.refuse_foreign_drop_ins(facts, receipt)
    desired_config, changes = planned_changes(settings, facts, receipt)
    if error := foreign_copies.conflict(desired_config.copies):
        raise error
    check = CheckConfig(facts.config, own_paths(facts.config), desired_config.handlers, desired_config.labels)
    services = nydus.install_actions(settings, facts.nydus) if facts.nydus else ()
    plan = transaction.install(
        facts,
        receipt,
        changes,
        desired_config.handlers,
        ConfigChecks(
            planned=replace(check, planned={each.path: each.content for each in changes}),
            written=check,
            restored=replace(check, own_paths=(), handlers=(), labels={}, is_old=True),
        ),
        services,
    )
    if facts.nydus:
        plan = _with_nydus(plan, services, settings, facts.nydus)
    if plan.actions:
        _require_restartable_unit(facts, receipt)
        tried = TriedConfig.of(
            facts.runtime.name,
            str(facts.runtime.version),
            files_after(facts.contents, changes),
            receipt.artifacts.inputs,
        )
        # A run that was interrupted, or a runtime that is down, needs the change or its rollback.
        needs_repair = facts.handlers is None or not (receipt.cri is None or receipt.cri.state == "serving")
        if facts.refusal is not None and facts.refusal.config == tried and not needs_repair:
            raise facts.refusal.error(facts.unit)
        plan = replace(plan, tried_config=tried)
    return replace(
        plan,
        actions=(*plan.actions, *_remove_obsolete(receipt)),
        notes=(
            *plan.notes,
            *foreign_copies.notes(desired_config.copies),
            *compatibility.upgrade_notes(facts.unit, facts.runtime),
            *settings.left_out_since(asked),
        ),
        left_out=tuple(shim.name for shim in asked.shims if shim not in settings.shims),
        handlers=desired_config.handlers,
    )


def _remove_obsolete(receipt: Receipt) -> tuple[Action, ...]:
    """Remove files that were kept only because the runtime still served a removed handler."""
    placed = receipt.artifacts.files if receipt.artifacts else {}
    obsolete = [path for path in placed if placed[path].obsolete]
    paths = tuple(path for path in obsolete if placed[path].kind != "dir")
    dirs = tuple(path for path in obsolete if placed[path].kind == "dir")
    if not paths and not dirs:
        return ()
    dir_paths = tuple(f"{receipt.install_dir}/{path}" for path in sorted(dirs, reverse=True))
    return (
        RemoveFiles(receipt.install_dir, paths, sizes={path: placed[path].size for path in paths}),
        *((RemoveDirs(dir_paths),) if dir_paths else ()),
        ForgetObsoleteFiles(receipt.install_dir),
    )


def _with_nydus(plan: Plan, services: tuple[Action, ...], settings: Settings, facts: NydusFacts) -> Plan:
    """Return ``plan`` with the snapshotter started before the runtime needs it, or removed after that."""
    before = () if plan.actions else services
    after = () if mapping.is_managed(settings, NYDUS) else nydus.revert_actions(settings, facts)
    return replace(
        plan,
        actions=(*before, *plan.actions, *after),
        rollback=(*plan.rollback, *nydus.rollback_actions(settings, facts)),
        notes=(*plan.notes, *(nydus.notes(settings, facts) if after else ())),
    )


def _require_restartable_unit(facts: RuntimeFacts, receipt: Receipt) -> None:
    """Raise an error unless a restart of the unit restarts the runtime that answers on the CRI socket."""
    if facts.offline:
        return
    if not facts.unit:
        raise IneligibleNodeError(
            f"systemd has no unit of {facts.runtime.name}",
            hint=f"run {facts.runtime.name} as one of these units: "
            + ", ".join(facts.distribution_runtime.units),
        )
    finished = receipt.cri is None or receipt.cri.state == "serving"
    if facts.state == "inactive" and finished:
        raise KataNodeError(
            "the container runtime does not run as this unit, so kata-node cannot restart it",
            where=facts.unit,
            hint=f"run `systemctl start {facts.unit}`; kata-node restarts the runtime through this unit",
        )
