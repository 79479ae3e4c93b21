"""Places many files below the install dir: all of them, durably, or none.

Everything is first prepared under temporary names, in parallel, and forced to the disk; only then
is one file after the other renamed. A full disk, a damaged archive or a kill before that leaves
what was there before as it was, and a running VM keeps the files it has open. The price is room for
the old and the new files at once.
"""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import stat
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Protocol

from kata_node.errors import HostError, PayloadError
from kata_node.host.archive import Archive, Digest
from kata_node.host.atomic_replace import finish, fsync_dir, temp_sibling
from kata_node.host.files import Root, host_error
from kata_node.host.sparse_copy import ProgressCallback, SparseWriter, copy

MAX_THREADS = 8


class PlacedEntry(Protocol):
    """A file, link or directory to place; :class:`kata_node.payload.manifest.Entry` is one."""

    @property
    def path(self) -> str:
        """Relative to the install dir, and known to stay inside it."""

    @property
    def kind(self) -> str:
        """``file``, ``link`` or ``dir``."""

    @property
    def mode(self) -> int:
        """Permission bits."""

    @property
    def size(self) -> int:
        """Bytes."""

    @property
    def mtime(self) -> int:
        """Whole seconds."""

    @property
    def sha256(self) -> str:
        """Of the content."""

    @property
    def link(self) -> str:
        """Target of a link."""

    @property
    def component(self) -> str:
        """The archive it is in; nothing in a tree."""


class PayloadSource(Protocol):
    """Where the content comes from; :class:`kata_node.payload.index.Payload` is one."""

    def file(self, path: str) -> Path:
        """The real path of a file of a tree."""

    def archive(self, component: str) -> tuple[Path, Digest]:
        """The real path of an archive, and what the manifest says of it."""

    def member(self, component: str, name: str) -> PlacedEntry | None:
        """What the manifest says of the file an archive has under ``name``; ``None`` if nothing."""


