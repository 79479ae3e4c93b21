"""A fake API server over real HTTP, with Nodes, Jobs and Pods that a test controls.

It follows the rules of the real API server for resource versions, pages, label selectors, watches and
preconditions. Later changes are scheduled on a fake clock. Only sleeps and watches of the client move the
clock.
"""

from __future__ import annotations

import contextlib
import copy
import json
import re
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2

from fake_http import RequestHandler
from kata_node.dispatcher.api import ApiClient
from kata_node.dispatcher.jobs import LIVE_PODS_SELECTOR
from kata_node.kube.client import Clock

NAMESPACE = "kata"
JOBS = f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
NODES = "/api/v1/nodes"
EVENTS = "/api/v1/namespaces/default/events"
CONFIG_MAPS = f"/api/v1/namespaces/{NAMESPACE}/configmaps/"

Object = dict[str, Any]


class FakeClock:
    """A clock that only sleeps and watches move. It runs scheduled events when their time comes."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._plan: list[tuple[float, Callable[[], object]]] = []

    @property
    def passed(self) -> float:
        return self.now - 1000.0

    def after(self, seconds: float, event: Callable[[], object]) -> None:
        self._plan.append((self.now + seconds, event))

    def sleep(self, seconds: float) -> None:
        end = self.now + seconds
        while due := sorted((moment for moment, _ in self._plan if moment <= end)):
            self.now = max(self.now, due[0])
            events = [event for moment, event in self._plan if moment <= self.now]
            self._plan = [each for each in self._plan if each[0] > self.now]
            for event in events:
                event()
        self.now = end

    def advance_to_next_event(self, longest: float) -> None:
        nearest = min((moment for moment, _ in self._plan), default=self.now + longest)
        self.sleep(max(0.0, min(nearest - self.now, longest)))

    def clock(self) -> Clock:
        return Clock(now=lambda: self.now, sleep=self.sleep, jitter=lambda: 1.0)


@dataclass
class Fault:
    """A failure of requests to paths that contain ``path``. Without a status the connection is closed."""

    method: str
    path: str
    status: int = 0
    message: str = "as ordered"
    times: int = 1
    carried_out: bool = False
    watch: bool = False
    reason: str = ""


@dataclass
class FakeApiServer:
    """The objects of the cluster, the received requests, and the faults to inject."""

    time: FakeClock
    nodes: dict[str, Object] = field(default_factory=dict)
    jobs: dict[str, Object] = field(default_factory=dict)
    pods: list[Object] = field(default_factory=list)
    config_maps: dict[str, Object] = field(default_factory=dict)
    events: list[Object] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    made: list[str] = field(default_factory=list)
    """The nodes of the created Jobs, in the order of creation."""
    faults: list[Fault] = field(default_factory=list)
    on_create: Callable[[Object], object] | None = None
    """Called with each new Job; without it, a new Job succeeds at once."""
    on_delete: Callable[[], object] | None = None
    """Called once, before the next deletion of a Job."""
    stuck: bool = False
    """Whether a Job that waits for its Pods (foreground deletion) is never removed."""
    lingering: float = 0.0
    """Seconds for which the Pods of a removed Job still exist."""
    broken_watches: int = 0
    """Number of watches that break in the middle of their first line."""
    max_running: int = 0
    """The highest number of Jobs that ran at the same time."""

    def __post_init__(self) -> None:
        self.version = 100
        self.forgotten = 0
        """Versions up to this one have expired; a watch from such a version gets an error."""
        self.forgotten_code = 410
        """The status code of that error."""
        self.expire_pages = 0
        self._events: list[tuple[int, str, Object]] = []
        self._not_ready: set[str] = set()
        self._changed_nodes: list[tuple[int, str]] = []
        self._lock = threading.RLock()
        api = self

        class Handler(_Handler):
            owner = api

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = False
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._connections: set[socket.socket] = set()

    def __enter__(self) -> FakeApiServer:
        self._thread.start()
        return self

    def __exit__(self, *args: object) -> None:
        self._server.shutdown()
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._server.server_close()
        self._thread.join()

    def client(self) -> ApiClient:
        """Return the dispatcher's client for this server."""
        url = f"http://127.0.0.1:{self._server.server_address[1]}"
        # Do not load certificate authorities; the connection is not encrypted.
        plain = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        session = httpx2.Client(base_url=url, timeout=60, trust_env=False, verify=plain)
        return ApiClient(session, clock=self.time.clock())

    # --- changes of the cluster ---------------------------------------------------------------------

    def node(
        self,
        name: str,
        *,
        labels: Mapping[str, str] | None = None,
        taints: tuple[str, ...] = (),
        runtime: str = "containerd://2.3.4",
    ) -> None:
        """Add or replace a Node; taints are ``key:effect``."""
        spec = {"taints": [dict(zip(("key", "effect"), each.split(":"), strict=True)) for each in taints]}
        metadata = {
            "name": name,
            "uid": f"uid-of-{name}",
            "labels": {"kubernetes.io/hostname": name, **(labels or {})},
            "resourceVersion": str(self.version),
        }
        info = {"machineID": f"machine-{name}", "odd": [1]} | (
            {"containerRuntimeVersion": runtime} if runtime else {}
        )
        status = {"nodeInfo": info, "conditions": [{"type": "Ready", "status": "True"}]}
        self.nodes[name] = {"metadata": metadata, "spec": spec, "status": status}

    def set_ready(self, name: str, *, ready: bool) -> None:
        """Let a Node become Ready or NotReady."""
        with self._lock:
            (self._not_ready.discard if ready else self._not_ready.add)(name)
            self.version += 1
            self._changed_nodes.append((self.version, name))

    def finish(
        self, name: str, kind: str = "Complete", reason: str = "", message: str = "", *, ends: bool = True
    ) -> None:
        """Add a condition to a Job; ``Complete`` and ``Failed`` also end its Pods, with ``ends``."""
        with self._lock:
            job = self.jobs[name]
            conditions = job.setdefault("status", {}).setdefault("conditions", [])
            conditions.append({"type": kind, "status": "True", "reason": reason, "message": message})
            if ends and kind in ("Complete", "Failed"):
                for pod in self._pods_of(job):
                    pod["status"]["phase"] = "Succeeded" if kind == "Complete" else "Failed"
            self._changed("MODIFIED", job)

    def fail(self, name: str, *, stage: str = "cri", code: int = 1, message: str = "") -> None:
        """Add a Pod that failed with ``code`` in a stage, and fail the Job."""
        with self._lock:
            job = self.jobs[name]
            self.pod(job, stage, {"terminated": {"exitCode": code, "message": message, "reason": "Error"}})
        self.finish(name, "Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit")

    def pod(self, job: Object, stage: str, state: Object, **others: Object) -> None:
        """Add a Pod to a Job; its container ``stage`` is in ``state``, and ``others`` are before it."""
        number = len(self.pods)
        metadata = {
            "name": f"pod-{number}",
            "uid": f"pod-uid-{number}",
            "creationTimestamp": f"2026-01-01T00:00:{number:02}Z",
            "labels": {
                **job["spec"]["template"]["metadata"]["labels"],
                "batch.kubernetes.io/controller-uid": job["metadata"]["uid"],
                "batch.kubernetes.io/job-name": job["metadata"]["name"],
            },
        }
        states = [*others.items(), (stage, state)]
        statuses = [{"name": name.replace("_", "-"), "state": each} for name, each in states]
        status = {"phase": "Running", "initContainerStatuses": statuses}
        spec = {"nodeName": job["spec"]["template"]["spec"]["nodeName"]}
        self.pods.append({"metadata": metadata, "spec": spec, "status": status})

    def dispatcher(self, name: str, labels: Mapping[str, str]) -> str:
        """Add a Job with a running dispatcher Pod; return the uid of the Job."""
        component = {**labels, "app.kubernetes.io/component": "dispatcher"}
        pod = {"metadata": {"labels": component}, "spec": {"nodeName": "any"}}
        job: Object = {"metadata": {"name": name, "labels": dict(labels)}, "spec": {"template": pod}}
        self.add(job)
        self.pod(job, "dispatcher", {"running": {}})
        return str(job["metadata"]["uid"])

    def _pods_of(self, job: Object) -> list[Object]:
        uid = job["metadata"]["uid"]
        return [
            pod for pod in self.pods if pod["metadata"]["labels"]["batch.kubernetes.io/controller-uid"] == uid
        ]

    def remove(self, name: str) -> None:
        """Remove a Job and its Pods."""
        with self._lock:
            job = self.jobs.pop(name)
            pods = self._pods_of(job)
            if self.lingering:
                self.time.after(self.lingering, lambda: self._drop(pods))
            else:
                self._drop(pods)
            self._changed("DELETED", job)

    def _drop(self, pods: list[Object]) -> None:
        self.pods = [pod for pod in self.pods if pod not in pods]

    def add(self, job: Object) -> None:
        """Add a Job."""
        with self._lock:
            metadata = job["metadata"]
            self.version += 1
            metadata.setdefault("uid", f"job-uid-{self.version}")
            self.jobs[metadata["name"]] = job
            self._changed("ADDED", job)
            running = [each for each in self.jobs.values() if not each.get("status", {}).get("conditions")]
            self.max_running = max(self.max_running, len(running))

    def forget(self) -> None:
        """Expire all resource versions up to now."""
        self.forgotten = self.version

    def _changed(self, kind: str, job: Object) -> None:
        self.version += 1
        job["metadata"]["resourceVersion"] = str(self.version)
        self._events.append((self.version, kind, copy.deepcopy(job)))

    # --- requests -----------------------------------------------------------------------------------

    def answer(self, method: str, path: str, query: Mapping[str, str], body: Any) -> tuple[int, Object]:
        with self._lock:
            if method == "GET" and path in (JOBS, PODS, NODES):
                return self._list(path, query)
            if method == "POST" and path == EVENTS:
                self.events.append(body)
                return 201, body
            if method == "PATCH" and path.startswith(f"{NODES}/"):
                return self._patch_node(self.nodes[path.removeprefix(f"{NODES}/")], body)
            if path.startswith(CONFIG_MAPS):
                return self._config_map(method, path.removeprefix(CONFIG_MAPS), body)
            name = path.removeprefix(f"{JOBS}/")
            if method == "POST" and path == JOBS:
                return self._create(body)
            if method == "DELETE" and self.on_delete:
                self.on_delete()
                self.on_delete = None
            job = self.jobs.get(name)
            if job is None:
                return 404, _status(404, f'jobs.batch "{name}" not found', "NotFound")
            meant = body or {}
            uid = meant.get("preconditions", meant.get("metadata", {})).get("uid")
            if uid not in (None, job["metadata"]["uid"]):
                return 409, _status(409, "the UID in the precondition is another", "Conflict")
            if method == "DELETE":
                self._delete(name, body)
            elif method == "PATCH":
                job["metadata"] |= body["metadata"]
                self._changed("MODIFIED", job)
            return 200, copy.deepcopy(job)

    def _patch_node(self, node: Object, change: Any) -> tuple[int, Object]:
        metadata = node["metadata"]
        if change["metadata"].get("resourceVersion") not in (None, metadata["resourceVersion"]):
            return 409, _status(409, "the object has been modified", "Conflict")
        for key in ("labels", "annotations"):
            merged = {**metadata.get(key, {}), **change["metadata"].get(key, {})}
            metadata[key] = {name: value for name, value in merged.items() if value is not None}
        node["spec"] |= change.get("spec", {})
        self.version += 1
        metadata["resourceVersion"] = str(self.version)
        return 200, copy.deepcopy(node)

    def _config_map(self, method: str, name: str, change: Any) -> tuple[int, Object]:
        found = self.config_maps.get(name)
        if found is None:
            return 404, _status(404, f'configmaps "{name}" not found', "NotFound")
        if method == "PATCH":
            data = {**found.get("data", {}), **change["data"]}
            found["data"] = {key: value for key, value in data.items() if value is not None}
        return 200, copy.deepcopy(found)

    def _create(self, job: Object) -> tuple[int, Object]:
        name = job["metadata"]["name"]
        if name in self.jobs:
            return 409, _status(409, f'jobs.batch "{name}" already exists', "AlreadyExists")
        self.made.append(job["spec"]["template"]["spec"]["nodeName"])
        self.add(job)
        (self.on_create or (lambda made: self.finish(made["metadata"]["name"])))(job)
        return 201, copy.deepcopy(job)

    def _delete(self, name: str, body: Object) -> None:
        if body["propagationPolicy"] == "Foreground":
            job = self.jobs[name]
            job["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
            self._changed("MODIFIED", job)
            if not self.stuck:
                self.time.after(5, lambda: self.remove(name))
        else:
            self.remove(name)

    def _list(self, path: str, query: Mapping[str, str]) -> tuple[int, Object]:
        found = {JOBS: self.jobs.values(), PODS: self.pods, NODES: self.nodes.values()}[path]
        objects = [each for each in found if _matches(each, query)]
        limit, offset = int(query["limit"]), int(query.get("continue", "0"))
        if offset and self.expire_pages:
            self.expire_pages -= 1
            return 410, _status(410, "The provided continue parameter is too old", "Expired")
        if query.get("includeObject"):
            return 200, self._table(list(self.nodes))
        metadata: Object = {"resourceVersion": str(self.version)}
        if len(objects) > offset + limit:
            metadata["continue"] = str(offset + limit)
            if not (query.keys() & {"labelSelector", "fieldSelector"}):
                metadata["remainingItemCount"] = len(objects) - offset - limit
        items = copy.deepcopy(objects[offset : offset + limit])
        return 200, {"kind": "List", "metadata": metadata, "items": items}

    def _table(self, names: list[str], version: int = 0, *, header: bool = True) -> Object:
        columns = [{"name": "Name"}, {"name": "Status"}] if header else None
        rows = [{"cells": [name, "NotReady" if name in self._not_ready else "Ready"]} for name in names]
        metadata = {"resourceVersion": str(version or self.version)}
        return {"kind": "Table", "metadata": metadata, "columnDefinitions": columns, "rows": rows}

    def watched_nodes(self, query: Mapping[str, str]) -> list[Object]:
        """Return the events of a watch of all Nodes as a table."""
        since = int(query["resourceVersion"])
        if since < self.forgotten:
            return [{"type": "ERROR", "object": _status(self.forgotten_code, "no such version", "Expired")}]
        self.time.advance_to_next_event(float(query["timeoutSeconds"]))
        with self._lock:
            changes = [each for each in self._changed_nodes if each[0] > since]
            bookmark = {"type": "BOOKMARK", "object": self._table([], header=False)}
            return [
                *(
                    {"type": "MODIFIED", "object": self._table([name], version, header=False)}
                    for version, name in changes
                ),
                bookmark,
            ]

    def watched(self, query: Mapping[str, str]) -> list[Object]:
        """Return the events that a watch reports before it ends."""
        since = int(query["resourceVersion"])
        if since >= self.forgotten and not [each for each in self._events if each[0] > since]:
            self.time.advance_to_next_event(float(query["timeoutSeconds"]))
        if since < self.forgotten:
            return [{"type": "ERROR", "object": _status(self.forgotten_code, "no such version", "Expired")}]
        with self._lock:
            events = [
                {"type": kind, "object": job}
                for version, kind, job in self._events
                if version > since and _matches(job, query)
            ]
            bookmark = {
                "kind": "Job",
                "metadata": {"resourceVersion": str(self.version), "creationTimestamp": None},
            }
            asked = query.get("allowWatchBookmarks") == "true"
            return [*events, {"type": "BOOKMARK", "object": bookmark}] if asked else events


def _matches(item: Object, query: Mapping[str, str]) -> bool:
    labels = item["metadata"].get("labels", {})
    for term in re.split(r",(?![^(]*\))", query.get("labelSelector", "")):
        if in_set := re.fullmatch(r"(\S+) in \((.*)\)", term):
            if labels.get(in_set[1]) not in in_set[2].split(","):
                return False
            continue
        key, equals, value = term.partition("=")
        absent = term.startswith("!")
        if term and (labels.get(key) != value if equals else (key.lstrip("!") in labels) == absent):
            return False
    if query.get("fieldSelector") == LIVE_PODS_SELECTOR:
        return item["status"]["phase"] not in ("Succeeded", "Failed")
    name = re.fullmatch(r"metadata\.name=(.*)", query.get("fieldSelector", ""))
    return not name or item["metadata"]["name"] == name[1]


def _status(code: int, message: str, reason: str = "") -> Object:
    return {"kind": "Status", "apiVersion": "v1", "code": code, "message": message, "reason": reason}


class _Handler(RequestHandler):
    owner: FakeApiServer

    def _handle(self, method: str) -> None:
        api = self.owner
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = json.loads(content) if content else None
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query, keep_blank_values=True).items()}
        watch = query.get("watch") == "true"
        api.requests.append(f"{'WATCH' if watch else method} {url.path.rpartition('/')[2]}")
        fault = next((each for each in api.faults if _applies(each, method, url.path, watch)), None)
        if fault:
            fault.times -= 1
            if fault.carried_out:
                api.answer(method, url.path, query, body)
            if fault.status:
                self._send(fault.status, _status(fault.status, fault.message, fault.reason))
            else:
                self._cut()
        elif watch:
            self._watch(api.watched_nodes(query) if url.path == NODES else api.watched(query))
        else:
            self._send(*api.answer(method, url.path, query, body))

    def _watch(self, events: list[Object]) -> None:
        lines = [json.dumps(event).encode() + b"\n" for event in events]
        with contextlib.suppress(OSError):
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            if self.owner.broken_watches:
                self.owner.broken_watches -= 1
                self.wfile.write(_chunk(lines[0][:40]))
                self._cut()
                return
            content = b"".join(lines)
            # The chunks deliberately do not end at line ends.
            chunks = [_chunk(content[offset : offset + 997]) for offset in range(0, len(content), 997)]
            self.wfile.write(b"".join([*chunks, _chunk(b"")]))

    def _cut(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)

    def _send(self, code: int, answer: Object) -> None:
        body = json.dumps(answer).encode()
        with contextlib.suppress(OSError):
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)


def _chunk(content: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(content), content)


def _applies(fault: Fault, method: str, path: str, watch: bool) -> bool:
    return fault.times > 0 and fault.method == method and fault.path in path and fault.watch == watch
