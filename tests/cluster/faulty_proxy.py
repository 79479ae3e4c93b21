"""A proxy of the API server that injects faults: error answers, lost answers, stalls. It counts requests.

    with FaultyProxy.to(cluster) as proxy:
        proxy.inject(Fault(503), times=2)
        ...run a program with proxy.kubeconfig(path, token)...  # it has to ask three times
        assert proxy.count("GET", 503) == 2

It has the API server's certificate, so clients of the API server trust it.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPResponse, HTTPSConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from urllib.parse import urlsplit

from cluster import flags
from cluster.control_plane import Cluster

UNLIMITED = 10**9
"""The ``times`` of a permanent fault."""

JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Fault:
    """The fault of one request. A fault without any field set passes the request on unchanged.

    ``first`` is called before the API server gets the request, and ``then`` after it answered but before the
    client gets the answer: the moments at which another writer causes the most trouble.
    """

    status: int = 0
    """The status of an answer that the proxy sends itself."""
    headers: Mapping[str, str] = field(default_factory=lambda: JSON)
    body: str | None = None  # of the proxy's own answer; None is a Status object
    carried_out: bool = False  # pass the request on to the API server although its answer is lost
    cut: bool = False  # close the connection instead of an answer
    stall: bool = False  # neither answer nor close the connection
    drip: float = 0  # seconds between two bytes of the answer
    delay: float = 0  # seconds before the answer
    first: Callable[[], object] | None = None
    then: Callable[[], object] | None = None

    @property
    def _instead(self) -> bool:
        return bool(self.status or self.cut or self.stall)


@dataclass(frozen=True)
class Request:
    """A request that the proxy received; ``status`` is the status of the answer, 0 without an answer.

    ``at`` is the time of the answer, in seconds of :func:`time.monotonic`.
    """

    method: str
    path: str
    status: int
    body: str
    at: float
    token: str = field(repr=False)


@dataclass
class _Order:
    fault: Fault
    method: str
    pass_by: int
    times: int


class FaultyProxy:
    """A proxy that passes requests on to the API server at ``server`` and injects the requested faults."""

    def __init__(self, server: str, ca: Path, certificate: Path) -> None:
        self._server, self._ca = urlsplit(server), ca
        self._orders: list[_Order] = []
        self._requests: list[Request] = []
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self.over = threading.Event()
        self.frozen = False
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.tls.load_cert_chain(certificate, certificate.with_suffix(".key"))
        proxy = self

        class Handler(_Handler):
            owner = proxy

        self._listener = _Listener(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._listener.serve_forever, args=(0.01,))
        self._thread.start()

    @classmethod
    def to(cls, cluster: Cluster) -> FaultyProxy:
        """Return a proxy of the API server of ``cluster``, which may be down for a while."""
        return cls(cluster.url, cluster.ca, cluster.directory / flags.CERTIFICATES)

    @property
    def port(self) -> int:
        """The port of the proxy on 127.0.0.1."""
        return int(self._listener.server_address[1])

    @property
    def url(self) -> str:
        """The URL of the proxy."""
        return f"https://127.0.0.1:{self.port}"

    @property
    def requests(self) -> list[Request]:
        """The requests so far."""
        with self._lock:
            return list(self._requests)

    def count(self, method: str = "", status: int | None = None) -> int:
        """Return the number of requests with this method and answer ``status``; default: any."""
        return sum(method in ("", each.method) and status in (None, each.status) for each in self.requests)

    def inject(self, fault: Fault, *, method: str = "", times: int = 1, after: int = 0) -> None:
        """Apply ``fault`` to the next ``times`` requests of ``method``, after ``after`` requests without it.

        If several faults match a request, the one injected first applies and the others wait.
        """
        with self._lock:
            self._orders.append(_Order(fault, method, after, times))

    def freeze(self) -> None:
        """Stop answering, even TLS handshakes; connections are still accepted."""
        self.frozen = True
        self.inject(Fault(stall=True), times=UNLIMITED)

    def cut(self) -> None:
        """Close all connections."""
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def kubeconfig(self, path: Path, token: str) -> Path:
        """Write a kubeconfig with the proxy as the server, and return ``path``."""
        path.write_text(flags.kubeconfig(self.url, self._ca.read_text(), token, "default"))
        return path

    def close(self) -> None:
        """Stop the proxy and close its connections."""
        self.over.set()
        self._listener.shutdown()
        self.cut()
        self._listener.server_close()
        self._thread.join()

    def __enter__(self) -> FaultyProxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _fault(self, method: str) -> Fault:
        with self._lock:
            for order in self._orders:
                if order.method not in ("", method) or not order.times:
                    continue
                if order.pass_by:
                    order.pass_by -= 1
                    continue
                order.times -= 1
                return order.fault
        return Fault()

    def _note(self, request: Request) -> None:
        with self._lock:
            self._requests.append(request)

    def _connection(self) -> HTTPSConnection:
        context = ssl.create_default_context(cafile=self._ca)
        host, port = self._server.hostname or "", self._server.port
        return HTTPSConnection(host, port, timeout=60, context=context)


class _Listener(ThreadingHTTPServer):
    daemon_threads = False  # joined when it is closed

    def handle_error(self, request: object, address: object) -> None:
        if not isinstance(sys.exception(), OSError):  # the client left, or does not trust the certificate
            super().handle_error(request, address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    owner: FaultyProxy
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer in one packet, because two packets wait for a delayed acknowledgement

    def setup(self) -> None:
        self._upstream: HTTPSConnection | None = None
        plain = self.request
        self.owner._connections.add(plain)
        if self.owner.frozen:
            self.owner.over.wait()
        self.request = self.owner.tls.wrap_socket(plain, server_side=True)
        self.owner._connections.discard(plain)
        self.owner._connections.add(self.request)
        super().setup()

    def finish(self) -> None:
        self.owner._connections.discard(self.connection)
        with contextlib.suppress(OSError):
            super().finish()
        if self._upstream is not None:
            self._upstream.close()
        self.connection.close()  # the server closes only the connection without TLS

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def do_GET(self) -> None:
        self._handle()

    do_PATCH = do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815 - the names that the base class calls

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.owner._fault(self.command)
        if fault.first:
            fault.first()
        answer: tuple[int, Mapping[str, str], bytes] | None = None
        if fault.carried_out or not fault._instead:
            answer = self._carry_out(body)
            if fault.then:
                fault.then()
        if fault.stall or fault.delay:
            self.owner.over.wait(None if fault.stall else fault.delay)
        if fault.cut or fault.stall:
            answer = None
        elif fault.status:
            answer = fault.status, fault.headers, _status(fault)
        _, _, token = self.headers.get("Authorization", "").partition(" ")
        status = answer[0] if answer else 0
        # Saved before the client gets the answer, so that the test finds the request afterwards.
        self.owner._note(Request(self.command, self.path, status, body.decode(), time.monotonic(), token))
        if answer is None:
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)
        else:
            self._send(*answer, drip=fault.drip)

    def _carry_out(self, body: bytes) -> tuple[int, Mapping[str, str], bytes] | None:
        """Pass the request on, and return the API server's answer, or None without one."""
        headers = {key: value for key, value in self.headers.items() if key not in ("Host", "Connection")}
        if self._upstream is None:
            self._upstream = self.owner._connection()
        try:
            self._upstream.request(self.command, self.path, body or None, headers)
            response = self._upstream.getresponse()
            return response.status, _passed_on(response), response.read()
        except (OSError, HTTPException):
            self._upstream.close()
            self._upstream = None
            return None

    def _send(self, status: int, headers: Mapping[str, str], body: bytes, *, drip: float) -> None:
        with contextlib.suppress(OSError):  # the client may have gone
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            if drip:
                self._drip(drip, body)
                return
            self.end_headers()
            self.wfile.write(body)

    def _drip(self, seconds: float, body: bytes) -> None:
        whole = b"".join(self._headers_buffer) + b"\r\n" + body  # type: ignore[attr-defined]
        for byte in whole:
            self.connection.sendall(bytes([byte]))
            if self.owner.over.wait(seconds):
                return


def _passed_on(response: HTTPResponse) -> dict[str, str]:
    own = ("connection", "transfer-encoding", "content-length", "date", "server")
    return {key: value for key, value in response.getheaders() if key.lower() not in own}


def _status(fault: Fault) -> bytes:
    if fault.body is not None:
        return fault.body.encode()
    status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
    return json.dumps({**status, "message": "injected fault", "code": fault.status}).encode()
