"""The settings of one node, as a record. :mod:`kata_node.settings.load` creates it from checked values."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping

from msgspec import Struct, field, to_builtins
from msgspec.structs import replace

from kata_node.settings.runtime import ContainerdSettings, SnapshotterSettings
from kata_node.settings.selection import CustomRuntime, ShimSettings
from kata_node.settings.shims import Shim

DISTRIBUTIONS = ("k8s", "k3s", "rke2", "k0s", "microk8s")

RESERVED_HANDLERS = ("crun", "runc")
"""The built-in handlers of runtimes. A custom runtime with such a name would run every pod in Kata."""

DEFAULT_INSTALL_DIR = "/opt/kata"
DEFAULT_INSTANCE = "default"


class Settings(Struct, frozen=True):
    """The settings that the stages on a node use."""

    shims: tuple[Shim, ...]
    """The enabled shims that run on this architecture, in the order of the shim table."""
    arch: str
    """The machine type of this node: ``x86_64``, ``aarch64``, ``s390x``, ``ppc64le``."""
    install_dir: str = DEFAULT_INSTALL_DIR
    """``<env.installationPrefix>/opt/kata[-<env.multiInstallSuffix>]``."""
    instance: str = DEFAULT_INSTANCE
    """The name of this installation in labels and receipts: the suffix, or ``default``."""
    suffix: str = ""
    """``env.multiInstallSuffix``. It is the end of the names of this installation's handlers and files."""
    user_drop_in: str = ""
    """``containerd.userDropIn``: TOML that containerd reads after the drop-in of kata-node."""
    skipped: tuple[tuple[str, str], ...] = ()
    """The enabled shims and custom runtimes that do not run on this node, each with the reason."""
    shim_settings: Mapping[str, ShimSettings] = field(default_factory=dict)
    """The settings of each shim in ``shims``, by its name."""
    named: frozenset[str] = frozenset()
    """The shims that ``enabled: true``, ``--shims`` or the default asks for. No stage leaves these out."""
    nothing_runs: str = ""
    """Why no handler is left on this architecture; empty if one is."""
    is_fallback: bool = False
    """Whether nothing names a shim. Then another shim can serve, if the payload does not have this one."""
    default_shim: str = ""
    """``defaultShim`` for this architecture; empty if it is not set or not among ``shims``."""
    custom_runtimes: tuple[CustomRuntime, ...] = ()
    """The custom runtimes that run on this architecture; empty unless ``customRuntimes.enabled`` is true."""
    distribution: str = DISTRIBUTIONS[0]
    """``k8sDistribution``, one of :data:`DISTRIBUTIONS`."""
    containerd: ContainerdSettings = field(default_factory=ContainerdSettings)
    snapshotter: SnapshotterSettings = field(default_factory=SnapshotterSettings)
    host_os: str = ""
    debug: bool = False
    devkit: bool = False
    startup_taints: tuple[str, ...] = ()
    """The taints to remove from the Node when it is labeled: ``key`` or ``key:effect``."""

    def for_shim(self, shim: Shim) -> ShimSettings:
        """Return the settings of ``shim``; the defaults if the values do not name it."""
        return self.shim_settings.get(shim.name, ShimSettings())

    def without(self, shims: Mapping[str, str], snapshotters: Collection[str] = ()) -> Settings:
        """Return the settings without some shims, and without the setup of some snapshotters.

        ``shims`` has the name of each shim with the reason why it is left out.
        """
        if not shims and not snapshotters:
            return self
        setup = tuple(name for name in self.snapshotter.setup if name not in snapshotters)
        return replace(
            self,
            shims=tuple(shim for shim in self.shims if shim.name not in shims),
            skipped=(*self.skipped, *shims.items()),
            snapshotter=replace(self.snapshotter, setup=setup),
        )

    def left_out_since(self, before: Settings) -> tuple[str, ...]:
        """Return a sentence for each shim that ``without`` removed from the settings ``before``."""
        return tuple(f"left out: {name} {why}" for name, why in self.skipped[len(before.skipped) :])

    def with_fallback(self, shim: Shim) -> Settings:
        """Return the settings with ``shim`` as the only one, which nothing in the values names."""
        return replace(
            self, shims=(shim,), named=frozenset((shim.name,)), shim_settings={shim.name: ShimSettings()}
        )

    def digest(self) -> str:
        """Return the sha256, in hex, of all settings that decide what is written on the node.

        Settings that only affect labels, RuntimeClasses or the report of a run are left out. A change of
        these does not make a node out of date.
        """
        import hashlib

        digested = to_builtins(self)
        for name in (
            "skipped",
            "named",
            "nothing_runs",
            "is_fallback",
            "default_shim",
            "startup_taints",
            "instance",
        ):
            del digested[name]
        digested["shims"] = [shim.name for shim in self.shims]
        return hashlib.sha256(json.dumps(digested, sort_keys=True).encode()).hexdigest()
