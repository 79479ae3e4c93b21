"""The checks of host-check about snapshotters. Pure. No findings if the settings use no snapshotter.

All failures are permanent: a retry does not change containerd's version, a kernel module, a program or a
setting.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
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
"""The built-in snapshotters that work only if containerd's data is on a file system of that name."""
REQUIRED_KEYS: Mapping[str, str] = {"devmapper": "pool_name", "blockfile": "scratch_file"}
"""The built-in snapshotters that containerd loads only if their configuration has this key."""
BUILT_IN_RANCHER = frozenset({"fuse-overlayfs", "stargz"})
"""The snapshotters that are also built into the containerd of k3s and rke2."""


def checks(
    settings: Settings,
    runtime: RuntimeFacts,
    facts: SnapshotterFacts,
    payload: Collection[str] | None,
) -> Iterator[Finding]:
    """Yield all findings. ``payload`` has the payload's paths relative to the install dir, if known."""
    handlers_by_snapshotter = _handlers_by_snapshotter(settings)
    setup = settings.snapshotter.setup
    if not handlers_by_snapshotter and not setup:
        return
    if runtime.runtime.name != "containerd":
        reason = f"the snapshotter settings have no effect: this node runs {runtime.runtime.name}"
        yield Finding("snapshotter", "skip", reason)
        return
    yield from _mapping(settings, handlers_by_snapshotter, runtime)
    if mapping.is_managed(settings, NYDUS):
        yield _nydus(settings, handlers_by_snapshotter.get(NYDUS, ()), runtime, facts, payload)
    if EROFS in handlers_by_snapshotter or mapping.is_managed(settings, EROFS):
        yield from _erofs(settings, handlers_by_snapshotter.get(EROFS, ()), runtime, facts)
    elif settings.snapshotter.erofs_dmverity:
        yield _erofs_not_managed(["erofsDmverity"], "no shim uses erofs, and ")


def unavailable(
    settings: Settings,
    runtime: RuntimeFacts,
    facts: SnapshotterFacts | None,
    payload: Collection[str] | None,
) -> dict[str, Finding]:
    """Return the handlers of ``settings`` with a snapshotter that the node does not have, by handler name.

    Each has the finding that says why. A conflict between two snapshotters of one name is not among these:
    only an administrator can decide which one stays. The arguments are those of :func:`checks`.
    """
    groups = _handlers_by_snapshotter(settings)
    if not groups or runtime.runtime.name != "containerd":
        return {}
    found: dict[str, Finding] = {}
    for name, using_handlers in groups.items():
        for handler in using_handlers:
            only = {name: (handler,)}
            findings = list(_mapping(settings, only, runtime))
            if name == NYDUS and mapping.is_managed(settings, NYDUS) and lacks_nydus(payload):
                findings.append(_nydus_not_in_payload((handler,)))
            if name == EROFS and facts is not None:
                findings += _erofs_needs(settings, (handler,), runtime, facts)
            if failed := [each for each in findings if each.status == "fail"]:
                found[handler.name] = failed[0]
    return found


def _handlers_by_snapshotter(settings: Settings) -> dict[str, tuple[Handler, ...]]:
    """Return the handlers that use a snapshotter, by the snapshotter's name in the values."""
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
            f"containerd {version} has one snapshotter for all handlers, but the settings have another one "
            f"for {_handler_names(handlers_by_snapshotter.values())}",
            "upgrade containerd to 1.7 or later, or remove containerd.snapshotter from these shims",
        )
        return
    configurations = (*_configurations(runtime), *_parsed([settings.user_drop_in.encode()]))
    if handlers_by_snapshotter and version.major < 2 and _discards_unpacked_layers(configurations):
        yield Finding(
            "snapshotter",
            "fail",
            "containerd discards the layers of an image after it unpacks them, so it cannot unpack them "
            "for a second snapshotter",
            "set discard_unpacked_layers = false in containerd's configuration",
        )
    for name, using_handlers in handlers_by_snapshotter.items():
        # _nydus and _erofs check these.
        if name == EROFS or (name == NYDUS and mapping.is_managed(settings, NYDUS)):
            continue
        yield _availability(name, using_handlers, configurations, runtime)