def place(
    root: Root,
    payload: PayloadSource,
    entries: Sequence[PlacedEntry],
    install_dir: str,
    *,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Place ``entries`` of ``payload`` below the host directory ``install_dir``.

    When this returns, all of it survives a power cut; when it raises, no file has changed, unless
    it was one of the renames in the end that was refused. Files get their mode and mtime and belong
    to the user this runs as. Directories that are missing are made, listed or not; those that are
    there stay as they are. ``progress`` is called from several threads, with bytes that add up to
    the sizes of ``entries``.

    Raises :class:`HostError`: the host refuses, a directory stands where a file belongs, or a
    symlink or file stands where a directory belongs. Raises :class:`PayloadError`: the payload is
    damaged, or is not what its manifest says.
    """
    made = root.make_dirs(install_dir)
    try:
        _Placement(root, payload, install_dir, progress or (lambda _: None)).run(entries)
    except BaseException:
        for directory in reversed(made):
            with contextlib.suppress(HostError):
                root.remove_dir(directory)
        raise


class _Cancelled(Exception):  # noqa: N818 - no error: another thread has met one
    pass


class _Placement:
    def __init__(
        self, root: Root, payload: PayloadSource, install_dir: str, progress: ProgressCallback
    ) -> None:
        self.base = root.resolve(install_dir)
        self.install_dir = install_dir
        self.payload = payload
        self.progress = progress
        self.stop = threading.Event()
        self.made: list[str] = []
        self.temps: list[Path] = []

    def run(self, entries: Sequence[PlacedEntry]) -> None:
        targets = [entry for entry in entries if entry.kind != "dir"]
        try:
            modes = self.make_directories(entries)
            self.check_targets(targets)
            self.prepare_files([entry for entry in targets if entry.kind == "file"])
            for link in targets:
                if link.kind == "link":
                    with self.host_errors(link.path):
                        self.reserve_temp_path(link.path).symlink_to(link.link)
            self.commit(targets, modes)
        except BaseException:
            self.clean_up()
            raise

    def make_directories(self, entries: Iterable[PlacedEntry]) -> dict[str, int]:
        """Make what is missing; return the modes that must wait until all is written."""
        modes = {entry.path: entry.mode for entry in entries if entry.kind == "dir"}
        final_modes: dict[str, int] = {}
        for path in sorted({*modes, *(above for entry in entries for above in _parents(entry.path))}):
            mode = modes.get(path, 0o755)
            with self.host_errors(path):
                info = _lstat(self.base / path)
                if info is None:
                    (self.base / path).mkdir(0o700)
                    self.made.append(path)
                    (self.base / path).chmod(mode | 0o700)  # mkdir's own mode is cut by the umask
                    if mode | 0o700 != mode:
                        final_modes[path] = mode
                elif stat.S_ISLNK(info.st_mode):
                    raise HostError(
                        "a symlink stands where a directory of the payload belongs",
                        where=f"{self.install_dir}/{path}",
                        hint="remove the symlink, then run again; only the install dir itself may be one",
                    )
                elif not stat.S_ISDIR(info.st_mode):
                    raise NotADirectoryError(errno.ENOTDIR, "a file stands where a directory is needed")
        return final_modes

    def check_targets(self, targets: Iterable[PlacedEntry]) -> None:
        for target in targets:
            with self.host_errors(target.path):
                info = _lstat(self.base / target.path)
                if info is not None and stat.S_ISDIR(info.st_mode):
                    raise IsADirectoryError(errno.EISDIR, f"a directory stands where a {target.kind} belongs")

    def prepare_files(self, files: Iterable[PlacedEntry]) -> None:
        """Prepare all files under their temporary names, durably."""
        unpacked_files: list[PlacedEntry] = []
        files_by_archive: dict[str, list[PlacedEntry]] = {}
        for file in files:
            (files_by_archive.setdefault(file.component, []) if file.component else unpacked_files).append(
                file
            )
        # The largest first, so that no thread is left alone with a long one in the end.
        unpacked_files.sort(key=lambda file: -file.size)
        archives = sorted(files_by_archive.items(), key=lambda item: -sum(file.size for file in item[1]))
        self.run_all([partial(self.copy_file, file) for file in unpacked_files])
        self.run_all([partial(self.unpack, *archive) for archive in archives])

    def copy_file(self, file: PlacedEntry) -> None:
        source = self.payload.file(file.path)
        try:
            fd = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise _payload_mismatch(source, f"it cannot be read: {error.strerror}") from error
        try:
            if os.fstat(fd).st_size != file.size:
                raise _payload_mismatch(source, "its size is not the one in the manifest")
            with self.new_file(file) as target:
                copy(fd, target, file.size, self.advance)
        except EOFError as error:
            raise _payload_mismatch(source, "it became shorter while it was copied") from error
        finally:
            os.close(fd)

    def unpack(self, component: str, wanted: Iterable[PlacedEntry]) -> None:
        """Write the wanted files of one archive, and prove that it is the one the manifest is of.

        What is compared is the digest of the compressed archive: that takes half as long as hashing
        every member, and covers as much. Files are matched by their content, because a hard link
        comes when the member that has it is past; those that are the same are read once.
        """
        path, digest = self.payload.archive(component)
        pending: dict[tuple[str, int], list[PlacedEntry]] = {}
        for file in wanted:
            pending.setdefault((file.sha256, file.size), []).append(file)
        with contextlib.closing(Archive(path)) as archive:
            for member in archive.members():
                self.advance(0)
                manifest_entry = (
                    self.payload.member(component, member.name) if member.kind == "file" else None
                )
                identical_files = (
                    pending.pop((manifest_entry.sha256, manifest_entry.size), None)
                    if manifest_entry
                    else None
                )
                if identical_files:
                    self.write_member(archive, identical_files)
                if not pending:
                    break
            if archive.digest() != digest or pending:
                raise _payload_mismatch(path, "its digest is not the one in the manifest")

    def write_member(self, archive: Archive, identical_files: Sequence[PlacedEntry]) -> None:
        """Write the current member to every file that has its content."""
        first, *others = identical_files
        with self.new_file(first) as target:
            output = SparseWriter(target, first.size, self.advance)
            for offset, chunk in archive.content():
                output.write(offset, chunk)
            output.finish()
        for file in others:
            with temp_sibling(self.base / first.path).open("rb") as source, self.new_file(file) as target:
                copy(source.fileno(), target, file.size, self.advance)

    def commit(self, targets: Iterable[PlacedEntry], modes: Mapping[str, int]) -> None:
        """Put everything in its place, and then the directories to the disk."""
        changed_dirs = {*self.made, *(posixpath.dirname(path) for path in self.made)}
        for target in targets:
            with self.host_errors(target.path):
                path = self.base / target.path
                temp_sibling(path).rename(path)
            changed_dirs.add(posixpath.dirname(target.path))
        for directory, mode in modes.items():
            with self.host_errors(directory):
                (self.base / directory).chmod(mode)
        self.run_all([partial(self.sync_directory, directory) for directory in changed_dirs])

    def sync_directory(self, path: str) -> None:
        with self.host_errors(path):
            fsync_dir(self.base / path)

    @contextlib.contextmanager
    def new_file(self, file: PlacedEntry) -> Iterator[int]:
        """A new file under its temporary name, open for writing; on the disk when it is left."""
        with self.host_errors(file.path):
            fd = os.open(
                self.reserve_temp_path(file.path), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600
            )
            try:
                yield fd
                finish(fd, file.mode, mtime=file.mtime)
            finally:
                os.close(fd)

    def reserve_temp_path(self, path: str) -> Path:
        """The temporary name for ``path``, with nothing there; it is removed if anything fails."""
        temp = temp_sibling(self.base / path)
        self.temps.append(temp)
        temp.unlink(missing_ok=True)
        return temp

    def clean_up(self) -> None:
        for temp in self.temps:
            with contextlib.suppress(OSError):
                temp.unlink()
        for path in reversed(self.made):
            with contextlib.suppress(OSError):  # one that has a file in its place by now
                (self.base / path).rmdir()

    def advance(self, size: int) -> None:
        if self.stop.is_set():
            raise _Cancelled
        if size:
            self.progress(size)

    def run_all(self, jobs: Sequence[Callable[[], None]]) -> None:
        """Run ``jobs`` in threads; the first that fails stops the others."""
        if not jobs:
            return
        # More threads than cores: some wait for the disk.
        threads = min(MAX_THREADS, max(4, len(os.sched_getaffinity(0))), len(jobs))
        with ThreadPoolExecutor(threads, thread_name_prefix="place") as pool:
            try:
                for job in as_completed([pool.submit(job) for job in jobs]):
                    job.result()
            except BaseException:
                self.stop.set()
                pool.shutdown(cancel_futures=True)
                raise

    @contextlib.contextmanager
    def host_errors(self, path: str) -> Iterator[None]:
        """Tell what the operating system refuses as an error of the host path."""
        try:
            yield
        except OSError as error:
            raise host_error(f"{self.install_dir}/{path}".rstrip("/"), error) from error


def _payload_mismatch(path: Path, reason: str) -> PayloadError:
    return PayloadError(
        f"the payload is not the one its manifest was made from: {reason}",
        where=str(path),
        hint="run `kata-node payload index` on it again, when its image is built, or pull the image again",
    )


def _parents(path: str) -> Iterator[str]:
    while path := posixpath.dirname(path):
        yield path


def _lstat(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except FileNotFoundError:
        return None
