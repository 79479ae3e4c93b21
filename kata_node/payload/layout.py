"""The wanted files below the install dir, and their differences from the existing files. Pure.

Every handler has its own directory, because Kata reads ``config.d`` beside the configuration file after
it has resolved symlinks. The usual path of the configuration file is a symlink to the configuration of
the shim's plain handler.

Kata's QEMU looks for its firmware and ROMs below the prefix it was built for. In another install dir it
uses the directory ``qemu-bundle`` beside the program as the root of these paths (QEMU 7.1 and later, also
if it is not built to be relocatable, as Kata's QEMU). So ``qemu-bundle/opt/kata`` is a symlink to the
install dir. A wrapper program instead would need a shell on the node and its own security policy.
"""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from msgspec import Struct
from msgspec.structs import replace

from kata_node.kata import devkit
from kata_node.kata.drop_ins import USER_DROP_IN, drop_in_warnings, drop_ins, parse
from kata_node.kata.merge import Table, section
from kata_node.plan.receipt import PlacedFile
from kata_node.settings.handlers import handlers
from kata_node.settings.shims import BUILTIN_PREFIX
from kata_node.text import pluralize

if TYPE_CHECKING:
    from kata_node.payload.manifest import Entry
    from kata_node.settings.handlers import Handler
    from kata_node.settings.model import Settings

CONFIG_HEADER = b"""\
# Managed by kata-node: replaced whenever the payload changes.
# Put changes of your own into a file in config.d/ beside this one.

"""

DEFAULT_MODE = 0o644
USER_DROP_IN_MODE = 0o600
"""A user's drop-in can have passwords. Kata's shim reads it as root, also when the VMM is not root."""

Kind = Literal["file", "link", "dir"]


class DesiredFile(Struct, frozen=True):
    """One wanted file, link or directory below the install dir.

    It comes from the payload (``entry`` is set) or from kata-node (``content`` is set for a file).
    ``mtime`` is in whole seconds.
    """

    path: str
    kind: Kind
    mode: int = 0o755
    size: int = 0
    mtime: int = 0
    sha256: str = ""
    link: str = ""
    content: bytes | None = None
    entry: Entry | None = None

    def placed(self, *, pending: bool) -> PlacedFile:
        """Return its record for the receipt."""
        return PlacedFile(self.kind, self.mode, self.size, self.mtime, self.sha256, self.link, pending)


class ObservedFile(Struct, frozen=True):
    """The state of an existing path below the install dir.

    The kind ``other`` is neither a file, a link nor a directory.
    """

    kind: Literal["file", "link", "dir", "other"]
    mode: int
    size: int
    mtime: int
    link: str
    trusted: bool = True
    """Whether it belongs to root or to the user of this process."""

    def matches(self, placed: PlacedFile) -> bool:
        """Return whether the stat shows no difference from the record."""
        if self.kind != placed.kind or not self.trusted:
            return False
        if placed.kind == "file":
            return (self.size, self.mode, self.mtime) == (placed.size, placed.mode, placed.mtime)
        return self.link == placed.link if placed.kind == "link" else self.mode == placed.mode


def layout(entries: Iterable[Entry], settings: Settings) -> dict[str, DesiredFile]:
    """Return the wanted files below the install dir by path, parents first.

    ``entries`` are the payload entries for the enabled shims. Raises :class:`PayloadError` and
    :class:`SettingsError`, see :func:`~kata_node.kata.drop_ins.drop_ins`.
    """
    payload_files = {entry.path: _from_payload_entry(entry) for entry in entries}
    desired_files = dict(payload_files)
    verity = _resolve_links(payload_files, devkit.VERITY_PARAMS)
    for handler, config in _configurations(payload_files, settings):
        files = _handler_files(handler, config, settings, verity.content if verity else "")
        desired_files |= {desired.path: desired for desired in files}
    return dict(sorted(desired_files.items()))


def recorded_files(placed: Mapping[str, PlacedFile]) -> dict[str, DesiredFile]:
    """Return the files of the receipt as wanted files, for a plan without the payload that has their content.

    Obsolete files are left out.
    """
    from kata_node.payload.manifest import Entry

    entries = (
        Entry(path, each.kind, each.mode, each.size, each.mtime, each.sha256, each.link)
        for path, each in placed.items()
        if not each.obsolete
    )
    return {entry.path: _from_payload_entry(entry) for entry in entries}


