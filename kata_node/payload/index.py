"""A payload's directory: what is in it, from its manifest or else by reading all of it.

The directory is a real one, in the image, and not below the host's root. It has one of two forms:

- a tree, ``opt/kata/**``;
- archives, ``tarballs/kata-static-<component>.tar.zst``, with Kata's ``shim-components.json`` beside
  them or in the payload's directory. Archives that it does not name are passed over.

``opt/kata/VERSION``, or a ``VERSION`` file where ``shim-components.json`` may lie, names the release.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from kata_node.errors import PULL_IMAGE_HINT, PayloadError
from kata_node.payload.manifest import (
    BUILTIN_PREFIX,
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

if TYPE_CHECKING:
    from kata_node.host.archive import Digest

__all__ = ["Payload", "build_manifest", "fingerprint", "load", "write_manifest"]

MANIFEST_FILE = "manifest.json"
SHIM_COMPONENTS_FILE = "shim-components.json"
TREE_DIR = BUILTIN_PREFIX.removeprefix("/")
TARBALLS_DIR = "tarballs"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Payload:
    """A payload that can be placed: where it lies, and what is in it."""

    directory: Path
    manifest: Manifest

    def select(self, shims: Iterable[ShimFiles], arch: str) -> tuple[Entry, ...]:
        """The entries ``shims`` need: :func:`kata_node.payload.manifest.select`."""
        return select(self.manifest, shims, arch)

    def file(self, path: str) -> Path:
        """The real path of a file of a tree."""
        return self.directory / TREE_DIR / path

    def archive(self, component: str) -> tuple[Path, Digest]:
        """The real path of an archive, and the digest the manifest has of it."""
        from kata_node.host.archive import Digest

        archive = self.manifest.archives[component]
        return self.directory / archive.file, Digest(archive.size, archive.sha256)

    def member(self, component: str, name: str) -> Entry | None:
        """What the manifest says of the file an archive has under ``name``; ``None`` if nothing."""
        return self._files.get((component, member_path(name)))

    @functools.cached_property
    def _files(self) -> Mapping[tuple[str, str], Entry]:
        entries = self.manifest.entries
        return {(entry.component, entry.path): entry for entry in entries if entry.kind == "file"}


def build_manifest(directory: Path) -> Manifest:
    """Read all of the payload in ``directory``. Raises :class:`PayloadError`."""
    from kata_node.payload.scan import map_in_threads, scan_archive, scan_tree

    if _detect_form(directory) == "tree":
        entries = validate(scan_tree(directory / TREE_DIR))
        return Manifest(SCHEMA, "tree", _release(directory, entries), entries, {}, {})
    shims = _components(directory)
    archives = _archives(directory, shims)
    # The largest first, so that no thread is left alone with a long one in the end.
    names = sorted(archives, key=lambda name: -archives[name].stat().st_size)
    scans = map_in_threads(lambda name: scan_archive(archives[name], name), names)
    entries = tuple(entry for found, _ in scans for entry in validate(found))
    entries = tuple(sorted(entries, key=lambda entry: (entry.path, entry.component)))
    try:
        validate(entries)
    except PayloadError as error:
        # Only of importance where shims that need both are enabled; there it is refused.
        log.warning("not every set of shims can be installed from this payload: %s", error)
    digests = {
        name: Archive(f"{TARBALLS_DIR}/{archives[name].name}", digest.size, digest.sha256)
        for name, (_, digest) in sorted(zip(names, scans, strict=True))
    }
    return Manifest(SCHEMA, "tarballs", _release(directory, entries), entries, shims, digests)


def write_manifest(directory: Path) -> Path:
    """Write the manifest of the payload in ``directory`` and return its path.

    The same payload gives the same bytes. Raises :class:`PayloadError`.
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
            hint="run this when the image is built, as a user who may write there",
        ) from error
    return path


def load(directory: Path) -> Payload:
    """What is in ``directory``: by its manifest if there is one, else by reading all of it.

    A manifest that plainly belongs to another payload is refused here; one whose files have changed
    unseen, when they are placed. Raises :class:`PayloadError`.
    """
    form = _detect_form(directory)
    path = directory / MANIFEST_FILE
    raw = _read(path)
    if raw is None:
        return Payload(directory, _cached_manifest(directory, fingerprint(directory)))
    manifest = from_json(raw, where=str(path))
    if manifest.form != form:
        raise _mismatch_error(path, f"it is of a payload of the form {manifest.form}")
    if form == "tree":
        _check_tree(directory, manifest, path)
    else:
        _check_archives(directory, manifest, path)
    return Payload(directory, manifest)


@functools.lru_cache(maxsize=1)
def _cached_manifest(directory: Path, fingerprint: str) -> Manifest:
    """The index, which takes a while to make and which one stage after the other asks for."""
    log.info("%s has no %s: reading all of it", directory, MANIFEST_FILE)
    return build_manifest(directory)


