"""The first content of a shared file that kata-node creates. Pure."""

from __future__ import annotations

from kata_node.errors import IneligibleNodeError
from kata_node.runtime.containerd.template import INITIAL_MAIN_FILES
from kata_node.runtime.model.distributions import DistributionRuntime
from kata_node.versions import Version


def initial_content(distribution_runtime: DistributionRuntime, version: Version, path: str) -> bytes:
    """Return the first content of the shared file ``path``.

    Raises :class:`IneligibleNodeError` if the distribution has to create it.
    """
    if not distribution_runtime.template:
        return INITIAL_MAIN_FILES[1 if version.major < 2 else 2]
    if not distribution_runtime.initial_template:
        raise IneligibleNodeError(
            f"the configuration template of {distribution_runtime.distribution} does not exist",
            where=path,
            hint=f"install {distribution_runtime.distribution} on this node, or set containerd.configDir to "
            "the directory of its configuration",
        )
    return distribution_runtime.initial_template.encode()


def known_initial_contents(distribution_runtime: DistributionRuntime) -> tuple[bytes, ...]:
    """Return every content that kata-node gives to a new shared file, for any version of containerd."""
    return (
        *INITIAL_MAIN_FILES.values(),
        distribution_runtime.initial_template.encode() or INITIAL_MAIN_FILES[2],
    )
