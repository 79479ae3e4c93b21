"""The node's record of what one instance put there: ``<install dir>/.kata-node/receipt.json``.

It is written before every act it announces and after every act it proves, so a run that finds it
knows what an interrupted one still owed. Backups of the runtime's files lie beside it, named by
their digest.

A receipt that is damaged, of another schema or of another directory is refused, never guessed at. So
is one with a key this program does not know: a newer release wrote it, and what it says there would
be lost at the next writing. A key with a default may be missing, for an older release wrote it then.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from kata_node.errors import ReceiptError
from kata_node.host.files import Root

SCHEMA = 1
STATE_DIR = ".kata-node"

ArtifactsState = Literal["placing", "placed", "removing"]
CriState = Literal["writing", "restarting", "serving", "reverting", "unloading"]


@dataclass(frozen=True)
class PlacedFile:
    """One file, link or directory below the install dir. ``mtime`` is in whole seconds."""

    kind: Literal["file", "link", "dir"]
    mode: int
    size: int = 0
    mtime: int = 0
    sha256: str = ""
    link: str = ""
    pending: bool = False
    """True from the moment its writing is announced until all of it is on the disk."""
    obsolete: bool = False
    """True when it is wanted no more, and stays until the runtime serves nothing that may need it."""


@dataclass(frozen=True)
class ArtifactsRecord:
    """What the artifacts stage placed. Keys of ``files`` are paths relative to the install dir."""

    state: ArtifactsState
    release: str
    inputs: str
    """Digest of all that decides which files are wanted: the payload, the shims, this program."""
    files: Mapping[str, PlacedFile]
    made_dirs: tuple[str, ...] = ()
    """Directories above and including the install dir that were not there before."""

    @property
    def count(self) -> int:
        """How many files and links there are; people do not count directories."""
        return sum(placed.kind != "dir" for placed in self.files.values())


@dataclass(frozen=True)
class Backup:
    """A file as it was; its bytes are in ``backups/<sha256>`` beside the receipt."""

    sha256: str
    mode: int
    uid: int
    gid: int


@dataclass(frozen=True)
class CriFile:
    """One configuration file of the CRI runtime that this instance wrote."""

    path: str
    before: Backup | None
    """As it was before this instance first touched it; ``None`` when there was no such file."""
    after: str
    """sha256 of what this instance wrote."""


@dataclass(frozen=True)
class PreviousFile:
    """One file as it was when the runtime was last seen serving; what a rollback puts back."""

    path: str
    state: Backup | None


@dataclass(frozen=True)
class CriRecord:
    """The transaction on the CRI runtime.

    ``writing``     files are being written; ``invocation`` is the unit's before the first byte
    ``restarting``  all files are written; ``invocation`` is the one that has not read them yet
    ``serving``     ``invocation`` was seen serving every handler
    ``reverting``   files are being put back; ``invocation`` is the unit's before the first byte
    ``unloading``   all files are put back; ``invocation`` is the one that still has the handlers

    ``boot`` is the kernel's boot id at that moment: after a reboot no restart is owed.
    """

    state: CriState
    runtime: str
    version: str
    unit: str
    invocation: str
    boot: str
    handlers: tuple[str, ...]
    files: tuple[CriFile, ...]
    made_dirs: tuple[str, ...] = ()
    previous: tuple[PreviousFile, ...] = ()
    """Every file this transaction touches, as it was when it began; empty while serving."""
    fallback: CriRecord | None = None
    """This record as it was when the transaction began, if there was one."""

    @property
    def possibly_loaded_handlers(self) -> tuple[str, ...]:
        """Every handler of ours that the runtime may have, those it would fall back to included."""
        return (*self.handlers, *(self.fallback.handlers if self.fallback else ()))

    def file(self, path: str) -> CriFile | None:
        """The record of the file at ``path``."""
        return next((file for file in self.files if file.path == path), None)

    def paths(self) -> Iterator[str]:
        """Every file it speaks of, that it would fall back to included."""
        yield from (file.path for file in self.files)
        yield from (previous.path for previous in self.previous)
        yield from self.fallback.paths() if self.fallback else ()

    def backups(self) -> Iterator[Backup]:
        """Every backup it refers to, likewise."""
        yield from (file.before for file in self.files if file.before)
        yield from (previous.state for previous in self.previous if previous.state)
        yield from self.fallback.backups() if self.fallback else ()


@dataclass(frozen=True)
class Receipt:
    """All that is known of one instance on this node."""

    instance: str
    install_dir: str
    program: str
    """Version of kata-node that wrote this."""
    settings: str = ""
    """Digest of the settings it was written under."""
    artifacts: ArtifactsRecord | None = None
    cri: CriRecord | None = None
    schema: int = SCHEMA

    @property
    def made_dirs(self) -> frozenset[str]:
        """Every directory outside the install dir's own that was not there before this instance."""
        of_cri = self.cri.made_dirs if self.cri else ()
        return frozenset((*(self.artifacts.made_dirs if self.artifacts else ()), *of_cri))


