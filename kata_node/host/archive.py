"""Streams a ``tar.zst`` archive: each member once, in order, in pieces, and never a byte twice.

Members are told as the archive has them; whether they can be trusted is the caller's to check. The
standard library's tarfile reads the headers. Decompression is done here, in larger pieces than its
own stream classes take, which halves the time.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from kata_node.errors import PayloadError

if sys.version_info >= (3, 14):
    import tarfile

    from compression.zstd import ZstdDecompressor, ZstdError
else:
    from backports.zstd import ZstdDecompressor, ZstdError, tarfile

CHUNK_SIZE = 256 * 1024
"""Bytes decompressed at a time."""
_INPUT = 128 * 1024
_DAMAGE_ERRORS = (
    tarfile.TarError,
    ZstdError,
    EOFError,
    ValueError,  # a header with a time that is no number, or a name that is no text
    OverflowError,
)

Kind = Literal["file", "link", "dir", "hard link", "device, pipe or unknown thing"]


@dataclass(frozen=True)
class Member:
    """One member of an archive, as its header says."""

    name: str
    kind: Kind
    mode: int
    size: int
    """Bytes, holes counted."""
    mtime: int
    link: str
    """Target of a link; of a hard link, the name of the earlier member."""


@dataclass(frozen=True)
class Digest:
    """Size in bytes and sha256 of a compressed archive."""

    size: int
    sha256: str


class Archive:
    """An archive at the real path ``path``, read once from start to end.

    Whatever is wrong with it — missing, cut short, corrupt — is a :class:`PayloadError`, raised
    from whichever method meets it.
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
        """Each member in turn; its content can be read until the next is asked for."""
        with self._payload_errors():
            with tarfile.open(fileobj=self._stream, mode="r:") as tar:
                for self._info in tar:
                    yield _member(self._info)
            # tarfile takes anything that is no header for the end. The true end is a block of zeros.
            if self._stream.last_read != bytes(tarfile.BLOCKSIZE):
                raise EOFError("it does not end where an archive ends")

    def content(self) -> Iterator[tuple[int, memoryview]]:
        """The current member's content: offsets and pieces, in order, without the holes.

        A piece is valid for ever: nothing writes into it again.
        """
        info = self._info
        assert info is not None
        with self._payload_errors():
            self._stream.seek(info.offset_data)
            end = 0
            for offset, length in cast("list[tuple[int, int]] | None", info.sparse) or [(0, info.size)]:
                if not end <= offset <= offset + length <= info.size:
                    raise ValueError(f"{info.name} has data where none can be")
                end = offset + length
                while offset < end:
                    chunk = self._stream.chunk(end - offset)
                    if not chunk:
                        raise EOFError("it is cut short")
                    yield offset, chunk
                    offset += len(chunk)

    def verify_rest(self) -> None:
        """Decompress what is left, so that the checksums of all the content are verified."""
        with self._payload_errors():
            while self._stream.chunk(CHUNK_SIZE):
                pass

    def digest(self) -> Digest:
        """Size and sha256 of the whole compressed file; what is left of it is read, not decompressed."""
        with self._payload_errors():
            while self._stream.read_compressed():
                pass
        return Digest(self._stream.size, self._stream.sha256.hexdigest())

    @contextlib.contextmanager
    def _payload_errors(self) -> Iterator[None]:
        hint = "pull the image again; if it is built by you, build it again"
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
    """The decompressed bytes of ``raw``, forward only, hashing the compressed ones on the way."""

    def __init__(self, raw: io.FileIO) -> None:
        self.raw = raw
        self.size = 0
        self.sha256 = hashlib.sha256()
        self.last_read = b""
        """What the last :meth:`read` gave."""
        self._decompressor = ZstdDecompressor()
        self._ready = memoryview(b"")
        self._position = 0

    def read_compressed(self) -> bytes:
        """The next compressed bytes."""
        data = self.raw.read(_INPUT) or b""
        self.size += len(data)
        self.sha256.update(data)
        return data

    def chunk(self, max_size: int) -> memoryview:
        """At most ``most`` of the next bytes, without copying them; none at the end."""
        if not self._ready:
            self._ready = memoryview(self._decompress())
        chunk, self._ready = self._ready[:max_size], self._ready[max_size:]
        self._position += len(chunk)
        return chunk

    def _decompress(self) -> bytes:
        while True:
            data = b""
            if self._decompressor.eof:  # of one frame; another may follow
                data = self._decompressor.unused_data or self.read_compressed()
                if not data:
                    return b""
                self._decompressor = ZstdDecompressor()
            elif self._decompressor.needs_input:
                data = self.read_compressed()
                if not data:
                    raise EOFError("it is cut short")
            if out := self._decompressor.decompress(data, CHUNK_SIZE):
                return out

    def read(self, size: int = -1) -> bytes:
        """Exactly ``size`` bytes, fewer only at the end."""
        assert size >= 0
        data = b""
        while len(data) < size and (chunk := self.chunk(size - len(data))):
            data += chunk
        self.last_read = data
        return data

    def tell(self) -> int:
        """Bytes given so far."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Pass over bytes up to ``offset``."""
        if whence != io.SEEK_SET or offset < self._position:
            raise ValueError("it would have to be read backwards")
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
