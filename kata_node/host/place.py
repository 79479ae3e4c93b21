"""Place many files below the install dir: all of them, durably, or none.

All files are first written under temporary names, in parallel, and forced to the disk. Then they are
renamed one by one, a new directory with all that is in it, and their directories are forced to the disk. A
full disk, a damaged archive or a kill before the renames leaves the previous files unchanged. A running VM
keeps the files that it has open. This needs space for the previous and the new files at the same time.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import posixpath
import stat
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import TypeVar

from kata_node.errors import HostError, PayloadError
from kata_node.host import barrier
from kata_node.host.archive import Archive, Digest
from kata_node.host.cores import usable_cores
from kata_node.host.files import Root, host_error
from kata_node.host.open_dirs import OpenDirs, by_directory, lstat_at, names_in, parents_of
from kata_node.host.payload_source import PayloadSource, PlacedEntry
from kata_node.host.sparse_copy import SMALL_SIZE, ProgressCallback, SparseWriter, copy
from kata_node.host.spool import Content
from kata_node.host.temp_files import TempFiles

MAX_THREADS = 8
CHUNK_FILES = 64
"""The number of files that a thread takes at a time to force them to the disk."""
SPOOLED_FILES = 8
"""The number of spooled files that a thread takes at a time. It only waits until they are on the disk."""

T = TypeVar("T")


def place(
    root: Root,
    payload: PayloadSource,
    entries: Sequence[PlacedEntry],
    install_dir: str,
    *,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Place ``entries`` of ``payload`` below the host directory ``install_dir``.

    When this returns, all files survive a power cut. When it raises, no file has changed, unless one of
    the final renames failed. Files get their mode and mtime, and the user of this process owns them.
    Missing directories are created, even if ``entries`` does not list them. Existing directories do not
    change, except an empty one that another program makes meanwhile at the path of a new one. ``progress`` is
    called from several threads with numbers of bytes; their sum is the size of all ``entries``.

    Raises :class:`HostError` when the operating system refuses an operation, or when an entry and the
    existing file of that path are of different kinds (directory, file, symlink). Raises
    :class:`PayloadError` when the payload is damaged or does not match its manifest.
    """
    try:
        made = root.make_dirs(install_dir)
        try:
            _Placement(root, payload, install_dir, progress or (lambda _: None)).run(entries)
        except BaseException:
            for directory in reversed(made):
                with contextlib.suppress(HostError):
                    root.remove_dir(directory)
            raise
    finally:
        if payload.spool:
            payload.spool.discard()  # a rollback may need the space


class _Cancelled(Exception):  # noqa: N818 - not an error itself: another thread failed
    pass


