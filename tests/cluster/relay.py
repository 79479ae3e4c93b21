"""Connect the machine with the network namespaces of nodes. This program has two kinds.

    relay.py service PID PORT ADDRESS:PORT...

Lets a node reach the API server: listens at each ADDRESS:PORT in the network namespace of process PID, and
forwards connections to 127.0.0.1:PORT of the machine.

    relay.py egress SOCKET DIRECTORY

Lets the API server reach the kubelets: answers ``CONNECT ADDRESS:PORT`` on SOCKET, as an HTTP proxy does.
DIRECTORY has a file for each ADDRESS of a node; it begins with the pid of a process in the node's network
namespace. Other addresses are refused.

This changes nothing in the machine's network, and everything ends with the process.
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
    """A context in which new sockets of this thread belong, for good, to the network namespace of ``pid``."""
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
    """Forward data in both directions until one side closes its connection."""
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
    """Return a function that forwards a connection to the API server at ``port`` of the machine."""

    def serve(client: socket.socket) -> None:
        try:
            server = socket.create_connection(("127.0.0.1", port))
        except OSError:
            return  # the API server is down, so close the client's connection
        with server:
            pass_on(client, server)

    return serve


def egress(directory: Path) -> Serve:
    """Return a function that answers a CONNECT of the API server to an address of ``directory``."""

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
    """Connect to ``address`` in the network namespace of the file ``node``; raises :class:`OSError`."""
    with network_of(int(node.read_text().split()[0])):
        connection = socket.create_connection(address, timeout=10)
    connection.settimeout(None)
    return connection


def accept(listener: socket.socket, serve: Serve) -> None:
    """Serve connections forever, each in a separate thread."""

    def served(client: socket.socket) -> None:
        with client:
            serve(client)

    while True:
        client, _ = listener.accept()
        threading.Thread(target=served, args=(client,), daemon=True).start()


def main() -> None:
    """Serve until killed; print ``listening`` when connections are accepted."""
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