def kata_warnings(
    entries: Iterable[Entry], settings: Settings, desired_files: Mapping[str, DesiredFile]
) -> tuple[str, ...]:
    """Return a sentence for each setting of a Kata configuration that probably has no effect.

    ``desired_files`` is the result of :func:`layout` for ``entries`` and ``settings``.
    """
    # Only configurations have their content in the manifest, and links lead to them.
    payload_files = {
        entry.path: _from_payload_entry(entry) for entry in entries if entry.content or entry.kind == "link"
    }
    found = (
        warning
        for handler, config in _configurations(payload_files, settings)
        for warning in drop_in_warnings(handler, settings, desired_files, config.table, config.texts)
    )
    return tuple(dict.fromkeys(found))


class _Configuration(Struct, frozen=True):
    """The payload's configuration of a shim."""

    entry: Entry
    table: Table
    """The parsed content of ``entry``."""
    texts: Sequence[str]
    """All configurations of the payload for the same Kata runtime."""


def _configurations(
    files: Mapping[str, DesiredFile], settings: Settings
) -> Iterator[tuple[Handler, _Configuration]]:
    """Yield each handler with the configuration of its shim. Several handlers can share one configuration."""
    known: dict[str, _Configuration] = {}
    for handler in handlers(settings):
        path = handler.shim.base_config
        if path not in known:
            entry = _resolve_links(files, path)
            if entry is None or entry.kind != "file":
                continue
            texts = _configuration_texts(files, handler.shim.config_dir)
            known[path] = _Configuration(entry, parse(entry.content, entry.path), texts)
        yield handler, known[path]


def _configuration_texts(files: Mapping[str, DesiredFile], directory: str) -> list[str]:
    """Return the payload's Kata configurations in ``directory``, which has those of one Kata runtime."""
    return [
        each.entry.content
        for path, each in files.items()
        if each.entry is not None and each.entry.content and posixpath.dirname(path) == directory
    ]


def _handler_files(
    handler: Handler, config: _Configuration, settings: Settings, devkit_verity: str
) -> Iterator[DesiredFile]:
    """Yield the directories, the configuration and the drop-ins of ``handler``."""
    entry = config.entry
    for directory in (posixpath.dirname(handler.own_dir), handler.own_dir, handler.drop_in_dir):
        yield DesiredFile(directory, "dir")
    yield _from_content(handler.own_config, CONFIG_HEADER + entry.content.encode(), entry.mtime)
    for name, content in drop_ins(
        handler, settings, config.table, config.texts, devkit_verity=devkit_verity
    ).items():
        mode = USER_DROP_IN_MODE if name == USER_DROP_IN else DEFAULT_MODE
        yield _from_content(f"{handler.drop_in_dir}/{name}", content, entry.mtime, mode)
    shim = handler.shim
    if handler.own_config == shim.own_config:
        yield DesiredFile(shim.base_config, "link", link=shim.own_config.removeprefix(f"{shim.config_dir}/"))
    if settings.install_dir != BUILTIN_PREFIX:
        yield from _qemu_bundle(config.table)


def _qemu_bundle(base: Table) -> Iterator[DesiredFile]:
    """Yield the ``qemu-bundle`` for the QEMU of the configuration ``base``, see the module docstring."""
    program = str(section(base, "hypervisor", "qemu").get("path", ""))
    if not program.startswith(f"{BUILTIN_PREFIX}/"):
        return
    directory = posixpath.dirname(program.removeprefix(f"{BUILTIN_PREFIX}/"))
    link = posixpath.normpath(f"{directory}/qemu-bundle{BUILTIN_PREFIX}")
    above = posixpath.dirname(link)
    yield DesiredFile(link, "link", link="/".join(".." for _ in above.split("/")))
    while above != directory:
        yield DesiredFile(above, "dir")
        above = posixpath.dirname(above)


def _from_content(path: str, content: bytes, mtime: int, mode: int = DEFAULT_MODE) -> DesiredFile:
    """Return a file made by kata-node, with the mtime of the configuration that it belongs to."""
    digest = hashlib.sha256(content).hexdigest()
    return DesiredFile(path, "file", mode, len(content), mtime, digest, content=content)


def _resolve_links(payload_files: Mapping[str, DesiredFile], path: str) -> Entry | None:
    """Return the payload entry at ``path`` after its links are followed. A valid payload has no loops."""
    while (desired := payload_files.get(path)) is not None and desired.kind == "link":
        path = posixpath.normpath(posixpath.join(posixpath.dirname(path), desired.link))
    return desired.entry if desired is not None else None


def _from_payload_entry(entry: Entry) -> DesiredFile:
    return DesiredFile(
        entry.path,
        entry.kind,
        entry.mode,
        entry.size,
        entry.mtime,
        entry.sha256,
        entry.link,
        entry=entry,
    )


