"""A fake API server over real HTTP with one Node and failures on demand, and a clock that sleeps move."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from typing import Any

from fake_http import RequestHandler
from kata_node.kube.client import Clock

MACHINE = "0123456789abcdef0123456789abcdef"

Labels = dict[str, str]


# --- the API server ---------------------------------------------------------------------------------


@dataclass
class Fault:
    """A failure of one request. Without a status the server closes the connection."""

    status: int = 0
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=lambda: {"Content-Type": "application/json"})
    method: str = ""  # fail only a request with this method
    carried_out: bool = False  # the request is carried out and only its answer is lost
    hang: bool = False
    asked: threading.Event | None = None  # set when the request has arrived
    drip: float = 0  # seconds between the bytes of the answer
    first: Callable[[], None] | None = None  # called before the request, which then succeeds


def status_object(code: int, message: str, reason: str = "") -> bytes:
    answer = {"kind": "Status", "apiVersion": "v1", "code": code, "message": message, "reason": reason}
    return json.dumps(answer).encode()


class Api:
    """A fake API server with one Node, and the real rules for versions and merge patches."""

    def __init__(self) -> None:
        self.name = "n1"
        self.present = True
        self.labels: Labels = {"kubernetes.io/hostname": "n1"}
        self.annotations: dict[str, str] = {}
        self.status: dict[str, Any] = {
            "conditions": [{"type": "DiskPressure", "status": "False"}, {"type": "Ready", "status": "True"}],
            "nodeInfo": {"machineID": MACHINE},
        }
        self.version = 41
        self.token = ""
        self.requests: list[str] = []
        self.writes = 0
        self.events: list[dict[str, Any]] = []
        self.taints: object = "new"  # a wrong type: a field that a test does not read must not matter
        self.faults: list[Fault] = []
        self.released = threading.Event()
        self._port = 0
        self._server: ThreadingHTTPServer | None = None
        self._connections: set[socket.socket] = set()

    @property
    def port(self) -> int:
        return self._port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        api = self

        class Handler(_Handler):
            owner = api

        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        self._server.daemon_threads = False  # joined when the server is closed
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.01,)).start()

    def stop(self) -> None:
        assert self._server is not None
        self.released.set()
        self._server.shutdown()
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._server.server_close()

    def write(self, changes: Mapping[str, str | None]) -> None:
        """Change labels like another writer."""
        merged = {**self.labels, **changes}
        self.labels = {key: value for key, value in merged.items() if value is not None}
        self.version += 1

    def replace(self, node_labels: Labels) -> None:
        """Replace all labels, like a kubelet that registers again."""
        self.write(dict.fromkeys(self.labels) | node_labels)

    def report(self, **status: Any) -> None:
        self.status |= status
        self.version += 1

    def node(self) -> bytes:
        metadata: dict[str, Any] = {"name": self.name, "resourceVersion": str(self.version)}
        if self.labels:
            metadata["labels"] = self.labels
        if self.annotations:
            metadata["annotations"] = self.annotations
        node = {"kind": "Node", "apiVersion": "v1", "metadata": metadata, "spec": {"taints": self.taints}}
        return json.dumps(node | {"status": self.status}).encode()

    def answer(self, method: str, path: str, content_type: str, body: bytes) -> tuple[int, bytes]:
        if (method, path) == ("POST", "/api/v1/namespaces/default/events"):
            self.events.append(json.loads(body))
            return 201, body
        if path != f"/api/v1/nodes/{self.name}" or not self.present:
            return 404, status_object(404, f'nodes "{path}" not found', "NotFound")
        if method == "GET":
            return 200, self.node()
        if content_type == "application/json-patch+json":
            return self.apply_json_patch(json.loads(body))
        if content_type != "application/merge-patch+json":
            return 415, status_object(415, content_type)
        metadata = json.loads(body)["metadata"]
        if metadata.get("resourceVersion") != str(self.version):
            return 409, status_object(409, "the object has been modified", "Conflict")
        self.writes += 1
        annotations = {**self.annotations, **metadata.get("annotations", {})}
        self.annotations = {key: value for key, value in annotations.items() if value is not None}
        self.write(metadata.get("labels", {}))
        return 200, self.node()

    def apply_json_patch(self, operations: list[dict[str, Any]]) -> tuple[int, bytes]:
        node: dict[str, Any] = json.loads(self.node())
        added: dict[str, dict[str, str]] = {"labels": {}, "annotations": {}}
        for each in operations:
            *parents, key = [part.replace("~1", "/") for part in each["path"].split("/")[1:]]
            parent: dict[str, Any] | None = node
            for name in parents:
                parent = (parent or {}).get(name)
            if parent is None or (each["op"] == "test" and parent.get(key) != each["value"]):
                return 422, status_object(422, f"{each['path']} is not as in the patch", "Invalid")
            if each["op"] == "add":
                added[parents[-1]][key] = each["value"]
        self.writes += 1
        self.annotations = self.annotations | added["annotations"]
        self.write(added["labels"])
        return 200, self.node()


class _Handler(RequestHandler):
    owner: Api

    def _handle(self, method: str) -> None:
        api = self.owner
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path, content_type = self.path.partition("?")[0], self.headers.get("Content-Type", "")
        api.requests.append(method)
        if api.token and self.headers.get("Authorization") != f"Bearer {api.token}":
            self._send(
                401, status_object(401, "Unauthorized", "Unauthorized"), {"Content-Type": "application/json"}
            )
            return
        fault = next((each for each in api.faults if each.method in ("", method)), None)
        if fault is None:
            self._send(*api.answer(method, path, content_type, body), {"Content-Type": "application/json"})
            return
        api.faults.remove(fault)
        if fault.asked:
            fault.asked.set()
        if fault.hang:
            api.released.wait()
        if fault.drip:
            for byte in b"HTTP/1.1 200 " + 1000 * b"O":
                with contextlib.suppress(OSError):  # the client closed the connection
                    self.connection.sendall(bytes([byte]))
                if api.released.wait(fault.drip):
                    break
            self.close_connection = True
            return
        if fault.first:
            fault.first()
            self._send(*api.answer(method, path, content_type, body), {"Content-Type": "application/json"})
            return
        if fault.carried_out:
            api.answer(method, path, content_type, body)
        if fault.status:
            error = status_object(fault.status, "injected failure") if fault.body is None else fault.body
            self._send(fault.status, error, fault.headers)
        else:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    def _send(self, code: int, body: bytes, headers: Mapping[str, str]) -> None:
        with contextlib.suppress(OSError):  # the client may have closed the connection
            self.send_response(code)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(body)


# --- time -------------------------------------------------------------------------------------------


class FakeClock:
    """A clock that moves only by sleeping, and calls planned events when their time has come."""

    def __init__(self, start: float = 1000.0) -> None:
        self.now = self.start = start
        self.slept: list[float] = []
        self._plan: list[tuple[float, Callable[[], object]]] = []

    def at(self, seconds: float, event: Callable[[], object]) -> None:
        self._plan.append((self.start + seconds, event))

    @property
    def passed(self) -> float:
        return self.now - self.start

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.slept.append(seconds)
        self.now += seconds
        due = [event for moment, event in self._plan if moment <= self.now]
        self._plan = [each for each in self._plan if each[0] > self.now]
        for event in due:
            event()

    def clock(self, jitter: float = 1.0) -> Clock:
        return Clock(now=lambda: self.now, sleep=self.sleep, jitter=lambda: jitter)
