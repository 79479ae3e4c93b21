"""cri: make the CRI runtime serve the handlers, as one transaction."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from kata_node import containerd, handback, transaction, versions
from kata_node.actions import Plan
from kata_node.cri_files import Change
from kata_node.errors import KataNodeError, UnfitNodeError
from kata_node.facts.runtime import RuntimeFacts, look
from kata_node.receipt import Receipt
from kata_node.restart import CheckConfig
from kata_node.settings import Settings

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
    if reason := versions.support(facts.runtime):
        raise UnfitNodeError(reason, hint="use a node, or a kata-node release, that fits")
    handback.refuse_others(facts, receipt, settings.suffix)
    handlers = tuple(shim.handler(settings.suffix) for shim in settings.shims)
    contents = {path: state.content for path, state in facts.files.items()}
    wanted = containerd.wanted(settings, facts.runtime.version, facts.config_path, contents)
    changes = [Change(file.path, file.content, file.without) for file in wanted.files]
    # What this instance wrote while the runtime had another main file.
    elsewhere, _ = handback.hand_back(facts, receipt, settings.suffix)
    changes += [change for change in elsewhere if change.path not in {each.path for each in changes}]
    own = containerd.own_paths(settings.install_dir, settings.suffix, facts.config_path)
    check = CheckConfig(facts.config_path, own, handlers, wanted.labels, facts.runtime.version)
    plan = transaction.install(
        facts,
        receipt,
        changes,
        handlers,
        transaction.Checks(
            ahead=replace(check, ahead={each.path: each.content for each in changes}),
            written=check,
            put_back=replace(check, own_paths=(), handlers=(), labels={}),
        ),
        partial(containerd.defined_handlers, facts.config_path),
    )
    if plan.actions:
        _refuse_other_runtimes(facts, receipt)
    return plan


def _refuse_other_runtimes(facts: RuntimeFacts, receipt: Receipt) -> None:
    """A restart is of use only where the unit is what answers on the CRI socket."""
    if facts.others:
        raise UnfitNodeError(
            f"this node runs {', '.join(facts.others)}, which is not in this release",
            hint="set k8sDistribution to it once a release supports it",
        )
    if not facts.offline and not facts.unit:
        raise UnfitNodeError("systemd knows no containerd.service", hint="start the CRI runtime as this unit")
    finished = receipt.cri is None or receipt.cri.state == "serving"
    if facts.unit and facts.state == "inactive" and finished:
        raise KataNodeError(
            "the CRI answers, but this unit is not running",
            where=facts.unit,
            hint="start the CRI runtime as this unit; it must be restarted through it",
        )
