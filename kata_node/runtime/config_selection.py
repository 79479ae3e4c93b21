"""Which configuration belongs to a node's runtime. Pure."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from kata_node.runtime.containerd import config as containerd
from kata_node.runtime.containerd.config import ContainerdConfig
from kata_node.runtime.model.distributions import ALL_RUNTIME_PATHS, k0s_manages
from kata_node.settings.model import DEFAULT_INSTANCE
from kata_node.versions import Runtime, parse_version

if TYPE_CHECKING:
    from kata_node.plan.receipt import CriRecord, Receipt
    from kata_node.runtime.model.config import CriConfig
    from kata_node.runtime.model.distributions import RuntimePaths
    from kata_node.settings.runtime import ContainerdSettings


def config_for(receipt: Receipt, suffix: str, runtime: Runtime, runtime_paths: RuntimePaths) -> CriConfig:
    """How the instance of ``receipt`` configures ``runtime``, which is at ``home``."""
    if runtime.name == "cri-o":
        from kata_node.runtime.crio import CrioConfig

        return CrioConfig(receipt.install_dir, suffix, posixpath.dirname(runtime_paths.config))
    if runtime_paths.always_reads_drop_ins:
        from kata_node.runtime.containerd.k0s import K0sConfig

        (drop_in_dirs,) = set(runtime_paths.drop_in_dirs.values())
        return K0sConfig(receipt.install_dir, suffix, runtime.version, runtime_paths.config, drop_in_dirs)
    config = ContainerdConfig(receipt.install_dir, suffix, runtime.version, runtime_paths)
    if receipt.cri is None or not set(config.shared_paths()).intersection(receipt.cri.paths()):
        return config
    return replace(config, recorded_handlers=tuple(dict.fromkeys(receipt.cri.possibly_loaded_handlers)))


def config_that_edited(config: CriConfig, path: str, receipt: Receipt) -> CriConfig:
    """The configuration by which ``receipt`` came to have something in the shared file at ``path``.

    It is ``config``, unless the node has another runtime or distribution since, or another main file.
    """
    if receipt.cri is None or path in config.shared_paths():
        return config
    return recorded_config(receipt, receipt.cri, path)


def recorded_config(receipt: Receipt, recorded: CriRecord, path: str) -> CriConfig:
    """How the instance of ``receipt`` configured, by its record, a runtime that had the file at ``path``."""
    known_runtimes = [
        runtime_paths for runtime_paths in ALL_RUNTIME_PATHS if runtime_paths.runtime == recorded.runtime
    ]
    matching_runtimes = [
        runtime_paths
        for runtime_paths in known_runtimes
        if path in (runtime_paths.config, *runtime_paths.template.values())
    ]
    matching_runtimes += [
        runtime_paths for runtime_paths in known_runtimes if recorded.unit in runtime_paths.units
    ]
    runtime_paths = matching_runtimes[0] if matching_runtimes else known_runtimes[-1]
    if path not in runtime_paths.template.values():
        runtime_paths = replace(runtime_paths, config=path, template={}, always_reads_drop_ins=False)
    runtime = Runtime(recorded.runtime, parse_version(recorded.version))
    suffix = "" if receipt.instance == DEFAULT_INSTANCE else receipt.instance
    return config_for(receipt, suffix, runtime, runtime_paths)


def with_configured_paths(
    runtime_paths: RuntimePaths, settings: ContainerdSettings, argv: Sequence[str]
) -> RuntimePaths:
    """``home`` where the settings move it, or else the command line of its unit."""
    if runtime_paths.runtime != "containerd":
        return runtime_paths
    if settings.config_dir or settings.config_file_name:
        directory = settings.config_dir or posixpath.dirname(runtime_paths.config)
        name = settings.config_file_name or posixpath.basename(runtime_paths.config)
        runtime_paths = replace(
            runtime_paths,
            config=posixpath.join(directory, name),
            template=_rebased(runtime_paths.template, posixpath.dirname(runtime_paths.config), directory),
            drop_in_dirs=_rebased(
                runtime_paths.drop_in_dirs, posixpath.dirname(runtime_paths.config), directory
            ),
        )
    elif runtime_paths.config_from_argv:
        runtime_paths = replace(runtime_paths, config=containerd.config_path(argv, runtime_paths.config))
    return (
        replace(runtime_paths, socket=settings.runtime_socket) if settings.runtime_socket else runtime_paths
    )


def without_unread_drop_ins(runtime_paths: RuntimePaths, config: bytes | None) -> RuntimePaths:
    """``home``, whose main file is ``config``, as plain containerd has it where k0s leaves it to others."""
    if runtime_paths.distribution != "k0s" or k0s_manages(config):
        return runtime_paths
    return replace(runtime_paths, drop_in_dirs={}, always_reads_drop_ins=False, load_method="restart")


def _rebased(paths: Mapping[int, str], old: str, new: str) -> dict[int, str]:
    return {
        schema: posixpath.join(new, posixpath.relpath(path, old)) if path.startswith(f"{old}/") else path
        for schema, path in paths.items()
    }
