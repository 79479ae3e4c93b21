from __future__ import annotations

import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, RequestReceived, StreamEnded

from host.unix_server import UnixServer, listen
from kata_node.errors import CriError, HostError
from kata_node.host.cri import Condition, Cri, CriCallError, Reason, Status, Version
from kata_node.host.cri_sandboxes import Pod
from kata_node.host.files import Root
from kata_node.host.sockets import Stream

SOCKET = "/run/containerd/containerd.sock"
PLENTY = 300.0  # seconds; never waited for in full


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def message(*fields: tuple[int, object]) -> bytes:
    """Serialize a message of booleans, integers, strings, bytes, and floats (as eight bytes)."""
    out = b""
    for number, value in fields:
        if isinstance(value, int):
            out += varint(number << 3) + varint(int(value))
        elif isinstance(value, float):
            out += varint(number << 3 | 1) + struct.pack("<d", value)
        else:
            data = value.encode() if isinstance(value, str) else value
            assert isinstance(data, bytes)
            out += varint(number << 3 | 2) + varint(len(data)) + data
    return out


VERSION = message((1, "0.1.0"), (2, "containerd"), (3, "v2.1.9"), (4, "v1"))
READY = message((1, message((1, "RuntimeReady"), (2, True))), (1, message((1, "NetworkReady"), (2, True))))


def handler(name: str) -> bytes:
    return message((1, name), (2, message((1, True))))


def framed(answer: bytes) -> bytes:
    return struct.pack(">BI", 0, len(answer)) + answer


@dataclass
class Runtime:
    """A fake container runtime: a gRPC server that answers unary calls."""

    answers: dict[str, bytes] = field(
        default_factory=lambda: {"Version": VERSION, "Status": message((1, READY))}
    )
    chunk: int = 16384
    body: Callable[[bytes], bytes] = framed
    status: str = "0"
    status_message: str = ""
    http_status: str = "200"
    instead: str = ""
    """Instead of a complete answer: ``reset``, ``goaway``, ``nothing`` or ``half``."""
    requests: list[tuple[dict[str, str], bytes]] = field(default_factory=list)

    def serve(self, connection: socket.socket) -> None:
        http = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        http.initiate_connection()
        connection.sendall(http.data_to_send())
        headers: dict[str, str] = {}
        request = b""
        while data := connection.recv(65536):
            for event in http.receive_data(data):
                if isinstance(event, RequestReceived):
                    headers = dict(event.headers)  # type: ignore[arg-type]
                elif isinstance(event, DataReceived):
                    request += event.data
                elif isinstance(event, StreamEnded):
                    self.requests.append((headers, request))
                    self.answer(connection, http, event.stream_id, headers[":path"])
                    if self.instead == "goaway":
                        connection.sendall(http.data_to_send())
                        return
            connection.sendall(http.data_to_send())

    def answer(self, connection: socket.socket, http: H2Connection, stream: int, path: str) -> None:
        service, _, method = path.rpartition("/")
        outcome = [("grpc-status", self.status), ("grpc-message", self.status_message)]
        headers = [(":status", self.http_status), ("content-type", "application/grpc")]
        if self.instead == "reset":
            http.reset_stream(stream, 8)
        elif self.instead == "goaway":
            http.close_connection(0)
        elif self.instead == "nothing":
            pass
        elif service != "/runtime.v1.RuntimeService" or method not in self.answers:
            http.send_headers(stream, [*headers, ("grpc-status", "12")], end_stream=True)
        elif self.http_status != "200":
            http.send_headers(stream, headers[:1], end_stream=True)
        elif self.status != "0":
            http.send_headers(stream, headers + outcome, end_stream=True)
        else:
            http.send_headers(stream, headers)
            self.send(connection, http, stream, self.body(self.answers[method]))
            if self.instead == "half":
                connection.sendall(http.data_to_send())
                connection.shutdown(socket.SHUT_RDWR)
            http.send_headers(stream, outcome, end_stream=True)

    def send(self, connection: socket.socket, http: H2Connection, stream: int, body: bytes) -> None:
        """Send ``body`` in frames of at most ``chunk`` bytes, within the client's flow control window."""
        while body:
            room = min(self.chunk, http.local_flow_control_window(stream))
            if room:
                http.send_data(stream, body[:room])
                body = body[room:]
            connection.sendall(http.data_to_send())
            if not room:
                http.receive_data(connection.recv(65536))


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Cri]]:
    """Start a server on the CRI socket of a new root; return the client for it."""
    peers: list[UnixServer] = []

    def start(connection: Callable[[socket.socket], None], backlog: int = 16) -> Cri:
        peers.append(UnixServer(tmp_path / SOCKET[1:], connection, backlog))
        return Cri(Root(tmp_path), SOCKET)

    yield start
    for peer in peers:
        peer.close()


