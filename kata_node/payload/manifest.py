"""The manifest of a payload. Pure.

Paths are relative to the install dir. After :func:`validate`, no entry and no link leads out of the
install dir.
"""

import posixpath
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

from msgspec import Struct, field
from msgspec.structs import replace

from kata_node.errors import PULL_IMAGE_HINT, PayloadError, UnusablePayloadError
from kata_node.payload.validation import MAX_FILE_SIZE, PayloadSymlinks, check_path, untrusted_payload
from kata_node.settings.shims import BUILTIN_PREFIX

__all__ = [
    "BUILTIN_PREFIX",
    "KATA_CTL",
    "SCHEMA",
    "Archive",
    "Entry",
    "Form",
    "Manifest",
    "from_json",
    "has_component",
    "parse_shim_components",
    "symlinks_of",
    "to_json",
    "validate",
]

SCHEMA = 1
KATA_CTL = "kata-ctl"
"""The component with the program kata-ctl, which opens the debug console of a guest."""
_MTIMES = range(-(2**31), 2**31 + 2**33)  # what ext4 stores, in seconds since 1970


Form = Literal["tree", "tarballs", "release"]
"""The form of a payload, see :mod:`kata_node.payload.forms`."""


class Entry(Struct, frozen=True):
    """One file, link or directory of a payload."""

    path: str
    kind: Literal["file", "link", "dir"]
    mode: int
    """Permission bits."""
    size: int = 0
    """Bytes, holes included; files only."""
    mtime: int = 0
    """Whole seconds; files only."""
    sha256: str = ""
    """Hex; files only."""
    link: str = ""
    """The target as written; links only."""
    component: str = ""
    """The component that has the entry, or the archive of a release. Empty in a tree, and for a file of no
    component."""
    content: str = ""
    """The text of files that kata-node reads, see :mod:`kata_node.payload.scan`; empty for other files."""


class Archive(Struct, frozen=True):
    """A ``tar.zst`` archive; size in bytes and digest are those of the compressed file."""

    file: str
    """Path relative to the payload directory."""
    size: int
    sha256: str


class Manifest(Struct, frozen=True):
    """The content of a payload.

    ``entries`` are sorted by path, then component; several components can have the same path.
    ``shim_components`` maps shim, then architecture, to components; it is empty unless the form is
    ``tarballs``. ``archives`` are by component, and of a release by the name of the archive. They are empty
    for a tree. Archives whose entries were not read have no digest.
    """

    schema: int
    form: Form
    release: str
    entries: tuple[Entry, ...]
    shim_components: Mapping[str, Mapping[str, tuple[str, ...]]]
    archives: Mapping[str, Archive]


def to_json(manifest: Manifest) -> bytes:
    """Return the bytes of the manifest file, one value per line. The bytes depend only on the manifest."""
    import msgspec.json

    return msgspec.json.format(msgspec.json.encode(manifest, order="deterministic"), indent=1) + b"\n"


