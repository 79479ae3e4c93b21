"""The rows of host-check about snapshotters. Pure; no rows where the settings ask for none.

All failures are permanent: no retry brings a newer containerd, a kernel module, a program or a setting.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from kata_node.errors import HostError
from kata_node.plan.report import Finding
from kata_node.runtime.model.config import own_paths
from kata_node.settings.handlers import Handler, handlers
from kata_node.snapshotters import mapping, nydus
from kata_node.snapshotters.facts import PROGRAM_DIRS, SnapshotterFacts
from kata_node.snapshotters.mapping import EROFS, NYDUS, NydusInstance
from kata_node.toml import edit as toml_edit

if TYPE_CHECKING:
    from kata_node.runtime.facts import RuntimeFacts
    from kata_node.settings.model import Settings

BUILT_IN = frozenset({"overlayfs", "native", EROFS})
"""The snapshotters of containerd that need no configuration."""
FILE_SYSTEM_SNAPSHOTTERS = frozenset({"btrfs", "zfs"})
"""Those that work only where containerd's data is on such a file system."""
REQUIRED_KEYS: Mapping[str, str] = {"devmapper": "pool_name", "blockfile": "scratch_file"}
"""Those that containerd skips until they have this key."""
BUILT_IN_RANCHER = frozenset({"fuse-overlayfs", "stargz"})
"""What the containerd inside of k3s and rke2 has besides."""


def checks(
    settings: Settings,
    runtime: RuntimeFacts,
    facts: SnapshotterFacts,
    payload: Collection[str] | None,
) -> Iterator[Finding]:
    """Every row. ``payload`` are the paths placed or to be placed below the install dir, if known."""
    handlers_by_snapshotter = _handlers_by_snapshotter(settings)
    setup = settings.snapshotter.setup
    if not handlers_by_snapshotter and not setup:
        return
    if runtime.runtime.name != "containerd":
        reason = f"{runtime.runtime.name} has none: what the settings say of them does not count here"
        yield Finding("snapshotter", "skip", reason)
        return
    yield from _mapping(settings, handlers_by_snapshotter, runtime)
    if mapping.is_managed(settings, NYDUS):
        yield _nydus(settings, handlers_by_snapshotter.get(NYDUS, ()), runtime, facts, payload)
    if EROFS in handlers_by_snapshotter or mapping.is_managed(settings, EROFS):
        yield from _erofs(settings, handlers_by_snapshotter.get(EROFS, ()), runtime, facts)
    elif settings.snapshotter.erofs_dmverity:
        yield _erofs_not_managed("erofsDmverity is on, and no shim uses erofs")


def _handlers_by_snapshotter(settings: Settings) -> dict[str, tuple[Handler, ...]]:
    """The snapshotters that handlers name, as the values do, each with those handlers."""
    found: dict[str, tuple[Handler, ...]] = {}
    for handler in handlers(settings):
        if handler.snapshotter:
            found[handler.snapshotter] = (*found.get(handler.snapshotter, ()), handler)
    return found


def _mapping(
    settings: Settings, handlers_by_snapshotter: Mapping[str, tuple[Handler, ...]], runtime: RuntimeFacts
) -> Iterator[Finding]:
    version = runtime.runtime.version
    if handlers_by_snapshotter and not version.at_least(1, 7):
        yield Finding(
            "snapshotter",
            "fail",
            f"containerd {version} has one snapshotter for all handlers; "
            f"{_handler_names(handlers_by_snapshotter.values())} have one of their own",
            "upgrade containerd to 1.7 or later, or take the snapshotter out of these shims",
        )
        return
    configurations = (*_configurations(runtime), *_parsed([settings.user_drop_in.encode()]))
    if handlers_by_snapshotter and version.major < 2 and _discards_unpacked_layers(configurations):
        yield Finding(
            "snapshotter",
            "fail",
            "containerd discards the layers of an image once they are unpacked, so they cannot be "
            "unpacked for a second snapshotter",
            "set discard_unpacked_layers = false in its configuration",
        )
    for name, using_handlers in handlers_by_snapshotter.items():
        # What this instance sets up has rows of its own.
        if name == EROFS or (name == NYDUS and mapping.is_managed(settings, NYDUS)):
            continue
        yield _availability(name, using_handlers, configurations, runtime)


