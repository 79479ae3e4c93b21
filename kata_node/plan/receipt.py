"""The receipt: the node's record of one installation, in ``<install dir>/.kata-node/receipt.json``.

It is written before each change and again after the change is checked, so the next run knows what an
interrupted run left unfinished. The backups of the runtime's files are in ``backups`` beside it, named by
their digest.

A receipt is refused if it is damaged, has another schema, or names another install dir. It is also refused
if it has an unknown key, because the value would be lost at the next write; a newer release wrote it. A
key with a default can be missing; an older release wrote it. The receipt is input like any other: a path or
mode that no release of kata-node writes is refused as well. Which files the runtime can have is checked in
:mod:`kata_node.runtime.recorded_paths`.
"""

import contextlib
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Literal

from msgspec import Struct

from kata_node.errors import HostError, ReceiptError, UntrustedReceiptError
from kata_node.host import reserve
from kata_node.host.files import Root
from kata_node.host.ownership import Untrusted, first_untrusted
from kata_node.plan import receipt_rules as rules

SCHEMA = 1
STATE_DIR = ".kata-node"

RESERVE_SIZE = 64 << 10  # bytes; the records of the runtime's files and of directories are much shorter
_BACKUP = re.compile(r"\.?([0-9a-f]{64})(?:\..*)?")
"""The name of a backup, or of the temporary file that an interrupted write of it leaves."""

ArtifactsState = Literal["placing", "placed", "removing"]
CriState = Literal["writing", "restarting", "serving", "reverting", "unloading"]


class PlacedFile(Struct, frozen=True):
    """The record of one file, link or directory below the install dir. ``mtime`` is in whole seconds."""

    kind: Literal["file", "link", "dir"]
    mode: int
    size: int = 0
    mtime: int = 0
    sha256: str = ""
    link: str = ""
    pending: bool = False
    """True from before it is written until it is completely on the disk."""
    obsolete: bool = False
    """True if it is no longer wanted, and stays until the runtime serves no handler that can need it."""


class ArtifactsRecord(Struct, frozen=True):
    """The files that the artifacts stage placed. Keys of ``files`` are paths relative to the install dir."""

    state: ArtifactsState
    release: str
    inputs: str
    """Digest of everything that determines the wanted files: payload, settings, version of kata-node."""
    files: Mapping[str, PlacedFile]
    made_dirs: tuple[str, ...] = ()
    """The install dir and those of its parents that did not exist before this installation."""

    @property
    def count(self) -> int:
        """The number of files and links, without directories."""
        return sum(placed.kind != "dir" for placed in self.files.values())


class Backup(Struct, frozen=True):
    """The previous state of a file. Its content is in ``backups/<sha256>`` beside the receipt."""

    sha256: str
    mode: int
    uid: int
    gid: int


class CriFile(Struct, frozen=True):
    """A configuration file of the runtime that this installation wrote."""

    path: str
    before: Backup | None
    """The state before this installation first wrote it; ``None`` if it did not exist."""
    after: str
    """sha256 of the content that this installation wrote."""


class PreviousFile(Struct, frozen=True):
    """The state of a file before the current transaction, which a rollback restores."""

    path: str
    state: Backup | None
    """``None`` if it did not exist."""


class CriRecord(Struct, frozen=True):
    """The record of the transaction on the runtime's configuration. ``state`` is one of:

    ``writing``     files are being written; ``invocation`` is that of the unit before the first write
    ``restarting``  all files are written; ``invocation`` has not read them yet
    ``serving``     the runtime served every handler in ``invocation``
    ``reverting``   files are being restored; ``invocation`` is that of the unit before the first write
    ``unloading``   all files are restored; ``invocation`` still serves the handlers

    ``boot`` is the kernel's boot id at that time; after a reboot no restart is owed.
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
    """The state of each file of this transaction at its start; empty in the state ``serving``."""
    fallback: "CriRecord | None" = None
    """The record before this transaction, if there was one."""
    config: str = ""
    """The runtime's main file; empty in the record of an earlier version."""
    drop_in_dir: str = ""
    """The directory of its drop-ins, if its command line can name it."""

    @property
    def possibly_loaded_handlers(self) -> tuple[str, ...]:
        """The installation's handlers that the runtime can serve now, including those of ``fallback``."""
        return (*self.handlers, *(self.fallback.handlers if self.fallback else ()))

    def file(self, path: str) -> CriFile | None:
        """Return the record of the file at ``path``, or ``None``."""
        return next((file for file in self.files if file.path == path), None)

    def paths(self) -> Iterator[str]:
        """Yield the path of every file in this record and in ``fallback``."""
        yield from (file.path for file in self.files)
        yield from (previous.path for previous in self.previous)
        yield from self.fallback.paths() if self.fallback else ()

    def backups(self) -> Iterator[Backup]:
        """Yield every backup that this record and ``fallback`` refer to."""
        yield from (file.before for file in self.files if file.before)
        yield from (previous.state for previous in self.previous if previous.state)
        yield from self.fallback.backups() if self.fallback else ()