def test_version_returns_the_name_and_version_of_the_runtime(serve: Callable[..., Cri]) -> None:
    assert serve(Runtime().serve).version(PLENTY) == Version("containerd", "v2.1.9", "v1")


def test_status_lists_the_handlers_without_the_default_one(serve: Callable[..., Cri]) -> None:
    handlers = [(3, handler(name)) for name in ("runc", "", "kata-qemu", "kata-clh")]
    status = serve(Runtime({"Status": message((1, READY), *handlers)}).serve).status(PLENTY)
    assert status.handlers == ("kata-clh", "kata-qemu", "runc")
    assert status.runtime_ready
    assert status.network_ready


def test_status_keeps_the_reason_and_message_of_a_condition(serve: Callable[..., Cri]) -> None:
    network = message((1, "NetworkReady"), (2, False), (3, "NoPlugin"), (4, "cni plugin not initialized"))
    ready = message((1, message((1, message((1, "RuntimeReady"), (2, True))), (1, network))))
    assert serve(Runtime({"Status": ready}).serve).status(PLENTY) == Status(
        runtime_ready=True,
        network_ready=False,
        handlers=(),
        conditions=(
            Condition("RuntimeReady", True, "", ""),
            Condition("NetworkReady", False, "NoPlugin", "cni plugin not initialized"),
        ),
    )


def sandbox(namespace: str, name: str, *more: tuple[int, object]) -> tuple[int, bytes]:
    metadata = message((1, name), (2, "0f1e"), (3, namespace), (4, 1))
    return 1, message((1, f"{name:x<64}"), (2, metadata), (4, 2**60), *more)


def test_running_pods_are_listed_with_their_handlers(serve: Callable[..., Cri]) -> None:
    answer = message(
        sandbox("shop", "web", (5, message((1, "app"), (2, "web"))), (7, "kata-qemu")),
        sandbox("shop", "db", (6, message((1, "note"), (2, "x" * 1000))), (7, "runc")),
        sandbox("kube-system", "proxy"),
    )
    assert serve(Runtime({"ListPodSandbox": answer}).serve).pods("containerd", PLENTY) == (
        Pod("kube-system", "proxy", ""),
        Pod("shop", "db", "runc"),
        Pod("shop", "web", "kata-qemu"),
    )


def test_only_running_pods_are_requested(serve: Callable[..., Cri]) -> None:
    runtime = Runtime({"ListPodSandbox": b""})
    assert serve(runtime.serve).pods("containerd", PLENTY) == ()
    # A filter with an empty state message, which means SANDBOX_READY (0), the default.
    assert [request for _, request in runtime.requests] == [framed(message((1, message((2, b"")))))]


def test_a_pod_with_two_sandboxes_is_listed_once(serve: Callable[..., Cri]) -> None:
    answer = message(*[sandbox("shop", "web", (7, "kata-qemu"))] * 2)
    assert serve(Runtime({"ListPodSandbox": answer}).serve).pods("containerd", PLENTY) == (
        Pod("shop", "web", "kata-qemu"),
    )


def test_all_pods_of_a_full_node_come_in_one_answer(serve: Callable[..., Cri]) -> None:
    annotation = (6, message((1, "kubectl.kubernetes.io/last-applied-configuration"), (2, "x" * 8192)))
    answer = message(*(sandbox("shop", f"web-{at}", annotation, (7, "kata-qemu")) for at in range(500)))
    runtime = Runtime({"ListPodSandbox": answer})
    assert len(serve(runtime.serve).pods("containerd", 30)) == 500
    assert len(runtime.requests) == 1