def _availability(
    name: str,
    using_handlers: tuple[Handler, ...],
    configurations: tuple[Mapping[str, Any], ...],
    runtime: RuntimeFacts,
) -> Finding:
    """Whether containerd will have the snapshotter, as far as its configuration tells."""
    wanted = (
        f"{_handler_names([using_handlers])} use {name}"
        if len(using_handlers) > 1
        else f"{_handler_names([using_handlers])} uses {name}"
    )
    table = mapping.plugin_config(configurations, f"io.containerd.snapshotter.v1.{name}")
    rancher = runtime.distribution_runtime.distribution in ("k3s", "rke2") and name in BUILT_IN_RANCHER
    if name in REQUIRED_KEYS:
        if table.get(REQUIRED_KEYS[name]):
            return Finding("snapshotter", "pass", f"{wanted}, which containerd's configuration has")
        return Finding(
            "snapshotter",
            "fail",
            f"{wanted}, which containerd does not load without {REQUIRED_KEYS[name]}",
            f'configure it under plugins."io.containerd.snapshotter.v1.{name}", '
            "in containerd's own files or in containerd.userDropIn",
        )
    if name in FILE_SYSTEM_SNAPSHOTTERS:
        return Finding(
            "snapshotter",
            "warn",
            f"{wanted}, which containerd loads only with its data on a {name} file system",
            f"see `ctr plugins ls` tell that {name} is ok",
        )
    if name in BUILT_IN or rancher or table or name in mapping.proxy_plugins(configurations):
        return Finding("snapshotter", "pass", wanted)
    remedy = (
        "correct the name, or add it as proxy_plugins to containerd's files or to containerd.userDropIn, "
        "or take it out of these shims"
    )
    if name == NYDUS:
        remedy = f"add {NYDUS} to snapshotter.setup, or {remedy}"
    return Finding(
        "snapshotter",
        "fail",
        f"{wanted}, which is neither built into containerd nor among the proxy_plugins of its configuration",
        remedy,
    )


def _nydus(
    settings: Settings,
    using_handlers: tuple[Handler, ...],
    runtime: RuntimeFacts,
    facts: SnapshotterFacts,
    payload: Collection[str] | None,
) -> Finding:
    own_nydus = NydusInstance.for_settings(settings)
    found = facts.nydus
    if found.unit is not None and not nydus.is_own_unit(own_nydus, found.unit):
        error = nydus.foreign_unit_error(own_nydus)
        return Finding("nydus", "fail", f"{error.where}: {error.what}", error.hint)
    other = mapping.proxy_plugins(_configurations(runtime)).get(own_nydus.name)
    if other is not None and other.get("address") != own_nydus.socket:
        return Finding(
            "nydus",
            "fail",
            f"containerd's configuration has a snapshotter {own_nydus.name} at {other.get('address')} "
            "already; what it has unpacked would be lost with a second one of that name",
            f"use that one by taking {NYDUS} out of snapshotter.setup, or set env.multiInstallSuffix, "
            "which makes ours one of another name",
        )
    if len(own_nydus.data_dir) > mapping.DATA_DIR_LIMIT:
        return Finding(
            "nydus",
            "fail",
            f"nydus-snapshotter takes a data directory of {mapping.DATA_DIR_LIMIT} characters at most, "
            f"and {own_nydus.data_dir} has {len(own_nydus.data_dir)}",
            "shorten env.multiInstallSuffix",
        )
    if payload is not None and nydus.PROGRAM_PATH not in payload:
        # Out of the setup alone it would be missed by those that use it.
        shims = (
            f" and out of the shims that use it, or switch them off: {_handler_names([using_handlers])}"
            if using_handlers
            else ""
        )
        return Finding(
            "nydus",
            "fail",
            f"the payload has no {nydus.PROGRAM_PATH}",
            f"use an image built with the component {mapping.NYDUS_COMPONENT}, or take {NYDUS} out of "
            f"snapshotter.setup{shims}",
        )
    if not facts.offline and mapping.UNIT_DIR not in found.directories:
        return Finding(
            "nydus",
            "fail",
            f"{mapping.UNIT_DIR} is not there, where the unit belongs",
            f"mount the host's {mapping.UNIT_DIR} below the host root",
        )
    return Finding("nydus", "pass", f"{own_nydus.unit} starts before {' or '.join(found.cri_units)}")


def _erofs(
    settings: Settings, using_handlers: tuple[Handler, ...], runtime: RuntimeFacts, facts: SnapshotterFacts
) -> Iterator[Finding]:
    version, wanted = runtime.runtime.version, settings.snapshotter
    if not version.at_least(2, 2):
        yield Finding(
            "erofs",
            "fail",
            f"the snapshotter erofs needs containerd 2.2, and this is {version}",
            "upgrade containerd, or take erofs out of the shims and of snapshotter.setup",
        )
        return
    if not mapping.is_managed(settings, EROFS):
        asked = {
            "erofsMergeMode": wanted.erofs_merge_mode,
            "erofsSnapshotterMode": wanted.erofs_snapshotter_mode,
            "erofsDmverity": wanted.erofs_dmverity,
        }
        if given := [key for key, value in asked.items() if value]:
            yield _erofs_not_managed(f"{', '.join(given)} {'is' if len(given) == 1 else 'are'} given")
        else:
            yield Finding(
                "erofs",
                "pass",
                f"{_handler_names([using_handlers])}: as containerd's own configuration has it",
            )
        return
    go = [handler for handler in using_handlers if handler.shim.runtime == "go"]
    if go and mapping.merges_layers(settings):
        yield Finding(
            "erofs",
            "fail",
            f"the Go runtime, which runs {_handler_names([go])}, cannot mount the merged layers of erofs",
            "set snapshotter.erofsMergeMode: unmerged, or use the runtime-rs variants of these shims",
        )
    if others := tuple(_conflicting_erofs_keys(settings, runtime)):
        yield Finding(
            "erofs",
            "fail",
            f"containerd's configuration has {', '.join(others)}; layers made to one of the two could not be "
            "mounted with the other",
            "let snapshotter.erofsMergeMode and erofsDmverity say the same, also of other installations on "
            f"this node, or take {EROFS} out of snapshotter.setup",
        )
    yield _mkfs(facts)
    if facts.offline:
        yield Finding("erofs", "skip", "offline: the kernel that will run is not this one")
        return
    yield _kernel(facts)
    if wanted.erofs_dmverity:
        yield _dm_verity(runtime, facts)


