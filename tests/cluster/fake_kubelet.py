"""Fake kubelets for Nodes without a machine: they set the status of the Pods bound to each Node.

    with FakeKubelet(connect, "kata", {"worker-2": failed("cri", 4, message)}):
        ...

Also a program, for measurements that need a separate interpreter: see :func:`main`.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import queue
import signal
import ssl
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any
from urllib.parse import quote, urlsplit

PodStatus = Mapping[str, Any]
"""The ``status`` of a Pod."""

SUCCEEDED: PodStatus = {"phase": "Succeeded"}
WORKERS = 4


def failed(stage: str, code: int, message: str) -> PodStatus:
    """Return the status of a Pod with an initContainer that failed with ``code`` and ``message``."""
    ended = {"exitCode": code, "reason": "Error", "message": message}
    return {
        "phase": "Failed",
        "initContainerStatuses": [_container(stage, {"terminated": ended})],
        "containerStatuses": [_container("label", {"waiting": {"reason": "PodInitializing"}})],
    }


def running(stage: str) -> PodStatus:
    """Return the status of a Pod with the running initContainer ``stage``."""
    state = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}
    return {"phase": "Pending", "initContainerStatuses": [_container(stage, state)]}


def _container(name: str, state: Mapping[str, Any]) -> dict[str, Any]:
    more = {"image": "kata", "imageID": "", "ready": False, "restartCount": 0}
    return {"name": name, "state": state, **more}


class Server:
    """A connection to an API server that is kept open."""

    def __init__(self, url: str, ca: str, token: str) -> None:
        self._address = urlsplit(url)
        self._context = ssl.create_default_context(cafile=ca)
        self._headers = {"Authorization": f"Bearer {token}"}
        self._connection = self._connect()

    def call(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """Send a request, and return the HTTP status and the object of the answer."""
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        text = json.dumps(body) if body is not None else None
        for again in (True, False):
            try:
                self._connection.request(method, path, text, {**self._headers, "Content-Type": kind})
                answer = self._connection.getresponse()
                return answer.status, json.loads(answer.read())
            except (OSError, http.client.HTTPException):
                self._connection.close()
                if not again:
                    raise
        raise AssertionError

    def lines(self, path: str) -> Iterator[bytes]:
        """Return the lines of a watch, on another connection."""
        connection = self._connect()
        with contextlib.closing(connection):
            connection.request("GET", path, headers=self._headers)
            yield from connection.getresponse()

    def _connect(self) -> http.client.HTTPSConnection:
        assert self._address.hostname
        return http.client.HTTPSConnection(
            self._address.hostname, self._address.port, timeout=60, context=self._context
        )

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


class FakeKubelet:
    """The fake kubelets of a namespace.

    ``answers``: Node name -> Pod status; ``None`` leaves a Pod unchanged.
    """

    def __init__(
        self,
        connect: Callable[[], Server],
        namespace: str,
        answers: Mapping[str, PodStatus | None] | None = None,
        *,
        default_status: PodStatus | None = SUCCEEDED,
    ) -> None:
        self._connect = connect
        self._path = f"/api/v1/namespaces/{namespace}/pods"
        self.answers: dict[str, PodStatus | None] = dict(answers or {})
        self.default_status = default_status
        self.dying = threading.Event()
        """While it is not set, deleted Pods stay, like the Pods of a stage that takes long to end."""
        self.dying.set()
        self.max_running = 0
        """The largest number of unfinished Pods seen at the same time."""
        self._open: set[str] = set()
        self._seen: dict[str, tuple[str, str]] = {}  # name and node by uid
        self._queue: queue.SimpleQueue[tuple[str, PodStatus] | None] = queue.SimpleQueue()
        self._kept: set[str] = set()
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(WORKERS)]
        self._threads.append(threading.Thread(target=self._watch, daemon=True))

    def __enter__(self) -> FakeKubelet:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        for _ in range(WORKERS):
            self._queue.put(None)
        for thread in self._threads:
            thread.join()

    def answer(self, node: str, answer: PodStatus) -> None:
        """Set the status of the existing and future Pods of a node to ``answer``."""
        self.answers[node] = answer
        for name, bound in list(self._seen.values()):
            if bound == node:
                self._queue.put((name, answer))

    def keep_pods(self) -> None:
        """Do not remove Pods that are deleted from now on."""
        self.dying.clear()

    def release_pods(self) -> None:
        """Remove the kept Pods, and all Pods that are deleted from now on."""
        self.dying.set()
        for name in list(self._kept):
            self._queue.put((name, {}))

    def _watch(self) -> None:
        version = ""
        server = self._connect()
        while not self._ended.is_set():
            after = f"&resourceVersion={version}&allowWatchBookmarks=true" if version else ""
            with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
                for line in server.lines(f"{self._path}?watch=true&timeoutSeconds=2{after}"):
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        version = ""
                        break
                    version = event["object"]["metadata"]["resourceVersion"]
                    if event["type"] != "BOOKMARK":
                        self._pod(event["object"], deleted=event["type"] == "DELETED")
            self._ended.wait(0.05)
        server.close()

    def _pod(self, pod: Mapping[str, Any], *, deleted: bool) -> None:
        uid, name = pod["metadata"]["uid"], pod["metadata"]["name"]
        over = deleted or pod["status"]["phase"] in ("Succeeded", "Failed")
        (self._open.discard if over else self._open.add)(uid)
        self.max_running = max(self.max_running, len(self._open))
        if over:
            self._seen.pop(uid, None)
        elif pod["metadata"].get("deletionTimestamp"):
            if not self.dying.is_set():
                self._kept.add(name)
                return
            # A kubelet removes the Pod when its containers have ended.
            self._queue.put((name, {}))
        elif uid not in self._seen:
            node = pod["spec"]["nodeName"]
            self._seen[uid] = (name, node)
            answer = self.answers.get(node, self.default_status)
            if answer is not None:
                self._queue.put((name, answer))

    def _work(self) -> None:
        server = self._connect()
        while (job := self._queue.get()) is not None:
            # A real kubelet repeats what an API server that is away, or has just started, did not take.
            while not self._carry_out(server, *job) and not self._ended.wait(0.1):
                pass
        server.close()

    def _carry_out(self, server: Server, name: str, status: PodStatus) -> bool:
        """Set the status of a Pod, or delete it without one; return whether the API server has decided."""
        path = f"{self._path}/{quote(name)}"
        try:
            if status:
                code, _ = server.call("PATCH", f"{path}/status", {"status": status})
            else:
                code, _ = server.call("DELETE", f"{path}?gracePeriodSeconds=0")
        except (OSError, http.client.HTTPException, ValueError):
            return False
        return code < 500 and code not in (401, 403, 409, 429)


def main() -> None:
    """Let all Pods succeed until SIGTERM. The arguments are URL, CA file, token and namespace."""
    url, ca, token, namespace = sys.argv[1:]
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    with FakeKubelet(lambda: Server(url, ca, token), namespace):
        print("ready", flush=True)
        signal.sigwait({signal.SIGTERM})


if __name__ == "__main__":
    main()
