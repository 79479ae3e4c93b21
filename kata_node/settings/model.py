"""The settings of one node, checked. A record; :mod:`kata_node.settings.load` makes it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from kata_node.settings.runtime import ContainerdSettings, SnapshotterSettings
from kata_node.settings.selection import CustomRuntime, ShimSettings
from kata_node.settings.shims import Shim

DISTRIBUTIONS = ("k8s", "k3s", "rke2", "k0s", "microk8s")

DEFAULT_INSTALL_DIR = "/opt/kata"
DEFAULT_INSTANCE = "default"


@dataclass(frozen=True)
class Settings:
    """Everything the node side needs to know, checked."""

    shims: tuple[Shim, ...]
    """The shims that are on and run on this architecture, in the table's order."""
    arch: str
    """The machine name of this node: ``x86_64``, ``aarch64``, ``s390x``, ``ppc64le``."""
    install_dir: str = DEFAULT_INSTALL_DIR
    """Where Kata goes on the host: ``<env.installationPrefix>/opt/kata[-<env.multiInstallSuffix>]``."""
    instance: str = DEFAULT_INSTANCE
    """What this installation is called in labels and receipts: the suffix, or ``default``."""
    suffix: str = ""
    """``env.multiInstallSuffix``: what ends the names of handlers and files of this installation."""
    user_drop_in: str = ""
    """``containerd.userDropIn``: TOML of the user's own, read after ours."""
    skipped: tuple[tuple[str, str], ...] = ()
    """The shims and custom runtimes that are on but not for this node, each with the reason."""
    shim_settings: Mapping[str, ShimSettings] = field(default_factory=dict)
    """What the values say of each shim in ``shims``, by its name."""
    default_shim: str = ""
    """``defaultShim`` for this architecture; nothing when it is not given, or an override left it out."""
    custom_runtimes: tuple[CustomRuntime, ...] = ()
    """Those of ``customRuntimes`` that run on this architecture; none while it is not enabled."""
    distribution: str = DISTRIBUTIONS[0]
    """``k8sDistribution``, one of :data:`DISTRIBUTIONS`."""
    containerd: ContainerdSettings = field(default_factory=ContainerdSettings)
    snapshotter: SnapshotterSettings = field(default_factory=SnapshotterSettings)
    host_os: str = ""
    debug: bool = False
    devkit: bool = False
    startup_taints: tuple[str, ...] = ()
    """Taints to take off the Node once it is labelled: ``key`` or ``key:effect``."""

    def for_shim(self, shim: Shim) -> ShimSettings:
        """What the values say of a shim."""
        return self.shim_settings.get(shim.name, ShimSettings())

    def digest(self) -> str:
        """The sha256, in hex, of all settings that decide what is written on the host.

        What only labels, RuntimeClasses or this run's report depend on is left out, so a change of
        those does not make a finished node look out of date.
        """
        import hashlib

        digested = asdict(self)
        for name in ("skipped", "default_shim", "startup_taints", "instance"):
            del digested[name]
        digested["shims"] = [shim.name for shim in self.shims]
        return hashlib.sha256(json.dumps(digested, sort_keys=True).encode()).hexdigest()
