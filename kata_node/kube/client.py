"""The one door to the API server: a Node, its labels, and changes to them that last.

Only ``get`` and ``patch`` on ``nodes`` are used, so that is all an account needs, and ``create`` on
``events`` for those who read them. What changes is polled, not watched: a watch would need the right
to list every Node of the cluster.

A deadline is a point of the clock (:func:`time.monotonic`). No request is made again after it, and
none is waited for any longer, see :mod:`kata_node.kube.retry`.
"""

from __future__ import annotations

import functools
import logging
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from kata_node.errors import KubeError, UsageError
from kata_node.kube.credentials import open_client
from kata_node.kube.failures import (
    NOT_KUBERNETES_HINT,
    ConflictError,
    NoSuchNodeError,
    RequestFailure,
    classify_error,
    event_not_recorded,
    request_error,
)
from kata_node.kube.node import (
    NodeFacts,
    Taint,
    check_machine_id,
    labels_not_stable,
    node_not_ready,
    taints_not_removed,
    waiting_for,
)
from kata_node.kube.retry import REAL_CLOCK, REQUEST_TIMEOUT, Clock, conflict_backoff, retry_until, within

if TYPE_CHECKING:
    from lightkube import Client
    from lightkube.generic_resource import GenericGlobalResource, GenericNamespacedResource

__all__ = [
    "REAL_CLOCK",
    "Clock",
    "ConflictError",
    "KubeClient",
    "NoSuchNodeError",
    "NodeFacts",
]

EVENT_TIMEOUT = 5.0
"""Seconds that an Event is worth."""

POLL_INTERVAL = 1.0
"""Seconds between two looks at a Node that is waited for."""

NODE_ABSENCE_TIMEOUT = 30.0
"""Seconds a Node may be missing: some distributions delete it and register it anew on a restart."""

T = TypeVar("T")

_NODE_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?")

log = logging.getLogger(__name__)