class Difference(Struct, frozen=True):
    """The differences between the wanted and the existing files. All paths are sorted."""

    missing: tuple[DesiredFile, ...]
    """Files to place: new, changed in the payload, or changed on the node. A directory may exist already."""
    stale: tuple[str, ...]
    """Placed files and links that are no longer wanted."""
    stale_dirs: tuple[str, ...]
    """Placed directories that are no longer wanted, deepest first."""
    drifted: tuple[str, ...]
    """Paths that changed on the node after they were placed."""
    conflicts: tuple[str, ...]
    """Wanted paths with foreign content."""
    resulting_record: Mapping[str, PlacedFile]
    """The record for the receipt after all files are placed."""

    def __bool__(self) -> bool:
        return bool(self.missing or self.stale or self.stale_dirs)


def conflict_summary(conflicts: Sequence[str]) -> str:
    """Return the start of a sentence about ``conflicts``; the caller adds the paths."""
    files, verb = pluralize(len(conflicts), "file"), "exists" if len(conflicts) == 1 else "exist"
    return f"{files} that kata-node did not place already {verb}"


def compare(
    desired_files: Mapping[str, DesiredFile],
    observed_files: Mapping[str, ObservedFile],
    placed: Mapping[str, PlacedFile],
    digests: Mapping[str, str],
) -> Difference:
    """Compare the desired files with the observed files and with the record of placed files.

    ``digests`` has the sha256 of observed files that are not in the record. Such a file is adopted if it
    has the wanted content.
    """
    placed = {path: replace(record, obsolete=False) for path, record in placed.items()}
    verdicts = {
        path: _verdict(desired, observed_files.get(path), placed.get(path), digests.get(path, ""))
        for path, desired in desired_files.items()
    }

    def with_verdict(*kinds: Verdict) -> tuple[str, ...]:
        return tuple(path for path, verdict in verdicts.items() if verdict in kinds)

    stale = sorted(path for path in placed if path not in desired_files)
    return Difference(
        missing=tuple(desired_files[path] for path in with_verdict("missing", "drifted")),
        stale=tuple(path for path in stale if placed[path].kind != "dir"),
        stale_dirs=tuple(path for path in reversed(stale) if placed[path].kind == "dir"),
        drifted=with_verdict("drifted"),
        conflicts=with_verdict("conflict"),
        resulting_record={
            path: desired_files[path].placed(pending=False)
            for path in with_verdict("there", "missing", "drifted")
        },
    )


Verdict = Literal["there", "missing", "drifted", "borrowed", "conflict"]
"""The state of one wanted path.

``there``: the path is as wanted.
``missing``: it has to be placed, or it is a directory that has to get another mode.
``drifted``: it was placed before, and changed or disappeared since.
``borrowed``: it is a foreign directory, which is used but never removed.
``conflict``: it has other foreign content.
"""


def _verdict(
    desired: DesiredFile, observed: ObservedFile | None, record: PlacedFile | None, digest: str
) -> Verdict:
    if desired.kind == "dir":
        if observed is None:
            return "missing"
        if observed.kind != "dir":
            return "conflict"
        if record is None:
            return "borrowed"
        if observed.mode == desired.mode:
            return "there"
        return "drifted" if record.mode == desired.mode else "missing"
    if observed is None:
        return "missing" if record is None or record.pending else "drifted"
    if record is None:
        if not _has_desired_content(desired, observed, digest):
            return "conflict"
        return "there" if observed.matches(desired.placed(pending=False)) else "missing"
    if observed.kind == "dir":
        return "conflict"
    if not record.pending and not observed.matches(record):
        return "drifted"
    return "there" if record == desired.placed(pending=False) else "missing"


def _has_desired_content(desired: DesiredFile, observed: ObservedFile, digest: str) -> bool:
    if desired.kind == "link":
        return observed.kind == "link" and observed.link == desired.link
    return observed.kind == "file" and digest != "" and digest == desired.sha256


def defer_removals(difference: Difference, placed: Mapping[str, PlacedFile]) -> Difference:
    """Return ``difference`` without removals; the stale paths are marked obsolete in its record instead."""
    stale = (*difference.stale, *difference.stale_dirs)
    marked = {path: replace(placed[path], obsolete=True) for path in stale}
    resulting_record = dict(sorted({**difference.resulting_record, **marked}.items()))
    return replace(difference, stale=(), stale_dirs=(), resulting_record=resulting_record)


def record_before_placing(difference: Difference, placed: Mapping[str, PlacedFile]) -> dict[str, PlacedFile]:
    """Return the record for the receipt before files are placed.

    Files and links that will be written are marked pending. Stale paths are still in the record.
    """
    pending = {each.path: each.placed(pending=True) for each in difference.missing if each.kind != "dir"}
    old = {path: placed[path] for path in (*difference.stale, *difference.stale_dirs)}
    return dict(sorted((old | {**difference.resulting_record, **pending}).items()))
