"""Other writers of Nodes, such as a kubelet, a controller or a person, and a record of a Node's states."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from http.client import HTTPException, HTTPResponse, HTTPSConnection
from types import TracebackType
from typing import Any
from urllib.parse import urlencode, urlsplit

from cluster.control_plane import ADMIN, Cluster
from node.commands import WAIT_TIMEOUT, wait_until

_TTL = "node.alpha.kubernetes.io/ttl"  # the controller manager annotates each new Node with it


class NodeWriter:
    """A fast client of the API server that shares no code with kata-node. It is not thread-safe."""

    def __init__(self, cluster: Cluster, who: str = ADMIN) -> None:
        self._token = cluster.token(who)
        self._connection = HTTPSConnection(
            "127.0.0.1",
            urlsplit(cluster.url).port,
            timeout=WAIT_TIMEOUT,
            context=ssl.create_default_context(cafile=cluster.ca),
        )

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def ask(
        self, method: str, path: str, content: object = None, kind: str = "application/json"
    ) -> tuple[int, Any]:
        """Send a request, and return the HTTP status and the object of the answer."""
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": kind}
        body = None if content is None else json.dumps(content)
        try:
            self._connection.request(method, path, body, headers)
            response = self._connection.getresponse()
        except (OSError, HTTPException):  # the API server was restarted and closed the connection
            self._connection.close()
            self._connection.request(method, path, body, headers)
            response = self._connection.getresponse()
        return response.status, json.loads(response.read())

    def do(self, method: str, path: str, content: object = None, kind: str = "application/json") -> Any:
        """Send a request, and return the object; raises :class:`AssertionError` if it is refused."""
        status, answer = self.ask(method, path, content, kind)
        assert status < 300, answer
        return answer

    def watch(self, name: str, version: str) -> HTTPResponse:
        """Watch the Node from ``version`` on, one line a change; afterwards no other request is possible."""
        query = urlencode(
            {"watch": "true", "fieldSelector": f"metadata.name={name}", "resourceVersion": version}
        )
        headers = {"Authorization": f"Bearer {self._token}"}
        self._connection.request("GET", f"/api/v1/nodes?{query}", headers=headers)
        return self._connection.getresponse()

    def interrupt(self) -> None:
        """End the reader of :meth:`watch`."""
        if self._connection.sock is not None:
            with contextlib.suppress(OSError):
                self._connection.sock.shutdown(socket.SHUT_RDWR)

    def node(self, name: str) -> dict[str, Any]:
        """Return the current Node."""
        node: dict[str, Any] = self.do("GET", f"/api/v1/nodes/{name}")
        return node

    def label(self, name: str, labels: Mapping[str, str | None]) -> None:
        """Set labels, and remove labels with the value ``None``, whatever the Node's resourceVersion."""
        patch = {"metadata": {"labels": dict(labels)}}
        self.do("PATCH", f"/api/v1/nodes/{name}", patch, "application/merge-patch+json")

    def report(self, name: str, **status: object) -> None:
        """Change the status of the Node, as its kubelet does."""
        patch = {"status": status}
        self.do("PATCH", f"/api/v1/nodes/{name}/status", patch, "application/merge-patch+json")

    def register(
        self, name: str, labels: Mapping[str, str] | None = None, status: Mapping[str, Any] | None = None
    ) -> None:
        """Create a Node with its status, as a kubelet does: Ready unless ``status`` has other conditions.

        Returns when the controller manager has annotated it.
        """
        metadata = {"name": name, "labels": {"kubernetes.io/hostname": name, **(labels or {})}}
        ready = {"conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}]}
        node = {
            "kind": "Node",
            "apiVersion": "v1",
            "metadata": metadata,
            "status": {**ready, **(status or {})},
        }
        self.do("POST", "/api/v1/nodes", node)
        wait_until(lambda: _TTL in self.node(name)["metadata"].get("annotations", {}), "a controller saw it")

    def remove(self, name: str) -> None:
        """Delete the Node."""
        self.do("DELETE", f"/api/v1/nodes/{name}")


class NodeHistory:
    """A context that records the metadata of every version of a Node in :attr:`states`."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.states: list[dict[str, Any]] = []
        self._cluster, self._name = cluster, name
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> NodeHistory:
        self._writer = NodeWriter(self._cluster)
        version = self._writer.node(self._name)["metadata"]["resourceVersion"]
        self._stream = self._writer.watch(self._name, version)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.closing(NodeWriter(self._cluster)) as node_writer:
            last = node_writer.node(self._name)["metadata"]["resourceVersion"]
        try:
            if error is None:
                wait_until(lambda: self._seen(last), f"version {last} of the Node was seen")
        finally:
            self._writer.interrupt()
            self._thread.join()
            self._writer.close()

    def _seen(self, version: str) -> bool:
        return any(each["resourceVersion"] == version for each in self.states)

    def _run(self) -> None:
        with contextlib.suppress(OSError, HTTPException):
            for line in self._stream:
                self.states.append(json.loads(line)["object"]["metadata"])


class RepeatingWriter:
    """A context in which a thread calls ``act`` repeatedly, with ``pause`` seconds between two calls."""

    def __init__(self, act: Callable[[], object], *, pause: float) -> None:
        self.acts = 0
        self._act, self._pause = act, pause
        self._end = threading.Event()
        self._failed: list[BaseException] = []
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> RepeatingWriter:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()
        if self._failed and error is None:
            raise self._failed[0]

    def _run(self) -> None:
        try:
            while not self._end.wait(self._pause):
                self._act()
                self.acts += 1
        except BaseException as error:
            self._failed.append(error)
