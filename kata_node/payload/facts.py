"""Facts for the stages artifacts and remove-artifacts: the payload and the files below the install dir."""

from __future__ import annotations

import hashlib
import logging
import os
import posixpath
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Literal

from msgspec import Struct, field

from kata_node import __version__
from kata_node.bounded_read import file_digest
from kata_node.errors import UsageError
from kata_node.host.files import Root, missing_dirs
from kata_node.host.follow import real_path
from kata_node.host.ownership import Untrusted, is_trusted_owner
from kata_node.host.removal import temp_paths
from kata_node.kata import drop_ins
from kata_node.payload import offer
from kata_node.payload.layout import DesiredFile, ObservedFile, kata_warnings, layout, recorded_files
from kata_node.payload.manifest import parents
from kata_node.payload.ownership import find_changed_made_dirs, find_untrusted
from kata_node.plan.context import StageContext
from kata_node.plan.effects import MAX_TEXT_SIZE
from kata_node.plan.receipt import STATE_DIR, ArtifactsRecord, dirs_of_other_installations
from kata_node.settings.handlers import handlers
from kata_node.settings.model import DEFAULT_INSTALL_DIR
from kata_node.snapshotters import mapping
from kata_node.text import foreign_words

if TYPE_CHECKING:
    from kata_node.host.spool import Spool
    from kata_node.payload.index import Payload
    from kata_node.payload.manifest import Entry
    from kata_node.settings.model import Settings


_RULES = "4"
"""Changes when other files or modes follow from the same inputs; then each node is compared again."""


class ArtifactFacts(Struct, frozen=True):
    """Facts for the artifacts stage.

    ``desired_files`` is ``None`` when the inputs equal those of the last completed run and no placed
    file changed on the node. The payload is not read then.
    """

    inputs: str
    desired_files: Mapping[str, DesiredFile] | None = None
    entries: tuple[Entry, ...] = ()
    """The payload entries for the enabled shims, before :func:`~kata_node.payload.layout.layout`."""
    observed_files: Mapping[str, ObservedFile] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)
    contents: Mapping[str, bytes] = field(default_factory=dict)
    """The present content of the files that kata-node itself makes and would change, for a diff."""
    changed_made_dirs: tuple[str, ...] = ()
    """The install dir and its parents, as far as this installation made them, with a changed mode."""
    untrusted: Untrusted | None = None
    """The first path in a directory to use that another user can write, and that no stage repairs."""
    missing_dirs: tuple[str, ...] = ()
    """Directories that this installation removes at its revert if they are empty, outermost first.

    These are the install dir and its parents, as far as they are missing now or another kata-node
    installation created them.
    """
    settings: Settings | None = None
    """The settings with the shims that the payload has; ``None`` if the payload was not read."""
    release: str = ""
    drop_in_warnings: tuple[str, ...] = ()
    """Sentences about drop-in settings that are valid but probably have no effect."""
    by_record: bool = False
    """Whether ``desired_files`` are those of the receipt, because a dry run has no payload."""
    payload: Callable[[], Payload] = lambda: _payload_not_read()


def gather_facts(
    context: StageContext, *, will_place: bool = False, with_digests: bool = False
) -> ArtifactFacts:
    """Return the facts for the artifacts stage.

    ``will_place`` says that the files may be written already, without a name. Files in the receipt are
    compared by stat. Other files are hashed if they have the wanted size. The files of a payload without a
    manifest have digests only ``with_digests``, or if they are placed or compared.
    Raises :class:`PayloadError`, :class:`UsageError` and :class:`HostError`.
    """
    from kata_node.payload import index
    from kata_node.payload.forms import find_payload
    from kata_node.payload.selection import select

    root = context.clients.root
    settings = context.settings
    placed = context.receipt.artifacts
    if context.options.payload_is_optional and placed and not context.options.payload.exists():
        return _facts_by_record(context, placed)
    path = find_payload(context.options.payload)
    fingerprint = index.fingerprint(path)
    inputs = _inputs(fingerprint, settings, context.options.payload_release)
    changed_made_dirs = find_changed_made_dirs(root, settings.install_dir, placed)
    if placed and placed.state == "placed" and placed.inputs == inputs and not changed_made_dirs:
        observed_files = observe_files(root, settings.install_dir, placed.files)
        differing = [
            path
            for path, record in placed.files.items()
            if path not in observed_files or not observed_files[path].matches(record)
        ]
        log.debug(
            "%s files below %s compared with the receipt, differing: %s",
            *(len(placed.files), settings.install_dir, foreign_words(", ".join(differing)) or "none"),
        )
        if not differing:
            return ArtifactFacts(
                inputs, untrusted=find_untrusted(root, settings.install_dir, placed.files, ())
            )
    spool = _spool(context, placed) if will_place else None
    with_digests |= will_place or placed is not None
    try:
        payload = index.load(
            path, lambda outline: offer.needed_archives(settings, outline), spool, digests=with_digests
        )
    except BaseException:
        if spool:
            spool.discard()  # the error can keep the spool until the run ends
        raise
    settings = offer.with_payload(settings, payload.manifest)
    components = offer.required_components(settings, payload.manifest)
    shims = {handler.shim.name: handler.shim for handler in handlers(settings)}
    entries = select(payload.manifest, shims.values(), settings.arch, components)
    desired_files = layout(entries, settings)
    known = placed.files if placed else {}
    observed_files = observe_files(root, settings.install_dir, {**desired_files, **known})
    unknown = [
        path
        for path, observed in observed_files.items()
        if path not in known and observed.kind == "file" and observed.size == desired_files[path].size
    ]
    if unknown and not with_digests:
        return gather_facts(context, with_digests=True)
    log.debug(
        "%s files below %s compared with the payload %s, %s of them in the receipt",
        *(len(desired_files), settings.install_dir, path, len(known)),
    )
    digests = {
        path: file_digest(root.resolve(f"{settings.install_dir}/{path}", follow_last=False))
        for path in unknown
    }
    return ArtifactFacts(
        inputs,
        desired_files,
        entries,
        observed_files,
        digests,
        _contents_to_change(root, settings.install_dir, desired_files, observed_files),
        changed_made_dirs,
        find_untrusted(
            root,
            settings.install_dir,
            known,
            (path for path, desired in desired_files.items() if desired.kind == "dir"),
        ),
        _dirs_to_remove_at_revert(root, settings.install_dir),
        settings,
        payload.manifest.release or context.options.payload_release,
        kata_warnings(entries, settings, desired_files),
        payload=lambda: payload,
    )


