"""containerd's configuration for handlers with their own snapshotter. Pure.

A handler names its snapshotter in its own table. :func:`config_tables` returns the other tables it needs.

- ``snapshotter.setup`` lists the snapshotters that this installation sets up. ``nydus`` is installed by
  :mod:`kata_node.snapshotters.nydus`. ``erofs`` is part of containerd and is configured. kata-node only
  names all other snapshotters, and these two if they are not listed; the administrator configures them.
- The names of snapshotters are unique on a node. In an installation with a suffix, the nydus snapshotter
  is called ``nydus-<suffix>``, and its unit, socket and data directory have the suffix too.
  ``snapshotter: nydus`` of a shim means this snapshotter if ``setup`` lists nydus, and otherwise the
  administrator's snapshotter ``nydus``.

Facts from the source of containerd 1.7.30 to 2.4.2, measured on 2.1.9, 2.3.4 and nydus-snapshotter 0.16.1:

- Up to 2.2, images are pulled for the default snapshotter, also for handlers with another one, unless the
  images plugin has ``runtime_platforms.<handler>.snapshotter``; the key ``platform`` is optional. From 2.3
  on, containerd derives this table from the handler. The migration of a schema 2 configuration
  writes misspelled
  keys, so schema 2 also needs this table of schema 3. It is merged with the migrated configuration.
- A handler with an unknown snapshotter is served; only pulling an image fails.
- An image that was unpacked for one snapshotter is unpacked for a second one from the content store, so
  ``discard_unpacked_layers`` must not be true.
- The guest pulls the image by its name, which containerd passes to nydus in annotations. They are off by
  default.
- The CRI measures the disk usage of images in ``exports.root`` of a proxy plugin.
- Arrays in a drop-in replace earlier ones. Unknown keys only cause a warning.
- containerd runs ``mkfs.erofs`` with ``--tar=f``. Without this program there is no ``erofs`` differ, and a
  diff service that names this differ disables the CRI. With :data:`MKFS_OPTIONS` the same layer always
  gives the same image; erofs-utils has all of these options from 1.8.2 on.
- erofs has ``default_size`` from 2.2 on, and dm-verity from 2.3 on. With dm-verity enabled but no kernel
  module for it, the snapshotter and the differ do not load, which also disables the CRI.
  ``enable_fsverity`` is not set, because on a file system without fs-verity the snapshotter does not load.
- ``max_unmerged_layers`` is documented by Kata for merged layers, but only patched builds of containerd have
  it. Other builds log a warning and keep the layers separate.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from msgspec import Struct

if TYPE_CHECKING:
    from kata_node.settings.handlers import Handler
    from kata_node.settings.model import Settings
    from kata_node.versions import Version

NYDUS, EROFS = "nydus", "erofs"

NYDUS_COMPONENT = "nydus-snapshotter"
"""The payload component with nydus-snapshotter's programs, and their directory below the install dir."""

IMAGES_TABLE = "io.containerd.cri.v1.images"
"""The plugin that pulls images, from schema 3 on."""
SCHEMA_2_PLUGIN = "io.containerd.grpc.v1.cri"
LEGACY_CRI_TABLES = {1: "cri", 2: SCHEMA_2_PLUGIN}
"""The CRI plugin of the older schemas; its table ``containerd`` has the settings for images."""

EROFS_TABLE = "io.containerd.snapshotter.v1.erofs"
EROFS_DIFFER_TABLE = "io.containerd.differ.v1.erofs"
DIFF_SERVICE_TABLE = "io.containerd.service.v1.diff-service"

MKFS_OPTIONS = ("-T0", "--mkfs-time", "--sort=none")
"""Options for ``mkfs.erofs`` in addition to containerd's own."""

DEFAULTS: Mapping[str, Any] = MappingProxyType({"discard_unpacked_layers": False})
"""Keys that :func:`config_tables` sets to containerd's default, in tables that others use as well."""

EROFS_LAYER_KEYS = ("max_unmerged_layers", "dmverity_mode", "enable_dmverity")
"""The keys of erofs that set the format of layers. containerd does not mount layers of another format."""

EROFS_DISK_SIZE, EROFS_MEMORY_SIZE = "10G", "0"
"""``default_size`` of erofs: the writable layer of a container as a disk image of this size, or in memory."""


