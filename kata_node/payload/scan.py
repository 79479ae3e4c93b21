"""Reads every byte of a payload once, to know what is in it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from kata_node.host.archive import Archive, Digest, Member
from kata_node.payload.manifest import Entry
from kata_node.payload.validation import VERSION, member_path, reading, refuse

T = TypeVar("T")
R = TypeVar("R")

LARGEST_CONTENT = 1024 * 1024
"""Bytes of a file whose content the manifest keeps."""
_ZEROS = bytes(256 * 1024)


def scan_tree(base: Path) -> list[Entry]:
    """Everything below the directory ``base``, hashed in threads.

    Raises :class:`PayloadError` when something cannot be read, or is neither file, link nor directory.
    """

    def scan(path: Path) -> Entry:
        with reading(path):
            return _tree_entry(path, str(path.relative_to(base)))

    return in_threads(scan, _walk(base))


def scan_archive(path: Path, component: str) -> tuple[list[Entry], Digest]:
    """Everything in one archive, and what tells whether it is still the same one.

    Raises :class:`PayloadError` when it is damaged, or has what no payload may have.
    """
    entries: list[Entry] = []
    files: dict[str, Entry] = {}
    with contextlib.closing(Archive(path)) as archive:
        for member in archive.members():
            below = member_path(member.name)
            if not below:
                if member.kind != "dir":
                    raise refuse(member.name, f"it is a {member.kind}")
            elif member.kind == "file":
                files[below] = _packed_file(archive, member, below, component)
                entries.append(files[below])
            elif member.kind == "hard link":
                files[below] = _hard_link(member, below, files)
                entries.append(files[below])
            elif member.kind == "link":
                entries.append(Entry(below, "link", 0o777, link=member.link, component=component))
            elif member.kind == "dir":
                entries.append(Entry(below, "dir", member.mode, component=component))
            else:
                raise refuse(member.name, f"it is a {member.kind}")
        archive.check_rest()
        return entries, archive.digest()


def in_threads(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """``function`` of each item, in order, computed side by side."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(min(8, len(os.sched_getaffinity(0)))) as pool:
        futures = [pool.submit(function, item) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _walk(base: Path) -> Iterator[Path]:
    with reading(base):
        for entry in sorted(os.scandir(base), key=lambda entry: entry.name):
            yield Path(entry.path)
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(Path(entry.path))


def _tree_entry(path: Path, below: str) -> Entry:
    info = path.lstat()
    mode = stat.S_IMODE(info.st_mode)
    if stat.S_ISLNK(info.st_mode):
        return Entry(below, "link", 0o777, link=str(path.readlink()))
    if stat.S_ISDIR(info.st_mode):
        return Entry(below, "dir", mode)
    if not stat.S_ISREG(info.st_mode):
        raise refuse(str(path), "it is neither file, link nor directory")
    with path.open("rb", buffering=0) as file:
        if _keeps(below):
            content = file.read(LARGEST_CONTENT + 1)
            digest = hashlib.sha256(content).hexdigest()
            text = _text(below, content)
        else:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            text = ""
    return Entry(below, "file", mode, info.st_size, int(info.st_mtime), digest, content=text)


def _packed_file(archive: Archive, member: Member, below: str, component: str) -> Entry:
    digest = hashlib.sha256()
    keeps = _keeps(below)
    content = bytearray()
    for piece in _whole(archive, member.size):
        digest.update(piece)
        if keeps and len(content) <= LARGEST_CONTENT:
            content += piece
    return Entry(
        below,
        "file",
        member.mode,
        member.size,
        member.mtime,
        digest.hexdigest(),
        component=component,
        content=_text(below, bytes(content)) if keeps else "",
    )


def _hard_link(member: Member, below: str, files: dict[str, Entry]) -> Entry:
    """The same content under a second name: as good as a second file, since neither is ever changed."""
    earlier = files.get(member_path(member.link))
    if earlier is None:
        raise refuse(
            member.name, f"it is a hard link to {member.link}, which is no earlier file of the archive"
        )
    return replace(earlier, path=below, content=earlier.content if _keeps(below) else "")


def _keeps(below: str) -> bool:
    """Whether the manifest has the content: of what plans are made from, and what names the release."""
    return below == VERSION or (
        below.startswith("share/defaults/kata-containers/") and below.endswith(".toml")
    )


def _text(below: str, content: bytes) -> str:
    if len(content) > LARGEST_CONTENT:
        raise refuse(below, f"it is larger than {LARGEST_CONTENT} bytes")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise refuse(below, f"it is not UTF-8 text: {error}") from error


def _whole(archive: Archive, size: int) -> Iterator[memoryview]:
    """The content of the current member, of ``size`` bytes, with zeros for its holes."""
    end = 0
    for offset, piece in archive.content():
        yield from _zeros(offset - end)
        yield piece
        end = offset + len(piece)
    yield from _zeros(size - end)


def _zeros(length: int) -> Iterator[memoryview]:
    for start in range(0, length, len(_ZEROS)):
        yield memoryview(_ZEROS)[: length - start]
