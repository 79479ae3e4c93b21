"""One unary gRPC call over a unix socket of the node.

A gRPC call over HTTP/2 is one POST. A message follows a header of five bytes (a compression flag and the
length). The status is in the trailers, or in the headers if there is no message. h2 implements HTTP/2;
the gRPC library would add 19 MB, and 50 ms to every start.
"""

from __future__ import annotations

import contextlib
import math
import struct
import time
from collections.abc import Iterable
from urllib.parse import unquote

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from h2.exceptions import H2Error

from kata_node.host.sockets import Stream
from kata_node.text import foreign_words, quote_foreign

MAX_ANSWER = 16 << 20
"""Bytes; the kubelet has the same limit for answers of a container runtime."""

OK = 0
DEADLINE_EXCEEDED = 4
NOT_FOUND = 5
UNIMPLEMENTED = 12

_MESSAGE_HEADER = struct.Struct(">BI")


class StatusError(Exception):
    """The server answered with a status other than OK: a gRPC ``code`` and its ``message``."""

    def __init__(self, code: int, message: str) -> None:
        status = f"gRPC status {code}"
        super().__init__(f"{quote_foreign(message)} ({status})" if message else status)
        self.code = code
        self.message = message


class ProtocolError(Exception):
    """The server does not speak gRPC, or its answer is incomplete."""


def unary_call(stream: Stream, method: str, request: bytes, deadline: float) -> bytes:
    """Call ``method`` (``/package.Service/Method``) on a new connection; return the serialized answer.

    Raises :class:`StatusError`, :class:`ProtocolError`, and the errors of :class:`Stream`.
    """
    http = H2Connection(H2Configuration(client_side=True, header_encoding=None))
    call = _Call(http)
    try:
        http.initiate_connection()
        http.send_headers(call.stream_id, _headers(method, deadline))
        http.send_data(call.stream_id, _MESSAGE_HEADER.pack(0, len(request)) + request, end_stream=True)
        stream.send(http.data_to_send(), deadline)
        while not call.ended:
            for event in http.receive_data(stream.receive(deadline)):
                call.handle_event(event)
            # h2 answers settings, pings and window updates by itself.
            if answer := http.data_to_send():
                # A server may answer and close the connection; its answer can still be read.
                with contextlib.suppress(ConnectionError):
                    stream.send(answer, deadline)
    except H2Error as error:
        raise ProtocolError(f"the server broke the HTTP/2 protocol: {foreign_words(str(error))}") from error
    return call.result()


def _headers(method: str, deadline: float) -> list[tuple[str, str]]:
    # Rounded up, so that our own deadline passes first. gRPC allows at most eight digits.
    milliseconds = min(max(1, math.ceil((deadline - time.monotonic()) * 1000)), 99_999_999)
    return [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", method),
        (":authority", "localhost"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        ("user-agent", "kata-node"),
        ("grpc-timeout", f"{milliseconds}m"),
    ]


class _Call:
    """The part of the answer that was received so far."""

    def __init__(self, http: H2Connection) -> None:
        self.stream_id = http.get_next_available_stream_id()
        self.ended = False
        self._http = http
        self._headers: dict[str, str] = {}
        self._body = bytearray()

    def handle_event(self, event: Event) -> None:
        if self.ended:
            return
        if isinstance(event, ResponseReceived | TrailersReceived):
            self._headers.update(_text(event.headers))
        elif isinstance(event, DataReceived):
            self._body += event.data
            if len(self._body) > MAX_ANSWER:
                raise ProtocolError(f"the answer is longer than {MAX_ANSWER >> 20} MiB")
            # Without this the server stops after 64 KiB and waits forever.
            self._http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, StreamEnded):
            self.ended = True
        elif isinstance(event, StreamReset | ConnectionTerminated):
            raise ProtocolError(f"the server canceled the call (HTTP/2 error {event.error_code!r})")

    def result(self) -> bytes:
        status = self._headers.get("grpc-status", "")
        if not status.isdecimal():
            raise ProtocolError(
                "the server speaks HTTP but not gRPC "
                f"(HTTP status {foreign_words(self._headers.get(':status', 'unknown'))})"
            )
        if int(status) != OK:
            raise StatusError(int(status), unquote(self._headers.get("grpc-message", "")))
        if len(self._body) < _MESSAGE_HEADER.size:
            raise ProtocolError("the answer has no message")
        compressed, length = _MESSAGE_HEADER.unpack_from(self._body)
        message = bytes(self._body[_MESSAGE_HEADER.size :])
        if compressed or len(message) != length:
            raise ProtocolError(f"the answer is not one plain message of {length} bytes")
        return message


def _text(headers: Iterable[tuple[str | bytes, str | bytes]]) -> Iterable[tuple[str, str]]:
    for name, value in headers:
        yield (
            name.decode() if isinstance(name, bytes) else name,
            value.decode(errors="replace") if isinstance(value, bytes) else value,
        )