def from_json(raw: bytes, where: str) -> Manifest:
    """Parse a manifest file; ``where`` is its path for errors.

    Raises :class:`PayloadError` if it is incomplete, has a wrong type or has another schema.
    It does not check the entries, see :func:`validate`.
    """
    index_command = f"`kata-node payload index {posixpath.dirname(where)}`"
    import msgspec.json

    try:
        schema = msgspec.json.decode(raw, type=_Header).schema
        if schema == SCHEMA:
            return msgspec.json.decode(raw, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UnusablePayloadError(
            f"the payload's manifest is damaged: {error}",
            where=where,
            hint=f"run {index_command} when you build the image, or pull the image again",
        ) from error
    raise UnusablePayloadError(
        f"the payload's manifest has schema {schema}, but this kata-node reads schema {SCHEMA}",
        where=where,
        hint=f"use the payload and the kata-node of one image, or run {index_command}",
    )


class _Header(Struct, frozen=True):
    schema: int


def parse_shim_components(raw: bytes, where: str) -> dict[str, dict[str, tuple[str, ...]]]:
    """Parse Kata's ``shim-components.json`` into components by shim and architecture.

    Raises :class:`PayloadError`; ``where`` is the path of the file.
    """
    import msgspec.json

    try:
        read = msgspec.json.decode(raw, type=_ShimComponents)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UnusablePayloadError(
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
            raise untrusted_payload(name, "the name of a component contains a slash", where=where)
    return shims


class _ShimComponents(Struct, frozen=True):
    shims: dict[str, dict[str, tuple[str, ...]]]
    requiredComponents: dict[str, tuple[str, ...]] = field(default_factory=dict)  # noqa: N815 - the file's key
    """Components that every shim needs, by architecture. Not every release of Kata has this key."""


def validate(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    """Check ``entries`` and return them normalized: one entry per path, parents first.

    A directory, or an identical file or link, that several components have becomes one entry. Missing
    parent directories are added with mode 0755. Link targets below ``/opt/kata`` become relative. Modes lose
    the write bits of group and others, because root runs these files. Setuid, setgid and sticky bits are
    removed from directories (build systems leave them there).

    Raises :class:`PayloadError` if an entry cannot be placed, leads out of the install dir, or is a file
    with such a bit.
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
        for parent in parents(path):
            above = found.get(parent)
            if above is None:
                found[parent] = Entry(parent, "dir", 0o755, component=found[path].component)
            elif above.kind == "dir":
                break  # the parents of that directory are checked too
            else:
                raise untrusted_payload(path, f"the parent {parent} of this path is a {above.kind}")
    links = symlinks_of(found.values())
    for path in links.targets:
        links.resolve(path)
    return tuple(found[path] for path in sorted(found))


def symlinks_of(entries: Iterable[Entry]) -> PayloadSymlinks:
    """Return the symlinks among ``entries``."""
    return PayloadSymlinks({entry.path: entry.link for entry in entries if entry.kind == "link"})


def has_component(manifest: Manifest, component: str) -> bool:
    """Return whether the payload has files of ``component``: an archive, or files beside the archives."""
    return component in manifest.archives or any(entry.component == component for entry in manifest.entries)


def _normalize(entry: Entry) -> Entry:
    check_path(entry.path)
    if entry.kind == "link":
        return replace(entry, link=PayloadSymlinks.relative_target(entry.path, entry.link))
    if entry.kind == "dir":
        return replace(entry, mode=entry.mode & 0o755)
    if entry.mode & ~0o777:
        raise untrusted_payload(
            entry.path, f"the mode {entry.mode:o} of this file has bits other than permission bits"
        )
    if entry.mtime not in _MTIMES:
        raise untrusted_payload(entry.path, f"no file can have the time {entry.mtime} of this file")
    if not 0 <= entry.size <= MAX_FILE_SIZE:
        raise untrusted_payload(
            entry.path, f"the size {entry.size} of this file is negative or more than {MAX_FILE_SIZE} bytes"
        )
    return replace(entry, mode=entry.mode & 0o755) if entry.mode & 0o022 else entry


def _has_same_content(one: Entry, other: Entry) -> bool:
    """Return whether two entries of one path and kind are identical, apart from mode and mtime."""
    return (one.size, one.sha256, one.link) == (other.size, other.sha256, other.link)


def _conflict_error(one: Entry, other: Entry) -> PayloadError:
    if one.component == other.component:
        return untrusted_payload(one.path, "this path occurs twice with different content")
    return UnusablePayloadError(
        f"the components {one.component} and {other.component} both have this path, with different content",
        where=one.path,
        hint="enable only shims that need one of these components, or use another image",
    )


def parents(path: str) -> Iterator[str]:
    """Yield the directories above ``path``, the nearest first."""
    while path := posixpath.dirname(path):
        yield path
