"""Read a ``tar.zst`` archive as a stream: each member once, in order, in chunks.

Members are returned as the archive has them; the caller checks whether they can be trusted. The
standard library's tarfile reads the headers. This module decompresses in larger chunks than tarfile's
own stream classes, which halves the time.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, cast

from msgspec import Struct

from kata_node.errors import PULL_IMAGE_HINT, PayloadError

if sys.version_info >= (3, 14):
    import tarfile

    from compression.zstd import ZstdDecompressor, ZstdError
else:
    from backports.zstd import ZstdDecompressor, ZstdError, tarfile

CHUNK_SIZE = 256 * 1024
"""Bytes decompressed at a time."""
MAX_HEADER_SIZE = 16 * 1024 * 1024
"""Bytes of the headers of one member. tarfile reads them whole, and their size comes from the archive."""
MAX_REST_SIZE = 64 * 1024 * 1024
"""Bytes after the end of the archive. tar fills its last record, usually 10 KiB."""
_INPUT = 128 * 1024
_DAMAGE_ERRORS = (
    tarfile.TarError,
    ZstdError,
    EOFError,
    ValueError,  # a header with an invalid time or name
    OverflowError,
)

Kind = Literal["file", "link", "dir", "hard link", "device, pipe or unknown thing"]


class Member(Struct, frozen=True):
    """One member of an archive, as its header describes it."""

    name: str
    kind: Kind
    mode: int
    size: int
    """Bytes, including holes; 0 unless the member is a file."""
    mtime: int
    link: str
    """The target of a symlink, or for a hard link the name of the earlier member."""


class Digest(Struct, frozen=True):
    """Size in bytes and sha256 of a compressed archive."""

    size: int
    sha256: str


class Archive:
    """The archive at the real path ``path``, which can be read once from start to end.

    Every method raises :class:`PayloadError` when the archive is missing, truncated or corrupt.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._payload_errors():
            self._stream = _Stream(path.open("rb", buffering=0))
        self._info: tarfile.TarInfo | None = None

    def close(self) -> None:
        """Close the file."""
        self._stream.raw.close()

    def members(self) -> Iterator[Member]:
        """Yield each member. Its content can be read until the next member is requested."""
        with self._payload_errors():
            with tarfile.open(fileobj=self._stream, mode="r:") as tar:
                for self._info in tar:
                    self._stream.header_size = 0
                    yield _member(self._info)
            # tarfile stops at anything that is not a header, but a complete archive ends in a block of zeros.
            if self._stream.last_read != bytes(tarfile.BLOCKSIZE):
                raise EOFError("the end-of-archive block is missing")

    def content(self) -> Iterator[tuple[int, memoryview]]:
        """Yield the current member's content as offsets and chunks, in order, without the holes.

        A chunk stays valid: its buffer is not reused.
        """
        info = self._info
        assert info is not None
        with self._payload_errors():
            self._stream.seek(info.offset_data)
            end = 0
            for offset, length in cast("list[tuple[int, int]] | None", info.sparse) or [(0, info.size)]:
                if not end <= offset <= offset + length <= info.size:
                    raise ValueError(f"{info.name} has an invalid sparse map")
                end = offset + length
                while offset < end:
                    chunk = self._stream.chunk(end - offset)
                    if not chunk:
                        raise EOFError("it is truncated")
                    yield offset, chunk
                    offset += len(chunk)

    def verify_rest(self) -> None:
        """Decompress the remaining data, so that zstd verifies the checksums of all content."""
        with self._payload_errors():
            end = self._stream.tell() + MAX_REST_SIZE
            while self._stream.chunk(CHUNK_SIZE):
                if self._stream.tell() > end:
                    raise ValueError(f"more than {MAX_REST_SIZE} bytes follow its end")

    def digest(self) -> Digest:
        """Return the digest of the whole compressed file. Remaining data is read but not decompressed."""
        with self._payload_errors():
            while self._stream.read_compressed():
                pass
        return Digest(self._stream.size, self._stream.sha256.hexdigest())

    @contextlib.contextmanager
    def _payload_errors(self) -> Iterator[None]:
        hint = PULL_IMAGE_HINT
        try:
            yield
        except FileNotFoundError as error:
            raise PayloadError("the archive is missing", where=str(self.path), hint=hint) from error
        except OSError as error:
            text = error.strerror or str(error)
            raise PayloadError(
                f"the archive cannot be read: {text}", where=str(self.path), hint=hint
            ) from error
        except _DAMAGE_ERRORS as error:
            raise PayloadError(f"the archive is damaged: {error}", where=str(self.path), hint=hint) from error


class _Stream(io.RawIOBase):
    """The decompressed bytes of ``raw``, forward only. It also hashes the compressed bytes."""

    def __init__(self, raw: io.FileIO) -> None:
        self.raw = raw
        self.size = 0
        self.sha256 = hashlib.sha256()
        self.last_read = b""
        """The result of the last :meth:`read`."""
        self.header_size = 0
        """The number of bytes that :meth:`read` returned; the reader sets it to 0 after each member."""
        self._decompressor = ZstdDecompressor()
        self._ready = memoryview(b"")
        self._position = 0

    def read_compressed(self) -> bytes:
        """Read and hash the next compressed bytes."""
        data = self.raw.read(_INPUT) or b""
        self.size += len(data)
        self.sha256.update(data)
        return data

    def chunk(self, max_size: int) -> memoryview:
        """Return the next bytes, at most ``max_size``, without a copy; none at the end."""
        if not self._ready:
            self._ready = memoryview(self._decompress())
        chunk, self._ready = self._ready[:max_size], self._ready[max_size:]
        self._position += len(chunk)
        return chunk

    def _decompress(self) -> bytes:
        while True:
            data = b""
            if self._decompressor.eof:  # the end of one frame; another may follow
                data = self._decompressor.unused_data or self.read_compressed()
                if not data:
                    return b""
                self._decompressor = ZstdDecompressor()
            elif self._decompressor.needs_input:
                data = self.read_compressed()
                if not data:
                    raise EOFError("it is truncated")
            if out := self._decompressor.decompress(data, CHUNK_SIZE):
                return out

    def read(self, size: int = -1) -> bytes:
        """Return exactly ``size`` bytes, fewer only at the end."""
        assert size >= 0
        self.header_size += size
        if self.header_size > MAX_HEADER_SIZE:
            raise ValueError(f"the headers of a member have more than {MAX_HEADER_SIZE} bytes")
        data = bytearray()
        while len(data) < size and (chunk := self.chunk(size - len(data))):
            data += chunk
        self.last_read = bytes(data)
        return self.last_read

    def tell(self) -> int:
        """Return the number of bytes returned so far."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Skip the bytes up to ``offset``. Raises :class:`ValueError` on a seek backwards."""
        if whence != io.SEEK_SET or offset < self._position:
            raise ValueError("it can only be read with a seek backwards")
        while self._position < offset and self.chunk(offset - self._position):
            pass
        return self._position


def _member(info: tarfile.TarInfo) -> Member:
    kind: Kind = "device, pipe or unknown thing"
    if info.isreg():
        kind = "file"
    elif info.isdir():
        kind = "dir"
    elif info.issym():
        kind = "link"
    elif info.islnk():
        kind = "hard link"
    size = info.size if kind == "file" else 0
    return Member(info.name, kind, info.mode & 0o7777, size, int(info.mtime), info.linkname)