class _Placement:
    def __init__(
        self, root: Root, payload: PayloadSource, install_dir: str, progress: ProgressCallback
    ) -> None:
        self.dirs = OpenDirs(root, install_dir)
        self.install_dir = install_dir
        self.payload = payload
        self.progress = progress
        self.cores = usable_cores()
        self.stop = threading.Event()

    def run(self, entries: Sequence[PlacedEntry]) -> None:
        targets = [entry for entry in entries if entry.kind != "dir"]
        files = [entry for entry in targets if entry.kind == "file"]
        with self.dirs, self.file_system() as file_system:
            syncs_at_once = barrier.is_possible(file_system, len(files))
            device = os.fstat(file_system).st_dev if syncs_at_once else None
            self.temps = TempFiles(self.install_dir, synced_later=device)
            # If none waits for the disk, more than cores only take the interpreter's lock from each other.
            self.small_copies = threading.Semaphore(self.cores if syncs_at_once else MAX_THREADS)
            try:
                modes = self.make_directories(entries)
                self.check_targets(targets)
                self.prepare_files(files)
                for target in targets:
                    if target.kind == "link":
                        self.temps.new_link(self.dirs, target.path, target.link)
                if syncs_at_once:
                    syncs_at_once = self.force_files(file_system, files)
                self.temps.force_dirs(self.dirs, files_are_forced=syncs_at_once)
                self.commit(modes)
            except BaseException:
                self.temps.remove(self.dirs)
                raise

    @contextlib.contextmanager
    def file_system(self) -> Iterator[int]:
        """Yield a descriptor for the barrier, open from before the first write."""
        with self.host_errors(""):
            fd = os.dup(self.dirs.open(""))
        try:
            yield fd
        finally:
            os.close(fd)

    def make_directories(self, entries: Iterable[PlacedEntry]) -> dict[str, int]:
        """Create missing directories; return the modes that can be set only after their files are written."""
        modes = {entry.path: entry.mode for entry in entries if entry.kind == "dir"}
        final_modes: dict[str, int] = {}
        paths = {*modes, *parents_of(entry.path for entry in entries)}
        for path in sorted(paths, key=lambda path: path.split("/")):
            mode = modes.get(path, 0o755)
            parent, name = posixpath.split(path)
            with self.host_errors(path):
                is_new = self.temps.is_in_new_dir(path)
                info = None if is_new else lstat_at(self.dirs.open(parent), name)
                if info is None:
                    self.temps.new_dir(self.dirs, path, mode)
                    if mode | 0o700 != mode:
                        final_modes[path] = mode
                elif stat.S_ISLNK(info.st_mode):
                    raise HostError(
                        "a symlink is where a directory of the payload is needed",
                        where=f"{self.install_dir}/{path}",
                        hint="remove the symlink, then run again; only the install dir may be a symlink",
                    )
                elif not stat.S_ISDIR(info.st_mode):
                    raise NotADirectoryError(errno.ENOTDIR, "a file is where a directory is needed")
        return final_modes

    def check_targets(self, targets: Iterable[PlacedEntry]) -> None:
        kinds = {each.path: each.kind for each in targets if not self.temps.is_in_new_dir(each.path)}
        for directory, names in by_directory(kinds):
            with self.host_errors(directory):
                existing_dirs = names_in(self.dirs.open(directory), directories=True)
            for name in existing_dirs.intersection(names):
                path = posixpath.join(directory, name)
                with self.host_errors(path):
                    raise IsADirectoryError(errno.EISDIR, f"a directory is where a {kinds[path]} is needed")

    def prepare_files(self, files: Iterable[PlacedEntry]) -> None:
        """Write all files under their temporary names."""
        unpacked_files: list[PlacedEntry] = []
        archives: list[tuple[str, Path, Digest, list[PlacedEntry]]] = []
        spooled_files: list[PlacedEntry] = []
        for component, wanted in _grouped(files, lambda file: file.component).items():
            if not component or not (archive := self.payload.archive(component)):
                unpacked_files += wanted
            elif (spool := self.payload.spool) and spool.has(map(_content, wanted)):
                spooled_files += wanted
            else:
                archives.append((component, *archive, wanted))
        # The largest first, so that the threads finish at about the same time.
        small_files = [file for file in unpacked_files if file.size <= SMALL_SIZE]
        large_files = sorted(
            (file for file in unpacked_files if file.size > SMALL_SIZE), key=lambda file: -file.size
        )
        archives.sort(key=lambda archive: -sum(file.size for file in archive[3]))
        directories = _grouped(small_files, lambda file: posixpath.dirname(file.path))
        self.run_all(
            [
                *(partial(self.copy_large_file, file) for file in large_files),
                # A thread takes a directory, because the kernel lets only one at a time make files in it.
                *(partial(self.copy_small_files, together) for together in directories.values()),
            ]
        )
        same_content = list(_grouped(spooled_files, _content).values())
        self.run_all([partial(self.place_spooled, chunk) for chunk in _chunks(same_content, SPOOLED_FILES)])
        if spool := self.payload.spool:
            spool.discard()  # before an archive is unpacked, which needs the space
        self.run_all([partial(self.unpack, *archive) for archive in archives])

    def copy_large_file(self, file: PlacedEntry) -> None:
        source = self.payload.file(file.path)
        fd = _open(source, file.size)
        try:
            with self.dirs.again() as dirs, self.new_file(dirs, file) as target:
                digest = hashlib.sha256()
                copy(fd, target, file.size, self.advance, digest)
                if digest.hexdigest() != file.sha256:
                    raise _payload_mismatch(source, _OTHER_DIGEST)
        except EOFError as error:
            raise _payload_mismatch(source, _SHORTER) from error
        finally:
            os.close(fd)

    def copy_small_files(self, files: Sequence[PlacedEntry]) -> None:
        """Copy files that are read whole, so that they are compared before they are written."""
        with self.small_copies, self.dirs.again() as dirs:
            for file in files:
                source = self.payload.file(file.path)
                fd = _open(source, file.size)
                try:
                    content = os.pread(fd, file.size, 0)
                finally:
                    os.close(fd)
                if len(content) < file.size:
                    raise _payload_mismatch(source, _SHORTER)
                if hashlib.sha256(content).hexdigest() != file.sha256:
                    raise _payload_mismatch(source, _OTHER_DIGEST)
                self.temps.write(dirs, file.path, file.mode, file.mtime, content)
                self.advance(file.size)

    def place_spooled(self, groups: Iterable[Sequence[PlacedEntry]]) -> None:
        """Give the files of the spool their names. Each group has the same content."""
        spool = self.payload.spool
        assert spool is not None
        with self.dirs.again() as dirs:
            for first, *others in groups:
                fd = spool.take(_content(first))
                try:
                    if self.temps.adopt(dirs, first.path, fd, first.mode, first.mtime):
                        self.advance(first.size)
                    else:
                        others.append(first)
                    for file in others:
                        with self.new_file(dirs, file) as target:
                            copy(fd, target, file.size, self.advance)
                finally:
                    os.close(fd)

    def unpack(self, component: str, path: Path, digest: Digest, wanted: Iterable[PlacedEntry]) -> None:
        """Write the wanted files of one archive, and check the archive against the manifest.

        The digest of the compressed archive is compared: this takes half as long as hashing every member
        and is as strict. Files are matched by their content, because a hard link comes after the member
        that has its content. Identical files are read once.
        """
        pending = _grouped(wanted, _content)
        with contextlib.closing(Archive(path)) as archive, self.dirs.again() as dirs:
            for member in archive.members():
                self.advance(0)
                manifest_entry = (
                    self.payload.member(component, member.name) if member.kind == "file" else None
                )
                identical_files = pending.pop(_content(manifest_entry), None) if manifest_entry else None
                if identical_files:
                    self.write_member(dirs, archive, identical_files)
                if not pending:
                    break
            if archive.digest() != digest or pending:
                raise _payload_mismatch(path, _OTHER_DIGEST)

    def write_member(self, dirs: OpenDirs, archive: Archive, identical_files: Sequence[PlacedEntry]) -> None:
        """Write the current member of the archive to all files with its content."""
        first, *others = identical_files
        with self.new_file(dirs, first) as target:
            output = SparseWriter(target, first.size, self.advance)
            for offset, chunk in archive.content():
                output.write(offset, chunk)
            output.finish()
        for file in others:
            with self.temps.reading(dirs, first.path) as source, self.new_file(dirs, file) as target:
                copy(source, target, file.size, self.advance)

    def new_file(self, dirs: OpenDirs, file: PlacedEntry) -> contextlib.AbstractContextManager[int]:
        return self.temps.new_file(dirs, file.path, file.mode, file.mtime)

    def force_files(self, file_system: int, files: Sequence[PlacedEntry]) -> bool:
        """Force all temporary files to the disk: together, or each by itself if that is not possible.

        Return whether it was together, which includes new directories.
        """
        with self.host_errors(""):
            if barrier.sync_file_system(file_system, sum(file.size for file in files)):
                return True
        self.run_all([partial(self.force_each, chunk) for chunk in _chunks(files)])
        return False

    def force_each(self, files: Iterable[PlacedEntry]) -> None:
        with self.dirs.again() as dirs:
            for file in files:
                self.advance(0)
                with self.temps.reading(dirs, file.path) as fd:
                    os.fsync(fd)

    def commit(self, modes: Mapping[str, int]) -> None:
        """Rename all files to their final paths, set directory modes, and force directories to the disk."""
        changed_dirs = self.temps.rename(self.dirs) | modes.keys()
        for directory, mode in modes.items():
            with self.host_errors(directory):
                os.fchmod(self.dirs.open(directory), mode)
        for directory in sorted(changed_dirs):
            with self.host_errors(directory):
                os.fsync(self.dirs.open(directory))

    def advance(self, size: int) -> None:
        if self.stop.is_set():
            raise _Cancelled
        if size:
            self.progress(size)

    def run_all(self, jobs: Sequence[Callable[[], None]]) -> None:
        """Run ``jobs`` in threads; the first error stops all of them."""
        if not jobs:
            return
        # One more than cores, because some of them wait for the disk.
        threads = min(MAX_THREADS, self.cores + 1, len(jobs))
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
        """Turn an :class:`OSError` into :class:`HostError` for the host path of ``path``."""
        try:
            yield
        except OSError as error:
            raise host_error(f"{self.install_dir}/{path}".rstrip("/"), error) from error


_OTHER_DIGEST = "its digest differs from the one in the manifest"
_SHORTER = "it became shorter while it was copied"


def _open(source: str, size: int) -> int:
    """Open a file of the payload that must have ``size`` bytes."""
    try:
        fd = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _payload_mismatch(source, f"it cannot be read: {error.strerror}") from error
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode) or info.st_size != size:
        os.close(fd)
        raise _payload_mismatch(source, "its size differs from the one in the manifest")
    return fd


def _payload_mismatch(path: Path | str, reason: str) -> PayloadError:
    return PayloadError(
        f"the payload does not match its manifest: {reason}",
        where=str(path),
        hint="pull the image again; if you built the image, run `kata-node payload index` again in its build",
    )


def _content(file: PlacedEntry) -> Content:
    return file.sha256, file.size


def _grouped(files: Iterable[PlacedEntry], key: Callable[[PlacedEntry], T]) -> dict[T, list[PlacedEntry]]:
    found: dict[T, list[PlacedEntry]] = {}
    for file in files:
        found.setdefault(key(file), []).append(file)
    return found


def _chunks(files: Sequence[T], size: int = CHUNK_FILES) -> Iterator[Sequence[T]]:
    for start in range(0, len(files), size):
        yield files[start : start + size]