@dataclass
class Crio(Runtime):
    """A fake CRI-O: it reports a handler only in the verbose status of a sandbox."""

    handlers: dict[str, str] = field(default_factory=dict)
    """The handlers by the names of pods. Pods that are not in it have ended after they were listed."""

    def answer(self, connection: socket.socket, http: H2Connection, stream: int, path: str) -> None:
        if path.endswith("/PodSandboxStatus"):
            asked = next((pod for pod in self.handlers if f"{pod:x<64}" in self.requests[-1][1].decode()), "")
            handler = {"io.kubernetes.cri-o.RuntimeHandler": self.handlers.get(asked, "")}
            spec = json.dumps({"runtimeSpec": {"annotations": handler}})
            self.answers["PodSandboxStatus"] = message((1, b""), info("info", spec))
            self.status = "0" if asked else "5"
        super().answer(connection, http, stream, path)


def test_cri_o_gets_one_request_per_pod_for_its_handler(serve: Callable[..., Cri]) -> None:
    listed = message(sandbox("shop", "web"), sandbox("shop", "db"), sandbox("shop", "ended"))
    runtime = Crio({"ListPodSandbox": listed}, handlers={"web": "kata-qemu", "db": ""})
    assert serve(runtime.serve).pods("cri-o", PLENTY) == (
        Pod("shop", "db", ""),
        Pod("shop", "web", "kata-qemu"),
    )
    # The id, and verbose.
    assert runtime.requests[1][1] == framed(message((1, f"{'web':x<64}"), (2, True)))


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(message((2, message((1, "info"), (2, '{"runtimeSpec": {}}')))), id="no-annotations"),
        pytest.param(message((2, message((1, "info"), (2, "[")))), id="no-json"),
    ],
)
def test_a_missing_handler_in_the_answer_of_cri_o_is_an_error(
    serve: Callable[..., Cri], answer: bytes
) -> None:
    """Otherwise a pod on a handler that is to be removed could be missed."""
    runtime = Runtime({"ListPodSandbox": message(sandbox("shop", "web")), "PodSandboxStatus": answer})
    with pytest.raises(CriCallError, match="RuntimeHandler") as caught:
        serve(runtime.serve).pods("cri-o", PLENTY)
    assert caught.value.reason is Reason.BROKEN


def test_an_empty_status_means_that_the_runtime_is_not_ready(serve: Callable[..., Cri]) -> None:
    assert serve(Runtime({"Status": b""}).serve).status(PLENTY) == Status(False, False, ())


def test_unknown_fields_of_newer_runtimes_are_ignored(serve: Callable[..., Cri]) -> None:
    newer = message(
        (1, READY), (2, message((1, "config"), (2, "{}"))), (300, 2**63), (4, b"\x08\x01"), (9, 1.5)
    )
    newer += varint(10 << 3 | 5) + b"four" + message((3, handler("kata-qemu")))
    status = serve(Runtime({"Status": newer}).serve).status(PLENTY)
    assert status.handlers == ("kata-qemu",)
    assert status.runtime_ready


def info(key: str, value: str) -> tuple[int, bytes]:
    return 2, message((1, key), (2, value))


def test_handlers_come_from_the_configuration_when_the_runtime_does_not_report_them(
    serve: Callable[..., Cri],
) -> None:
    config = '{"containerd": {"defaultRuntimeName": "runc", "runtimes": {"runc": {}, "kata-qemu": {}}}}'
    answer = message((1, READY), info("golang", '"go1.24"'), info("config", config))
    runtime = Runtime({"Status": answer})
    status = serve(runtime.serve).status(PLENTY)
    assert status.handlers == ("kata-qemu", "runc")
    assert status.runtime_ready
    plain, verbose = (body[5:] for _, body in runtime.requests)
    assert (plain, verbose) == (b"", message((1, True)))


def test_a_runtime_that_reports_its_handlers_gets_one_request(serve: Callable[..., Cri]) -> None:
    config = info("config", '{"containerd": {"runtimes": {"other": {}}}}')
    runtime = Runtime({"Status": message((1, READY), config, (3, handler("runc")))})
    assert serve(runtime.serve).status(PLENTY).handlers == ("runc",)
    assert len(runtime.requests) == 1


