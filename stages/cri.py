"""cri: make the CRI runtime serve the handlers, as one transaction."""

from __future__ import annotations

from kata_node import containerd, transaction, versions
from kata_node.actions import Plan
from kata_node.errors import KataNodeError, UnfitNodeError
from kata_node.facts.runtime import RuntimeFacts, look
from kata_node.receipt import Receipt
from kata_node.restart import CheckConfig
from kata_node.settings import Settings
from kata_node.transaction import Change

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
    handlers = tuple(shim.handler(settings.suffix) for shim in settings.shims)
    wanted = containerd.wanted(settings, facts.runtime.version, facts.config_path, contents(facts))
    changes = [Change(file.path, file.content, file.without) for file in wanted.files]
    own = containerd.own_paths(settings.install_dir, settings.suffix, facts.config_path)
    check = CheckConfig(facts.config_path, own, handlers, wanted.labels, facts.runtime.version)
    return transaction.install(facts, receipt, changes, handlers, check)


def contents(facts: RuntimeFacts) -> dict[str, bytes]:
    """The configuration files as bytes."""
    return {path: state.content for path, state in facts.files.items()}
