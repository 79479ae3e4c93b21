"""Find settings that this release can never carry out with the runtime or distribution of a node. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kata_node import versions
from kata_node.errors import IneligibleNodeError, UnfitNodeError
from kata_node.runtime.model.distributions import distribution_runtime_of_unit, wrong_distribution_error
from kata_node.settings.handlers import handlers

if TYPE_CHECKING:
    from kata_node.plan.receipt import Receipt
    from kata_node.runtime.facts import RuntimeFacts
    from kata_node.settings.model import Settings
    from kata_node.versions import Runtime


def incompatibility(settings: Settings, facts: RuntimeFacts, receipt: Receipt) -> IneligibleNodeError | None:
    """Return why the settings cannot be carried out with this runtime, or ``None``."""
    runtime, distribution_runtime = facts.runtime, facts.distribution_runtime
    if reason := versions.unsupported_reason(runtime):
        return UnfitNodeError(
            reason, hint="use a kata-node release that supports this runtime, or another node"
        )
    if error := wrong_distribution_error(settings, distribution_runtime, facts.unit):
        return error
    shares_one_file = (
        runtime.name == "containerd"
        and runtime.version.major < 2
        and not distribution_runtime.always_reads_drop_ins
    )
    if settings.suffix and shares_one_file:
        return IneligibleNodeError(
            f"containerd {runtime.version} cannot serve several installations, because all of them would "
            "share one configuration file",
            where="env.multiInstallSuffix",
            hint="remove env.multiInstallSuffix for this node, or upgrade its containerd to 2.0 or later",
        )
    if facts.configured_path not in ("", facts.config_path):
        return IneligibleNodeError(
            f"the settings name the main file {facts.config_path}, but {facts.unit} reads "
            f"{facts.configured_path}",
            where="containerd.configDir and configFileName",
            hint="remove both settings for this node, or change the command line of the unit",
        )
    if built_in := _built_in_handlers(settings, facts, receipt):
        return IneligibleNodeError(
            f"a custom runtime cannot define {', '.join(built_in)}, which the container runtime has built in",
            where="customRuntimes.runtimes",
            hint="set another handler for this custom runtime",
        )
    return None


def upgrade_notes(unit: str, runtime: Runtime) -> tuple[str, ...]:
    """Return what to do before an upgrade of the distribution that runs the runtime as ``unit``.

    k0s up to 1.35 merges drop-ins of ``version = 2``. k0s 1.36 does not start with them.
    """
    distribution_runtime = distribution_runtime_of_unit(unit)
    if distribution_runtime is None or distribution_runtime.distribution != "k0s":
        return ()
    if runtime.name != "containerd" or runtime.version.major >= 2:
        return ()
    return (
        "k0s 1.36 does not start with the drop-in that this release of k0s needs: run `kata-node revert` "
        "before you upgrade k0s to 1.36 or later, and `kata-node install` after that",
    )


def require_compatible(settings: Settings, facts: RuntimeFacts, receipt: Receipt) -> None:
    """Raise the error of :func:`incompatibility`, if there is one."""
    if error := incompatibility(settings, facts, receipt):
        raise error


def _built_in_handlers(settings: Settings, facts: RuntimeFacts, receipt: Receipt) -> list[str]:
    """Return the handlers of custom runtimes that the runtime serves although no file defines them.

    Handlers of shims are not checked: no runtime has them built in.
    """
    known = receipt.cri.possibly_loaded_handlers if receipt.cri else ()
    names = [handler.name for handler in handlers(settings) if handler.is_custom]
    asked = set(names).intersection(facts.handlers or ()).difference(known)
    if not asked:
        return []
    return sorted(asked.difference(facts.config.defined_handlers(facts.contents)))