@pytest.mark.parametrize(
    "config",
    [
        pytest.param("", id="empty"),
        pytest.param("[crio.runtime]\ndefault_runtime = 'crun'\n", id="toml-of-another-runtime"),
        pytest.param("[]", id="array"),
        pytest.param('{"containerd": null}', id="null"),
        pytest.param('{"containerd": {"runtimes": null}}', id="no-runtimes"),
        pytest.param('{"containerd": {"runtimes": "runc"}}', id="text"),
    ],
)
def test_a_configuration_without_runtimes_gives_no_handlers(serve: Callable[..., Cri], config: str) -> None:
    status = serve(Runtime({"Status": message((1, READY), info("config", config))}).serve).status(PLENTY)
    assert status.handlers == ()
    assert status.runtime_ready


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        pytest.param(b"\x80", "a number ends too early", id="cut-number"),
        pytest.param(b"\x0a\x05ab", "a field ends too early", id="cut-string"),
        pytest.param(b"\x0b", "the unknown wire type 3", id="group"),
        pytest.param(b"\xff" * 11, "more than 64 bits", id="endless-number"),
        pytest.param(message((1, message((1, b"\x0a\x05ab")))), "a field ends too early", id="inner-message"),
    ],
)
def test_an_answer_that_cannot_be_decoded_is_an_error(
    serve: Callable[..., Cri], answer: bytes, what: str
) -> None:
    with pytest.raises(CriCallError, match=what) as caught:
        serve(Runtime({"Status": answer}).serve).status(PLENTY)
    assert caught.value.reason is Reason.BROKEN


def test_the_request_has_the_headers_that_grpc_requires(serve: Callable[..., Cri]) -> None:
    runtime = Runtime({"Status": message((3, handler("runc")))})
    serve(runtime.serve).status(PLENTY)
    [(headers, body)] = runtime.requests
    assert headers[":method"] == "POST"
    assert headers[":path"] == "/runtime.v1.RuntimeService/Status"
    assert headers[":authority"] == "localhost"
    assert headers["te"] == "trailers"
    assert headers["content-type"] == "application/grpc"
    assert body == b"\0\0\0\0\0"


@pytest.mark.parametrize(
    ("timeout", "low", "high"),
    [
        pytest.param(5, 1, 5000, id="seconds"),
        pytest.param(1e9, 99_999_999, 99_999_999, id="no-more-than-eight-digits"),
    ],
)
def test_the_request_contains_the_deadline(
    serve: Callable[..., Cri], timeout: float, low: int, high: int
) -> None:
    runtime = Runtime()
    serve(runtime.serve).version(timeout)
    [(headers, _)] = runtime.requests
    assert re.fullmatch(r"[0-9]{1,8}m", headers["grpc-timeout"])
    assert low <= int(headers["grpc-timeout"][:-1]) <= high


@pytest.mark.parametrize("chunk", [1, 3, 5, 7])
def test_an_answer_in_small_chunks_is_put_together(serve: Callable[..., Cri], chunk: int) -> None:
    assert serve(Runtime(chunk=chunk).serve).version(PLENTY) == Version("containerd", "v2.1.9", "v1")


def test_an_answer_larger_than_the_flow_control_window_does_not_stall(serve: Callable[..., Cri]) -> None:
    handlers = [(3, handler(f"kata-{number:05}" + "x" * 250)) for number in range(4000)]
    status = serve(Runtime({"Status": message(*handlers)}).serve).status(PLENTY)
    assert len(status.handlers) == 4000


def test_an_answer_above_the_size_limit_is_an_error(serve: Callable[..., Cri]) -> None:
    runtime = Runtime(body=lambda _: bytes(17 << 20))
    with pytest.raises(CriCallError, match="longer than 16 MiB") as caught:
        serve(runtime.serve).status(PLENTY)
    assert caught.value.reason is Reason.BROKEN