class Receipt(Struct, frozen=True):
    """The record of one installation on this node."""

    instance: str
    install_dir: str
    program: str
    """Version of the kata-node that wrote the receipt."""
    settings: str = ""
    """Digest of the settings of that run."""
    artifacts: ArtifactsRecord | None = None
    cri: CriRecord | None = None
    schema: int = SCHEMA
    socket: str = ""
    """The CRI socket. It stays until the end of a revert, which asks on it what the runtime still serves."""

    @property
    def made_dirs(self) -> frozenset[str]:
        """The directories that this installation created for artifacts and for the runtime."""
        of_cri = self.cri.made_dirs if self.cri else ()
        return frozenset((*(self.artifacts.made_dirs if self.artifacts else ()), *of_cri))


def directory(install_dir: str) -> str:
    """Return the directory of an installation's receipt and backups."""
    return f"{install_dir}/{STATE_DIR}"


def path(install_dir: str) -> str:
    """Return the path of the receipt of the installation in ``install_dir``."""
    return f"{directory(install_dir)}/receipt.json"


def backups(install_dir: str) -> str:
    """Return the directory of the backups."""
    return f"{directory(install_dir)}/backups"


def backup_path(install_dir: str, sha256: str) -> str:
    """Return the path of a backup's content."""
    return f"{backups(install_dir)}/{sha256}"


def untrusted(root: Root, install_dir: str) -> Untrusted | None:
    """Return the first path that another user can write among the receipt, its backups, and what leads there.

    Whoever can write the receipt decides what a revert, which runs as root, removes and restores.
    """
    backup_dir = backups(install_dir)
    return first_untrusted(
        root,
        (path(install_dir), backup_dir, *(f"{backup_dir}/{name}" for name in root.list_dir(backup_dir))),
    )


def load(root: Root, install_dir: str) -> Receipt | None:
    """Read the receipt of the installation in ``install_dir``, or return ``None`` if there is none.

    Raises :class:`ReceiptError` if it is damaged, has another schema or an unknown key, names another
    install dir, or has content that kata-node never writes.
    """
    raw = root.read(path(install_dir))
    if raw is None:
        if root.lstat(path(install_dir)) is not None:
            raise ReceiptError(
                "the receipt is a symlink, and its target is missing",
                where=path(install_dir),
                hint="restore the target, or remove the symlink; the next install then adopts the unchanged "
                "files",
            )
        return None
    receipt = parse(raw, where=path(install_dir))
    if receipt.install_dir != install_dir:
        raise ReceiptError(
            f"this is the receipt of the installation in {receipt.install_dir}",
            where=path(install_dir),
            hint="set env.installationPrefix to the prefix of that installation; if this directory is "
            "a copy, remove the copy",
        )
    if why := next(_problems(receipt), ""):
        raise UntrustedReceiptError(
            f"the receipt cannot be trusted: {why}",
            where=path(install_dir),
            hint="find out who changed it; restore it from a copy, or move the whole .kata-node directory "
            "away and remove the installation by hand",
        )
    return receipt


def _problems(receipt: Receipt) -> Iterator[str]:
    """Yield a clause for each path, mode, owner or digest that kata-node never writes."""
    for path, placed in receipt.artifacts.files.items() if receipt.artifacts else ():
        if not rules.is_relative_path(path) or path.partition("/")[0] == STATE_DIR:
            yield f"{path!r} is not the path of a Kata file below the install dir"
        if not rules.is_permission_mode(placed.mode):
            yield f"{path!r} has the mode {placed.mode:o}"
    yield from rules.naming_problems(receipt.instance, receipt.socket)
    absolute_paths = [*receipt.made_dirs]
    record = receipt.cri
    while record is not None:
        yield from rules.runtime_problems(record.runtime, record.version, record.unit, record.invocation)
        yield from rules.handler_problems(record.handlers)
        yield from rules.digest_problems({file.path: file.after for file in record.files})
        absolute_paths += [path for path in (record.config, record.drop_in_dir) if path]
        states = [(file.path, file.before) for file in record.files]
        states += [(previous.path, previous.state) for previous in record.previous]
        absolute_paths += [*record.made_dirs, *(path for path, _ in states)]
        for path, state in states:
            if state is None:
                continue
            if not rules.is_permission_mode(state.mode) or not rules.is_owner(state.uid, state.gid):
                yield f"the backup of {path!r} has the mode {state.mode:o}, owner {state.uid}:{state.gid}"
            if not rules.is_digest(state.sha256):
                yield f"the backup of {path!r} has the digest {state.sha256!r}"
        record = record.fallback
    yield from (
        f"{path!r} is not a normal absolute path"
        for path in absolute_paths
        if not rules.is_absolute_path(path)
    )