class KubeClient:
    """A connection to the API server, to be closed, or used as a context manager."""

    def __init__(
        self, client: Client, *, clock: Clock = REAL_CLOCK, request_timeout: float = REQUEST_TIMEOUT
    ) -> None:
        from lightkube.types import PatchType

        self.clock = clock
        self.request_timeout = request_timeout
        self.server = client.config.cluster.server
        self._client = client
        self._resource = _node_resource()
        self._merge = PatchType.MERGE

    @classmethod
    def connect(cls, *, clock: Clock = REAL_CLOCK, request_timeout: float = REQUEST_TIMEOUT) -> KubeClient:
        """Use the pod's ServiceAccount, else the kubeconfig of ``KUBECONFIG`` or ``~/.kube/config``.

        Nothing is sent yet. Raises :class:`KubeError` when there are no credentials, or they cannot
        be used. In a pod, proxies of the environment are not used: the API server is the cluster's own.
        """
        return cls(open_client(request_timeout), clock=clock, request_timeout=request_timeout)

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def __enter__(self) -> KubeClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def deadline_after(self, seconds: float) -> float:
        """The deadline that lies ``seconds`` ahead."""
        return self.clock.now() + seconds

    def send(
        self,
        request: Callable[[Client], T],
        deadline: float,
        make_error: Callable[[RequestFailure, int], KubeError],
    ) -> T:
        """What ``request(client)`` returns, see :func:`kata_node.kube.retry.persist`."""
        return retry_until(
            lambda: request(self._client), deadline, self.clock, self.request_timeout, make_error
        )

    def node(self, name: str, deadline: float) -> NodeFacts:
        """The Node ``name`` as it is now.

        Raises :class:`NoSuchNodeError` when there is none, and :class:`KubeError` when the API
        server refuses, or gives no answer until ``deadline``.
        """
        if not name:
            raise UsageError(
                "there are credentials of a cluster, and nothing tells which of its Nodes this is",
                where="NODE_NAME",
                hint="set it to metadata.name of the Node; without KUBECONFIG the labels are left alone",
            )
        if not _NODE_NAME.fullmatch(name):
            raise UsageError(
                "this cannot be the name of a Node",
                where=repr(name),
                hint="set NODE_NAME to metadata.name of the Node, in a pod from spec.nodeName",
            )
        return self._call("get", name, deadline, lambda: self._client.get(self._resource, name))

    def patch_labels(
        self, name: str, changes: Mapping[str, str | None], resource_version: str, deadline: float
    ) -> NodeFacts:
        """Set labels, and remove those whose value is ``None``, on the Node as it was read, or not at all.

        Raises :class:`ConflictError` when the Node is no longer at ``resource_version``, and what
        :meth:`node` raises.
        """
        return self._patch(name, {"metadata": {"labels": dict(changes)}}, resource_version, deadline)

    def remove_taints(
        self,
        name: str,
        remaining: Callable[[Sequence[Taint]], Sequence[Taint]],
        *,
        timeout: float,
        expected_machine_id: str | None = None,
        poll: float = POLL_INTERVAL,
    ) -> NodeFacts:
        """Take the taints off the Node that ``remaining`` leaves out of those it is given.

        Raises :class:`KubeError` when they are still there after ``timeout`` seconds, and
        :class:`UnfitNodeError` when the Node is not on the machine of ``expected_machine_id``.
        """
        deadline = self.deadline_after(timeout)
        conflicts = 0
        while True:
            facts = self._read_node(name, deadline, expected_machine_id, poll)
            kept = remaining(facts.taints)
            if len(kept) == len(facts.taints):
                return facts
            try:
                # The list is replaced whole, so it has to be that of exactly the Node that was read.
                return self._patch(name, {"spec": {"taints": kept}}, facts.resource_version, deadline)
            except ConflictError as error:
                conflicts += 1
                log.debug("reading Node %s again: %s", name, error.what)
            left = deadline - self.clock.now()
            if left <= 0:
                raise taints_not_removed(name, timeout, conflicts)
            self.clock.sleep(min(poll, left, conflict_backoff(conflicts, self.clock)))

    def record_event(self, event: Mapping[str, Any]) -> None:
        """Make an Event of the core group, in the namespace it names. It is tried once.

        Raises :class:`KubeError` when that fails: an Event is not worth waiting for.
        """
        event_object = _event_resource().from_dict(dict(event))
        try:
            within(
                EVENT_TIMEOUT,
                lambda: self._client.create(event_object, namespace=event["metadata"]["namespace"]),
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
        poll: float = POLL_INTERVAL,
    ) -> NodeFacts:
        """Wait until the Node is Ready and reports all of ``handlers``, or reports no handler at all.

        Raises :class:`KubeError` when that is not so within ``timeout`` seconds and until
        ``deadline``, and :class:`UnfitNodeError` when the Node is not on the machine of
        ``expected_machine_id``.
        """
        deadline = min(deadline, self.deadline_after(timeout))
        last_state: object = None
        while True:
            facts = self._read_node(name, deadline, expected_machine_id, poll)
            missing = facts.missing(handlers)
            if facts.ready and not missing:
                return facts
            left = deadline - self.clock.now()
            if left <= 0:
                raise node_not_ready(facts, missing, timeout)
            if last_state != (last_state := (facts.ready, missing)):
                log.info("waiting for Node %s: %s", name, waiting_for(facts, missing))
            self.clock.sleep(min(poll, left))

    def ensure_labels(
        self,
        name: str,
        change: Callable[[NodeFacts], Mapping[str, str | None]],
        *,
        required_handlers: Collection[str] = (),
        window: float,
        timeout: float,
        deadline: float = math.inf,
        expected_machine_id: str | None = None,
        poll: float = POLL_INTERVAL,
    ) -> NodeFacts:
        """Make the changes that ``change`` asks for, until it has asked for none for ``window`` seconds.

        A kubelet that registers again writes old labels over new ones: one look proves nothing. When
        it happens the changes are made again and the window begins anew. A Node already as it should be
        is not written to, nor is one that reports handlers and not all that it ``serves``. Raises
        :class:`KubeError` when ``timeout`` seconds, or the time until ``deadline``, were not enough, and
        :class:`UnfitNodeError`, before any change, when the Node is not on the machine of
        ``expected_machine_id``.
        """
        if window > timeout:
            raise UsageError(
                f"labels cannot hold for {window:g} s when there are {timeout:g} s for all of it",
                hint="raise the timeout above the stability window",
            )
        deadline = min(deadline, self.deadline_after(timeout))
        since: float | None = None  # when the labels were first seen as they should be, of late
        overwritten = conflicts = 0
        while True:
            facts = self._read_node(name, deadline, expected_machine_id, poll)
            now, changes, pause = self.clock.now(), change(facts), poll
            if missing := facts.missing(required_handlers):
                # Somebody takes away what the labels would promise: neither set them nor put them back.
                since = None
                log.debug("waiting for Node %s: %s", name, waiting_for(facts, missing))
            elif changes:
                if since is not None:
                    overwritten += 1
                    log.warning("what was changed on Node %s was undone; changing it again", name)
                try:
                    facts = self.patch_labels(name, changes, facts.resource_version, deadline)
                    log.info("Node %s: %s", name, _format_changes(changes))
                    if not window:
                        return facts
                    since = self.clock.now()
                except (ConflictError, NoSuchNodeError) as error:
                    since, conflicts = None, conflicts + 1
                    pause = min(poll, conflict_backoff(conflicts, self.clock))
                    log.debug("reading Node %s again: %s", name, error.what)
            elif since is None:
                since = now
            elif now - since >= window:
                return facts
            left = deadline - self.clock.now()
            if left <= 0 and missing:
                raise node_not_ready(facts, missing, timeout)
            if left <= 0:
                raise labels_not_stable(name, window, timeout, overwritten, conflicts)
            self.clock.sleep(min(pause, left, since + window - now if since is not None else left))

    def _patch(
        self, name: str, change: Mapping[str, Any], resource_version: str, deadline: float
    ) -> NodeFacts:
        """Merge ``change`` into the Node as it was read, or not at all."""
        # The version makes the request safe to repeat: had the first try been carried out and only
        # its answer been lost, the second would be a conflict.
        patch = {**change, "metadata": {**change.get("metadata", {}), "resourceVersion": resource_version}}
        return self._call(
            "patch",
            name,
            deadline,
            lambda: self._client.patch(self._resource, name, patch, patch_type=self._merge),
        )

    def _read_node(self, name: str, deadline: float, machine_id: str | None, poll: float) -> NodeFacts:
        """The Node on the machine that is meant; one that is away is given some time to come back."""
        absence_deadline = min(deadline, self.deadline_after(NODE_ABSENCE_TIMEOUT))
        while True:
            try:
                facts = self.node(name, deadline)
                break
            except NoSuchNodeError:
                left = absence_deadline - self.clock.now()
                if left <= 0:
                    raise
                log.info("there is no Node %s; giving it %.0f s more to be registered", name, left)
            self.clock.sleep(min(poll, left))
        check_machine_id(facts, machine_id)
        return facts

    def _call(
        self, verb: str, name: str, deadline: float, request: Callable[[], Mapping[str, Any]]
    ) -> NodeFacts:
        """Send a request, again and again while what fails may pass and the deadline is ahead."""
        answer = self.send(
            lambda _: request(),
            deadline,
            lambda failure, tries: request_error(failure, verb, name, self.server, tries),
        )
        if answer.get("kind") != "Node":
            raise KubeError("the answer is no Node", where=self.server, hint=NOT_KUBERNETES_HINT)
        return NodeFacts.of(answer)


@functools.cache  # lightkube lets a process register a resource of the core group once only
def _node_resource() -> type[GenericGlobalResource]:
    """The Node as a plain mapping.

    lightkube's typed one refuses the whole object when one field of it, though it be one that nobody
    here reads, is not as that release of its models has it.
    """
    from lightkube.generic_resource import create_global_resource

    return create_global_resource("", "v1", "Node", "nodes")


@functools.cache
def _event_resource() -> type[GenericNamespacedResource]:
    from lightkube.generic_resource import create_namespaced_resource

    return create_namespaced_resource("", "v1", "Event", "events")


def _format_changes(changes: Mapping[str, str | None]) -> str:
    return ", ".join(
        f"{key} removed" if value is None else f"{key}={value}" for key, value in changes.items()
    )