def fingerprint(directory: Path) -> str:
    """What tells one payload from another without reading it: the same text, the same payload.

    The digest of the manifest; without one, of the name, size, times and inode of every file.
    Raises :class:`PayloadError` when ``directory`` holds no payload.
    """
    form = _detect_form(directory)
    manifest = _read(directory / MANIFEST_FILE)
    if manifest is not None:
        return hashlib.sha256(manifest).hexdigest()
    digest = hashlib.sha256()
    with wrap_read_errors(directory):
        for path in _files_below(directory, TREE_DIR if form == "tree" else TARBALLS_DIR):
            info = path.lstat()
            stat_fields = (info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino, info.st_dev)
            digest.update(os.fsencode(f"{path.relative_to(directory)}\0{stat_fields}\0"))
    for name in (SHIM_COMPONENTS_FILE, "VERSION"):
        digest.update(_read(directory / name) or b"\0")
    return digest.hexdigest()


def _detect_form(directory: Path) -> Literal["tree", "tarballs"]:
    tree, tarballs = (directory / TREE_DIR).is_dir(), (directory / TARBALLS_DIR).is_dir()
    if tree != tarballs:
        return "tree" if tree else "tarballs"
    if not directory.is_dir():
        raise PayloadError(
            f"{'it is not a' if directory.exists() else 'there is no such'} directory",
            where=str(directory),
            hint="name the directory that holds the Kata files with --payload",
        )
    raise PayloadError(
        f"there is {'both' if tree else 'neither'} a tree {TREE_DIR} {'and' if tree else 'nor'} "
        f"a directory {TARBALLS_DIR} with archives here",
        where=str(directory),
        hint="name a directory with exactly one of the two with --payload",
    )


def _components(directory: Path) -> dict[str, dict[str, tuple[str, ...]]]:
    for path in (directory / TARBALLS_DIR / SHIM_COMPONENTS_FILE, directory / SHIM_COMPONENTS_FILE):
        if (raw := _read(path)) is not None:
            return parse_shim_components(raw, where=str(path))
    raise PayloadError(
        "the file that tells which shim needs which archive is missing",
        where=str(directory / TARBALLS_DIR / SHIM_COMPONENTS_FILE),
        hint=PULL_IMAGE_HINT,
    )


def _archives(directory: Path, shims: Mapping[str, Mapping[str, Iterable[str]]]) -> dict[str, Path]:
    """The archives that are there, of those some shim needs on some architecture."""
    names = {name for arches in shims.values() for needs in arches.values() for name in needs}
    paths = {name: directory / TARBALLS_DIR / f"kata-static-{name}.tar.zst" for name in names}
    return {name: path for name, path in paths.items() if path.is_file()}


def _release(directory: Path, entries: Iterable[Entry]) -> str:
    """What the payload calls itself; nothing if it does not say."""
    inside = [entry.content for entry in entries if entry.path == VERSION_FILE]
    beside = [_read(path / VERSION_FILE) for path in (directory / TARBALLS_DIR, directory)]
    texts = [*inside, *(raw.decode(errors="replace") for raw in beside if raw)]
    first_line = texts[0].strip().partition("\n")[0] if texts else ""
    return first_line if first_line.isprintable() else ""


def _check_tree(directory: Path, manifest: Manifest, path: Path) -> None:
    with wrap_read_errors(directory):
        there = {entry.name for entry in os.scandir(directory / TREE_DIR)}
    known = {entry.path for entry in manifest.entries if "/" not in entry.path}
    if there != known:
        raise _mismatch_error(path, f"it does not agree on {', '.join(sorted(there ^ known))}")


def _check_archives(directory: Path, manifest: Manifest, path: Path) -> None:
    if _components(directory) != manifest.shim_components:
        raise _mismatch_error(path, f"it does not agree with {SHIM_COMPONENTS_FILE}")
    there = _archives(directory, manifest.shim_components)
    if unknown := sorted(there.keys() - manifest.archives.keys()):
        raise _mismatch_error(path, f"it does not know the archives of {', '.join(unknown)}")
    for name, archive in manifest.archives.items():
        check_path(archive.file, where=str(path))
        if name not in there:
            raise PayloadError(
                "the archive is missing", where=str(directory / archive.file), hint=PULL_IMAGE_HINT
            )
        with wrap_read_errors(there[name]):
            size = there[name].stat().st_size
        if size != archive.size:
            raise PayloadError(
                f"the archive has {size} bytes, its manifest says {archive.size}",
                where=str(there[name]),
                hint=f"{PULL_IMAGE_HINT}; if it was replaced on purpose, run `kata-node payload index`",
            )


def _files_below(directory: Path, name: str) -> list[Path]:
    return sorted(Path(base, file) for base, _, files in os.walk(directory / name) for file in files)


def _read(path: Path) -> bytes | None:
    with wrap_read_errors(path):
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None


def _mismatch_error(path: Path, reason: str) -> PayloadError:
    return PayloadError(
        f"the manifest is not of this payload: {reason}",
        where=str(path),
        hint="run `kata-node payload index` again, when the image is built, or pull the image again",
    )