def other_receipts(root: Root, install_dir: str) -> Iterator[Receipt]:
    """Yield the receipts of other installations in the same prefix.

    Receipts that are unreadable or that another user can write are skipped.
    """
    parent = install_dir.rpartition("/")[0]
    for found in root.glob(f"{parent}/kata*/{STATE_DIR}/receipt.json"):
        other = found.removesuffix(f"/{STATE_DIR}/receipt.json")
        with contextlib.suppress(ReceiptError, HostError):
            if other != install_dir and not untrusted(root, other) and (receipt := load(root, other)):
                yield receipt


def save(root: Root, receipt: Receipt) -> None:
    """Write the receipt durably, unless it is already on the disk.

    On a full disk the receipt takes the place of its reserve. The reserve has room for the longest receipt
    of a change: that has the record before the change too.
    """
    content, where = render(receipt), path(receipt.install_dir)
    if root.read(where) != content:
        root.make_dirs(directory(receipt.install_dir), mode=0o700)
        reserve.replace(root, where, content, mode=0o600, use_reserve=True)
        reserve.allocate(root, where, 2 * len(content) + RESERVE_SIZE)


def remove_old_backups(root: Root, receipt: Receipt) -> None:
    """Remove the backups that ``receipt`` does not refer to, unless a change is under way."""
    if receipt.cri is None or receipt.cri.state == "serving":
        needed = {backup.sha256 for backup in receipt.cri.backups()} if receipt.cri else set()
        remove_backups(root, receipt.install_dir, keep=needed)


def remove_backups(root: Root, install_dir: str, *, keep: Collection[str] = ()) -> None:
    """Remove the backups except those with the digests ``keep``, and leftovers of interrupted writes."""
    for name in root.list_dir(backups(install_dir)):
        found = _BACKUP.fullmatch(name)
        if found and (found[1] not in keep or name != found[1]):
            root.remove(f"{backups(install_dir)}/{name}")


def remove_leftovers(root: Root, install_dir: str) -> None:
    """Remove the temporary files of interrupted writes of the receipt and of backups."""
    root.sweep(path(install_dir))
    remove_backups(root, install_dir, keep=root.list_dir(backups(install_dir)))


def render(receipt: Receipt) -> bytes:
    """Return the content of the receipt file."""
    import msgspec.json

    return msgspec.json.encode(receipt) + b"\n"


def parse(raw: bytes, where: str) -> Receipt:
    """Parse a receipt file; ``where`` is its path. Raises :class:`ReceiptError`, see the module docstring."""
    import msgspec.json

    try:
        schema = msgspec.json.decode(raw, type=_Header).schema
        if schema != SCHEMA:
            raise _other_release_error(
                f"has schema {schema}, but this kata-node reads schema {SCHEMA}", where
            )
        receipt = msgspec.json.decode(raw, type=Receipt)
        rendered = render(receipt)
        # The bytes differ only if another release or a person wrote the file.
        unknown_keys = (
            ()
            if raw == rendered
            else tuple(_dropped_keys(msgspec.json.decode(raw), msgspec.json.decode(rendered), "$"))
        )
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ReceiptError(
            f"the receipt of this installation is damaged: {error}",
            where=where,
            hint="restore the receipt from a copy, or move the whole .kata-node directory away; the next "
            "install then adopts the unchanged files and names the others",
        ) from error
    if unknown_keys:
        raise _other_release_error(
            f"has the key {unknown_keys[0]}, which this kata-node does not know", where
        )
    return receipt


class _Header(Struct, frozen=True):
    schema: int


def _other_release_error(what: str, where: str) -> ReceiptError:
    return ReceiptError(
        f"the receipt of this installation {what}",
        where=where,
        hint="use the kata-node that wrote the receipt, or a newer one",
    )


def _dropped_keys(given: Any, parsed: Any, place: str) -> Iterator[str]:
    """Yield the JSON paths of the keys in ``given`` that parsing dropped.

    ``parsed`` is the parsed receipt as JSON values; ``place`` is the JSON path of both.
    """
    if isinstance(given, dict):
        for key, value in given.items():
            if key in parsed:
                yield from _dropped_keys(value, parsed[key], f"{place}.{key}")
            else:
                yield f"{place}.{key}"
    elif isinstance(given, list):
        for at, value in enumerate(given):
            yield from _dropped_keys(value, parsed[at], f"{place}[{at}]")


def dirs_of_other_installations(root: Root, install_dir: str) -> frozenset[str]:
    """Return the directories that other installations created.

    Installations share them, so the last installation to be reverted removes them.
    """
    return frozenset(path for receipt in other_receipts(root, install_dir) for path in receipt.made_dirs)
