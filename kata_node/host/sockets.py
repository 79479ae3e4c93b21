"""Connections to unix sockets of the node, with a deadline.

A deadline is a value of :func:`time.monotonic`. It limits a whole conversation, unlike a timeout per
receive, which starts again with every byte that the peer sends.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Sequence
from typing import Self

from kata_node.host.files import Root

RECEIVE_BYTES = 65536


class Stream:
    """A connection to a unix socket of the node.

    Its methods raise :class:`OSError`: among them :class:`TimeoutError` after the deadline, and
    :class:`ConnectionResetError` when the peer has closed the connection.
    """

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @classmethod
    def connect(cls, root: Root, path: str, deadline: float) -> Self:
        """Connect to the socket at the host path ``path``."""
        real = root.resolve(path)
        unix = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # The address of a unix socket is limited to 107 bytes, and the path of the root may be longer.
            # With a descriptor of the directory only the file name counts.
            directory = os.open(real.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                # If the queue of the socket is full, a non-blocking connect fails at once. So this connect
                # blocks, with a timeout in the kernel.
                micros = max(1, int(_remaining(deadline) * 1e6))
                unix.setsockopt(
                    socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", *divmod(micros, 1_000_000))
                )
                unix.connect(f"/proc/self/fd/{directory}/{real.name}")
            except BlockingIOError as error:
                raise TimeoutError("timed out while connecting") from error
            finally:
                os.close(directory)
        except BaseException:
            unix.close()
            raise
        return cls(unix)

    def send(self, data: bytes, deadline: float, descriptors: Sequence[int] = ()) -> None:
        """Send all of ``data``, with file descriptors, which the peer gets as its own."""
        self._socket.settimeout(_remaining(deadline))
        if descriptors:
            data = data[socket.send_fds(self._socket, [data], list(descriptors)) :]
        self._socket.sendall(data)

    def receive(self, deadline: float) -> bytes:
        """Return the next data from the peer, at least one byte."""
        self._socket.settimeout(_remaining(deadline))
        data = self._socket.recv(RECEIVE_BYTES)
        if not data:
            raise ConnectionResetError("the peer closed the connection")
        return data

    def close(self) -> None:
        """Close the connection. It may be called more than once."""
        self._socket.close()


def describe_os_error(error: OSError) -> str:
    """Return the kernel's text for an error, without the number and the path."""
    return error.strerror or str(error) or type(error).__name__


def _remaining(deadline: float) -> float:
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise TimeoutError("timed out")
    return remaining