def _availability(
    name: str,
    using_handlers: tuple[Handler, ...],
    configurations: tuple[Mapping[str, Any], ...],
    runtime: RuntimeFacts,
) -> Finding:
    """Return the finding that says whether containerd's configuration has the snapshotter ``name``."""
    usage = (
        f"{_handler_names([using_handlers])} use {name}"
        if len(using_handlers) > 1
        else f"{_handler_names([using_handlers])} uses {name}"
    )
    table = mapping.plugin_config(configurations, f"io.containerd.snapshotter.v1.{name}")
    rancher = runtime.distribution_runtime.distribution in ("k3s", "rke2") and name in BUILT_IN_RANCHER
    if name in REQUIRED_KEYS:
        if table.get(REQUIRED_KEYS[name]):
            return Finding("snapshotter", "pass", f"{usage}, and containerd's configuration has it")
        return Finding(
            "snapshotter",
            "fail",
            f"{usage}, and containerd loads it only with the key {REQUIRED_KEYS[name]}",
            f'set {REQUIRED_KEYS[name]} in [plugins."io.containerd.snapshotter.v1.{name}"] of containerd\'s '
            "configuration or of containerd.userDropIn",
        )
    if name in FILE_SYSTEM_SNAPSHOTTERS:
        return Finding(
            "snapshotter",
            "warn",
            f"{usage}, and containerd loads it only if its data is on a {name} file system",
            f"run `ctr plugins ls` on the node: the status of {name} must be ok",
        )
    if name in BUILT_IN or rancher or table or name in mapping.proxy_plugins(configurations):
        return Finding("snapshotter", "pass", usage)
    remedy = (
        f"correct the name, or add [proxy_plugins.{name}] to containerd's configuration or to "
        "containerd.userDropIn, or remove containerd.snapshotter from these shims"
    )
    if name == NYDUS:
        remedy = f"add {NYDUS} to snapshotter.setup, or {remedy}"
    return Finding(
        "snapshotter",
        "fail",
        f"{usage}, and {name} is neither built into containerd nor in proxy_plugins of its configuration",
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
            f"containerd's configuration already has a snapshotter {own_nydus.name} at "
            f"{other.get('address')}; a second one of that name cannot use the layers it has unpacked",
            f"remove {NYDUS} from snapshotter.setup to use the existing one, or set env.multiInstallSuffix "
            "to set up one with another name",
        )
    if len(own_nydus.data_dir) > mapping.DATA_DIR_LIMIT:
        return Finding(
            "nydus",
            "fail",
            f"the path of nydus-snapshotter's data directory cannot have more than {mapping.DATA_DIR_LIMIT} "
            f"characters, and {own_nydus.data_dir} has {len(own_nydus.data_dir)}",
            "set a shorter env.multiInstallSuffix",
        )
    if lacks_nydus(payload):
        return _nydus_not_in_payload(using_handlers)
    if not facts.offline and mapping.UNIT_DIR not in found.directories:
        return Finding(
            "nydus",
            "fail",
            f"the directory {mapping.UNIT_DIR}, which holds the unit of nydus-snapshotter, does not exist",
            f"mount the node's {mapping.UNIT_DIR} below the host root",
        )
    return Finding("nydus", "pass", f"{own_nydus.unit} starts before {' or '.join(found.cri_units)}")


def lacks_nydus(payload: Collection[str] | None) -> bool:
    """Return whether the payload is known and does not have nydus-snapshotter."""
    return payload is not None and nydus.PROGRAM_PATH not in payload


