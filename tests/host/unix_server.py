"""A server on a real unix socket, in threads, for tests of clients."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path


class UnixServer:
    """Listens at ``path`` and runs ``serve`` in a thread for each connection, until it is closed."""

    def __init__(self, path: Path, serve: Callable[[socket.socket], None], backlog: int = 16) -> None:
        self._serve = serve
        self._connections: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = listen(path, backlog)
        self._start(self._accept)

    def close(self) -> None:
        """End every connection and wait for the threads."""
        _shut_down(self._listener)
        self._threads[0].join()  # it accepts; after this there are no more connections and threads
        for connection in self._connections:
            _shut_down(connection)
        for thread in self._threads[1:]:
            thread.join()
        for unix in (self._listener, *self._connections):
            unix.close()

    def _start(self, work: Callable[[], None]) -> None:
        self._threads.append(threading.Thread(target=work))
        self._threads[-1].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # close() was called
            while True:
                connection, _ = self._listener.accept()
                self._connections.append(connection)
                self._start(lambda connection=connection: self._run(connection))  # type: ignore[misc]

    def _run(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):  # the client closed the connection, or the test is over
            self._serve(connection)
            connection.shutdown(socket.SHUT_RDWR)


def _shut_down(unix: socket.socket) -> None:
    with contextlib.suppress(OSError):
        unix.shutdown(socket.SHUT_RDWR)


def listen(path: Path, backlog: int = 16) -> socket.socket:
    """Return a listening socket at ``path``, which may be longer than a socket address."""
    path.parent.mkdir(parents=True, exist_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    directory = os.open(path.parent, os.O_PATH)
    try:
        listener.bind(f"/proc/self/fd/{directory}/{path.name}")
    finally:
        os.close(directory)
    listener.listen(backlog)
    return listener
