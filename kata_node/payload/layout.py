"""What belongs below the install dir, and how that differs from what is there. Pure.

Every handler gets a directory of its own, so that Kata reads one ``config.d`` per handler: it
looks beside the *real* configuration file, symlinks resolved. The file's usual path stays, as a
symlink to that of the shim's plain handler.

Kata's QEMU looks for its firmware and its ROMs where it was built to lie. Installed elsewhere it finds
them by a directory ``qemu-bundle`` beside the program, below which it takes such a path as if it were
the root: there, a symlink leads from the built-in prefix to the install dir. QEMU has done so since 7.1,
whether built to be relocatable or not (Kata's is not), and the program that runs is still QEMU itself:
no wrapper, which would need a shell on the host and another answer from every security module.
"""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from kata_node.kata.drop_ins import drop_ins, parse
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

Kind = Literal["file", "link", "dir"]


@dataclass(frozen=True)
class DesiredFile:
    """One thing that belongs below the install dir: a payload entry, or ``content`` of our own."""

    path: str
    kind: Kind
    mode: int = 0o755
    size: int = 0
    mtime: int = 0
    sha256: str = ""
    link: str = ""
    content: bytes | None = None
    entry: Entry | None = field(default=None, repr=False)

    def placed(self, *, pending: bool) -> PlacedFile:
        """The receipt's record of it."""
        return PlacedFile(self.kind, self.mode, self.size, self.mtime, self.sha256, self.link, pending)


@dataclass(frozen=True)
class ObservedFile:
    """What stands at a path below the install dir. ``other``: neither file, link nor directory."""

    kind: Literal["file", "link", "dir", "other"]
    mode: int
    size: int
    mtime: int
    link: str

    def matches(self, placed: PlacedFile) -> bool:
        """Whether the stat alone shows no difference."""
        if self.kind != placed.kind:
            return False
        if placed.kind == "file":
            return (self.size, self.mode, self.mtime) == (placed.size, placed.mode, placed.mtime)
        return self.link == placed.link if placed.kind == "link" else True


def layout(entries: Iterable[Entry], settings: Settings) -> dict[str, DesiredFile]:
    """Everything that belongs below the install dir, by path, parents first.

    Raises what :func:`~kata_node.kata.drop_ins.drop_ins` raises.
    """
    payload_files = {entry.path: _from_payload_entry(entry) for entry in entries}
    desired_files = dict(payload_files)
    parsed: dict[str, Table] = {}  # several handlers share the configuration of a shim
    for handler in handlers(settings):
        config = _resolve_links(payload_files, handler.shim.base_config)
        if config is not None and config.kind == "file":
            if config.path not in parsed:
                parsed[config.path] = parse(config.content, config.path)
            desired_files |= {
                desired.path: desired
                for desired in _handler_files(handler, config, settings, parsed[config.path])
            }
    return dict(sorted(desired_files.items()))


def _handler_files(handler: Handler, config: Entry, settings: Settings, base: Table) -> Iterator[DesiredFile]:
    """What makes ``config`` the own configuration of ``handler``."""
    for directory in (posixpath.dirname(handler.own_dir), handler.own_dir, handler.drop_in_dir):
        yield DesiredFile(directory, "dir")
    yield _from_content(handler.own_config, CONFIG_HEADER + config.content.encode(), config.mtime)
    for name, content in drop_ins(handler, settings, base).items():
        yield _from_content(f"{handler.drop_in_dir}/{name}", content, config.mtime)
    shim = handler.shim
    if handler.own_config == shim.own_config:
        yield DesiredFile(shim.base_config, "link", link=shim.own_config.removeprefix(f"{shim.config_dir}/"))
    if settings.install_dir != BUILTIN_PREFIX:
        yield from _qemu_bundle(base)


def _qemu_bundle(base: Table) -> Iterator[DesiredFile]:
    """What makes the QEMU of a configuration find its files in an install dir it was not built for."""
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


def _from_content(path: str, content: bytes, mtime: int) -> DesiredFile:
    """A file of our own. It is as old as the configuration it is made for."""
    digest = hashlib.sha256(content).hexdigest()
    return DesiredFile(path, "file", 0o644, len(content), mtime, digest, content=content)


def _resolve_links(payload_files: Mapping[str, DesiredFile], path: str) -> Entry | None:
    """The payload's entry at ``path``, or that its links there lead to; a valid payload has no loops."""
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


@dataclass(frozen=True)
class Difference:
    """What separates the install dir from what is wanted. All by path, sorted."""

    missing: tuple[DesiredFile, ...]
    """To be placed: new, changed by the payload, or changed on the host."""
    stale: tuple[str, ...]
    """Files and links placed before, which this release or these settings do not have."""
    stale_dirs: tuple[str, ...]
    """Directories likewise, deepest first."""
    drifted: tuple[str, ...]
    """Paths that changed on the host since they were placed."""
    conflicts: tuple[str, ...]
    """Paths where something stands that this instance did not place and that differs."""
    resulting_record: Mapping[str, PlacedFile]
    """The record for the receipt once all is done."""

    def __bool__(self) -> bool:
        return bool(self.missing or self.stale or self.stale_dirs)


def conflict_summary(conflicts: Sequence[str]) -> str:
    """A sentence of the ``conflicts`` of a difference, to be gone on with."""
    count, stand = pluralize(len(conflicts), "file"), "stands" if len(conflicts) == 1 else "stand"
    return f"{count} that kata-node did not place {stand} in the way"


def compare(
    desired_files: Mapping[str, DesiredFile],
    observed_files: Mapping[str, ObservedFile],
    placed: Mapping[str, PlacedFile],
    digests: Mapping[str, str],
) -> Difference:
    """Compare what is ``wanted`` with what was ``found``, knowing what was ``placed`` before.

    ``digests`` has the sha256 of found files that nothing tells to be ours; those with the wanted
    content are taken over.
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
"""``drifted``: placed once, and changed or gone since. ``borrowed``: a directory that others made; it
serves, and is not ours to remove. ``conflict``: something else that others made."""


def _verdict(
    desired: DesiredFile, observed: ObservedFile | None, record: PlacedFile | None, digest: str
) -> Verdict:
    if desired.kind == "dir":
        if observed is None:
            return "missing"
        if observed.kind != "dir":
            return "conflict"
        return "borrowed" if record is None else "there"
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
    """The same without the removal of what is wanted no more, which is only marked so in the record."""
    stale = (*difference.stale, *difference.stale_dirs)
    marked = {path: replace(placed[path], obsolete=True) for path in stale}
    resulting_record = dict(sorted({**difference.resulting_record, **marked}.items()))
    return replace(difference, stale=(), stale_dirs=(), resulting_record=resulting_record)


def record_before_placing(difference: Difference, placed: Mapping[str, PlacedFile]) -> dict[str, PlacedFile]:
    """The receipt's record before the first byte: what is about to be written is pending."""
    paths_to_write = {desired.path for desired in difference.missing}
    old = {path: placed[path] for path in (*difference.stale, *difference.stale_dirs)}
    new = {
        path: replace(record, pending=True) if path in paths_to_write and record.kind != "dir" else record
        for path, record in difference.resulting_record.items()
    }
    return dict(sorted((old | new).items()))
