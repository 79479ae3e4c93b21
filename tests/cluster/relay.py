"""Lets a node with a network of its own reach the API server, at the address it has on the machine.

    relay.py PID PORT

Listens on 127.0.0.1:PORT in the network namespace of process PID, and passes what comes there on to
127.0.0.1:PORT of its own. Nothing of the machine's network is changed, and all ends with the process.
"""

from __future__ import annotations

import ctypes
import os
import selectors
import socket
import sys
import threading

_CLONE_NEWNET = 0x40000000


def listen_in(pid: int, port: int) -> socket.socket:
    """A socket that listens on loopback in the network namespace of ``pid``; the caller's stays as it is."""
    libc = ctypes.CDLL(None, use_errno=True)
    own, other = (os.open(f"/proc/{each}/ns/net", os.O_RDONLY) for each in ("thread-self", pid))
    try:
        _enter(libc, other)
        try:
            # A socket stays in the namespace it was made in.
            return socket.create_server(("127.0.0.1", port), backlog=128)
        finally:
            _enter(libc, own)
    finally:
        os.close(own)
        os.close(other)


def _enter(libc: ctypes.CDLL, namespace: int) -> None:
    if libc.setns(namespace, _CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def relay(client: socket.socket, port: int) -> None:
    """Pass on what ``client`` sends and is sent, until one side has had enough."""
    with client, selectors.DefaultSelector() as ready:
        try:
            server = socket.create_connection(("127.0.0.1", port))
        except OSError:
            return  # the API server is away, and the client sees its connection closed
        with server:
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


def main() -> None:
    """Serve until killed; the line on stdout says that connections are taken."""
    pid, port = map(int, sys.argv[1:])
    listener = listen_in(pid, port)
    print("listening", flush=True)
    while True:
        client, _ = listener.accept()
        threading.Thread(target=relay, args=(client, port), daemon=True).start()


if __name__ == "__main__":
    main()
