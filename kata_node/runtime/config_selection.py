"""Which configuration belongs to a node's runtime. Pure."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from kata_node.runtime.containerd import config as containerd
from kata_node.runtime.containerd.config import ContainerdConfig
from kata_node.runtime.model.distributions import HOMES, k0s_manages
from kata_node.settings.model import DEFAULT_INSTANCE
from kata_node.versions import Runtime, parse_version

if TYPE_CHECKING:
    from kata_node.plan.receipt import Cri, Receipt
    from kata_node.runtime.model.config import CriConfig
    from kata_node.runtime.model.distributions import Home
    from kata_node.settings.runtime import ContainerdSettings


def configuration(receipt: Receipt, suffix: str, runtime: Runtime, home: Home) -> CriConfig:
    """How the instance of ``receipt`` configures ``runtime``, which is at ``home``."""
    if runtime.name == "cri-o":
        from kata_node.runtime.crio import CrioConfig

        return CrioConfig(receipt.install_dir, suffix, posixpath.dirname(home.config))
    if home.drop_ins_always:
        from kata_node.runtime.containerd.k0s import K0sConfig

        (drop_ins,) = set(home.drop_ins.values())
        return K0sConfig(receipt.install_dir, suffix, runtime.version, home.config, drop_ins)
    config = ContainerdConfig(receipt.install_dir, suffix, runtime.version, home)
    if receipt.cri is None or not set(config.shared_paths()).intersection(receipt.cri.paths()):
        return config
    return replace(config, ours=tuple(dict.fromkeys(receipt.cri.may_be_loaded)))


def keeper(config: CriConfig, path: str, receipt: Receipt) -> CriConfig:
    """The configuration by which ``receipt`` came to have something in the shared file at ``path``.

    It is ``config``, unless the node has another runtime or distribution since, or another main file.
    """
    if receipt.cri is None or path in config.shared_paths():
        return config
    return as_recorded(receipt, receipt.cri, path)


def as_recorded(receipt: Receipt, recorded: Cri, path: str) -> CriConfig:
    """How the instance of ``receipt`` configured, by its record, a runtime that had the file at ``path``."""
    homes = [home for home in HOMES if home.runtime == recorded.runtime]
    keeps = [home for home in homes if path in (home.config, *home.template.values())]
    keeps += [home for home in homes if recorded.unit in home.units]
    home = keeps[0] if keeps else homes[-1]
    if path not in home.template.values():
        home = replace(home, config=path, template={}, drop_ins_always=False)
    runtime = Runtime(recorded.runtime, parse_version(recorded.version))
    suffix = "" if receipt.instance == DEFAULT_INSTANCE else receipt.instance
    return configuration(receipt, suffix, runtime, home)


def located(home: Home, settings: ContainerdSettings, argv: Sequence[str]) -> Home:
    """``home`` where the settings move it, or else the command line of its unit."""
    if home.runtime != "containerd":
        return home
    if settings.config_dir or settings.config_file_name:
        directory = settings.config_dir or posixpath.dirname(home.config)
        name = settings.config_file_name or posixpath.basename(home.config)
        home = replace(
            home,
            config=posixpath.join(directory, name),
            template=_moved(home.template, posixpath.dirname(home.config), directory),
            drop_ins=_moved(home.drop_ins, posixpath.dirname(home.config), directory),
        )
    elif home.config_from_argv:
        home = replace(home, config=containerd.config_path(argv, home.config))
    return replace(home, socket=settings.runtime_socket) if settings.runtime_socket else home


def as_managed(home: Home, config: bytes | None) -> Home:
    """``home``, whose main file is ``config``, as plain containerd has it where k0s leaves it to others."""
    if home.distribution != "k0s" or k0s_manages(config):
        return home
    return replace(home, drop_ins={}, drop_ins_always=False, applies="restart")


def _moved(paths: Mapping[int, str], old: str, new: str) -> dict[int, str]:
    return {
        schema: posixpath.join(new, posixpath.relpath(path, old)) if path.startswith(f"{old}/") else path
        for schema, path in paths.items()
    }
