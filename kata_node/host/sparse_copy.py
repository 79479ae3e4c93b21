"""Write new files in the cheapest way the kernel offers, with holes instead of zeros.

If the kernel cannot copy a file by itself, this module reads and writes it. It does not use
``sendfile``, which took as long on ext4 (measured, also from overlayfs) and copies the zeros that the
layers of a container image store instead of the holes of a guest image.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from typing import Protocol

ProgressCallback = Callable[[int], None]
"""Called with the number of bytes just copied, including holes. An exception from it stops the copy."""


class Hasher(Protocol):
    """A digest as in :mod:`hashlib`."""

    def update(self, data: bytes | memoryview, /) -> None:
        """Add the next bytes."""


SMALL_SIZE = 64 * 1024
"""Bytes of a file that is read and written whole, without a search for holes."""
_CHUNK_SIZE = 256 * 1024
_LARGE_CHUNK_SIZE = 16 * 1024 * 1024
_BLOCK_SIZE = 64 * 1024
"""An aligned block of this many zeros becomes a hole."""
_ZEROS = bytes(_BLOCK_SIZE)
_FICLONE = 0x40049409  # from linux/fs.h
_UNSUPPORTED_ERRNOS = {
    errno.EXDEV,  # two file systems, or overlayfs and its lower one
    errno.EOPNOTSUPP,
    errno.EINVAL,
    errno.ENOSYS,
    errno.ENOTTY,
    errno.EBADF,  # FICLONE on a file system that does not support it
    errno.EPERM,  # a seccomp profile
}


class SparseWriter:
    """Writes a new file of ``size`` bytes through ``fd``, in chunks of any size, in order.

    Parts that are not written stay holes. It starts the write-back of a large file to the disk early: to
    write all data at the end took a fifth longer.
    """

    def __init__(self, fd: int, size: int, advance: ProgressCallback) -> None:
        os.ftruncate(fd, size)
        self._fd = fd
        self._size = size
        self._advance = advance
        self._done = 0
        self._started = 0

    def write(self, offset: int, chunk: bytes | memoryview) -> None:
        """Write ``chunk`` at ``offset``. A gap before it stays a hole."""
        view = memoryview(chunk)
        pending = start = 0
        while start < len(view):
            end = min(start + _BLOCK_SIZE - (offset + start) % _BLOCK_SIZE, len(view))
            if _is_zeros(view[start:end]):
                write_all(self._fd, offset + pending, view[pending:start])
                pending = end
            start = end
        write_all(self._fd, offset + pending, view[pending:])
        self.advance_to(offset + len(view))

    def finish(self) -> None:
        """Leave the rest of the file as a hole, and start its write-back."""
        self.advance_to(self._size)
        if self._size > SMALL_SIZE:
            self._start_writeback()

    def advance_to(self, offset: int) -> None:
        """Report all bytes up to ``offset`` as done."""
        self._advance(offset - self._done)
        self._done = offset
        if self._done - self._started >= _LARGE_CHUNK_SIZE:
            self._start_writeback()

    def _start_writeback(self) -> None:
        """Make the kernel write dirty pages to the disk without waiting, a side effect of DONTNEED."""
        length = self._done - self._started
        with contextlib.suppress(OSError):  # only advice
            os.posix_fadvise(self._fd, self._started, length, os.POSIX_FADV_DONTNEED)
        self._started = self._done


def copy(
    source: int, target: int, size: int, advance: ProgressCallback, hasher: Hasher | None = None
) -> None:
    """Copy ``size`` bytes of the open file ``source`` to the open, new and empty file ``target``.

    Holes stay holes. ``hasher`` gets all bytes of ``target``, with zeros for holes: what the kernel copied is
    read from ``target``, which nobody else can change. Raises :class:`EOFError` when ``source`` is shorter,
    and :class:`OSError`.
    """
    if size <= SMALL_SIZE:
        _copy_whole(source, target, size, hasher)
        advance(size)
        return
    if _clone(source, target):
        if hasher is not None:
            _hash_file(target, size, hasher)
        advance(size)
        return
    output = SparseWriter(target, size, advance)
    by_kernel = True
    hashed = 0
    for start, end in _data_ranges(source, size):
        offset = start
        if hasher is not None:
            _hash_zeros(start - hashed, hasher)
        if by_kernel:
            offset = _copy_in_kernel(source, target, start, end, output, hasher)
            by_kernel = offset == end
        if offset < end:
            _read_and_write(source, offset, end, output, hasher)
        hashed = end
    if hasher is not None:
        _hash_zeros(size - hashed, hasher)
    output.finish()


def _copy_whole(source: int, target: int, size: int, hasher: Hasher | None) -> None:
    data = os.pread(source, size, 0)
    if len(data) < size:
        raise EOFError
    if hasher is not None:
        hasher.update(data)
    write_all(target, 0, memoryview(data))


def _hash_file(fd: int, size: int, hasher: Hasher) -> None:
    hashed = 0
    for start, end in _data_ranges(fd, size):
        _hash_zeros(start - hashed, hasher)
        _hash_data(fd, start, end, hasher)
        hashed = end
    _hash_zeros(size - hashed, hasher)


def _hash_data(fd: int, offset: int, end: int, hasher: Hasher) -> None:
    buffer = memoryview(bytearray(min(_CHUNK_SIZE, end - offset)))
    while offset < end:
        length = os.preadv(fd, [buffer[: end - offset]], offset)
        if not length:
            raise EOFError
        hasher.update(buffer[:length])
        offset += length


def _hash_zeros(length: int, hasher: Hasher) -> None:
    for start in range(0, length, len(_ZEROS)):
        hasher.update(memoryview(_ZEROS)[: length - start])


def _clone(source: int, target: int) -> bool:
    """Make ``target`` share the blocks of ``source``; return whether the file system supports this."""
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if error.errno not in _UNSUPPORTED_ERRNOS:
            raise
        return False
    return True


def _copy_in_kernel(
    source: int, target: int, offset: int, end: int, output: SparseWriter, hasher: Hasher | None
) -> int:
    """Copy with ``copy_file_range`` as far as the kernel can; return the end of the copied part."""
    while offset < end:
        try:
            done = os.copy_file_range(source, target, min(_LARGE_CHUNK_SIZE, end - offset), offset, offset)
        except OSError as error:
            if error.errno not in _UNSUPPORTED_ERRNOS:
                raise
            break
        if not done:  # the end of the file, or a file system that wrongly reports it
            break
        if hasher is not None:
            _hash_data(target, offset, offset + done, hasher)
        offset += done
        output.advance_to(offset)
    return offset


def _read_and_write(source: int, offset: int, end: int, output: SparseWriter, hasher: Hasher | None) -> None:
    buffer = memoryview(bytearray(min(_CHUNK_SIZE, end - offset)))
    while offset < end:
        length = os.preadv(source, [buffer[: end - offset]], offset)
        if not length:
            raise EOFError
        if hasher is not None:
            hasher.update(buffer[:length])
        output.write(offset, buffer[:length])
        offset += length


def _data_ranges(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield start and end of each part of a file that is not a hole."""
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:  # ENXIO: only a hole up to the end
                raise
            return
        end = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        if start < end:
            yield start, end


def write_all(fd: int, offset: int, data: memoryview) -> None:
    """Write ``data`` at ``offset``."""
    while data:
        written = os.pwrite(fd, data, offset)
        offset += written
        data = data[written:]


def _is_zeros(block: memoryview) -> bool:
    # The first and last byte are enough to rule out almost all other blocks.
    return not block[0] and not block[-1] and bytes(block) == _ZEROS[: len(block)]
