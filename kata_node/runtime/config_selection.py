"""Select the configuration that belongs to a node's runtime. Pure."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from typing import TYPE_CHECKING

from msgspec.structs import replace

from kata_node.runtime.containerd.config import ContainerdConfig
from kata_node.runtime.model.distributions import DISTRIBUTION_RUNTIMES, k0s_manages
from kata_node.settings.model import DEFAULT_INSTANCE
from kata_node.versions import Runtime, parse_version

if TYPE_CHECKING:
    from kata_node.plan.receipt import CriRecord, Receipt
    from kata_node.runtime.configured_paths import ConfiguredPaths
    from kata_node.runtime.model.config import CriConfig
    from kata_node.runtime.model.distributions import DistributionRuntime
    from kata_node.settings.runtime import ContainerdSettings


def config_for(
    receipt: Receipt, suffix: str, runtime: Runtime, distribution_runtime: DistributionRuntime
) -> CriConfig:
    """Return how the installation of ``receipt`` configures ``runtime``."""
    recorded = tuple(dict.fromkeys(receipt.cri.possibly_loaded_handlers)) if receipt.cri else ()
    if runtime.name == "cri-o":
        from kata_node.runtime.crio import CrioConfig

        (crio_drop_in_dir,) = distribution_runtime.drop_in_dirs.values()
        return CrioConfig(
            receipt.install_dir, suffix, distribution_runtime.config, crio_drop_in_dir, recorded
        )
    if distribution_runtime.always_reads_drop_ins:
        from kata_node.runtime.containerd.k0s import K0sConfig

        (drop_in_dirs,) = set(distribution_runtime.drop_in_dirs.values())
        return K0sConfig(
            receipt.install_dir, suffix, runtime.version, distribution_runtime.config, drop_in_dirs, recorded
        )
    return ContainerdConfig(receipt.install_dir, suffix, runtime.version, distribution_runtime, recorded)


def config_that_edited(config: CriConfig, path: str, receipt: Receipt) -> CriConfig:
    """Return the configuration with which the installation of ``receipt`` edited the shared file ``path``.

    That is ``config``, unless the runtime, the distribution or the main file has changed since then.
    """
    if receipt.cri is None or path in config.shared_paths():
        return config
    return recorded_config(receipt, receipt.cri, path)


def recorded_config(receipt: Receipt, recorded: CriRecord, path: str) -> CriConfig:
    """Return how the installation of ``receipt`` configured the ``recorded`` runtime, which had ``path``."""
    known_runtimes = [
        distribution_runtime
        for distribution_runtime in DISTRIBUTION_RUNTIMES
        if distribution_runtime.runtime == recorded.runtime
    ]
    matching_runtimes = [
        distribution_runtime
        for distribution_runtime in known_runtimes
        if path in (distribution_runtime.config, *distribution_runtime.template.values())
    ]
    matching_runtimes += [
        distribution_runtime
        for distribution_runtime in known_runtimes
        if recorded.unit in distribution_runtime.units
    ]
    distribution_runtime = matching_runtimes[0] if matching_runtimes else known_runtimes[-1]
    if path not in distribution_runtime.template.values():
        distribution_runtime = replace(
            distribution_runtime, config=path, template={}, always_reads_drop_ins=False
        )
    runtime = Runtime(recorded.runtime, parse_version(recorded.version))
    suffix = "" if receipt.instance == DEFAULT_INSTANCE else receipt.instance
    return config_for(receipt, suffix, runtime, distribution_runtime)


def with_configured_paths(
    distribution_runtime: DistributionRuntime, settings: ContainerdSettings, told: ConfiguredPaths
) -> DistributionRuntime:
    """Return the runtime with the paths and the socket of the settings.

    Without settings for the main file, its path is the one of ``told``, which the node itself shows.
    """
    is_containerd = distribution_runtime.runtime == "containerd"
    config = distribution_runtime.config
    if is_containerd and (settings.config_dir or settings.config_file_name):
        config = posixpath.join(
            settings.config_dir or posixpath.dirname(config),
            settings.config_file_name or posixpath.basename(config),
        )
    elif told.main:
        config = told.main
    distribution_runtime = _moved(distribution_runtime, config)
    if told.drop_in_dir:
        drop_in_dirs = dict.fromkeys(distribution_runtime.drop_in_dirs, told.drop_in_dir)
        distribution_runtime = replace(distribution_runtime, drop_in_dirs=drop_in_dirs)
    return (
        replace(distribution_runtime, socket=settings.runtime_socket)
        if is_containerd and settings.runtime_socket
        else distribution_runtime
    )


def _moved(distribution_runtime: DistributionRuntime, config: str) -> DistributionRuntime:
    """Return the runtime with the main file ``config``, and with the other files beside it."""
    old, new = posixpath.dirname(distribution_runtime.config), posixpath.dirname(config)
    if old == new:
        return replace(distribution_runtime, config=config)
    return replace(
        distribution_runtime,
        config=config,
        template=_rebased(distribution_runtime.template, old, new),
        drop_in_dirs=_rebased(distribution_runtime.drop_in_dirs, old, new),
    )


def without_unread_drop_ins(
    distribution_runtime: DistributionRuntime, config: bytes | None
) -> DistributionRuntime:
    """Return the runtime without drop-in directory where k0s does not manage its main file ``config``.

    k0s then reads no drop-ins, and the node is like one with plain containerd.
    """
    if distribution_runtime.distribution != "k0s" or k0s_manages(config):
        return distribution_runtime
    return replace(distribution_runtime, drop_in_dirs={}, always_reads_drop_ins=False, load_method="restart")


def _rebased(paths: Mapping[int, str], old: str, new: str) -> dict[int, str]:
    return {
        schema: posixpath.join(new, posixpath.relpath(path, old)) if path.startswith(f"{old}/") else path
        for schema, path in paths.items()
    }