class NydusInstance(Struct, frozen=True):
    """The names and paths of one installation's nydus-snapshotter on the node."""

    install_dir: str
    suffix: str

    @classmethod
    def for_settings(cls, settings: Settings) -> NydusInstance:
        """Return the nydus-snapshotter of the installation with these settings."""
        return cls(settings.install_dir, settings.suffix)

    @property
    def name(self) -> str:
        """The name of the snapshotter in containerd."""
        return self._suffixed(NYDUS)

    @property
    def unit(self) -> str:
        """The name of its systemd unit."""
        return f"{self._suffixed(NYDUS_COMPONENT)}.service"

    @property
    def unit_path(self) -> str:
        """The path of its unit file."""
        return f"{UNIT_DIR}/{self.unit}"

    @property
    def directory(self) -> str:
        """The directory of its programs and its configuration."""
        return f"{self.install_dir}/{NYDUS_COMPONENT}"

    @property
    def program(self) -> str:
        """The path of the snapshotter's program."""
        return f"{self.directory}/containerd-nydus-grpc"

    @property
    def overlayfs(self) -> str:
        """The path of the helper that mounts a snapshot outside of a Kata guest."""
        return f"{self.directory}/nydus-overlayfs"

    @property
    def config(self) -> str:
        """The path of the configuration that kata-node writes; the payload can have one of another name."""
        return f"{self.directory}/snapshotter.toml"

    @property
    def data_dir(self) -> str:
        """The directory of its snapshots. Never remove it, because containerd's metadata refers to it."""
        return f"/var/lib/{self._suffixed(NYDUS_COMPONENT)}"

    @property
    def run_dir(self) -> str:
        """The directory of its socket."""
        return f"/run/{self._suffixed(NYDUS_COMPONENT)}"

    @property
    def socket(self) -> str:
        """The path of the socket that containerd connects to."""
        return f"{self.run_dir}/containerd-nydus-grpc.sock"

    def _suffixed(self, name: str) -> str:
        return f"{name}-{self.suffix}" if self.suffix else name


UNIT_DIR = "/etc/systemd/system"

DATA_DIR_LIMIT = 70
"""Maximum length in bytes of the data directory's path; nydus-snapshotter refuses a longer one."""


def is_managed(settings: Settings, snapshotter: str) -> bool:
    """Return whether this installation sets up ``snapshotter``, that is ``nydus`` or ``erofs``."""
    return snapshotter in settings.snapshotter.setup


def required_components(settings: Settings) -> tuple[str, ...]:
    """Return the payload components that are needed in addition to those of the shims."""
    return (NYDUS_COMPONENT,) if is_managed(settings, NYDUS) else ()


def effective_name(settings: Settings, snapshotter: str) -> str:
    """Return containerd's name of the snapshotter that the settings call ``snapshotter``."""
    is_own = snapshotter == NYDUS and is_managed(settings, NYDUS)
    return NydusInstance.for_settings(settings).name if is_own else snapshotter


def config_tables(
    settings: Settings, handlers: Iterable[Handler], schema: int, version: Version
) -> dict[str, Any]:
    """Return the tables that the snapshotters need, without the handlers' own tables.

    The result is a nested mapping of TOML types for a configuration of ``schema`` and a containerd of
    ``version``. It is empty if the settings have no snapshotter. In the handlers' tables,
    ``runtimes.<handler>.snapshotter`` must be :func:`effective_name`. Tables for a snapshotter that this
    containerd does not have are left out; host-check refuses such a node.
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
    tables: dict[str, Any] = {}
    if is_managed(settings, NYDUS):
        tables["proxy_plugins"] = _proxy_plugin(NydusInstance.for_settings(settings))
    if plugins:
        tables["plugins"] = plugins
    return tables


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
        # Layers for other snapshotters are handled by `walking`, containerd's default.
        DIFF_SERVICE_TABLE: {"default": ["erofs", "walking"]},
    }


def merges_layers(settings: Settings) -> bool:
    """Return whether erofs makes one file system of all layers of an image, which is the default."""
    return settings.snapshotter.erofs_merge_mode != "unmerged"


def proxy_plugins(configurations: Iterable[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Return the ``proxy_plugins`` of type ``snapshot`` by name.

    ``configurations`` are parsed configuration files; keys of a later file win.
    """
    found: dict[str, Mapping[str, Any]] = {}
    for data in configurations:
        proxies = data.get("proxy_plugins")
        for name, fields in proxies.items() if isinstance(proxies, dict) else ():
            if isinstance(fields, dict):
                found[name] = {**found.get(name, {}), **fields}
    return {name: fields for name, fields in found.items() if fields.get("type", "snapshot") == "snapshot"}


def plugin_config(configurations: Iterable[Mapping[str, Any]], plugin: str) -> dict[str, Any]:
    """Return the keys that parsed configuration files have for a plugin; keys of a later file win."""
    found: dict[str, Any] = {}
    for data in configurations:
        plugins = data.get("plugins")
        table = plugins.get(plugin) if isinstance(plugins, dict) else None
        found |= table if isinstance(table, dict) else {}
    return found
