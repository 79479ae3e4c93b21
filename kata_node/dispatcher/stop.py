"""Delete the DaemonSet or CronJob of a release before helm deletes its objects, and wait until it is gone.

helm deletes the DaemonSet and the account of its pods at the same time, and a pod without an account cannot
find out that it must revert its node. So this is done first. Each pod reverts its node before it ends.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import msgspec
from msgspec import Struct

from kata_node.dispatcher.api import ApiClient, RefusedError
from kata_node.dispatcher.config import Config
from kata_node.dispatcher.desired_state import find_reason_to_do_nothing, get_object, read_state
from kata_node.dispatcher.jobs import Jobs
from kata_node.dispatcher.kubernetes_objects import ObjectMeta, Pod
from kata_node.dispatcher.nodes import Nodes
from kata_node.dispatcher.shutdown import ShutdownRequested
from kata_node.dispatcher.template import Owner
from kata_node.errors import KataNodeError
from kata_node.text import first_of, quote_foreign

KINDS = {"daemonset": "apps/v1", "cronjob": "batch/v1"}
POLL_INTERVAL, REPORT_INTERVAL = 2.0, 30.0
"""Seconds between two looks, and until the same pods are logged again."""

MAX_NAMED = 20
"""Maximum number of pods or Nodes that a message names."""

EVENTS = "/api/v1/namespaces/default/events"

log = logging.getLogger(__name__)


class Target(Struct, frozen=True):
    """The object to delete."""

    kind: str
    """A key of :data:`KINDS`."""
    name: str
    pod_selector: str
    """The label selector of its pods."""


class _Object(msgspec.Struct):
    metadata: ObjectMeta


class _Event(msgspec.Struct, rename="camel"):
    metadata: ObjectMeta
    message: str = ""
    last_timestamp: str | None = None


class _Events(msgspec.Struct):
    items: list[_Event] | None = None


def stop(api: ApiClient, config: Config, target: Target, owner: Owner | None) -> str:
    """Delete ``target`` and return what was done. ``config`` has the namespace, the state and the label.

    Raises :class:`KataNodeError` when Nodes still have the installation label afterwards, or when a shutdown
    is requested before the object is gone; :class:`KubeError` when the API server refuses.
    """
    state = read_state(api, config)
    if reason := find_reason_to_do_nothing(api, config, state, owner):
        return reason
    version = KINDS[target.kind]
    path = f"/apis/{version}/namespaces/{config.namespace}/{target.kind}s/{target.name}"
    what = f"the {target.kind} {target.name}"
    deleted = _delete(api, path, target.kind)
    try:
        _wait_until_gone(api, config, path, target, deleted)
    except ShutdownRequested:
        error = KataNodeError(
            f"{api.stop.reason}, and {what} is not gone: {_waiting(api, config, target)}",
            hint="end the pods that the messages name, then run the helm command again",
        )
        error.exit_code = api.stop.exit_code
        raise error from None
    if target.kind == "daemonset" and (left := Nodes(api, config).with_label(config.installation_label)):
        reasons = "; ".join(_last_failures(api, left))
        raise KataNodeError(
            f"these nodes still have Kata: {first_of(left, MAX_NAMED)}"
            + (f" ({reasons})" if reasons else ""),
            hint="run `kata-node revert` on these nodes, or delete the Nodes of machines that are gone; then "
            "run the helm command again",
        )
    return f"{what} is gone" if deleted else f"{what} does not exist"


def _delete(api: ApiClient, path: str, kind: str) -> str:
    """Delete an object and return its uid; empty if it does not exist. It stays until its pods have ended."""
    body = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Foreground"}
    content = get_object(api, path, f"get a {kind}")
    if content is None:
        return ""
    try:
        api.call("DELETE", path, f"delete a {kind}", body=msgspec.json.encode(body))
    except RefusedError as error:
        if error.failure.status != 404:
            raise
    return msgspec.json.decode(content, type=_Object).metadata.uid


def _wait_until_gone(api: ApiClient, config: Config, path: str, target: Target, uid: str) -> None:
    said, next_report = "", 0.0
    while uid:
        content = get_object(api, path, f"get a {target.kind}")
        if content is None or msgspec.json.decode(content, type=_Object).metadata.uid != uid:
            return
        now = api.clock.now()
        if now >= next_report and (waiting := _waiting(api, config, target)) != said:
            log.info("waiting for %s", waiting)
            said = waiting
        if now >= next_report:
            next_report = now + REPORT_INTERVAL
        api.sleep(POLL_INTERVAL)


def _waiting(api: ApiClient, config: Config, target: Target) -> str:
    """Return which pods have not ended, and the last failure that their nodes tell."""
    pods: list[Pod] = Jobs(api, config.namespace).live_pods(target.pod_selector)
    names = [f"{pod.metadata.name} on {pod.spec.node_name or 'no node'}" for pod in pods]
    reasons = _last_failures(api, [pod.spec.node_name for pod in pods if pod.spec.node_name])
    return "; ".join([f"{len(pods)} pods: {first_of(names, MAX_NAMED)}", *reasons])


def _last_failures(api: ApiClient, nodes: Sequence[str]) -> Iterator[str]:
    """Yield what the newest Event of each of the first nodes says about a failed revert."""
    for node in nodes[:MAX_NAMED]:
        selector = f"involvedObject.kind=Node,involvedObject.name={node},reason=KataRemoveFailed"
        try:
            answer = api.call("GET", EVENTS, "list events", query={"fieldSelector": selector})
        except RefusedError as error:
            log.debug("%s", error)
            return
        found = msgspec.json.decode(answer, type=_Events).items or []
        if newest := max(found, key=lambda event: event.last_timestamp or "", default=None):
            yield f"{node} says {quote_foreign(newest.message)}"
