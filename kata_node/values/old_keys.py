"""What the keys of older charts mean in the values of this chart. Pure.

From 2024 to the end of 2025 the public chart had its settings below ``env``, as strings. Late releases of it
have the present keys as well; a value below ``env`` that is not empty went before them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from msgspec import Struct, field

from kata_node.settings.shims import MACHINES, table
from kata_node.settings.values import describe_value, did_you_mean
from kata_node.values.chart import at

Path = tuple[str, ...]

ARCH_KEYS = (
    "shims",
    "defaultShim",
    "snapshotterHandlerMapping",
    "pullTypeMapping",
    "_experimentalForceGuestPull",
)
"""The keys below ``env`` that also exist with the suffix ``_<machine type>``."""

EVERY_SHIM = frozenset(
    (
        *("clh", "cloud-hypervisor", "dragonball", "fc", "qemu", "qemu-coco-dev", "qemu-nvidia-gpu"),
        *(
            "qemu-nvidia-gpu-snp",
            "qemu-nvidia-gpu-tdx",
            "qemu-runtime-rs",
            "qemu-snp",
            "qemu-tdx",
            "stratovirt",
        ),
    )
)
"""What ``env.shims`` contained in the values of each older chart: it did not choose shims."""

WITHDRAWN_SHIMS = ("acrn", "qemu-cca", "qemu-sev")
"""Shims of older charts that Kata does not have any more."""

RENAMED_SHIMS = {"cloud-hypervisor": "clh-runtime-rs"}
MARINER_SHIMS = {"clh": "clh-azure", "clh-runtime-rs": "clh-azure-runtime-rs"}
"""The shims that replace others with ``env.hostOS: cbl-mariner``."""

_TRUE = ("true", "yes", "1")


class Change(Struct, frozen=True):
    """What replaces one old key: it is removed, and other keys are set."""

    old: Path
    new: Mapping[Path, object] = field(default_factory=dict)
    renamed: str = ""
    """The new name of the key, which keeps its value."""


class Conversion(Struct):
    """The changes in the order of the file, and what a person should look at."""

    changes: list[Change] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def conversion(values: Mapping[Any, Any]) -> Conversion:
    """Return how to convert the content of a values file, as its author wrote it."""
    result = Conversion()
    env = at(values, "env")
    given = {str(key): value for key, value in (env if isinstance(env, dict) else {}).items()}
    texts = {key: _text(value) for key, value in given.items() if not isinstance(value, dict | list)}
    result.notes += [
        f"env.{key}: expected text, got {describe_value(value)}, so the key stays; correct it, then run again"
        for key, value in given.items()
        if key not in texts and _split(key)[0] in _READERS
    ]
    mariner = texts.get("hostOS") == "cbl-mariner"
    enabled = _enabled(texts, result, mariner=mariner)
    for key in texts:
        base, arch = _split(key)
        reader = _READERS.get(base)
        if base == "shims" and enabled.only_unknown:
            continue
        if reader is not None:
            new = dict(reader(_Reading(texts, key, base, arch, enabled, values, result)))
            result.changes.append(Change(("env", key), new))
    if mariner and not enabled.only_unknown:
        new_shim: dict[Path, object] = {("shims", "clh-azure", "enabled"): True}
        result.changes.append(Change(("env", "hostOS"), {} if enabled.names else new_shim))
    _structured(values, result)
    return result


class _Enabled(Struct, frozen=True):
    """The shims that the old keys name, and their architectures if there is a list for one of these."""

    names: tuple[str, ...] = ()
    arches: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    only_unknown: bool = False
    """Whether Kata has none of the shims. Without the old keys, all shims would be enabled then."""


class _Reading(Struct, frozen=True):
    """One old key with all that its meaning depends on."""

    texts: Mapping[str, str]
    key: str
    base: str
    arch: str
    enabled: _Enabled
    values: Mapping[Any, Any]
    result: Conversion

    @property
    def text(self) -> str:
        return self.texts[self.key]

    @property
    def shims(self) -> tuple[str, ...]:
        """The shims that a key without names applies to."""
        return self.enabled.names or tuple(name for name, shim in table().items() if shim.local_hypervisor)

    def names(self) -> Iterator[tuple[str, str]]:
        """Yield the shim and the value of each entry ``shim:value``; the value is empty without a colon."""
        for entry in _words(self.text):
            name, _, value = entry.partition(":")
            if shim := _known(name, self.result, f"env.{self.key}"):
                yield shim, value


def _enabled(texts: Mapping[str, str], result: Conversion, *, mariner: bool) -> _Enabled:
    general = _words(texts.get("shims", ""))
    by_arch = {
        arch: _words(texts[key]) for arch, machine in MACHINES.items() if texts.get(key := f"shims_{machine}")
    }
    if not general and not by_arch:
        return _Enabled()
    if set(general) >= EVERY_SHIM and not by_arch:
        result.notes.append(
            "env.shims listed every shim of the older chart, so all shims stay enabled by default"
        )
        return _Enabled()
    every = set(general) >= EVERY_SHIM
    names: dict[str, list[str]] = {}
    for arch in MACHINES:
        for name in by_arch.get(arch, general):
            shim = _known(name, result, "env.shims")
            shim = MARINER_SHIMS.get(shim, shim) if mariner else shim
            if not shim or (every and arch not in by_arch and name in ("fc", "stratovirt")):
                continue
            if MACHINES[arch] in table()[shim].arches:
                names.setdefault(shim, []).append(arch)
            else:
                names.setdefault(shim, [])
    if not names:
        result.notes.append("env.shims stays, because Kata has none of its shims; choose others below shims")
        return _Enabled(only_unknown=True)
    arches = {name: tuple(found) for name, found in names.items()} if by_arch else {}
    if by_arch and not general:
        missing = [arch for arch in MACHINES if arch not in by_arch]
        result.notes.append(f"env.shims is empty, so no shim is enabled on {', '.join(missing)}")
    return _Enabled(tuple(name for name in table() if name in names), arches)


def _read_shims(reading: _Reading) -> Iterator[tuple[Path, object]]:
    first = next(key for key in reading.texts if _split(key)[0] == "shims")
    if not reading.enabled.names or reading.key != first:
        return
    yield ("shims", "disableAll"), True
    for name in reading.enabled.names:
        yield ("shims", name, "enabled"), True
        if reading.enabled.arches:
            yield ("shims", name, "supportedArches"), list(reading.enabled.arches[name])
    shims = at(reading.values, "shims")
    for name, shim in (shims if isinstance(shims, dict) else {}).items():
        # The older chart enabled the shims of the old key only.
        if at(shim, "enabled") is True and RENAMED_SHIMS.get(name, name) not in reading.enabled.names:
            yield ("shims", str(name), "enabled"), False


def _read_default(reading: _Reading) -> Iterator[tuple[Path, object]]:
    shim = _known(reading.text, reading.result, f"env.{reading.key}") if reading.text else ""
    for arch, machine in MACHINES.items() if shim else ():
        specific = reading.texts.get(f"defaultShim_{machine}")
        if machine in table()[shim].arches and (reading.arch == arch or (not reading.arch and not specific)):
            yield ("defaultShim", arch), shim


def _read_snapshotters(reading: _Reading) -> Iterator[tuple[Path, object]]:
    for shim, value in reading.names():
        if value:
            yield ("shims", shim, "containerd", "snapshotter"), value


def _read_pull_types(reading: _Reading) -> Iterator[tuple[Path, object]]:
    for shim, value in reading.names():
        yield ("shims", shim, "crio", "guestPull"), value == "guest-pull"


def _read_guest_pull(reading: _Reading) -> Iterator[tuple[Path, object]]:
    for shim, _ in reading.names():
        yield ("shims", shim, "containerd", "forceGuestPull"), True


def _read_setup(reading: _Reading) -> Iterator[tuple[Path, object]]:
    if words := _words(reading.text):
        yield ("snapshotter", "setup"), words


def _read_annotations(reading: _Reading) -> Iterator[tuple[Path, object]]:
    if ":" in reading.text:
        for entry in reading.text.split():
            name, _, listed = entry.partition(":")
            if shim := _known(name, reading.result, f"env.{reading.key}"):
                yield ("shims", shim, "allowedHypervisorAnnotations"), _words(listed)
    elif words := _words(reading.text):
        for shim in reading.shims:
            yield ("shims", shim, "allowedHypervisorAnnotations"), words


def _read_proxy(reading: _Reading) -> Iterator[tuple[Path, object]]:
    key = "httpsProxy" if reading.base == "agentHttpsProxy" else "noProxy"
    if re.match(r"[a-z0-9-]+=", reading.text):
        for entry in reading.text.split(";"):
            name, _, value = entry.strip().partition("=")
            if shim := _known(name, reading.result, f"env.{reading.key}"):
                yield ("shims", shim, "agent", key), value
    elif reading.text:
        for shim in reading.shims:
            yield ("shims", shim, "agent", key), reading.text


def _read_debug(reading: _Reading) -> Iterator[tuple[Path, object]]:
    if reading.text:
        yield ("debug",), reading.text.lower() in _TRUE


def _read_classes(reading: _Reading) -> Iterator[tuple[Path, object]]:
    # Helm makes the RuntimeClasses since runtimeClasses exists. It went before the old keys.
    key = "enabled" if reading.base == "createRuntimeClasses" else "createDefault"
    if reading.text and at(reading.values, f"runtimeClasses.{key}") is None:
        wanted = reading.text.lower() in _TRUE
        if key == "enabled" and not wanted:
            reading.result.notes.append(
                "env.createRuntimeClasses was not true, so helm creates no RuntimeClasses; set "
                "runtimeClasses.enabled: true unless you create them yourself"
            )
        yield ("runtimeClasses", key), wanted


_READERS = {
    "shims": _read_shims,
    "defaultShim": _read_default,
    "snapshotterHandlerMapping": _read_snapshotters,
    "pullTypeMapping": _read_pull_types,
    "_experimentalForceGuestPull": _read_guest_pull,
    "_experimentalSetupSnapshotter": _read_setup,
    "allowedHypervisorAnnotations": _read_annotations,
    "agentHttpsProxy": _read_proxy,
    "agentNoProxy": _read_proxy,
    "debug": _read_debug,
    "createRuntimeClasses": _read_classes,
    "createDefaultRuntimeClass": _read_classes,
}


def _structured(values: Mapping[Any, Any], result: Conversion) -> None:
    """Add the changes of keys that are not below ``env``."""
    shims = at(values, "shims")
    for old, new in RENAMED_SHIMS.items():
        if isinstance(shims, dict) and old in shims and new not in shims:
            result.changes.append(Change(("shims", old), renamed=new))
        elif isinstance(shims, dict) and old in shims:
            result.notes.append(
                f"shims.{old} stays, because its new name {new} is in the file, too; remove one of them"
            )
        for arch in MACHINES:
            if at(values, f"defaultShim.{arch}") == old:
                result.changes.append(Change((), {("defaultShim", arch): new}))
        runtimes = at(values, "customRuntimes.runtimes")
        result.changes += [
            Change((), {("customRuntimes", "runtimes", name, "baseConfig"): new})
            for name, runtime in (runtimes if isinstance(runtimes, dict) else {}).items()
            if at(runtime, "baseConfig") == old
        ]
    for name in WITHDRAWN_SHIMS:
        if isinstance(shims, dict) and name in shims:
            result.changes.append(Change(("shims", name)))
            result.notes.append(f"shims.{name}: Kata does not have this shim any more")
    named = (
        {str(name) for name, shim in shims.items() if at(shim, "enabled") is True}
        if isinstance(shims, dict)
        else set()
    )
    if named >= EVERY_SHIM - {"stratovirt"}:
        off = [name for name in ("fc", "stratovirt") if name in named]
        result.changes += [Change((), {("shims", name, "enabled"): None}) for name in off]
        result.notes.append(
            f"the file enables every shim of the older chart; set `enabled: true` for {' and '.join(off)} "
            "yourself if the nodes are prepared for it"
        )
    if at(values, "snapshotter.erofsSnapshotterMode") == "integrity":
        dmverity: dict[Path, object] = {("snapshotter", "erofsDmverity"): True}
        result.changes.append(Change(("snapshotter", "erofsSnapshotterMode"), dmverity))


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value).strip()


def _words(text: str) -> list[str]:
    return [word for word in re.split(r"[\s,]+", text) if word]


def _split(key: str) -> tuple[str, str]:
    """Return a key below ``env`` without its machine type, and the architecture; empty for all."""
    for arch, machine in MACHINES.items():
        base = key.removesuffix(f"_{machine}")
        if base != key and base in ARCH_KEYS:
            return base, arch
    return key, ""


def _known(name: str, result: Conversion, where: str) -> str:
    """Return the present name of a shim; empty, with a note, if Kata does not have it."""
    name = RENAMED_SHIMS.get(name, name)
    if name in table():
        return name
    note = f"{where}: Kata has no shim {name}, so it is left out{did_you_mean(name, table())}"
    if name in WITHDRAWN_SHIMS:
        note = f"{where}: Kata does not have the shim {name} any more"
    if note not in result.notes:
        result.notes.append(note)
    return ""
