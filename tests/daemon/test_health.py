"""The answers to probes: the response to a request, and a server that one client cannot block for others."""

from __future__ import annotations

import contextlib
import socket

import pytest

from kata_node.daemon import health
from kata_node.daemon.health import MAX_CLIENTS, REQUEST_LIMIT, HealthState, ProbeServer, listen, respond
from kata_node.errors import KataNodeError, UsageError

READY, NOT_READY = HealthState(True, "installed"), HealthState(False, "installing")


@pytest.mark.parametrize(
    ("request_line", "state", "status", "body"),
    [
        pytest.param("GET /healthz HTTP/1.1", NOT_READY, 200, "installing\n", id="alive"),
        pytest.param("GET /healthz HTTP/1.1", READY, 200, "installed\n", id="alive and ready"),
        pytest.param("GET /readyz HTTP/1.1", NOT_READY, 503, "installing\n", id="not ready"),
        pytest.param("GET /readyz HTTP/1.1", READY, 200, "installed\n", id="ready"),
        pytest.param("GET /readyz?verbose HTTP/1.0", READY, 200, "installed\n", id="query"),
        pytest.param("HEAD /readyz HTTP/1.1", NOT_READY, 503, "", id="head"),
        pytest.param("GET / HTTP/1.1", READY, 404, "use /healthz or /readyz\n", id="elsewhere"),
        pytest.param("GET /readyz/ HTTP/1.1", READY, 404, "use /healthz or /readyz\n", id="slash"),
        pytest.param("POST /readyz HTTP/1.1", READY, 405, "use GET or HEAD\n", id="method"),
        pytest.param("hello", READY, 400, "this is not an HTTP/1 request\n", id="no HTTP"),
        pytest.param("", READY, 400, "this is not an HTTP/1 request\n", id="nothing"),
        pytest.param("PRI * HTTP/2.0", READY, 400, "this is not an HTTP/1 request\n", id="HTTP/2"),
    ],
)
def test_a_request_gets_its_response(request_line: str, state: HealthState, status: int, body: str) -> None:
    head, _, content = respond(f"{request_line}\r\nHost: x\r\n\r\n".encode(), state).partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0].startswith(f"HTTP/1.1 {status} ")
    assert content.decode() == body
    headers = dict(line.split(": ") for line in lines[1:])
    assert headers["Connection"] == "close"
    assert body == "" or int(headers["Content-Length"]) == len(content)


def test_the_content_length_counts_bytes() -> None:
    head, _, content = respond(b"GET /readyz HTTP/1.1\r\n\r\n", HealthState(False, "雪 \udc80")).partition(
        b"\r\n\r\n"
    )
    assert content.decode() == "雪 \\udc80\n"
    assert f"Content-Length: {len(content)}".encode() in head


@pytest.mark.parametrize("address", ["8090", ":", "localhost", ":http", ":70000", "", ":-1"])
def test_an_invalid_address_is_refused_with_an_example(address: str) -> None:
    with pytest.raises(UsageError, match="HOST") as refused:
        listen(address)
    assert ":8090" in refused.value.hint


IPV6 = pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="the kernel here has no IPv6")


@pytest.mark.parametrize("host", ["", "127.0.0.1", pytest.param("[::1]", marks=IPV6), "localhost"])
def test_it_listens_on_one_address_or_on_all(host: str) -> None:
    with listen(f"{host}:0") as listener:
        port = listener.getsockname()[1]
        to = {"": "127.0.0.1", "[::1]": "::1"}.get(host, host)
        socket.create_connection((to, port), timeout=30).close()


def test_a_port_in_use_is_an_error() -> None:
    with listen("127.0.0.1:0") as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(KataNodeError, match="cannot listen") as refused:
            listen(address)
    assert refused.value.exit_code == 1
    assert address in refused.value.where


@pytest.fixture
def address() -> tuple[str, int]:
    listener = listen("127.0.0.1:0")  # its thread lives as long as the process
    ProbeServer(listener, lambda: READY).start()
    host, port = listener.getsockname()
    return host, port


def asks(address: tuple[str, int]) -> bytes:
    with socket.create_connection(address, timeout=30) as client:
        client.sendall(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
        return b"".join(iter(lambda: client.recv(1000), b""))


def test_silent_clients_delay_no_probe(address: tuple[str, int]) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(MAX_CLIENTS * 2):
            stack.enter_context(socket.create_connection(address, timeout=30))
        for _ in range(3):
            assert asks(address).startswith(b"HTTP/1.1 200 OK\r\n")


def test_a_request_in_pieces_is_answered(address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=30) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in (b"GET /rea", b"dyz HTTP/1.1\r\nHo", b"st: x\r\n\r", b"\n"):
            client.sendall(piece)
            assert asks(address)  # the piece has been read before this answer
        assert client.recv(1000).startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize("sent", [b"x" * REQUEST_LIMIT, b"\r\n\r\n"], ids=["endless", "empty"])
def test_an_invalid_request_is_answered_and_its_connection_closed(
    address: tuple[str, int], sent: bytes
) -> None:
    with socket.create_connection(address, timeout=30) as client:
        client.sendall(sent)
        said = b"".join(iter(lambda: client.recv(1000), b""))
    assert said.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert asks(address)


def test_a_client_that_disconnects_does_not_disturb_others(address: tuple[str, int]) -> None:
    for sent in (b"", b"GET /readyz", b"GET /readyz HTTP/1.1\r\n\r\n"):
        client = socket.create_connection(address, timeout=30)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # close with a reset
        client.sendall(sent)
        client.close()
    assert asks(address)


def test_a_slow_client_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "CLIENT_TIMEOUT", 0.0)
    listener = listen("127.0.0.1:0")
    ProbeServer(listener, lambda: READY).start()
    with socket.create_connection(listener.getsockname(), timeout=30) as client:
        assert client.recv(1) == b""
