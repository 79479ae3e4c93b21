"""Reads and writes the index of a payload, which has one of the forms of :mod:`kata_node.payload.forms`.

The index comes from the payload's manifest. Without a manifest, the files of the payload are read: all of a
tree, and of archives only those that the caller needs.

The release is read from ``opt/kata/VERSION``, or from a ``VERSION`` file beside the archives or in the
payload directory, or from the names of the archives of a release.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from kata_node.bounded_read import read_bounded
from kata_node.errors import PULL_IMAGE_HINT, PayloadError, UnusablePayloadError, UsageError
from kata_node.payload.forms import (
    FILES_BESIDE,
    SHIM_COMPONENTS_FILE,
    TARBALLS_DIR,
    TREE_DIR,
    detect_form,
    find_component_archives,
    find_files_beside,
    find_release_archives,
    parse_release_name,
    paths_beside_archives,
)
from kata_node.payload.manifest import (
    SCHEMA,
    Archive,
    Entry,
    Form,
    Manifest,
    from_json,
    parse_shim_components,
    to_json,
    validate,
)
from kata_node.payload.selection import ShimFiles, select
from kata_node.payload.validation import VERSION_FILE, check_path, member_path, wrap_read_errors

if TYPE_CHECKING:
    from kata_node.host.archive import Digest
    from kata_node.host.spool import Spool

__all__ = ["Payload", "build_manifest", "fingerprint", "load", "write_manifest"]

MANIFEST_FILE = "manifest.json"
MAX_MANIFEST_SIZE = 256 << 20  # bytes; the manifest of a payload with 10,000 files has about 4 MiB

Needs = Callable[[Manifest], Collection[str]]
"""Returns the names of the archives to read. Its argument has all archives, and no entry of them."""

log = logging.getLogger(__name__)


class Payload(Struct, frozen=True, dict=True):
    """A payload and its manifest."""

    path: Path
    """The directory, or the archive of a release."""
    manifest: Manifest
    spool: Spool | None = None
    """The content of files that was written on the host while the archives were read."""

    def select(self, shims: Iterable[ShimFiles], arch: str) -> tuple[Entry, ...]:
        """Return the entries that ``shims`` need, see :func:`kata_node.payload.selection.select`."""
        return select(self.manifest, shims, arch)

    def file(self, path: str) -> str:
        """Return the real path of a file that is in no archive; ``path`` is relative to the install dir."""
        if self.manifest.form == "tree":
            return os.path.join(self.path, TREE_DIR, path)
        first, second = paths_beside_archives(self.path, path)
        return str(first if first.exists() else second)

    def archive(self, component: str) -> tuple[Path, Digest] | None:
        """Return the real path of an archive, and its size and digest from the manifest.

        ``None`` if the files of the component are in no archive.
        """
        from kata_node.host.archive import Digest

        archive = self.manifest.archives.get(component)
        if archive is None:
            return None
        return _archive_dir(self.path) / archive.file, Digest(archive.size, archive.sha256)

    def member(self, component: str, name: str) -> Entry | None:
        """Return the manifest entry of the file ``name`` in an archive, or ``None`` if there is none."""
        return self._files.get((component, member_path(name)))

    @functools.cached_property
    def _files(self) -> Mapping[tuple[str, str], Entry]:
        entries = self.manifest.entries
        return {(entry.component, entry.path): entry for entry in entries if entry.kind == "file"}


def build_manifest(
    payload: Path,
    wanted: Collection[str] | None = None,
    spool: Spool | None = None,
    *,
    digests: bool = True,
) -> Manifest:
    """Read the files of ``payload`` and return its manifest. ``spool`` gets the files of archives.

    With ``wanted``, only the archives of these names are read. The manifest has the others without their
    entries and digests. Without ``digests``, only those archives are hashed that have a path of another one,
    because the digests tell whether they agree. Logs a warning if two archives have the same path with
    different content.
    Raises :class:`PayloadError`.
    """
    from kata_node.payload.scan import map_in_threads, scan_archive, scan_tree

    form = detect_form(payload)
    if form == "tree":
        entries = validate(scan_tree(payload / TREE_DIR, digests=digests))
        return Manifest(SCHEMA, form, _release(payload, entries), entries, {}, {})
    outline, archives = _outline(payload)
    # Start with the largest archive, so that it does not run alone at the end.
    read_names = archives if wanted is None else archives.keys() & wanted
    names = sorted(read_names, key=lambda name: -outline.archives[name].size)
    scans = map_in_threads(lambda name: scan_archive(archives[name], name, spool, digests=digests), names)
    if not digests:
        shared = _components_with_shared_files(found for found, _ in scans)
        for at, name in enumerate(names):
            if name in shared:
                scans[at] = scan_archive(archives[name], name)
    packed = [entry for found, _ in scans for entry in validate(found)]
    paths = {entry.path for entry in packed}
    packed += [entry for entry in _entries_beside(payload) if entry.path not in paths]
    entries = tuple(sorted(packed, key=lambda entry: (entry.path, entry.component)))
    try:
        validate(entries)
    except PayloadError as error:
        # This matters only if the enabled shims need both archives; `select` refuses that case.
        log.warning("some shims of this payload cannot be installed together: %s", error)
    read = {
        name: replace(outline.archives[name], size=digest.size, sha256=digest.sha256)
        for name, (_, digest) in zip(names, scans, strict=True)
    }
    return replace(
        outline,
        release=outline.release or _release(payload, entries),
        entries=entries,
        archives={**outline.archives, **read},
    )


def _components_with_shared_files(scans: Iterable[Iterable[Entry]]) -> set[str]:
    """Return the components that have a file at the path of another file."""
    first: dict[str, str] = {}
    shared: set[str] = set()
    for entry in (entry for found in scans for entry in found if entry.kind == "file"):
        if entry.path in first:
            shared |= {entry.component, first[entry.path]}
        first[entry.path] = entry.component
    return shared


def _outline(payload: Path) -> tuple[Manifest, dict[str, Path]]:
    """Return the manifest of archives of which none was read, and the real paths of the archives."""
    form = detect_form(payload)
    shims: Mapping[str, Mapping[str, tuple[str, ...]]] = {}
    beside: tuple[Entry, ...] = ()
    if form == "release":
        archives = find_release_archives(payload)
    else:
        shims = _components(payload)
        archives = dict(sorted(find_component_archives(payload, shims).items()))
        names = find_files_beside(payload)
        beside = tuple(Entry(name, "file", 0, component=FILES_BESIDE[name]) for name in names)
    release = next((each.version for name in archives if (each := parse_release_name(name))), "")
    base = _archive_dir(payload)
    with wrap_read_errors(payload):
        found = {
            name: Archive(str(path.relative_to(base)), path.stat().st_size, "")
            for name, path in archives.items()
        }
    return Manifest(SCHEMA, form, release, beside, shims, found), archives


def _archive_dir(payload: Path) -> Path:
    """Return the directory that the paths of the archives are relative to."""
    return payload.parent if payload.is_file() else payload


def write_manifest(directory: Path) -> Path:
    """Write the manifest of the payload in ``directory`` and return its path.

    The bytes depend only on the payload. Raises :class:`PayloadError`, and :class:`UsageError` for the
    archives of a release.
    """
    from kata_node.host.atomic_replace import finish, replacing

    if detect_form(directory) == "release":
        raise UsageError(
            "the archives of a Kata release get no manifest, because they are not part of an image",
            where=str(directory),
            hint="install from them without a manifest, or unpack them and index the directory",
        )
    content = to_json(build_manifest(directory))
    path = directory / MANIFEST_FILE
    try:
        with replacing(path) as temp, temp.open("xb") as file:
            file.write(content)
            file.flush()
            finish(file.fileno(), 0o644)
    except OSError as error:
        raise PayloadError(
            f"the manifest cannot be written: {error.strerror or error}",
            where=str(path),
            hint=f"run `kata-node payload index {directory}` when you build the image, as a user who can "
            "write to this directory",
        ) from error
    return path


def load(
    payload: Path, needs: Needs | None = None, spool: Spool | None = None, *, digests: bool = True
) -> Payload:
    """Return the payload in ``payload``, from its manifest or, without one, by reading its files.

    Without a manifest, only the archives that ``needs`` names are read; see :func:`build_manifest`. Their
    files go into ``spool``, and the payload takes them from there when they are placed. Nothing can be placed
    of a payload without ``digests``.
    Raises :class:`PayloadError`, also if the names or sizes of files differ from the manifest.
    A difference in content is found when the files are placed.
    """
    form = detect_form(payload)
    path = payload / MANIFEST_FILE
    raw = None if form == "release" else _read(path)
    if raw is None:
        wanted = None if needs is None or form == "tree" else frozenset(needs(_outline(payload)[0]))
        return Payload(payload, _cached_manifest(payload, wanted, spool, digests), spool)
    manifest = from_json(raw, where=str(path))
    if manifest.form != form:
        raise _mismatch_error(path, f"the manifest describes {manifest.form}, the directory has {form}")
    if form == "tree":
        _check_tree(payload, manifest, path)
    else:
        _check_archives(payload, manifest, path)
    return Payload(payload, manifest)


_cache: dict[tuple[Path, str, frozenset[str] | None, bool], Manifest] = {}


def _cached_manifest(
    payload: Path, wanted: frozenset[str] | None, spool: Spool | None, digests: bool
) -> Manifest:
    """Return the manifest of a payload without a manifest file. Cached, because a stage asks again.

    ``wanted`` are the archives to read; ``None`` means every file. ``spool`` gets nothing from the cache.
    """
    key = (payload, fingerprint(payload), wanted, digests)
    if key not in _cache:
        if wanted is None:
            log.info("reading every file of %s, which has no %s", payload, MANIFEST_FILE)
        else:
            log.info("reading archives of %s: %s", payload, ", ".join(sorted(wanted)) or "none")
        found = build_manifest(payload, wanted, spool, digests=digests)
        _cache.clear()
        _cache[key] = found
    return _cache[key]


def fingerprint(payload: Path) -> str:
    """Return a text that changes whenever the payload changes, without reading the payload.

    It is the digest of the manifest. Without a manifest, it is a digest of the name, size and time of every
    archive. In a tree, where files of the same size and time are more likely, the change time and the inode
    of every file count too. Raises :class:`UsageError` if ``payload`` has no payload, and
    :class:`PayloadError` if it cannot be read.
    """
    form = detect_form(payload)
    manifest = None if form == "release" else _read(payload / MANIFEST_FILE)
    if manifest is not None:
        return hashlib.sha256(manifest).hexdigest()
    digest = hashlib.sha256()
    base = _archive_dir(payload)
    with wrap_read_errors(payload):
        for path in _files_of(payload, form):
            info = path.lstat() if form == "tree" else path.stat()
            stat_fields = [info.st_size, info.st_mtime_ns]
            if form == "tree":
                stat_fields += [info.st_ctime_ns, info.st_ino, info.st_dev]
            digest.update(os.fsencode(f"{path.relative_to(base)}\0{stat_fields}\0"))
    for name in () if form == "release" else (SHIM_COMPONENTS_FILE, VERSION_FILE):
        digest.update(_read(payload / name) or b"\0")
    return digest.hexdigest()


def _files_of(payload: Path, form: Form) -> Iterable[Path]:
    """Return the real paths of the files that make up the payload."""
    if form == "release":
        return find_release_archives(payload).values()
    directory = payload / (TREE_DIR if form == "tree" else TARBALLS_DIR)
    below = sorted(Path(base, file) for base, _, files in os.walk(directory) for file in files)
    return (*below, *find_files_beside(payload).values())


def _components(directory: Path) -> dict[str, dict[str, tuple[str, ...]]]:
    for path in paths_beside_archives(directory, SHIM_COMPONENTS_FILE):
        if (raw := _read(path)) is not None:
            return parse_shim_components(raw, where=str(path))
    raise UnusablePayloadError(
        "the payload has archives, but no file that maps shims to them",
        where=str(directory / TARBALLS_DIR / SHIM_COMPONENTS_FILE),
        hint=PULL_IMAGE_HINT,
    )


def _entries_beside(directory: Path) -> Iterator[Entry]:
    """Yield the entries of the files beside the archives."""
    for name, path in find_files_beside(directory).items():
        component = FILES_BESIDE[name]
        with wrap_read_errors(path), path.open("rb") as file:
            info = os.fstat(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        mode = 0o755 if component else 0o644
        yield Entry(name, "file", mode, info.st_size, int(info.st_mtime), digest, component=component)


def _release(directory: Path, entries: Iterable[Entry]) -> str:
    """Return the release of the payload, or ``""`` if it has no VERSION file."""
    inside = [entry.content for entry in entries if entry.path == VERSION_FILE]
    beside = [_read(path) for path in paths_beside_archives(directory, VERSION_FILE)]
    texts = [*inside, *(raw.decode(errors="replace") for raw in beside if raw)]
    first_line = texts[0].strip().partition("\n")[0] if texts else ""
    return first_line if first_line.isprintable() else ""


def _check_tree(directory: Path, manifest: Manifest, path: Path) -> None:
    with wrap_read_errors(directory):
        found = {entry.name for entry in os.scandir(directory / TREE_DIR)}
    listed = {entry.path for entry in manifest.entries if "/" not in entry.path}
    if found != listed:
        raise _mismatch_error(path, f"only one of them has {', '.join(sorted(found ^ listed))}")


def _check_archives(directory: Path, manifest: Manifest, path: Path) -> None:
    if _components(directory) != manifest.shim_components:
        raise _mismatch_error(path, f"{SHIM_COMPONENTS_FILE} differs")
    beside = find_files_beside(directory)
    for entry in manifest.entries:
        if entry.kind == "file" and entry.component not in manifest.archives:
            with wrap_read_errors(directory):
                if entry.path not in beside or beside[entry.path].stat().st_size != entry.size:
                    raise _mismatch_error(path, f"{entry.path} differs")
    found = find_component_archives(directory, manifest.shim_components)
    if unknown := sorted(found.keys() - manifest.archives.keys()):
        raise _mismatch_error(path, f"the manifest does not list the archives of {', '.join(unknown)}")
    for name, archive in manifest.archives.items():
        check_path(archive.file, where=str(path))
        if name not in found:
            raise UnusablePayloadError(
                "the archive is missing", where=str(directory / archive.file), hint=PULL_IMAGE_HINT
            )
        with wrap_read_errors(found[name]):
            size = found[name].stat().st_size
        if size != archive.size:
            raise UnusablePayloadError(
                f"the archive has {size} bytes, but the manifest has {archive.size} for it",
                where=str(found[name]),
                hint=f"{PULL_IMAGE_HINT}; if you replaced the archive on purpose, "
                f"run `kata-node payload index {directory}`",
            )


def _read(path: Path) -> bytes | None:
    with wrap_read_errors(path):
        try:
            return read_bounded(path, MAX_MANIFEST_SIZE)[0]
        except FileNotFoundError:
            return None


def _mismatch_error(path: Path, reason: str) -> UnusablePayloadError:
    return UnusablePayloadError(
        f"the manifest does not match the payload: {reason}",
        where=str(path),
        hint=f"run `kata-node payload index {path.parent}` when you build the image, or pull the image again",
    )