def _nydus_not_in_payload(using_handlers: tuple[Handler, ...]) -> Finding:
    # Removed from snapshotter.setup alone, it would be missing for the handlers that use it.
    shims = (
        f" and from the shims that use it, or disable them: {_handler_names([using_handlers])}"
        if using_handlers
        else ""
    )
    return Finding(
        "nydus",
        "fail",
        f"the payload has no {nydus.PROGRAM_PATH}",
        f"use an image with the component {mapping.NYDUS_COMPONENT}, or remove {NYDUS} from "
        f"snapshotter.setup{shims}",
    )


def _erofs(
    settings: Settings, using_handlers: tuple[Handler, ...], runtime: RuntimeFacts, facts: SnapshotterFacts
) -> Iterator[Finding]:
    wanted = settings.snapshotter
    if not runtime.runtime.version.at_least(2, 2):
        yield from _erofs_needs(settings, using_handlers, runtime, facts)
        return
    if not mapping.is_managed(settings, EROFS):
        asked = {
            "erofsMergeMode": wanted.erofs_merge_mode,
            "erofsSnapshotterMode": wanted.erofs_snapshotter_mode,
            "erofsDmverity": wanted.erofs_dmverity,
        }
        if given := [key for key, value in asked.items() if value]:
            yield _erofs_not_managed(given)
        else:
            yield Finding(
                "erofs",
                "pass",
                f"used by {_handler_names([using_handlers])}, as containerd's own configuration sets it up",
            )
        return
    if others := tuple(_conflicting_erofs_keys(settings, runtime)):
        yield Finding(
            "erofs",
            "fail",
            f"containerd's configuration has {', '.join(others)}; containerd cannot mount layers that it "
            "created with the other value",
            "set the same snapshotter.erofsMergeMode and snapshotter.erofsDmverity as the configuration and "
            f"the other installations on this node, or remove {EROFS} from snapshotter.setup",
        )
    yield from _erofs_needs(settings, using_handlers, runtime, facts)


def _erofs_needs(
    settings: Settings, using_handlers: tuple[Handler, ...], runtime: RuntimeFacts, facts: SnapshotterFacts
) -> Iterator[Finding]:
    """Yield the findings about what erofs needs on the node; if it is set up, about its programs too."""
    version = runtime.runtime.version
    if not version.at_least(2, 2):
        yield Finding(
            "erofs",
            "fail",
            f"the snapshotter erofs needs containerd 2.2 or later, and this node runs {version}",
            f"upgrade containerd, or remove {EROFS} from the shims and from snapshotter.setup",
        )
        return
    if not mapping.is_managed(settings, EROFS):
        return
    go = [handler for handler in using_handlers if handler.shim.runtime == "go"]
    if go and mapping.merges_layers(settings):
        yield Finding(
            "erofs",
            "fail",
            f"Kata's Go runtime cannot mount merged erofs layers, and it runs {_handler_names([go])}",
            "set snapshotter.erofsMergeMode: unmerged, or use the runtime-rs variants of these shims",
        )
    yield _mkfs(facts)
    if facts.offline:
        yield Finding("erofs", "skip", "offline: the running kernel is not that of the node")
        return
    yield _kernel(facts)
    if settings.snapshotter.erofs_dmverity:
        yield _dm_verity(runtime, facts)


def _mkfs(facts: SnapshotterFacts) -> Finding:
    remedy = "install erofs-utils 1.8.2 or later on the node"
    if facts.mkfs is None and not facts.programs_visible:
        return Finding("mkfs.erofs", "skip", "the node's programs are not mounted below the host root")
    if facts.mkfs is None:
        reason = f"not found in {':'.join(PROGRAM_DIRS)}; containerd does not serve the CRI without it"
        return Finding("mkfs.erofs", "fail", reason, remedy)
    if facts.mkfs.missing_options:
        reason = f"{facts.mkfs.path} does not have the options {', '.join(facts.mkfs.missing_options)}"
        return Finding("mkfs.erofs", "fail", reason, remedy)
    return Finding("mkfs.erofs", "pass", facts.mkfs.path)


