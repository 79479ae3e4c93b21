"""Ways between the machine and nodes that have a network of their own; run as a program of either kind.

    relay.py service PID PORT ADDRESS:PORT...

Lets a node reach the API server: listens at each ADDRESS:PORT in the network of process PID, and passes
what comes there on to 127.0.0.1:PORT of the machine.

    relay.py egress SOCKET DIRECTORY

Lets the API server reach the kubelets: answers ``CONNECT ADDRESS:PORT`` on SOCKET, as an HTTP proxy does.
DIRECTORY has a file for each ADDRESS of a node, which begins with the number of a process in its network.
No other address is reached.

Nothing of the machine's network is changed, and all ends with the process.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import selectors
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

_CLONE_NEWNET = 0x40000000

Serve = Callable[[socket.socket], None]


@contextlib.contextmanager
def network_of(pid: int) -> Iterator[None]:
    """Sockets that this thread makes meanwhile are in the network namespace of ``pid``, and stay there."""
    libc = ctypes.CDLL(None, use_errno=True)
    own, other = (os.open(f"/proc/{each}/ns/net", os.O_RDONLY) for each in ("thread-self", pid))
    try:
        _enter(libc, other)
        try:
            yield
        finally:
            _enter(libc, own)
    finally:
        os.close(own)
        os.close(other)


def _enter(libc: ctypes.CDLL, namespace: int) -> None:
    if libc.setns(namespace, _CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def pass_on(client: socket.socket, server: socket.socket) -> None:
    """Pass on what either sends to the other, until one side has had enough."""
    with selectors.DefaultSelector() as ready:
        ready.register(client, selectors.EVENT_READ, server)
        ready.register(server, selectors.EVENT_READ, client)
        while True:
            for key, _ in ready.select():
                try:
                    content = key.fileobj.recv(65536)  # type: ignore[union-attr]
                    key.data.sendall(content)
                except OSError:
                    return
                if not content:
                    return


def service(port: int) -> Serve:
    """What becomes of a connection to the API server, which is at ``port`` of the machine."""

    def serve(client: socket.socket) -> None:
        try:
            server = socket.create_connection(("127.0.0.1", port))
        except OSError:
            return  # the API server is away, and the client sees its connection closed
        with server:
            pass_on(client, server)

    return serve


def egress(directory: Path) -> Serve:
    """What becomes of a connection from the API server, which asks for an address of ``directory``."""

    def serve(client: socket.socket) -> None:
        asked = b""
        while b"\r\n\r\n" not in asked:
            content = client.recv(4096)
            if not content:
                return
            asked += content
        host, _, port = asked.split()[1].decode().rpartition(":")
        try:
            server = connected(directory / host, (host, int(port)))
        except OSError as error:
            client.sendall(f"HTTP/1.1 502 {error}\r\n\r\n".encode())
            return
        with server:
            client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            pass_on(client, server)

    return serve


def connected(node: Path, address: tuple[str, int]) -> socket.socket:
    """A connection to ``address`` in the network that the file ``node`` names; raises :class:`OSError`."""
    with network_of(int(node.read_text().split()[0])):
        connection = socket.create_connection(address, timeout=10)
    connection.settimeout(None)
    return connection


def accept(listener: socket.socket, serve: Serve) -> None:
    """Serve every connection, each in a thread of its own, for ever."""

    def served(client: socket.socket) -> None:
        with client:
            serve(client)

    while True:
        client, _ = listener.accept()
        threading.Thread(target=served, args=(client,), daemon=True).start()


def main() -> None:
    """Serve until killed; the line on stdout says that connections are taken."""
    kind, *arguments = sys.argv[1:]
    if kind == "service":
        pid, port, *addresses = arguments
        pairs = [address.rsplit(":", 1) for address in addresses]
        with network_of(int(pid)):
            listeners = [socket.create_server((host, int(number)), backlog=128) for host, number in pairs]
        serve = service(int(port))
    else:
        path, directory = arguments
        listeners = [socket.socket(socket.AF_UNIX)]
        listeners[0].bind(path)
        listeners[0].listen(128)
        serve = egress(Path(directory))
    print("listening", flush=True)
    for listener in listeners[1:]:
        threading.Thread(target=accept, args=(listener, serve), daemon=True).start()
    accept(listeners[0], serve)


if __name__ == "__main__":
    main()
