"""Reads and writes the index of a payload directory.

The index comes from the payload's manifest. Without a manifest, every file of the payload is read.

The directory is part of the image, so its path is not relative to the host root. It has one of two forms:

- a tree, ``opt/kata/**``;
- archives, ``tarballs/kata-static-<component>.tar.zst``, with Kata's ``shim-components.json`` beside
  them or in the payload directory. Of the archives that this file does not list, only the
  :data:`EXTRA_COMPONENTS` are used. The :data:`FILES_BESIDE` can be at the same two places.

The release is read from ``opt/kata/VERSION``, or from a ``VERSION`` file beside the archives or in the
payload directory.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from kata_node.bounded_read import read_bounded
from kata_node.errors import PULL_IMAGE_HINT, PayloadError, UnusablePayloadError, UsageError
from kata_node.kata import devkit
from kata_node.payload.manifest import (
    BUILTIN_PREFIX,
    KATA_CTL,
    SCHEMA,
    Archive,
    Entry,
    Manifest,
    ShimFiles,
    from_json,
    parse_shim_components,
    select,
    to_json,
    validate,
)
from kata_node.payload.validation import VERSION_FILE, check_path, member_path, wrap_read_errors
from kata_node.snapshotters.mapping import NYDUS_COMPONENT

if TYPE_CHECKING:
    from kata_node.host.archive import Digest

__all__ = ["Payload", "build_manifest", "fingerprint", "load", "write_manifest"]

MANIFEST_FILE = "manifest.json"
SHIM_COMPONENTS_FILE = "shim-components.json"
TREE_DIR = BUILTIN_PREFIX.removeprefix("/")
TARBALLS_DIR = "tarballs"
EXTRA_COMPONENTS = (KATA_CTL, devkit.COMPONENT, NYDUS_COMPONENT)
"""The components that no shim needs, but some settings do."""

FILES_BESIDE = {
    "versions.yaml": "",
    f"{NYDUS_COMPONENT}/containerd-nydus-grpc": NYDUS_COMPONENT,
    f"{NYDUS_COMPONENT}/nydus-overlayfs": NYDUS_COMPONENT,
}
"""Files that the public image has beside the archives: path in the install dir, and component."""
MAX_MANIFEST_SIZE = 256 << 20  # bytes; the manifest of a payload with 10,000 files has about 4 MiB

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Payload:
    """A payload directory and its manifest."""

    directory: Path
    manifest: Manifest

    def select(self, shims: Iterable[ShimFiles], arch: str) -> tuple[Entry, ...]:
        """Return the entries that ``shims`` need, see :func:`kata_node.payload.manifest.select`."""
        return select(self.manifest, shims, arch)

    def file(self, path: str) -> Path:
        """Return the real path of a file that is in no archive; ``path`` is relative to the install dir."""
        if self.manifest.form == "tree":
            return self.directory / TREE_DIR / path
        first, second = _beside_archives(self.directory, path)
        return first if first.exists() else second

    def archive(self, component: str) -> tuple[Path, Digest] | None:
        """Return the real path of a component's archive, and its size and digest from the manifest.

        ``None`` if the files of the component are in no archive.
        """
        from kata_node.host.archive import Digest

        archive = self.manifest.archives.get(component)
        if archive is None:
            return None
        return self.directory / archive.file, Digest(archive.size, archive.sha256)

    def member(self, component: str, name: str) -> Entry | None:
        """Return the manifest entry of the file ``name`` in an archive, or ``None`` if there is none."""
        return self._files.get((component, member_path(name)))

    @functools.cached_property
    def _files(self) -> Mapping[tuple[str, str], Entry]:
        entries = self.manifest.entries
        return {(entry.component, entry.path): entry for entry in entries if entry.kind == "file"}


def build_manifest(directory: Path) -> Manifest:
    """Read every file of the payload in ``directory`` and return its manifest.

    Logs a warning if two components have the same path with different content.
    Raises :class:`PayloadError`.
    """
    from kata_node.payload.scan import map_in_threads, scan_archive, scan_tree

    if _detect_form(directory) == "tree":
        entries = validate(scan_tree(directory / TREE_DIR))
        return Manifest(SCHEMA, "tree", _release(directory, entries), entries, {}, {})
    shims = _components(directory)
    archives = _archives(directory, shims)
    # Start with the largest archive, so that it does not run alone at the end.
    names = sorted(archives, key=lambda name: -archives[name].stat().st_size)
    scans = map_in_threads(lambda name: scan_archive(archives[name], name), names)
    packed = [entry for found, _ in scans for entry in validate(found)]
    paths = {entry.path for entry in packed}
    packed += [entry for entry in _entries_beside(directory) if entry.path not in paths]
    entries = tuple(sorted(packed, key=lambda entry: (entry.path, entry.component)))
    try:
        validate(entries)
    except PayloadError as error:
        # This matters only if the enabled shims need both components; `select` refuses that case.
        log.warning("some shims of this payload cannot be installed together: %s", error)
    digests = {
        name: Archive(f"{TARBALLS_DIR}/{archives[name].name}", digest.size, digest.sha256)
        for name, (_, digest) in sorted(zip(names, scans, strict=True))
    }
    return Manifest(SCHEMA, "tarballs", _release(directory, entries), entries, shims, digests)


def write_manifest(directory: Path) -> Path:
    """Write the manifest of the payload in ``directory`` and return its path.

    The bytes depend only on the payload. Raises :class:`PayloadError`.
    """
    from kata_node.host.atomic_replace import finish, replacing

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


def load(directory: Path) -> Payload:
    """Return the payload in ``directory``, from its manifest or, without one, by reading every file.

    Raises :class:`PayloadError`, also if the names or sizes of files differ from the manifest.
    A difference in content is found when the files are placed.
    """
    form = _detect_form(directory)
    path = directory / MANIFEST_FILE
    raw = _read(path)
    if raw is None:
        return Payload(directory, _cached_manifest(directory, fingerprint(directory)))
    manifest = from_json(raw, where=str(path))
    if manifest.form != form:
        raise _mismatch_error(path, f"the manifest describes {manifest.form}, the directory has {form}")
    if form == "tree":
        _check_tree(directory, manifest, path)
    else:
        _check_archives(directory, manifest, path)
    return Payload(directory, manifest)


@functools.lru_cache(maxsize=1)
def _cached_manifest(directory: Path, fingerprint: str) -> Manifest:
    """Return the manifest of a payload that has no manifest file. Cached, because several stages ask."""
    log.info("reading every file of %s, which has no %s", directory, MANIFEST_FILE)
    return build_manifest(directory)


def fingerprint(directory: Path) -> str:
    """Return a text that changes whenever the payload changes, without reading the payload.

    It is the digest of the manifest. Without a manifest, it is a digest of the name, size, times and
    inode of every file. Raises :class:`UsageError` if ``directory`` has no payload, and
    :class:`PayloadError` if it cannot be read.
    """
    form = _detect_form(directory)
    manifest = _read(directory / MANIFEST_FILE)
    if manifest is not None:
        return hashlib.sha256(manifest).hexdigest()
    digest = hashlib.sha256()
    with wrap_read_errors(directory):
        paths = _files_below(directory, TREE_DIR if form == "tree" else TARBALLS_DIR)
        for path in (*paths, *_files_beside(directory).values()):
            info = path.lstat()
            stat_fields = (info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino, info.st_dev)
            digest.update(os.fsencode(f"{path.relative_to(directory)}\0{stat_fields}\0"))
    for name in (SHIM_COMPONENTS_FILE, VERSION_FILE):
        digest.update(_read(directory / name) or b"\0")
    return digest.hexdigest()


def _detect_form(directory: Path) -> Literal["tree", "tarballs"]:
    tree, tarballs = (directory / TREE_DIR).is_dir(), (directory / TARBALLS_DIR).is_dir()
    if tree != tarballs:
        return "tree" if tree else "tarballs"
    if not directory.is_dir():
        raise UsageError(
            f"the payload {'is not a directory' if directory.exists() else 'directory does not exist'}",
            where=str(directory),
            hint="set --payload to the directory with the Kata files",
        )
    raise UsageError(
        f"the payload has {'both' if tree else 'neither'} a directory {TREE_DIR} "
        f"{'and' if tree else 'nor'} a directory {TARBALLS_DIR}",
        where=str(directory),
        hint="set --payload to a directory that has exactly one of the two",
    )


def _components(directory: Path) -> dict[str, dict[str, tuple[str, ...]]]:
    for path in _beside_archives(directory, SHIM_COMPONENTS_FILE):
        if (raw := _read(path)) is not None:
            return parse_shim_components(raw, where=str(path))
    raise UnusablePayloadError(
        "the payload has archives, but no file that maps shims to them",
        where=str(directory / TARBALLS_DIR / SHIM_COMPONENTS_FILE),
        hint=PULL_IMAGE_HINT,
    )


def _archives(directory: Path, shims: Mapping[str, Mapping[str, Iterable[str]]]) -> dict[str, Path]:
    """Return the existing archives, by component: those that ``shims`` lists for any architecture, and the
    :data:`EXTRA_COMPONENTS`."""
    names = {name for arches in shims.values() for needs in arches.values() for name in needs}
    names.update(EXTRA_COMPONENTS)
    paths = {name: directory / TARBALLS_DIR / f"kata-static-{name}.tar.zst" for name in names}
    return {name: path for name, path in paths.items() if path.is_file()}


def _beside_archives(directory: Path, name: str) -> tuple[Path, Path]:
    """Return the paths of the file ``name`` beside the archives. If both exist, the first one counts."""
    return directory / TARBALLS_DIR / name, directory / name


def _files_beside(directory: Path) -> dict[str, Path]:
    """Return the real paths of the files beside the archives, by their paths in the install dir."""
    found: dict[str, Path] = {}
    for name in FILES_BESIDE:
        for path in _beside_archives(directory, name):
            if path.is_file() and not path.is_symlink():
                found.setdefault(name, path)
    return found


def _entries_beside(directory: Path) -> Iterator[Entry]:
    """Yield the entries of the files beside the archives."""
    for name, path in _files_beside(directory).items():
        component = FILES_BESIDE[name]
        with wrap_read_errors(path), path.open("rb") as file:
            info = os.fstat(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        mode = 0o755 if component else 0o644
        yield Entry(name, "file", mode, info.st_size, int(info.st_mtime), digest, component=component)


def _release(directory: Path, entries: Iterable[Entry]) -> str:
    """Return the release of the payload, or ``""`` if it has no VERSION file."""
    inside = [entry.content for entry in entries if entry.path == VERSION_FILE]
    beside = [_read(path) for path in _beside_archives(directory, VERSION_FILE)]
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
    beside = _files_beside(directory)
    for entry in manifest.entries:
        if entry.kind == "file" and entry.component not in manifest.archives:
            with wrap_read_errors(directory):
                if entry.path not in beside or beside[entry.path].stat().st_size != entry.size:
                    raise _mismatch_error(path, f"{entry.path} differs")
    found = _archives(directory, manifest.shim_components)
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


def _files_below(directory: Path, name: str) -> list[Path]:
    return sorted(Path(base, file) for base, _, files in os.walk(directory / name) for file in files)


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
