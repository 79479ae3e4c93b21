"""What the fake API servers of the tests have in common: the handling of connections."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from http.server import BaseHTTPRequestHandler
from typing import Any


class RequestHandler(BaseHTTPRequestHandler):
    """Passes each request to :meth:`_handle`, and tells the ``owner`` which connections are open."""

    owner: Any
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # send an answer in one packet: two packets cause a delayed acknowledgment

    def setup(self) -> None:
        super().setup()
        self.owner._connections.add(self.connection)

    def finish(self) -> None:
        self.owner._connections.discard(self.connection)
        with contextlib.suppress(OSError):  # the client may have closed the connection
            super().finish()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    @abstractmethod
    def _handle(self, method: str) -> None: ...

    def do_GET(self) -> None:
        self._handle("GET")

    def do_POST(self) -> None:
        self._handle("POST")

    def do_PATCH(self) -> None:
        self._handle("PATCH")

    def do_DELETE(self) -> None:
        self._handle("DELETE")