def _spool(context: StageContext, placed: ArtifactsRecord | None) -> Spool | None:
    """Return where the files of archives go while they are read."""
    from kata_node.host.spool import Spool

    known = {path: (each.size, each.mtime) for path, each in placed.files.items()} if placed else {}
    return Spool.open(
        context.clients.root,
        context.settings.install_dir,
        lambda path, size, mtime: known.get(path) == (size, mtime),
    )


def _facts_by_record(context: StageContext, placed: ArtifactsRecord) -> ArtifactFacts:
    """Return the facts of a dry run without a payload.

    Raises :class:`UsageError` if only the payload says which files the settings need.
    """
    from kata_node.payload.index import Payload
    from kata_node.payload.manifest import SCHEMA, Manifest

    root, directory = context.clients.root, context.options.payload
    settings = offer.with_placed_files(context.settings, placed.files)
    missing = [each.name for each in handlers(settings) if each.own_config not in placed.files]
    if missing or placed.state != "placed":
        reason = f"the files of {', '.join(missing)} are not" if missing else "not all files are"
        raise UsageError(
            f"the payload directory does not exist, and {reason} on this node yet",
            where=str(directory),
            hint="set --payload to the directory with the Kata files, or to an archive of a Kata release",
        )
    return ArtifactFacts(
        placed.inputs,
        recorded_files(placed.files),
        observed_files=observe_files(root, settings.install_dir, placed.files),
        changed_made_dirs=find_changed_made_dirs(root, settings.install_dir, placed),
        untrusted=find_untrusted(root, settings.install_dir, placed.files, ()),
        settings=settings,
        release=placed.release,
        by_record=True,
        payload=lambda: Payload(directory, Manifest(SCHEMA, "tree", placed.release, (), {}, {})),
    )


log = logging.getLogger(__name__)

_RECEIPT_FILES = re.compile(
    rf"{re.escape(STATE_DIR)}/((receipt|last-run|refused)\.json"
    r"|\.(receipt|last-run|refused)\.json\.kata-node-(tmp|reserve)"
    r"|backups/\.?[0-9a-f]{64}(\..*)?)"
)
"""Paths of the receipt, its backups, the last run and a refusal, and leftovers of interrupted writes.

Copies that an administrator made do not match.
"""


class RemovalFacts(Struct, frozen=True):
    """Facts for the stage remove-artifacts."""

    has_removable_dir: bool
    """Whether the install dir is a directory that can be removed: no symlink and no mount point."""
    has_leftover: bool
    """Whether the install dir can be removed and is empty, or has only files of the receipt."""
    found: tuple[str, ...]
    """All files and links below the install dir, except those of the receipt, and except what an interrupted
    run wrote for recorded paths, which is removed with them."""
    open_dirs: tuple[tuple[str, int], ...] = ()
    """Recorded directories that other users can write, and the modes that end this, parents first."""
    mount_dirs: tuple[str, ...] = ()
    """Directories above the install dir that the kubelet makes to mount it, innermost first."""


