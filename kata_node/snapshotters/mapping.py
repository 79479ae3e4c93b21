"""containerd's snapshotters: what a handler that has one of its own needs besides naming it. Pure.

A handler names its snapshotter in its own table; :func:`tables` is all that belongs beside it.

- ``snapshotter.setup`` says which snapshotters are this instance's work: ``nydus`` is installed, by
  :mod:`kata_node.snapshotters.nydus`, and ``erofs``, which containerd brings, is configured. Any other, and
  these two when they are not listed, are the node's own: only named, never configured.
- Snapshotters are one namespace on a node, so ours is called ``nydus-<suffix>`` where the instance has a
  suffix, and so are its unit, its socket and its data. ``snapshotter: nydus`` of a shim means ours when
  ``setup`` lists it, and the administrator's otherwise.

From the source of containerd 1.7.30 to 2.4.2, and measured on 2.1.9, 2.3.4 and nydus-snapshotter 0.16.1:

- Up to 2.2, images are pulled for the default snapshotter, whatever the handler's, unless the images
  plugin has ``runtime_platforms.<handler>.snapshotter``; ``platform`` beside it may be left out. From 2.3
  on, containerd fills that in from the handler. What migrates a configuration of schema 2 writes
  misspelt keys, so there, too, that table of schema 3 is needed; it is merged with what is migrated.
- A snapshotter nobody has is no error until an image is pulled: the daemon serves the handler.
- An image that is unpacked for one snapshotter is unpacked for a second one out of the content store,
  so ``discard_unpacked_layers`` must not be true.
- nydus is told the image's name, for the guest to pull it, by annotations that are off by default.
- ``exports.root`` of a proxy plugin is where the CRI looks for the space its images take.
- Arrays of a drop-in replace those before them; keys nobody knows are no more than a warning.
- containerd runs ``mkfs.erofs`` with ``--tar=f``; without such a program it has no ``erofs`` differ, and
  naming that differ in the diff service then leaves the daemon without the CRI. The options of
  :data:`MKFS_OPTIONS` make the same image of the same layer; erofs-utils has all of them from 1.8.2 on.
- erofs takes ``default_size`` from 2.2 on, dm-verity from 2.3 on; with that and without the kernel's module,
  snapshotter and differ do not load, which again leaves no CRI. ``enable_fsverity`` is left alone: on a
  file system without fs-verity it keeps the snapshotter from loading.
- ``max_unmerged_layers`` is a key that Kata's documentation has for merged layers and only patched builds
  of containerd know; the others warn of it and keep layers apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kata_node.settings.handlers import Handler
    from kata_node.settings.model import Settings
    from kata_node.versions import Version

NYDUS, EROFS = "nydus", "erofs"

NYDUS_COMPONENT = "nydus-snapshotter"
"""The component of the payload with nydus-snapshotter's programs, and their directory in it."""

IMAGES_TABLE = "io.containerd.cri.v1.images"
"""The plugin that pulls images, in every schema from 3 on."""
SCHEMA_2_PLUGIN = "io.containerd.grpc.v1.cri"
LEGACY_CRI_TABLES = {1: "cri", 2: SCHEMA_2_PLUGIN}
"""By the older schemas: the plugin that is all of the CRI, its images under ``containerd``."""

EROFS_TABLE = "io.containerd.snapshotter.v1.erofs"
EROFS_DIFFER_TABLE = "io.containerd.differ.v1.erofs"
DIFF_SERVICE_TABLE = "io.containerd.service.v1.diff-service"

MKFS_OPTIONS = ("-T0", "--mkfs-time", "--sort=none")
"""What ``mkfs.erofs`` is given besides containerd's own options."""

DEFAULTS: Mapping[str, Any] = MappingProxyType({"discard_unpacked_layers": False})
"""Of the keys that :func:`tables` sets in tables of others, those that are so where nobody sets them."""

EROFS_LAYER_KEYS = ("max_unmerged_layers", "dmverity_mode", "enable_dmverity")
"""The keys of erofs that say what a layer is like: containerd does not mount those made to others."""

EROFS_DISK_SIZE, EROFS_MEMORY_SIZE = "10G", "0"
"""erofs' ``default_size``: of a container's writable layer on a disk image, and for one that is none."""


@dataclass(frozen=True)
class NydusInstance:
    """Where the nydus-snapshotter of one instance has what is its own, on the host."""

    install_dir: str
    suffix: str

    @classmethod
    def for_settings(cls, settings: Settings) -> NydusInstance:
        """That of the instance of ``settings``."""
        return cls(settings.install_dir, settings.suffix)

    @property
    def name(self) -> str:
        """What containerd calls the snapshotter."""
        return self._suffixed(NYDUS)

    @property
    def unit(self) -> str:
        """Its systemd unit."""
        return f"{self._suffixed(NYDUS_COMPONENT)}.service"

    @property
    def unit_path(self) -> str:
        """Where the unit's file is."""
        return f"{UNIT_DIR}/{self.unit}"

    @property
    def directory(self) -> str:
        """Its programs and its configuration."""
        return f"{self.install_dir}/{NYDUS_COMPONENT}"

    @property
    def program(self) -> str:
        """The snapshotter."""
        return f"{self.directory}/containerd-nydus-grpc"

    @property
    def overlayfs(self) -> str:
        """The helper that mounts a snapshot where no Kata guest does."""
        return f"{self.directory}/nydus-overlayfs"

    @property
    def config(self) -> str:
        """Its configuration, which is ours; the payload may bring one of another name."""
        return f"{self.directory}/snapshotter.toml"

    @property
    def data_dir(self) -> str:
        """Its snapshots. containerd's own metadata refers to them, so nobody may ever remove it."""
        return f"/var/lib/{self._suffixed(NYDUS_COMPONENT)}"

    @property
    def run_dir(self) -> str:
        """The directory of its socket."""
        return f"/run/{self._suffixed(NYDUS_COMPONENT)}"

    @property
    def socket(self) -> str:
        """Where containerd reaches it."""
        return f"{self.run_dir}/containerd-nydus-grpc.sock"

    def _suffixed(self, name: str) -> str:
        return f"{name}-{self.suffix}" if self.suffix else name