def _kernel(facts: SnapshotterFacts) -> Finding:
    if facts.erofs:
        return Finding("erofs", "pass", "the kernel has the file system erofs")
    load = "run `modprobe erofs`, and `echo erofs > /etc/modules-load.d/erofs.conf` to load it at boot"
    if facts.erofs_module:
        reason = "the kernel module erofs is not loaded, and containerd does not load it"
        return Finding("erofs", "fail", reason, load)
    return Finding("erofs", "fail", "the kernel does not have the file system erofs", load)


def _dm_verity(runtime: RuntimeFacts, facts: SnapshotterFacts) -> Finding:
    version = runtime.runtime.version
    if not version.at_least(2, 3):
        return Finding(
            "dm-verity",
            "fail",
            f"snapshotter.erofsDmverity needs containerd 2.3 or later, and this node runs {version}",
            "upgrade containerd, or set snapshotter.erofsDmverity: false",
        )
    if not facts.dm_verity:
        return Finding(
            "dm-verity",
            "fail",
            "the kernel module dm_verity is not loaded; containerd does not serve the CRI without it if "
            "snapshotter.erofsDmverity is true",
            "run `modprobe dm_verity`, and `echo dm_verity > /etc/modules-load.d/dm_verity.conf` to load it "
            "at boot",
        )
    return Finding("dm-verity", "pass", "the kernel has dm-verity")


def _erofs_not_managed(keys: Sequence[str], reason: str = "") -> Finding:
    named = ", ".join(f"snapshotter.{key}" for key in keys)
    return Finding(
        "erofs",
        "fail",
        f"{named} {'has' if len(keys) == 1 else 'have'} no effect: {reason}{EROFS} is not in "
        "snapshotter.setup",
        f"add {EROFS} to snapshotter.setup and set shims.<shim>.containerd.snapshotter: {EROFS}, or remove "
        f"{named}",
    )


def _configurations(runtime: RuntimeFacts) -> Iterator[Mapping[str, Any]]:
    """Yield containerd's configuration files, without those of this installation, as parsed TOML."""
    own = own_paths(runtime.config)
    return _parsed(state.content for path, state in runtime.files.items() if path not in own)


def _parsed(texts: Iterable[bytes]) -> Iterator[Mapping[str, Any]]:
    """Yield ``texts`` as parsed TOML. Leave out invalid ones and templates: other checks report them."""
    for text in texts:
        try:
            yield toml_edit.load(text, "")
        except HostError:
            continue


def _conflicting_erofs_keys(settings: Settings, runtime: RuntimeFacts) -> Iterator[str]:
    """Yield a phrase for each key that decides the form of erofs layers and has another value on the node."""
    desired = mapping.config_tables(settings, (), 3, runtime.runtime.version)["plugins"]
    configurations = tuple(_configurations(runtime))
    for plugin in (mapping.EROFS_TABLE, mapping.EROFS_DIFFER_TABLE):
        current = mapping.plugin_config(configurations, plugin)
        for key in mapping.EROFS_LAYER_KEYS:
            if key in current and key in desired[plugin] and current[key] != desired[plugin][key]:
                yield f"{key} = {current[key]} (the settings need {desired[plugin][key]})"


def _discards_unpacked_layers(configurations: Iterable[Mapping[str, Any]]) -> bool:
    parsed = tuple(configurations)
    found = (
        mapping.plugin_config(parsed, plugin).get("containerd")
        for plugin in mapping.LEGACY_CRI_TABLES.values()
    )
    return any(isinstance(each, dict) and each.get("discard_unpacked_layers") is True for each in found)


def _handler_names(groups: Iterable[Iterable[Handler]]) -> str:
    return ", ".join(handler.name for group in groups for handler in group)
