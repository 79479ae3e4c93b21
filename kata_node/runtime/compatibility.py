"""What this release cannot do on a node, whatever the state of it: the runtime, the distribution. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kata_node import versions
from kata_node.errors import IneligibleNodeError
from kata_node.runtime.model.distributions import wrong_distribution_error
from kata_node.settings.handlers import handlers

if TYPE_CHECKING:
    from kata_node.plan.receipt import Receipt
    from kata_node.runtime.facts import RuntimeFacts
    from kata_node.settings.model import Settings


def incompatibility(settings: Settings, facts: RuntimeFacts, receipt: Receipt) -> IneligibleNodeError | None:
    """Why the settings cannot be carried out with this runtime, if they cannot."""
    runtime, distribution_runtime = facts.runtime, facts.distribution_runtime
    if reason := versions.unsupported_reason(runtime):
        return IneligibleNodeError(reason, hint="use a node, or a kata-node release, that fits")
    if error := wrong_distribution_error(settings, distribution_runtime, facts.unit):
        return error
    shares_one_file = (
        runtime.name == "containerd"
        and runtime.version.major < 2
        and not distribution_runtime.always_reads_drop_ins
    )
    if settings.suffix and shares_one_file:
        return IneligibleNodeError(
            f"containerd {runtime.version} has one configuration file that all installations would share; "
            "several of them side by side need containerd 2.0",
            where="env.multiInstallSuffix",
            hint="take out env.multiInstallSuffix for this node, or upgrade its containerd",
        )
    if facts.configured_path not in ("", facts.config_path):
        return IneligibleNodeError(
            f"the settings say {facts.config_path}, but {facts.unit} reads {facts.configured_path}",
            where="containerd.configDir and configFileName",
            hint="take them out for this node, or change the unit",
        )
    if built_in := _built_in_handlers(settings, facts, receipt):
        return IneligibleNodeError(
            f"{', '.join(built_in)} is served already, and no file defines it: the runtime brings it",
            where="customRuntimes.runtimes",
            hint="choose another handler for this custom runtime",
        )
    return None


def require_compatible(settings: Settings, facts: RuntimeFacts, receipt: Receipt) -> None:
    """Raise :func:`refusal` when there is one."""
    if error := incompatibility(settings, facts, receipt):
        raise error


def _built_in_handlers(settings: Settings, facts: RuntimeFacts, receipt: Receipt) -> list[str]:
    """The handlers asked for that are the runtime's own. Those of shims are none's, whatever is served."""
    known = receipt.cri.possibly_loaded_handlers if receipt.cri else ()
    names = [handler.name for handler in handlers(settings) if handler.key.startswith("customRuntimes.")]
    asked = set(names).intersection(facts.handlers or ()).difference(known)
    if not asked:
        return []
    return sorted(asked.difference(facts.config.defined_handlers(facts.contents)))