def _mkfs(facts: SnapshotterFacts) -> Finding:
    remedy = "install erofs-utils 1.8.2 or later on the node"
    if facts.mkfs is None and not facts.programs_visible:
        return Finding("mkfs.erofs", "skip", "the host's programs are not mounted below the host root")
    if facts.mkfs is None:
        reason = f"it is not in {':'.join(PROGRAM_DIRS)}; containerd would serve no CRI without it"
        return Finding("mkfs.erofs", "fail", reason, remedy)
    if facts.mkfs.missing_options:
        reason = f"{facts.mkfs.path} does not know {', '.join(facts.mkfs.missing_options)}"
        return Finding("mkfs.erofs", "fail", reason, remedy)
    return Finding("mkfs.erofs", "pass", facts.mkfs.path)


def _kernel(facts: SnapshotterFacts) -> Finding:
    if facts.erofs:
        return Finding("erofs", "pass", "the kernel has this file system")
    load = "modprobe erofs, and have it loaded at boot by a file in /etc/modules-load.d"
    if facts.erofs_module:
        return Finding("erofs", "fail", "the kernel's module erofs is not loaded; containerd does not", load)
    return Finding("erofs", "fail", "this kernel does not have the file system erofs", load)


def _dm_verity(runtime: RuntimeFacts, facts: SnapshotterFacts) -> Finding:
    version = runtime.runtime.version
    if not version.at_least(2, 3):
        return Finding(
            "dm-verity",
            "fail",
            f"snapshotter.erofsDmverity needs containerd 2.3, and this is {version}",
            "upgrade containerd, or set snapshotter.erofsDmverity: false",
        )
    if not facts.dm_verity:
        return Finding(
            "dm-verity",
            "fail",
            "the kernel's module dm_verity is not loaded; containerd serves no CRI with "
            "snapshotter.erofsDmverity then",
            "modprobe dm_verity, and have it loaded at boot by a file in /etc/modules-load.d",
        )
    return Finding("dm-verity", "pass", "the kernel has it")


def _erofs_not_managed(reason: str) -> Finding:
    return Finding(
        "erofs",
        "fail",
        f"snapshotter.{reason}, but erofs is not in snapshotter.setup, so nothing would come of it",
        f"add {EROFS} to snapshotter.setup and to the shims meant, or take the setting out",
    )


def _configurations(runtime: RuntimeFacts) -> Iterator[Mapping[str, Any]]:
    """What containerd reads besides what this instance writes."""
    own = own_paths(runtime.config)
    return _parsed(state.content for path, state in runtime.files.items() if path not in own)


def _parsed(texts: Iterable[bytes]) -> Iterator[Mapping[str, Any]]:
    """What is broken, or a template, is for other rows."""
    for text in texts:
        try:
            yield toml_edit.load(text, "")
        except HostError:
            continue


def _conflicting_erofs_keys(settings: Settings, runtime: RuntimeFacts) -> Iterator[str]:
    """The keys that others give another value, of those that decide what erofs' layers are like."""
    ours = mapping.config_tables(settings, (), 3, runtime.runtime.version)["plugins"]
    configurations = tuple(_configurations(runtime))
    for plugin in (mapping.EROFS_TABLE, mapping.EROFS_DIFFER_TABLE):
        theirs = mapping.plugin_config(configurations, plugin)
        for key in mapping.EROFS_LAYER_KEYS:
            if key in theirs and key in ours[plugin] and theirs[key] != ours[plugin][key]:
                yield f"{key} = {theirs[key]} where the settings mean {ours[plugin][key]}"


def _discards_unpacked_layers(configurations: Iterable[Mapping[str, Any]]) -> bool:
    parsed = tuple(configurations)
    found = (
        mapping.plugin_config(parsed, plugin).get("containerd")
        for plugin in mapping.LEGACY_CRI_TABLES.values()
    )
    return any(isinstance(each, dict) and each.get("discard_unpacked_layers") is True for each in found)


def _handler_names(groups: Iterable[Iterable[Handler]]) -> str:
    return ", ".join(handler.name for group in groups for handler in group)