@pytest.mark.parametrize(
    ("body", "what"),
    [
        pytest.param(lambda _: b"", "no message", id="none"),
        pytest.param(lambda _: b"\0\0\0", "no message", id="cut-prefix"),
        pytest.param(lambda answer: framed(answer)[:-1], "not one plain message", id="cut"),
        pytest.param(lambda answer: framed(answer) * 2, "not one plain message", id="two"),
        pytest.param(lambda answer: b"\1" + framed(answer)[1:], "not one plain message", id="compressed"),
    ],
)
def test_an_answer_that_is_not_exactly_one_message_is_an_error(
    serve: Callable[..., Cri], body: Callable[[bytes], bytes], what: str
) -> None:
    with pytest.raises(CriCallError, match=what) as caught:
        serve(Runtime(body=body).serve).version(PLENTY)
    assert caught.value.reason is Reason.BROKEN


def test_a_runtime_without_its_cri_plugin_is_reported_as_such(
    serve: Callable[..., Cri],
) -> None:
    with pytest.raises(CriCallError, match="does not serve the CRI") as caught:
        serve(Runtime({}).serve).version(PLENTY)
    assert caught.value.reason is Reason.NO_CRI
    assert "plugin" in caught.value.hint


@pytest.mark.parametrize(
    ("runtime", "reason", "what"),
    [
        pytest.param(
            Runtime(status="14", status_message="server is not initialized yet: 50%25 done%2C wait"),
            Reason.ERROR,
            'Status failed: "server is not initialized yet: 50% done, wait" (gRPC status 14)',
            id="unavailable",
        ),
        pytest.param(
            Runtime(status="2", status_message='%1B[2J%0Aoh"; hint: trust me'),
            Reason.ERROR,
            r"""Status failed: "\x1b[2J oh'; hint: trust me" (gRPC status 2)""",
            id="hostile",
        ),
        pytest.param(Runtime(status="2"), Reason.ERROR, "Status failed: gRPC status 2", id="wordless"),
        pytest.param(Runtime(status="4"), Reason.TIMEOUT, "no answer to Status within 300 s", id="late"),
        pytest.param(Runtime(http_status="404"), Reason.BROKEN, "not gRPC (HTTP status 404)", id="http"),
        pytest.param(Runtime(instead="reset"), Reason.BROKEN, "canceled the call", id="reset"),
        pytest.param(Runtime(instead="goaway"), Reason.BROKEN, "canceled the call", id="goaway"),
        pytest.param(Runtime(instead="half"), Reason.BROKEN, "no answer", id="died-in-mid-answer"),
    ],
)
def test_an_error_quotes_the_error_of_the_runtime(
    serve: Callable[..., Cri], runtime: Runtime, reason: Reason, what: str
) -> None:
    with pytest.raises(CriCallError) as caught:
        serve(runtime.serve).status(PLENTY)
    assert caught.value.reason is reason
    assert what in caught.value.what
    assert caught.value.where == SOCKET
    assert caught.value.hint
    assert isinstance(caught.value, CriError)


