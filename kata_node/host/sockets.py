"""Unix sockets of the host, found below its root, and used against one deadline.

A deadline is a point of :func:`time.monotonic`. It bounds a whole conversation: a peer that sends
one byte now and then does not push it back, as a timeout per receive would let it.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from typing import Self

from kata_node.host.files import Root

RECEIVE_BYTES = 65536


class Stream:
    """A connection to a unix socket of the host.

    Its methods raise :class:`OSError` as the kernel says it, :class:`TimeoutError` when the
    deadline has passed, and :class:`ConnectionResetError` when the peer has hung up.
    """

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @classmethod
    def connect(cls, root: Root, path: str, deadline: float) -> Self:
        """Connect to the socket that the host knows as ``path``."""
        real = root.resolve(path)
        unix = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # A socket's address holds 107 bytes, which a root can use up alone; through a descriptor of
            # the directory only the name counts.
            directory = os.open(real.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                # A unix socket with a full queue makes a non-blocking connect fail at once, so it blocks here
                # and the kernel keeps the time.
                micros = max(1, int(_remaining(deadline) * 1e6))
                unix.setsockopt(
                    socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", *divmod(micros, 1_000_000))
                )
                unix.connect(f"/proc/self/fd/{directory}/{real.name}")
            except BlockingIOError as error:
                raise TimeoutError("timed out waiting to be accepted") from error
            finally:
                os.close(directory)
        except BaseException:
            unix.close()
            raise
        return cls(unix)

    def send(self, data: bytes, deadline: float) -> None:
        """Send all of ``data``."""
        self._socket.settimeout(_remaining(deadline))
        self._socket.sendall(data)

    def receive(self, deadline: float) -> bytes:
        """What the peer sends next: at least one byte."""
        self._socket.settimeout(_remaining(deadline))
        data = self._socket.recv(RECEIVE_BYTES)
        if not data:
            raise ConnectionResetError("the other side hung up")
        return data

    def close(self) -> None:
        """Hang up; more than once does no harm."""
        self._socket.close()


def describe_os_error(error: OSError) -> str:
    """What went wrong, in the kernel's words, without the number or Python's class."""
    return error.strerror or str(error) or type(error).__name__


def _remaining(deadline: float) -> float:
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise TimeoutError("timed out")
    return remaining