def directory(install_dir: str) -> str:
    """Where an instance keeps its receipt and backups."""
    return f"{install_dir}/{STATE_DIR}"


def path(install_dir: str) -> str:
    """The receipt of the instance in ``install_dir``."""
    return f"{directory(install_dir)}/receipt.json"


def backups(install_dir: str) -> str:
    """The directory of the backups."""
    return f"{directory(install_dir)}/backups"


def backup_path(install_dir: str, sha256: str) -> str:
    """The bytes of a backup."""
    return f"{backups(install_dir)}/{sha256}"


def load(root: Root, install_dir: str) -> Receipt | None:
    """Read the receipt of the instance in ``install_dir``; ``None`` when there is none.

    Raises :class:`ReceiptError` when it is damaged, of another schema, or of another directory.
    """
    raw = root.read(path(install_dir))
    if raw is None:
        return None
    receipt = parse(raw, where=path(install_dir))
    if receipt.install_dir != install_dir:
        raise ReceiptError(
            f"this is the record of the installation in {receipt.install_dir}",
            where=path(install_dir),
            hint="give the env.installationPrefix it was made with; if this is a copy of it, remove the copy",
        )
    return receipt


def other_receipts(root: Root, install_dir: str) -> Iterator[Receipt]:
    """The receipts of the other instances beside ``install_dir``, but those that cannot be read."""
    parent = install_dir.rpartition("/")[0]
    for found in root.glob(f"{parent}/kata*/{STATE_DIR}/receipt.json"):
        other = found.removesuffix(f"/{STATE_DIR}/receipt.json")
        with contextlib.suppress(ReceiptError):
            if other != install_dir and (receipt := load(root, other)):
                yield receipt


def save(root: Root, receipt: Receipt) -> None:
    """Write the receipt, unless it is there already; after this it survives a power cut."""
    content = render(receipt)
    if root.read(path(receipt.install_dir)) == content:
        return  # on a full disk, what was put back can still be recorded so
    root.make_dirs(directory(receipt.install_dir), mode=0o700)
    root.write(path(receipt.install_dir), content, mode=0o600)


def render(receipt: Receipt) -> bytes:
    """The receipt's bytes."""
    import msgspec.json

    return msgspec.json.encode(receipt) + b"\n"


def parse(raw: bytes, where: str) -> Receipt:
    """Read a receipt's bytes. Raises :class:`ReceiptError`."""
    import msgspec.json

    try:
        schema = msgspec.json.decode(raw, type=_Header).schema
        if schema != SCHEMA:
            raise _other_release_error(f"has schema {schema}, this kata-node reads {SCHEMA}", where)
        receipt = msgspec.json.decode(raw, type=Receipt)
        written = render(receipt)
        same = raw == written  # as always, unless another release or a person wrote it
        lost = (
            () if same else tuple(_dropped_keys(msgspec.json.decode(raw), msgspec.json.decode(written), "$"))
        )
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ReceiptError(
            f"the record of this installation is damaged: {error}",
            where=where,
            hint="restore it from a copy; or move the whole .kata-node directory away: the next install "
            "adopts the files that are unchanged and names the others",
        ) from error
    if lost:
        raise _other_release_error(f"has the key {lost[0]}, which this kata-node does not know", where)
    return receipt


@dataclass(frozen=True)
class _Header:
    schema: int


def _other_release_error(what: str, where: str) -> ReceiptError:
    return ReceiptError(
        f"the record of this installation {what}",
        where=where,
        hint="use the kata-node that wrote it, or a newer one",
    )


def _dropped_keys(given: Any, kept: Any, place: str) -> Iterator[str]:
    """Where ``given`` has keys that are not in ``kept``, which is what was read of it, written again."""
    if isinstance(given, dict):
        for key, value in given.items():
            if key in kept:
                yield from _dropped_keys(value, kept[key], f"{place}.{key}")
            else:
                yield f"{place}.{key}"
    elif isinstance(given, list):
        for at, value in enumerate(given):
            yield from _dropped_keys(value, kept[at], f"{place}[{at}]")


def dirs_of_other_installations(root: Root, install_dir: str) -> frozenset[str]:
    """The directories that other instances made: whichever goes last is to take them along."""
    return frozenset(path for receipt in other_receipts(root, install_dir) for path in receipt.made_dirs)