@pytest.mark.parametrize(
    "greeting",
    [
        pytest.param(b"HTTP/1.1 400 Bad Request\r\n\r\n" + b"-" * 100, id="http1"),
        pytest.param(b"REJECTED EXTERNAL\r\n" * 9, id="another-protocol"),
        pytest.param(b"\0\0\1\0\0\0\0\0\0x", id="http2-that-breaks-its-rules"),
        pytest.param(b"", id="hangs-up"),
    ],
)
def test_a_server_that_is_not_a_runtime_is_an_error(serve: Callable[..., Cri], greeting: bytes) -> None:
    def talk(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(greeting)

    with pytest.raises(CriCallError) as caught:
        serve(talk).version(PLENTY)
    assert caught.value.reason is Reason.BROKEN


def test_a_missing_socket_is_reported_as_missing(tmp_path: Path) -> None:
    with pytest.raises(CriCallError, match="there is no CRI socket") as caught:
        Cri(Root(tmp_path)).version(PLENTY)
    assert caught.value.reason is Reason.MISSING
    assert caught.value.where == SOCKET


def test_a_socket_without_a_listener_is_reported_as_refused(tmp_path: Path) -> None:
    listen(tmp_path / SOCKET[1:]).close()
    with pytest.raises(CriCallError, match="nothing listens") as caught:
        Cri(Root(tmp_path), SOCKET).version(PLENTY)
    assert caught.value.reason is Reason.REFUSED


def test_a_socket_path_below_a_file_is_reported_as_missing(tmp_path: Path) -> None:
    (tmp_path / "run").write_bytes(b"")
    with pytest.raises(CriCallError) as caught:
        Cri(Root(tmp_path), SOCKET).version(PLENTY)
    assert caught.value.reason is Reason.MISSING


def test_a_socket_without_permission_is_reported_as_denied(
    serve: Callable[..., Cri], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("kata_node.host.sockets.socket.socket.connect", refuse)
    with pytest.raises(CriCallError) as caught:
        serve(Runtime().serve).version(PLENTY)
    assert caught.value.reason is Reason.DENIED
    assert caught.value.hint == "run as root"


def test_a_runtime_that_accepts_but_never_answers_times_out(serve: Callable[..., Cri]) -> None:
    with pytest.raises(CriCallError, match=r"no answer to Version within 0.1 s") as caught:
        serve(Runtime(instead="nothing").serve).version(0.1)
    assert caught.value.reason is Reason.TIMEOUT


def test_a_runtime_that_sends_frames_but_no_answer_times_out(serve: Callable[..., Cri]) -> None:
    over = threading.Event()

    def trickle(connection: socket.socket) -> None:
        settings = H2Connection(H2Configuration(client_side=False))
        settings.initiate_connection()
        connection.sendall(settings.data_to_send())
        while not over.wait(0.01):
            # A window update, which needs no answer.
            connection.sendall(b"\0\0\4\x08\0\0\0\0\0" + b"\0\0\0\1")

    with pytest.raises(CriCallError) as caught:
        serve(trickle).version(0.2)
    over.set()
    assert caught.value.reason is Reason.TIMEOUT


def test_a_runtime_that_does_not_accept_connections_times_out(tmp_path: Path) -> None:
    root = Root(tmp_path)
    with (
        listen(tmp_path / SOCKET[1:], backlog=0),
        Stream.connect(root, SOCKET, time.monotonic() + PLENTY),
        pytest.raises(CriCallError) as caught,
    ):
        Cri(root, SOCKET).version(0.1)
    assert caught.value.reason is Reason.TIMEOUT


def test_the_path_of_the_root_may_be_longer_than_a_socket_address(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    peer = UnixServer(deep / SOCKET[1:], Runtime().serve)
    try:
        assert Cri(Root(deep), SOCKET).version(PLENTY).runtime_name == "containerd"
    finally:
        peer.close()


def test_a_symlink_in_the_path_of_the_socket_stays_below_the_root(
    serve: Callable[..., Cri], tmp_path: Path
) -> None:
    cri = serve(Runtime().serve)
    (tmp_path / "var").mkdir()
    (tmp_path / "var/run").symlink_to("/run")
    assert Cri(cri.root, "/var/run/containerd/containerd.sock").version(PLENTY).runtime_name == "containerd"


def test_a_loop_of_symlinks_is_a_host_error(tmp_path: Path) -> None:
    (tmp_path / "run").symlink_to("run")
    with pytest.raises(HostError):
        Cri(Root(tmp_path), SOCKET).version(PLENTY)


def test_a_call_after_a_restart_of_the_runtime_works(tmp_path: Path) -> None:
    cri = Cri(Root(tmp_path), SOCKET)
    for version in ("2.1.9", "2.2.0"):
        peer = UnixServer(
            tmp_path / SOCKET[1:], Runtime({"Version": message((2, "containerd"), (3, version))}).serve
        )
        assert cri.version(PLENTY).runtime_version == version
        peer.close()
        (tmp_path / SOCKET[1:]).unlink()


def test_each_request_is_logged_with_its_duration(
    serve: Callable[..., Cri], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "kata_node")
    runtime = Runtime()
    cri = serve(runtime.serve)
    cri.version(PLENTY)
    runtime.instead = "reset"
    with pytest.raises(CriCallError):
        cri.version(PLENTY)
    done, failed = (each for each in caplog.messages if each.startswith("Version on "))
    assert re.fullmatch(rf"Version on {SOCKET}: done in \d+ ms", done)
    assert re.fullmatch(rf"Version on {SOCKET}: failed in \d+ ms", failed)
