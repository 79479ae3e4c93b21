"""What this release cannot do on a node, whatever the state of it: the runtime, the distribution. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kata_node import versions
from kata_node.errors import UnfitNodeError

if TYPE_CHECKING:
    from kata_node.facts.runtime import RuntimeFacts
    from kata_node.settings import Settings


def refusal(settings: Settings, facts: RuntimeFacts) -> UnfitNodeError | None:
    """Why the settings cannot be carried out with this runtime, if they cannot."""
    runtime, home = facts.runtime, facts.home
    if reason := versions.support(runtime):
        return UnfitNodeError(reason, hint="use a node, or a kata-node release, that fits")
    if home.distribution != settings.distribution:
        return UnfitNodeError(
            f"the settings are for {settings.distribution}, but this node runs {facts.unit}",
            where="k8sDistribution",
            hint=f"set k8sDistribution: {home.distribution}",
        )
    shares_one_file = runtime.name == "containerd" and runtime.version.major < 2 and not home.drop_ins_always
    if settings.suffix and shares_one_file:
        return UnfitNodeError(
            f"containerd {runtime.version} has one configuration file that all installations would share; "
            "several of them side by side need containerd 2.0",
            where="env.multiInstallSuffix",
            hint="take out env.multiInstallSuffix for this node, or upgrade its containerd",
        )
    return None


def require(settings: Settings, facts: RuntimeFacts) -> None:
    """Raise :func:`refusal` when there is one."""
    if error := refusal(settings, facts):
        raise error
