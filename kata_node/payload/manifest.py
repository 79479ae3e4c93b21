"""What a payload holds, and which part of it the enabled shims need. Pure: nothing here reads a file.

Paths are relative to the install dir. A payload is believed only after :func:`validate`: whoever
places its entries may rely on every one of them, and every link, staying inside the install dir.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from kata_node.errors import PULL_IMAGE_HINT, PayloadError
from kata_node.payload.validation import PayloadSymlinks, check_path, untrusted_payload
from kata_node.settings.shims import BUILTIN_PREFIX

__all__ = [
    "BUILTIN_PREFIX",
    "SCHEMA",
    "Archive",
    "Entry",
    "Manifest",
    "ShimFiles",
    "from_json",
    "missing_paths",
    "parse_shim_components",
    "select",
    "to_json",
    "validate",
]

SCHEMA = 1
_VIRTIO_FS_PREFIX = "virtio-fs"
"""Of the values of ``shared_fs``, those that start with this use the ``virtio_fs_daemon``."""


class ShimFiles(Protocol):
    """What this module needs to know of a shim; :class:`kata_node.settings.shims.Shim` is one."""

    @property
    def name(self) -> str:
        """``qemu-snp``"""

    @property
    def shim_binary(self) -> str:
        """Path of the program the CRI runtime starts."""

    @property
    def base_config(self) -> str:
        """Path of the configuration the payload brings."""


@dataclass(frozen=True)
class Entry:
    """One file, link or directory of a payload."""

    path: str
    kind: Literal["file", "link", "dir"]
    mode: int
    """Permission bits."""
    size: int = 0
    """Bytes, holes counted; files only, like ``mtime`` (whole seconds) and ``sha256`` (hex)."""
    mtime: int = 0
    sha256: str = ""
    link: str = ""
    """The target as written; links only."""
    component: str = ""
    """The archive it is in; nothing in a directory tree."""
    content: str = ""
    """Of Kata's configuration files, which plans are made from, and of VERSION."""


@dataclass(frozen=True)
class Archive:
    """One component: a ``tar.zst`` below the payload's directory."""

    file: str
    """Path relative to the payload's directory."""
    size: int
    sha256: str
    """Size and digest of the compressed file."""


@dataclass(frozen=True)
class Manifest:
    """Everything a payload holds.

    ``entries`` are sorted by path, then component: in a payload of tarballs, several components may
    have the same path. ``shim_components`` maps shim, then machine name, to components; it and
    ``archives``, by component, are empty for a tree.
    """

    schema: int
    form: Literal["tree", "tarballs"]
    release: str
    entries: tuple[Entry, ...]
    shim_components: Mapping[str, Mapping[str, tuple[str, ...]]]
    archives: Mapping[str, Archive]


def to_json(manifest: Manifest) -> bytes:
    """The manifest as a file: the same manifest gives the same bytes, one value a line."""
    import msgspec.json

    return msgspec.json.format(msgspec.json.encode(manifest, order="deterministic"), indent=1) + b"\n"


