"""Record failures as Events on the Node; ``kubectl describe node`` shows them.

The dispatcher records them because the stages of a node Job that work on the node have no credentials, and
because a deleted Pod shows nothing. If it labels the Nodes, it also records the Events of the label stages.
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
"""Seconds for the one request that creates an Event."""

MAX_CONSECUTIVE_FAILURES = 3
"""After this many failed requests in a row, no more Events are recorded: nodes must not wait for them."""

log = logging.getLogger(__name__)


def event_of(task: Task, installation: str) -> Event | None:
    """Return the Event for a finished task; ``None`` when it has no problem or its Node does not exist."""
    problem = task.problem
    if problem is None or not task.target.uid:
        return None
    message = "; ".join((f"{installation}: {problem}", *problem.hints))
    if problem.unfit and task.action == "install":
        return Event("Warning", "KataNodeUnfit", message)
    return failure_event(message, removing=task.action == "cleanup", exit_code=problem.exit_code)


class EventRecorder:
    """Record failures, with one try for each. A failed request is only logged."""

    def __init__(self, api: ApiClient, installation: str, reporter: str) -> None:
        self._api = api
        self._installation = installation
        self._reporter = reporter
        self._consecutive_failures = 0

    def record_failure(self, task: Task) -> None:
        """Record the failure of a task as an Event on its Node."""
        if (event := event_of(task, self._installation)) is not None:
            self.record(event, task.target.name)

    def record(self, event: Event, name: str) -> None:
        """Record an Event on the Node ``name``."""
        if self._consecutive_failures >= MAX_CONSECUTIVE_FAILURES:
            return
        event_object = event.as_object(name, component=COMPONENT, reporter=self._reporter, on_node=False)
        path = f"/api/v1/namespaces/{NAMESPACE}/events"
        try:
            self._api.call_once(
                "POST", path, "create an event", body=msgspec.json.encode(event_object), timeout=TIMEOUT
            )
        except KubeError as error:
            self._consecutive_failures += 1
            more = (
                "; no more Events are recorded"
                if self._consecutive_failures >= MAX_CONSECUTIVE_FAILURES
                else ""
            )
            log.warning(
                "the Event %s could not be recorded on the Node %s: %s%s", event.reason, name, error, more
            )
        else:
            self._consecutive_failures = 0
