"""What belongs below the install dir, and how that differs from what is there. Pure.

Every enabled shim gets a directory of its own, so that Kata reads one ``config.d`` per shim: it
looks beside the *real* configuration file, symlinks resolved. The file's usual path stays, as a
symlink to it.
"""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from kata_node.receipt import Placed
from kata_node.shims import Shim

if TYPE_CHECKING:
    from kata_node.payload import Entry

HEADER = b"""\
# Managed by kata-node: replaced whenever the payload changes.
# Put changes of your own into a file in config.d/ beside this one.

"""

Kind = Literal["file", "link", "dir"]


@dataclass(frozen=True)
class Wanted:
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

    def placed(self, *, pending: bool) -> Placed:
        """The receipt's record of it."""
        return Placed(self.kind, self.mode, self.size, self.mtime, self.sha256, self.link, pending)


@dataclass(frozen=True)
class Found:
    """What stands at a path below the install dir. ``other``: neither file, link nor directory."""

    kind: Literal["file", "link", "dir", "other"]
    mode: int
    size: int
    mtime: int
    link: str

    def is_as(self, placed: Placed) -> bool:
        """Whether the stat alone shows no difference."""
        if self.kind != placed.kind:
            return False
        if placed.kind == "file":
            return (self.size, self.mode, self.mtime) == (placed.size, placed.mode, placed.mtime)
        return self.link == placed.link if placed.kind == "link" else True


def layout(entries: Iterable[Entry], shims: Iterable[Shim]) -> dict[str, Wanted]:
    """Everything that belongs below the install dir for ``shims``, by path, parents first."""
    wanted = {entry.path: _of_entry(entry) for entry in entries}
    brought = dict(wanted)
    for shim in shims:
        config = _target(brought, shim.base_config)
        if config is not None and config.kind == "file":
            wanted |= {want.path: want for want in _own(shim, config)}
    return dict(sorted(wanted.items()))


def _own(shim: Shim, config: Entry) -> Iterator[Wanted]:
    """What makes ``config`` the own configuration of ``shim``."""
    content = HEADER + config.content.encode()
    for directory in (posixpath.dirname(shim.own_dir), shim.own_dir, f"{shim.own_dir}/config.d"):
        yield Wanted(directory, "dir")
    yield Wanted(
        shim.own_config,
        "file",
        mode=0o644,
        size=len(content),
        mtime=config.mtime,
        sha256=hashlib.sha256(content).hexdigest(),
        content=content,
    )
    yield Wanted(shim.base_config, "link", link=shim.own_config.removeprefix(f"{shim.config_dir}/"))


def _target(brought: Mapping[str, Wanted], path: str) -> Entry | None:
    """The payload's entry at ``path``, or that its links there lead to; a valid payload has no loops."""
    while (want := brought.get(path)) is not None and want.kind == "link":
        path = posixpath.normpath(posixpath.join(posixpath.dirname(path), want.link))
    return want.entry if want is not None else None


def _of_entry(entry: Entry) -> Wanted:
    return Wanted(
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

    missing: tuple[Wanted, ...]
    """To be placed: new, changed by the payload, or changed on the host."""
    stale: tuple[str, ...]
    """Files and links an earlier release placed and this one does not have."""
    stale_dirs: tuple[str, ...]
    """Directories likewise, deepest first."""
    drifted: tuple[str, ...]
    """Paths that changed on the host since they were placed."""
    conflicts: tuple[str, ...]
    """Paths where something stands that this instance did not place and that differs."""
    keep: Mapping[str, Placed]
    """The record for the receipt once all is done."""

    def __bool__(self) -> bool:
        return bool(self.missing or self.stale or self.stale_dirs)


def compare(
    wanted: Mapping[str, Wanted],
    found: Mapping[str, Found],
    placed: Mapping[str, Placed],
    digests: Mapping[str, str],
) -> Difference:
    """Compare what is ``wanted`` with what was ``found``, knowing what was ``placed`` before.

    ``digests`` has the sha256 of found files that nothing tells to be ours; those with the wanted
    content are taken over.
    """
    verdicts = {
        path: _judge(want, found.get(path), placed.get(path), digests.get(path, ""))
        for path, want in wanted.items()
    }

    def judged(*kinds: Verdict) -> tuple[str, ...]:
        return tuple(path for path, verdict in verdicts.items() if verdict in kinds)

    stale = sorted(path for path in placed if path not in wanted)
    return Difference(
        missing=tuple(wanted[path] for path in judged("missing", "drifted")),
        stale=tuple(path for path in stale if placed[path].kind != "dir"),
        stale_dirs=tuple(path for path in reversed(stale) if placed[path].kind == "dir"),
        drifted=judged("drifted"),
        conflicts=judged("conflict"),
        keep={path: wanted[path].placed(pending=False) for path in judged("there", "missing", "drifted")},
    )


Verdict = Literal["there", "missing", "drifted", "borrowed", "conflict"]
"""``drifted``: placed once, and changed or gone since. ``borrowed``: a directory that others made; it
serves, and is not ours to remove. ``conflict``: something else that others made."""


def _judge(want: Wanted, there: Found | None, record: Placed | None, digest: str) -> Verdict:
    if want.kind == "dir":
        if there is None:
            return "missing"
        if there.kind != "dir":
            return "conflict"
        return "borrowed" if record is None else "there"
    if there is None:
        return "missing" if record is None or record.pending else "drifted"
    if record is None:
        if not _same(want, there, digest):
            return "conflict"
        return "there" if there.is_as(want.placed(pending=False)) else "missing"
    if there.kind == "dir":
        return "conflict"
    if not record.pending and not there.is_as(record):
        return "drifted"
    return "there" if record == want.placed(pending=False) else "missing"


def _same(want: Wanted, there: Found, digest: str) -> bool:
    if want.kind == "link":
        return there.kind == "link" and there.link == want.link
    return there.kind == "file" and digest != "" and digest == want.sha256


def announce(difference: Difference, placed: Mapping[str, Placed]) -> dict[str, Placed]:
    """The receipt's record before the first byte: what is about to be written is pending."""
    about = {want.path for want in difference.missing}
    old = {path: placed[path] for path in (*difference.stale, *difference.stale_dirs)}
    new = {
        path: replace(record, pending=True) if path in about and record.kind != "dir" else record
        for path, record in difference.keep.items()
    }
    return dict(sorted((old | new).items()))
