"""Tells the cluster of failures: Events on the Node, for ``kubectl describe node``.

Of a node's containers only those that label have credentials, and a Pod that is gone tells nothing.
"""

from __future__ import annotations

import logging

import msgspec

from kata_node.dispatcher.api import ApiClient
from kata_node.dispatcher.rollout import Task
from kata_node.errors import KubeError
from kata_node.kube.events import NAMESPACE, Event, failure_event

COMPONENT = "kata-deploy-job-dispatcher"

TIMEOUT = 5.0
"""Seconds that an Event is worth."""

MAX_CONSECUTIVE_FAILURES = 3
"""After so many in a row that were not taken, no more are tried: nodes are not to wait for them."""

log = logging.getLogger(__name__)


def event_of(task: Task, installation: str) -> Event | None:
    """What there is to tell of a node that has ended; ``None`` for nothing."""
    problem = task.problem
    # A Node that is not there has nobody to look at it.
    if problem is None or not task.target.uid:
        return None
    hint = f"; {problem.hint}" if problem.hint else ""
    message = f"{installation}: {problem}{hint}"
    return failure_event(message, removing=task.action == "cleanup", exit_code=problem.exit_code)


class EventRecorder:
    """Records what failed, once each and as well as it can: what becomes of it is only logged."""

    def __init__(self, api: ApiClient, installation: str, reporter: str) -> None:
        self._api = api
        self._installation = installation
        self._reporter = reporter
        self._consecutive_failures = 0

    def record_failure(self, task: Task) -> None:
        """Tell of a node that has failed."""
        event = event_of(task, self._installation)
        if event is None or self._consecutive_failures >= MAX_CONSECUTIVE_FAILURES:
            return
        name = task.target.name
        event_object = event.as_object(name, component=COMPONENT, reporter=self._reporter, on_node=False)
        path = f"/api/v1/namespaces/{NAMESPACE}/events"
        try:
            self._api.call_once(
                "POST", path, "create an event", body=msgspec.json.encode(event_object), timeout=TIMEOUT
            )
        except KubeError as error:
            self._consecutive_failures += 1
            more = (
                "; none of those that follow is tried"
                if self._consecutive_failures >= MAX_CONSECUTIVE_FAILURES
                else ""
            )
            log.warning("no Event %s was recorded on Node %s: %s%s", event.reason, name, error, more)
        else:
            self._consecutive_failures = 0
