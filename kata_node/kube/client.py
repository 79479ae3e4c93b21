"""A client of the API server that reads a Node and changes its labels and taints.

It uses ``get`` and ``patch`` on ``nodes``, and ``create`` on ``events`` to record Events; an account
needs no other permission. It polls a Node instead of watching it: a watch needs the permission to list
every Node of the cluster. The answer to each request has the whole Node. A change begins with the last
answer and not with a read, because its ``resourceVersion`` makes it fail if the Node has changed since.

A deadline is a value of :func:`time.monotonic`. After it no request is repeated or waited for, see
:mod:`kata_node.kube.retry`.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from kata_node import signals
from kata_node.errors import KubeError, UsageError
from kata_node.kube.credentials import open_session
from kata_node.kube.failures import (
    NOT_KUBERNETES_HINT,
    ConflictError,
    InvalidChangeError,
    NoSuchNodeError,
    RequestFailure,
    classify_error,
    decode,
    event_not_recorded,
    request_error,
)
from kata_node.kube.node import (
    MetadataChanges,
    NodeFacts,
    Taint,
    check_machine_id,
    check_name,
    labels_not_stable,
    node_not_ready,
    taints_not_removed,
    waiting_for,
)
from kata_node.kube.retry import (
    REAL_CLOCK,
    REQUEST_TIMEOUT,
    Clock,
    conflict_backoff,
    read_pauses,
    retry_until,
    within,
)
from kata_node.log import timed

if TYPE_CHECKING:
    from kata_node.kube.session import Session

__all__ = [
    "REAL_CLOCK",
    "Clock",
    "ConflictError",
    "KubeClient",
    "NoSuchNodeError",
    "NodeFacts",
]

EVENT_TIMEOUT, EVENT_TIMEOUT_WHEN_STOPPING = 5.0, 0.5
"""Seconds to wait until an Event is recorded."""

MAX_CONFLICT_PAUSE = 1.0
"""The longest pause, in seconds, before a Node is read again after a conflict."""

NODE_ABSENCE_TIMEOUT = 30.0
"""Seconds that a Node may be missing: some distributions delete it and register it again on a restart."""

FIELD_MANAGER = "kata-node"

log = logging.getLogger(__name__)


class KubeClient:
    """A connection to the API server. Close it, or use it as a context manager."""

    def __init__(
        self, session: Session, *, clock: Clock = REAL_CLOCK, request_timeout: float = REQUEST_TIMEOUT
    ) -> None:
        self.clock = clock
        self.request_timeout = request_timeout
        self.server = session.server
        self._session = session
        self._last_answer: NodeFacts | None = None

    @classmethod
    def connect(cls, *, clock: Clock = REAL_CLOCK, request_timeout: float = REQUEST_TIMEOUT) -> KubeClient:
        """Create a client with the pod's ServiceAccount, or else ``KUBECONFIG`` or ``~/.kube/config``.

        It sends no request. Raises :class:`KubeError` when there are no credentials or they cannot be
        used. In a pod the client ignores proxy settings of the environment, because the API server is in
        the same cluster.
        """
        return cls(open_session(request_timeout), clock=clock, request_timeout=request_timeout)

    def close(self) -> None:
        """Close all connections."""
        self._session.close()

    def __enter__(self) -> KubeClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def deadline_after(self, seconds: float) -> float:
        """Return the deadline in ``seconds`` from now."""
        return self.clock.now() + seconds

    def get(
        self, path: str, deadline: float, make_error: Callable[[RequestFailure, int], KubeError]
    ) -> Mapping[str, Any]:
        """Return the object at ``path`` of the API; see :func:`kata_node.kube.retry.retry_until`."""
        return retry_until(
            lambda: self._request("GET", path), deadline, self.clock, self.request_timeout, make_error
        )

    def node(self, name: str, deadline: float) -> NodeFacts:
        """Return the current state of the Node ``name``.

        Raises :class:`NoSuchNodeError` when there is no such Node, and :class:`KubeError` when the API
        server refuses or does not answer until ``deadline``.
        """
        check_name(name)
        with signals.interruptible():
            return self._call("get", name, deadline, lambda: self._request("GET", _path(name)))

    def last_answer(self, name: str) -> NodeFacts | None:
        """Return the Node as the last answer had it; ``None`` if the last answer had no such Node."""
        return last if (last := self._last_answer) and last.name == name else None

    def patch_metadata(
        self, name: str, changes: MetadataChanges, resource_version: str, deadline: float
    ) -> NodeFacts:
        """Change labels and annotations of the Node in one request; return the changed Node.

        Raises :class:`ConflictError`, without a change, when the Node is no longer at
        ``resource_version``. Raises the errors of :meth:`node`.
        """
        return self._patch(name, {"metadata": changes.patch()}, resource_version, deadline)

    def add_metadata(
        self, name: str, additions: MetadataChanges, machine_id: str, deadline: float
    ) -> NodeFacts | None:
        """Add labels and annotations to a Node that has none of their keys; return the changed Node.

        One request tests and changes the Node. Returns ``None``, without a change, if the Node has one of
        the keys, reports another machine id than ``machine_id``, or does not exist. Raises the errors of
        :meth:`node`.
        """
        check_name(name)
        patch = [{"op": "test", "path": "/status/nodeInfo/machineID", "value": machine_id}]
        patch += additions.json_patch()
        try:
            return self._call(
                "patch",
                name,
                deadline,
                lambda: self._request("PATCH", _path(name), patch, "json-patch+json"),
            )
        except (ConflictError, InvalidChangeError, NoSuchNodeError) as error:
            log.debug("Node %s is not as expected: %s", name, error.what)
            return None

    def remove_taints(
        self,
        name: str,
        remaining: Callable[[Sequence[Taint]], Sequence[Taint]],
        *,
        timeout: float,
        expected_machine_id: str | None = None,
    ) -> NodeFacts:
        """Remove the taints that ``remaining`` does not return. It gets the current taints.

        Raises :class:`KubeError` when they cannot be removed within ``timeout`` seconds, and
        :class:`IneligibleNodeError` when the Node has another machine id than ``expected_machine_id``.
        """
        deadline = self.deadline_after(timeout)
        conflicts = 0
        facts = self._latest(
            name, deadline, expected_machine_id, lambda last: len(remaining(last.taints)) < len(last.taints)
        )
        while True:
            kept = remaining(facts.taints)
            if len(kept) == len(facts.taints):
                return facts
            try:
                # The patch replaces the whole list, so the Node must not have changed since it was read.
                return self._patch(name, {"spec": {"taints": kept}}, facts.resource_version, deadline)
            except ConflictError as error:
                conflicts += 1
                log.debug("reading Node %s again: %s", name, error.what)
            left = deadline - self.clock.now()
            if left <= 0:
                raise taints_not_removed(name, timeout, conflicts)
            self.clock.sleep(min(left, self._conflict_pause(conflicts)))
            facts = self._read_node(name, deadline, expected_machine_id)

    def record_event(self, event: Mapping[str, Any]) -> None:
        """Create an Event of the core group in the namespace that it names.

        Raises :class:`KubeError` when that fails. There is no second attempt, because an Event is not
        worth the wait.
        """
        path = f"/api/v1/namespaces/{event['metadata']['namespace']}/events"
        try:
            with timed(log, f"create an event at {self.server}"):
                within(
                    EVENT_TIMEOUT_WHEN_STOPPING if signals.is_stopping() else EVENT_TIMEOUT,
                    lambda: self._request("POST", path, event),
                )
        except Exception as error:
            failure = classify_error(error)
            if failure is None:
                raise
            raise event_not_recorded(failure, self.server) from error

    def wait_ready(
        self,
        name: str,
        handlers: Collection[str] = (),
        *,
        timeout: float,
        deadline: float = math.inf,
        expected_machine_id: str | None = None,
    ) -> NodeFacts:
        """Wait until the Node is Ready and reports all of ``handlers``; return it.

        A Node that reports no handlers at all only needs to be Ready. Raises :class:`KubeError` after
        ``timeout`` seconds or at ``deadline``, whichever is earlier, and :class:`IneligibleNodeError` when
        the Node has another machine id than ``expected_machine_id``.
        """
        deadline = min(deadline, self.deadline_after(timeout))
        last_state: object = None
        pauses = read_pauses()
        facts = self._latest(
            name, deadline, expected_machine_id, lambda last: not last.ready or last.missing(handlers)
        )
        while True:
            missing = facts.missing(handlers)
            if facts.ready and not missing:
                return facts
            left = deadline - self.clock.now()
            if left <= 0:
                raise node_not_ready(facts, missing, timeout)
            if last_state != (last_state := (facts.ready, missing)):
                log.info("waiting for Node %s: %s", name, waiting_for(facts, missing))
            self.clock.sleep(min(next(pauses), left))
            facts = self._read_node(name, deadline, expected_machine_id)

    def ensure_labels(
        self,
        name: str,
        change: Callable[[NodeFacts], MetadataChanges],
        *,
        required_handlers: Collection[str] = (),
        window: float,
        timeout: float,
        deadline: float = math.inf,
        expected_machine_id: str | None = None,
    ) -> NodeFacts:
        """Make the changes that ``change`` returns, and prove that it returns none ``window`` seconds later.

        A kubelet that registers again restores old labels, so an answer with the changes does not prove that
        they last. When that happens, the changes are made again and the window starts again. There is
        no change while the Node reports handlers but not all of ``required_handlers``. Raises
        :class:`KubeError` after ``timeout`` seconds or at ``deadline``, whichever is earlier, and
        :class:`IneligibleNodeError`, before any change, when the Node has another machine id than
        ``expected_machine_id``.
        """
        if window > timeout:
            raise UsageError(
                f"the timeout of {timeout:g} s is shorter than the stability window of {window:g} s",
                hint="raise the timeout above the stability window",
            )
        deadline = min(deadline, self.deadline_after(timeout))
        since: float | None = None  # since when the labels have their wanted values
        overwritten = conflicts = 0
        pauses = read_pauses()
        facts = self._latest(name, deadline, expected_machine_id, change)
        while True:
            now, changes = self.clock.now(), change(facts)
            if missing := facts.missing(required_handlers):
                # The labels would promise handlers that the runtime no longer serves, so do not set them.
                since, pause = None, next(pauses)
                log.debug("waiting for Node %s: %s", name, waiting_for(facts, missing))
            elif changes:
                if since is not None:
                    overwritten += 1
                    log.warning("another writer undid the changes of Node %s; changing it again", name)
                try:
                    facts = self.patch_metadata(name, changes, facts.resource_version, deadline)
                    log.info("Node %s: %s", name, changes)
                    if not window:
                        return facts
                    since, pause = self.clock.now(), window
                except (ConflictError, NoSuchNodeError) as error:
                    conflicts += 1
                    since, pause = None, self._conflict_pause(conflicts)
                    log.debug("reading Node %s again: %s", name, error.what)
            else:
                since = now if since is None else since
                if now - since >= window:
                    return facts
                pause = since + window - now
            left = deadline - self.clock.now()
            if left <= 0 and missing:
                raise node_not_ready(facts, missing, timeout)
            if left <= 0:
                raise labels_not_stable(name, window, timeout, overwritten, conflicts)
            self.clock.sleep(min(pause, left))
            facts = self._read_node(name, deadline, expected_machine_id)

    def _conflict_pause(self, conflicts: int) -> float:
        return min(MAX_CONFLICT_PAUSE, conflict_backoff(conflicts, self.clock))

    def _patch(
        self, name: str, change: Mapping[str, Any], resource_version: str, deadline: float
    ) -> NodeFacts:
        """Merge ``change`` into the Node if it is still at ``resource_version``."""
        # The version also makes the request safe to repeat: if the first attempt succeeded but its answer
        # was lost, the second one is a conflict.
        patch = {**change, "metadata": {**change.get("metadata", {}), "resourceVersion": resource_version}}
        return self._call(
            "patch",
            name,
            deadline,
            lambda: self._request("PATCH", _path(name), patch, "merge-patch+json"),
        )

    def _latest(
        self, name: str, deadline: float, machine_id: str | None, has_work: Callable[[NodeFacts], object]
    ) -> NodeFacts:
        """Return the Node as the last answer had it if there ``has_work`` to be done, or else read it."""
        facts = self.last_answer(name)
        if facts is None or not has_work(facts):
            return self._read_node(name, deadline, machine_id)
        check_machine_id(facts, machine_id)
        return facts

    def _read_node(self, name: str, deadline: float, machine_id: str | None) -> NodeFacts:
        """Return the Node and check its machine id. Wait for some time while the Node does not exist."""
        absence_deadline = min(deadline, self.deadline_after(NODE_ABSENCE_TIMEOUT))
        pauses = read_pauses()
        while True:
            try:
                facts = self.node(name, deadline)
                break
            except NoSuchNodeError:
                left = absence_deadline - self.clock.now()
                if left <= 0:
                    raise
                log.info("waiting up to %.0f s for the kubelet to register Node %s", left, name)
            self.clock.sleep(min(next(pauses), left))
        check_machine_id(facts, machine_id)
        return facts

    def _call(
        self, verb: str, name: str, deadline: float, request: Callable[[], Mapping[str, Any]]
    ) -> NodeFacts:
        """Send a request for the Node, and repeat it until ``deadline`` while its failure is retryable."""

        def timed_request() -> Mapping[str, Any]:
            with timed(log, f"{verb} node/{name} at {self.server}"):
                return request()

        self._last_answer = None
        answer = retry_until(
            timed_request,
            deadline,
            self.clock,
            self.request_timeout,
            lambda failure, tries: request_error(failure, verb, name, self.server, tries),
        )
        if answer.get("kind") != "Node":
            raise KubeError("the answer is not a Node", where=self.server, hint=NOT_KUBERNETES_HINT)
        self._last_answer = NodeFacts.of(answer)
        return self._last_answer

    def _request(self, method: str, path: str, body: object = None, subtype: str = "json") -> Any:
        """Send one request, with a body of type ``application/SUBTYPE``. Return the object in the answer."""
        if body is None:
            return decode(self._session.request(method, path))
        path, data = f"{path}?fieldManager={FIELD_MANAGER}", json.dumps(body).encode()
        return decode(self._session.request(method, path, data, f"application/{subtype}"))


def _path(name: str) -> str:
    return f"/api/v1/nodes/{name}"
