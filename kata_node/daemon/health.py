"""Answer the kubelet's probes. ``/healthz`` succeeds while the process lives, ``/readyz`` once it is ready.

A thread of its own answers them, so that no work delays a probe. It uses only sockets: the HTTP server of
the standard library would be half of the memory of the process (measured).
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from collections.abc import Callable

from kata_node.errors import KataNodeError, UsageError

REQUEST_LIMIT = 4096
"""The maximum size of a request in bytes. A probe has about 200."""

CLIENT_TIMEOUT = 5.0
"""Seconds that a client may take to send its request."""

MAX_CLIENTS = 32
"""The maximum number of open connections. A further connection closes the oldest one."""


class HealthState:
    """The state of the daemon. ``text`` is the body of the answers.

    Everyone who reaches the port can read it, so it is a fixed text and never the text of an error.
    """

    def __init__(self, ready: bool, text: str) -> None:
        self.ready = ready
        self.text = text


def listen(address: str) -> socket.socket:
    """Return a socket that listens on ``[HOST]:PORT``; without HOST on all IPv4 and IPv6 addresses.

    Raises :class:`UsageError` for another form of address, and :class:`KataNodeError` when the address
    cannot be used.
    """
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise UsageError(
            "expected [HOST]:PORT", where=f"--listen {address}", hint="set a port, for example --listen :8090"
        )
    both = not host and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both or ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, int(port)), family=family, dualstack_ipv6=both)
    except OSError as error:
        raise KataNodeError(
            f"cannot listen for probes: {error.strerror}",
            where=f"--listen {address}",
            hint="stop the program that listens there, or set another port here and in the probes of the pod",
        ) from error


def respond(request: bytes, state: HealthState) -> bytes:
    """Return the response to a request. Only its first line matters."""
    words = request.partition(b"\r\n")[0].split()
    if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
        return _response("400 Bad Request", "this is not an HTTP/1 request")
    method, path = words[0], words[1].partition(b"?")[0]
    if method not in (b"GET", b"HEAD"):
        return _response("405 Method Not Allowed", "use GET or HEAD", "Allow: GET, HEAD\r\n")
    if path == b"/healthz" or (path == b"/readyz" and state.ready):
        status = "200 OK"
    elif path == b"/readyz":
        status = "503 Service Unavailable"
    else:
        return _response("404 Not Found", "use /healthz or /readyz")
    return _response(status, state.text, body=method == b"GET")


def _response(status: str, text: str, header: str = "", *, body: bool = True) -> bytes:
    content = f"{text}\n".encode("utf-8", "backslashreplace")
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\n{header}"
        f"Content-Length: {len(content)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (content if body else b"")


class _Client:
    def __init__(self) -> None:
        self.deadline = time.monotonic() + CLIENT_TIMEOUT
        self.received = bytearray()


class ProbeServer:
    """A server that answers on ``listener`` until the process ends. Each request calls ``state``."""

    def __init__(self, listener: socket.socket, state: Callable[[], HealthState]) -> None:
        self._listener = listener
        self._state = state
        self._clients: dict[socket.socket, _Client] = {}  # the oldest is the first
        listener.setblocking(False)

    def start(self) -> None:
        """Start to answer, in a daemon thread."""
        threading.Thread(target=self._serve, name="probes", daemon=True).start()

    def _serve(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select(CLIENT_TIMEOUT if self._clients else None):
                    peer = key.fileobj
                    assert isinstance(peer, socket.socket)
                    if peer is self._listener:
                        self._accept(selector)
                    elif peer in self._clients:  # an accept in this loop may have closed it
                        self._read(selector, peer)
                now = time.monotonic()
                for late in [peer for peer, client in self._clients.items() if client.deadline < now]:
                    self._drop(selector, late)

    def _accept(self, selector: selectors.BaseSelector) -> None:
        with contextlib.suppress(OSError):  # the client closed the connection before the accept
            peer, _ = self._listener.accept()
            peer.setblocking(False)
            if len(self._clients) >= MAX_CLIENTS:
                self._drop(selector, next(iter(self._clients)))
            self._clients[peer] = _Client()
            selector.register(peer, selectors.EVENT_READ)

    def _read(self, selector: selectors.BaseSelector, peer: socket.socket) -> None:
        received = self._clients[peer].received
        with contextlib.suppress(OSError):  # the client closed the connection
            piece = peer.recv(REQUEST_LIMIT)
            received += piece
            if piece and b"\r\n\r\n" not in received and len(received) < REQUEST_LIMIT:
                return
            # The response is far smaller than the send buffer, so one send is enough.
            peer.send(respond(bytes(received), self._state()))
            peer.shutdown(socket.SHUT_WR)
        self._drop(selector, peer)

    def _drop(self, selector: selectors.BaseSelector, peer: socket.socket) -> None:
        selector.unregister(peer)
        del self._clients[peer]
        peer.close()