def gather_removal_facts(context: StageContext) -> RemovalFacts:
    """Return the facts for the stage remove-artifacts, with foreign files."""
    root, install_dir = context.clients.root, context.receipt.install_dir
    placed = context.receipt.artifacts
    found = tuple(path for path in walk(root, install_dir) if not _RECEIPT_FILES.fullmatch(path))
    if placed and any(".kata-node-tmp" in path for path in found):
        temps = temp_paths(placed.files)
        found = tuple(path for path in found if temps.isdisjoint((path, *parents(path))))
    names = root.list_dir(install_dir)
    has_removable_dir = root.can_remove_dir(install_dir)
    has_leftover = (not names and has_removable_dir) or (
        names == [STATE_DIR] and root.can_remove_dir(f"{install_dir}/{STATE_DIR}")
    )
    recorded_dirs = [path for path, record in placed.files.items() if record.kind == "dir"] if placed else []
    return RemovalFacts(
        has_removable_dir,
        has_leftover=not found and has_leftover,
        found=found,
        open_dirs=tuple(
            (f"{install_dir}/{path}", observed.mode & 0o755)
            for path, observed in observe_files(root, install_dir, sorted(recorded_dirs)).items()
            if observed.kind == "dir" and observed.mode & 0o022
        ),
        mount_dirs=_mount_dirs(root, install_dir),
    )


def _mount_dirs(root: Root, install_dir: str) -> tuple[str, ...]:
    """Return ``<prefix>/opt`` in a container. /opt itself is of the node, and so is the prefix."""
    parent = posixpath.dirname(install_dir)
    if root.is_whole() or parent == posixpath.dirname(DEFAULT_INSTALL_DIR) or not root.can_remove_dir(parent):
        return ()
    return (parent,)


def observe_files(root: Root, install_dir: str, paths: Iterable[str]) -> dict[str, ObservedFile]:
    """Return the state of ``paths`` below the install dir; missing paths are left out."""
    observed_files: dict[str, ObservedFile] = {}
    parents: dict[str, str | None] = {}  # hundreds of files share a few directories
    for path in paths:
        parent, name = posixpath.split(f"{install_dir}/{path}")
        if parent not in parents:
            found = real_path(root, parent)
            parents[parent] = None if found is None else os.path.join(root.base, found.lstrip("/"))
        if parents[parent] is None:
            continue
        real = f"{parents[parent]}/{name}"
        try:
            info = os.lstat(real)
        except (FileNotFoundError, NotADirectoryError):
            continue
        link = os.readlink(real) if stat.S_ISLNK(info.st_mode) else ""
        observed_files[path] = ObservedFile(
            _kind(info.st_mode),
            stat.S_IMODE(info.st_mode),
            info.st_size,
            int(info.st_mtime),
            link,
            is_trusted_owner(info.st_uid),
        )
    return observed_files


def walk(root: Root, install_dir: str) -> Iterator[str]:
    """Yield the paths of all files and links below the install dir, relative to it."""
    base = root.resolve(install_dir)
    for directory, dirs, names in os.walk(base):
        relative = os.path.relpath(directory, base)
        links = [name for name in dirs if os.path.islink(f"{directory}/{name}")]
        for name in sorted((*names, *links)):
            yield name if relative == "." else f"{relative}/{name}"


def _contents_to_change(
    root: Root,
    install_dir: str,
    desired_files: Mapping[str, DesiredFile],
    observed_files: Mapping[str, ObservedFile],
) -> dict[str, bytes]:
    contents: dict[str, bytes] = {}
    for path, observed in observed_files.items():
        desired = desired_files.get(path)
        if desired is None or desired.content is None or observed.kind != "file":
            continue
        if observed.size <= MAX_TEXT_SIZE and not observed.matches(desired.placed(pending=False)):
            content = root.read(f"{install_dir}/{path}")
            contents |= {} if content is None else {path: content}
    return contents


def _dirs_to_remove_at_revert(root: Root, install_dir: str) -> tuple[str, ...]:
    above = (install_dir[:at] for at, char in enumerate(install_dir) if char == "/" and at)
    shared = dirs_of_other_installations(root, install_dir).intersection(above)
    # Behind a symlink to a missing directory, this makes the directories of its target.
    return (*sorted(shared), *missing_dirs(root, root.real_path(install_dir)))


def _kind(mode: int) -> Literal["file", "link", "dir", "other"]:
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISLNK(mode):
        return "link"
    return "dir" if stat.S_ISDIR(mode) else "other"


def _inputs(fingerprint: str, settings: Settings, release: str) -> str:
    components = mapping.required_components(settings)
    text = "\n".join(
        (
            *(_RULES, __version__, fingerprint, settings.arch, drop_ins.digest_inputs(settings)),
            *(*components, f"debug: {settings.debug}", release),
        )
    )
    return hashlib.sha256(text.encode()).hexdigest()


def _payload_not_read() -> Payload:
    raise LookupError("these facts were gathered without reading the payload")
