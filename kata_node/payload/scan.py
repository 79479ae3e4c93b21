"""Reads a payload once, to list its entries: with their digests, or without, which takes half as long."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from msgspec.structs import replace

from kata_node.host.archive import Archive, Digest, Member
from kata_node.host.cores import usable_cores
from kata_node.kata import devkit
from kata_node.payload.manifest import Entry
from kata_node.payload.validation import (
    VERSION_FILE,
    PayloadLimits,
    member_path,
    untrusted_payload,
    wrap_read_errors,
)

if TYPE_CHECKING:
    from kata_node.host.spool import Spool

T = TypeVar("T")
R = TypeVar("R")

MAX_CONTENT_SIZE = 1024 * 1024
"""Maximum size in bytes of a file whose content the manifest keeps."""
_ZEROS = bytes(256 * 1024)


def scan_tree(base: Path, *, digests: bool = True) -> list[Entry]:
    """Return the entries below the directory ``base``; files are hashed in threads.

    Without ``digests`` only files are read whose content the manifest keeps.
    Raises :class:`PayloadError` if a path cannot be read, or is neither a file, a link nor a directory.
    """

    def scan(path: Path) -> Entry:
        with wrap_read_errors(path):
            return _tree_entry(path, str(path.relative_to(base)), digests=digests)

    # All names and sizes first: no file is read of a payload that is refused.
    return map_in_threads(scan, list(_walk(base)))


def scan_archive(
    path: Path, component: str, spool: Spool | None = None, *, digests: bool = True
) -> tuple[list[Entry], Digest]:
    """Return the entries of an archive, and the size and digest of the archive.

    The files also go into ``spool``, as far as it takes them. Without ``digests`` only files are hashed whose
    content the manifest keeps, and ``spool`` gets no others.
    Raises :class:`PayloadError` if the archive is damaged, or has a member that no payload may have.
    """
    entries: list[Entry] = []
    files: dict[str, Entry] = {}
    limits = PayloadLimits()
    with contextlib.closing(Archive(path)) as archive:
        for member in archive.members():
            relative_path = member_path(member.name)
            if relative_path:
                limits.add(relative_path, member.size)
            if not relative_path:
                if member.kind != "dir":
                    raise untrusted_payload(member.name, f"this path is a {member.kind}, not a directory")
            elif member.kind == "file":
                if digests or _keeps_content(relative_path):
                    entry = _packed_file(archive, member, relative_path, component, spool)
                else:
                    entry = Entry(
                        *(relative_path, "file", member.mode, member.size, member.mtime), component=component
                    )
                files[relative_path] = entry
                entries.append(files[relative_path])
            elif member.kind == "hard link":
                files[relative_path] = _hard_link(member, relative_path, files)
                entries.append(files[relative_path])
            elif member.kind == "link":
                entries.append(Entry(relative_path, "link", 0o777, link=member.link, component=component))
            elif member.kind == "dir":
                entries.append(Entry(relative_path, "dir", member.mode, component=component))
            else:
                raise untrusted_payload(member.name, f"this path is a {member.kind}")
        archive.verify_rest()
        return entries, archive.digest()


def map_in_threads(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Return ``function`` of each item, in the order of ``items``, computed in threads."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(min(8, usable_cores())) as pool:
        futures = [pool.submit(function, item) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _walk(base: Path) -> Iterator[Path]:
    """Yield all paths below ``base``, each directory before what is in it."""
    limits = PayloadLimits()
    directories = [base]
    while directories:
        directory = directories.pop()
        with wrap_read_errors(directory):
            for entry in sorted(os.scandir(directory), key=lambda entry: entry.name):
                path = Path(entry.path)
                is_file = entry.is_file(follow_symlinks=False)
                size = entry.stat(follow_symlinks=False).st_size if is_file else 0
                limits.add(str(path.relative_to(base)), size)
                yield path
                if entry.is_dir(follow_symlinks=False):
                    directories.append(path)


def _tree_entry(path: Path, relative_path: str, *, digests: bool) -> Entry:
    info = path.lstat()
    mode = stat.S_IMODE(info.st_mode)
    if stat.S_ISLNK(info.st_mode):
        return Entry(relative_path, "link", 0o777, link=str(path.readlink()))
    if stat.S_ISDIR(info.st_mode):
        return Entry(relative_path, "dir", mode)
    if not stat.S_ISREG(info.st_mode):
        raise untrusted_payload(str(path), "this path is neither a file, a link nor a directory")
    keeps_content = _keeps_content(relative_path)
    if not digests and not keeps_content:
        return Entry(relative_path, "file", mode, info.st_size, int(info.st_mtime))
    with path.open("rb", buffering=0) as file:
        if keeps_content:
            content = file.read(MAX_CONTENT_SIZE + 1)
            digest = hashlib.sha256(content).hexdigest()
            text = _decode_content(relative_path, content)
        else:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            text = ""
    return Entry(relative_path, "file", mode, info.st_size, int(info.st_mtime), digest, content=text)


def _packed_file(
    archive: Archive, member: Member, relative_path: str, component: str, spool: Spool | None
) -> Entry:
    digest = hashlib.sha256()
    keeps_content = _keeps_content(relative_path)
    content = bytearray()
    output = spool.create(component, relative_path, member.size, member.mtime) if spool else None
    with contextlib.closing(output) if output else contextlib.nullcontext():
        end = 0
        for offset, piece in _content_to_the_end(archive, member.size):
            for part in (*_zeros(offset - end), piece):
                digest.update(part)
                if keeps_content and len(content) <= MAX_CONTENT_SIZE:
                    content += part
            end = offset + len(piece)
            if output:
                output.write(offset, piece)
        if output:
            output.keep(digest.hexdigest())
    return Entry(
        relative_path,
        "file",
        member.mode,
        member.size,
        member.mtime,
        digest.hexdigest(),
        component=component,
        content=_decode_content(relative_path, bytes(content)) if keeps_content else "",
    )


def _hard_link(member: Member, relative_path: str, files: dict[str, Entry]) -> Entry:
    """Return a hard link as a file of its own, which is the same because placed files never change."""
    earlier = files.get(member_path(member.link))
    if earlier is None:
        raise untrusted_payload(
            member.name,
            f"this hard link points to {member.link}, which is not an earlier file of the archive",
        )
    return replace(
        earlier, path=relative_path, content=earlier.content if _keeps_content(relative_path) else ""
    )


def _keeps_content(relative_path: str) -> bool:
    """Return whether the manifest keeps the content: of VERSION and what makes Kata's configurations."""
    return relative_path in (VERSION_FILE, devkit.VERITY_PARAMS) or (
        relative_path.startswith("share/defaults/kata-containers/") and relative_path.endswith(".toml")
    )


def _decode_content(relative_path: str, content: bytes) -> str:
    if len(content) > MAX_CONTENT_SIZE:
        raise untrusted_payload(relative_path, f"this file is larger than {MAX_CONTENT_SIZE} bytes")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise untrusted_payload(relative_path, f"this file is not UTF-8 text: {error}") from error


def _content_to_the_end(archive: Archive, size: int) -> Iterator[tuple[int, memoryview]]:
    """Yield the content of the current member, and at its end, if it has ``size`` bytes, an empty piece."""
    yield from archive.content()
    yield size, memoryview(b"")


def _zeros(length: int) -> Iterator[memoryview]:
    for start in range(0, length, len(_ZEROS)):
        yield memoryview(_ZEROS)[: length - start]