UNIT_DIR = "/etc/systemd/system"

DATA_DIR_LIMIT = 70
"""nydus-snapshotter refuses a longer data directory, for the sockets it may have in it; in bytes."""


def is_managed(settings: Settings, snapshotter: str) -> bool:
    """Whether ``snapshotter``, one that ``snapshotter.setup`` can list, is the work of this instance."""
    return snapshotter in settings.snapshotter.setup


def required_components(settings: Settings) -> tuple[str, ...]:
    """The components of the payload that are needed besides those of the shims."""
    return (NYDUS_COMPONENT,) if is_managed(settings, NYDUS) else ()


def effective_name(settings: Settings, snapshotter: str) -> str:
    """What containerd calls the snapshotter that the values call ``snapshotter``; ``""`` stays ``""``."""
    ours = snapshotter == NYDUS and is_managed(settings, NYDUS)
    return NydusInstance.for_settings(settings).name if ours else snapshotter


def config_tables(
    settings: Settings, handlers: Iterable[Handler], schema: int, version: Version
) -> dict[str, Any]:
    """All of a configuration of ``schema`` for a containerd of ``version`` but the handlers themselves.

    A nested mapping of TOML's own types, to be merged with what has the handlers, where
    ``runtimes.<handler>.snapshotter`` is :func:`effective_name`. Empty when no snapshotter is asked for.
    For a containerd too old for a snapshotter, which host-check refuses, it has less.
    """
    names = {
        handler.name: effective_name(settings, handler.snapshotter)
        for handler in handlers
        if handler.snapshotter
    }
    images: dict[str, Any] = {}
    if is_managed(settings, NYDUS):
        images["disable_snapshot_annotations"] = False
    if version.major >= 2 and (names or settings.snapshotter.setup):
        images["discard_unpacked_layers"] = False
    plugins: dict[str, Any] = {}
    if images:
        legacy_cri_table = LEGACY_CRI_TABLES.get(schema)
        plugins |= {legacy_cri_table: {"containerd": images}} if legacy_cri_table else {IMAGES_TABLE: images}
    if names and version.major >= 2:
        platforms = {name: {"snapshotter": snapshotter} for name, snapshotter in names.items()}
        plugins.setdefault(IMAGES_TABLE, {})["runtime_platforms"] = platforms
    if is_managed(settings, EROFS) and version.at_least(2, 2):
        plugins |= _erofs(settings, version)
    wanted: dict[str, Any] = {}
    if is_managed(settings, NYDUS):
        wanted["proxy_plugins"] = _proxy_plugin(NydusInstance.for_settings(settings))
    if plugins:
        wanted["plugins"] = plugins
    return wanted


def _proxy_plugin(nydus: NydusInstance) -> dict[str, Any]:
    return {
        nydus.name: {"type": "snapshot", "address": nydus.socket, "exports": {"root": nydus.data_dir}},
    }


def _erofs(settings: Settings, version: Version) -> dict[str, Any]:
    wanted = settings.snapshotter
    memory = wanted.erofs_snapshotter_mode == "memory"
    snapshotter: dict[str, Any] = {"default_size": EROFS_MEMORY_SIZE if memory else EROFS_DISK_SIZE}
    differ: dict[str, Any] = {"mkfs_options": list(MKFS_OPTIONS)}
    if merges_layers(settings):
        snapshotter["max_unmerged_layers"] = 0
    if wanted.erofs_dmverity and version.at_least(2, 3):
        snapshotter["dmverity_mode"] = "on"
        differ["enable_dmverity"] = True
    return {
        EROFS_TABLE: snapshotter,
        EROFS_DIFFER_TABLE: differ,
        # Whatever is not for erofs goes on to the usual one.
        DIFF_SERVICE_TABLE: {"default": ["erofs", "walking"]},
    }


def merges_layers(settings: Settings) -> bool:
    """Whether erofs is to have one file system for all layers of an image, as it is by default."""
    return settings.snapshotter.erofs_merge_mode != "unmerged"


def proxy_plugins(configurations: Iterable[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The ``proxy_plugins`` of type ``snapshot`` in parsed configuration files, by name; the later wins."""
    found: dict[str, Mapping[str, Any]] = {}
    for data in configurations:
        proxies = data.get("proxy_plugins")
        for name, fields in proxies.items() if isinstance(proxies, dict) else ():
            if isinstance(fields, dict):
                found[name] = {**found.get(name, {}), **fields}
    return {name: fields for name, fields in found.items() if fields.get("type", "snapshot") == "snapshot"}


def plugin_config(configurations: Iterable[Mapping[str, Any]], plugin: str) -> dict[str, Any]:
    """The keys that parsed configuration files have for a plugin; the later wins."""
    found: dict[str, Any] = {}
    for data in configurations:
        plugins = data.get("plugins")
        table = plugins.get(plugin) if isinstance(plugins, dict) else None
        found |= table if isinstance(table, dict) else {}
    return found