def from_json(raw: bytes, where: str) -> Manifest:
    """Read a manifest's bytes; ``where`` names them in errors.

    Raises :class:`PayloadError` when they are cut short, mistyped, or of a schema this program does
    not know. What the entries say is :func:`validate`'s matter.
    """
    import msgspec.json

    try:
        schema = msgspec.json.decode(raw, type=_Header).schema
        if schema == SCHEMA:
            return msgspec.json.decode(raw, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise PayloadError(
            f"the payload's manifest is damaged: {error}",
            where=where,
            hint="write it again with `kata-node payload index`, or pull the image again",
        ) from error
    raise PayloadError(
        f"the payload's manifest has schema {schema}, this kata-node reads {SCHEMA}",
        where=where,
        hint="use payload and kata-node of the same image, or write it again with `kata-node payload index`",
    )


@dataclass(frozen=True)
class _Header:
    schema: int


def parse_shim_components(raw: bytes, where: str) -> dict[str, dict[str, tuple[str, ...]]]:
    """Read Kata's ``shim-components.json``: shim, then machine name, to names of components.

    Raises :class:`PayloadError`.
    """
    import msgspec.json

    try:
        read = msgspec.json.decode(raw, type=_ShimComponents)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise PayloadError(
            f"the map of shims to components is damaged: {error}", where=where, hint=PULL_IMAGE_HINT
        ) from error
    shims = {
        shim: {
            arch: tuple(dict.fromkeys((*names, *read.requiredComponents.get(arch, ()))))
            for arch, names in arches.items()
        }
        for shim, arches in read.shims.items()
    }
    for name in {name for arches in shims.values() for names in arches.values() for name in names}:
        check_path(name, where=where)
        if "/" in name:
            raise untrusted_payload(name, "a component's name cannot have a slash", where=where)
    return shims


@dataclass(frozen=True)
class _ShimComponents:
    shims: dict[str, dict[str, tuple[str, ...]]]
    requiredComponents: dict[str, tuple[str, ...]] = field(default_factory=dict)  # noqa: N815 - the file's key
    """By machine name, what every shim needs besides its own; not in every release of Kata."""


def validate(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    """Check ``entries`` and bring them into the form that can be placed: one per path, parents first.

    A directory several components have becomes one, and so does a file or link that is the same in
    several. A directory that only follows from the paths in it is added with mode 0755. A link's
    target below ``/opt/kata`` is made relative. Set-group-id and sticky bits of directories, which
    build systems leave behind, are dropped; a file with such a bit is refused.

    Raises :class:`PayloadError` on anything that cannot be placed, or that would reach outside the
    install dir.
    """
    found: dict[str, Entry] = {}
    for entry in sorted(entries, key=lambda entry: (entry.path, entry.component)):
        checked = _normalize(entry)
        earlier = found.setdefault(entry.path, checked)
        if earlier.kind != checked.kind or (
            checked.kind != "dir" and not _has_same_content(earlier, checked)
        ):
            raise _conflict_error(earlier, checked)
    for path in list(found):
        for parent in _parents(path):
            above = found.setdefault(parent, Entry(parent, "dir", 0o755, component=found[path].component))
            if above.kind != "dir":
                raise untrusted_payload(path, f"it would lie beneath {parent}, which is a {above.kind}")
    links = PayloadSymlinks({path: entry.link for path, entry in found.items() if entry.kind == "link"})
    for path in links.targets:
        links.resolve(path)
    return tuple(found[path] for path in sorted(found))


def select(
    manifest: Manifest, shims: Iterable[ShimFiles], arch: str, components: Iterable[str] = ()
) -> tuple[Entry, ...]:
    """The entries ``shims`` need on machines of ``arch``, validated: of a tree all there are.

    ``components`` are needed besides. Raises :class:`PayloadError` when the payload lacks a component, or
    does not know a shim.
    """
    if manifest.form == "tree":
        return validate(manifest.entries)
    needed = {component for shim in shims for component in _components(manifest, shim, arch)}
    for component in components:
        if component not in manifest.archives:
            raise PayloadError(
                f"the settings need the component {component}, which the payload lacks",
                where=f"kata-static-{component}.tar.zst",
                hint="use an image whose payload has it, or take what needs it out of the settings",
            )
        needed.add(component)
    return validate(entry for entry in manifest.entries if entry.component in needed)


def _components(manifest: Manifest, shim: ShimFiles, arch: str) -> tuple[str, ...]:
    arches = manifest.shim_components.get(shim.name, {})
    if arch not in arches:
        raise PayloadError(
            f"the payload does not say which components the shim {shim.name} needs on {arch}",
            where="shim-components.json",
            hint=f"leave {shim.name} out of `shims`, or use an image whose payload has it",
        )
    for component in arches[arch]:
        if component not in manifest.archives:
            raise PayloadError(
                f"the shim {shim.name} needs the component {component}, which the payload lacks",
                where=f"kata-static-{component}.tar.zst",
                hint=f"leave {shim.name} out of `shims`, or use an image whose payload has it",
            )
    return arches[arch]


def missing_paths(entries: Iterable[Entry], shim: ShimFiles) -> list[str]:
    """What ``shim`` needs and ``entries`` lack: its program, its configuration, and every file that names.

    Raises :class:`PayloadError` when its configuration is not valid TOML.
    """
    found = {entry.path: entry for entry in entries}
    links = PayloadSymlinks({path: entry.link for path, entry in found.items() if entry.kind == "link"})
    needed = [shim.shim_binary, shim.base_config]
    config = found.get(links.resolve(shim.base_config))
    if config is not None:
        needed += _payload_paths_in(config)
    return [path for path in dict.fromkeys(needed) if links.resolve(path) not in found]


def _payload_paths_in(config: Entry) -> Iterator[str]:
    """The paths of the payload that a Kata configuration names, relative to the install dir."""
    import tomllib

    try:
        data = tomllib.loads(config.content)
    except tomllib.TOMLDecodeError as error:
        raise PayloadError(
            f"this Kata configuration is not valid TOML: {error}", where=config.path, hint=PULL_IMAGE_HINT
        ) from error
    for value in _strings(data):
        if value.startswith(f"{BUILTIN_PREFIX}/"):
            yield posixpath.normpath(value).removeprefix(f"{BUILTIN_PREFIX}/")


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, dict):
        # Confidential guests share no file system: their configurations still name the daemon, and
        # their components are without it.
        needs_virtiofsd = str(value.get("shared_fs", _VIRTIO_FS_PREFIX)).startswith(_VIRTIO_FS_PREFIX)
        for key, item in value.items():
            # What pods may choose by annotation is an offer, not a need.
            if not key.startswith("valid_") and (needs_virtiofsd or key != "virtio_fs_daemon"):
                yield from _strings(item)


def _normalize(entry: Entry) -> Entry:
    check_path(entry.path)
    if entry.kind == "link":
        return replace(entry, link=PayloadSymlinks.relative_target(entry.path, entry.link))
    if entry.kind == "dir":
        return replace(entry, mode=entry.mode & 0o777)
    if entry.mode & ~0o777:
        raise untrusted_payload(entry.path, f"its mode {entry.mode:o} has more than permission bits")
    if entry.size < 0:
        raise untrusted_payload(entry.path, f"its size is {entry.size}")
    return entry


def _has_same_content(one: Entry, other: Entry) -> bool:
    """Whether two entries of a path are the same thing, whenever and with whatever mode it was packed."""
    return (one.size, one.sha256, one.link) == (other.size, other.sha256, other.link)


def _conflict_error(one: Entry, other: Entry) -> PayloadError:
    if one.component == other.component:
        return untrusted_payload(one.path, "it is there twice, and the two differ")
    return PayloadError(
        f"the components {one.component} and {other.component} both have this path, and differ",
        where=one.path,
        hint="enable only shims that need one of the two, or use an image whose components agree",
    )


def _parents(path: str) -> Iterator[str]:
    while path := posixpath.dirname(path):
        yield path
