"""Record on a Node that its Job failed, see :mod:`kata_node.kube.node_status`.

The stages that work on the node have no credentials to do so. If other stages label the Nodes, the account of
the dispatcher may patch Nodes only where an admission policy limits it to this record. Elsewhere the Node
keeps the record of the last stage that had credentials, and the state of the release says what failed. If the
dispatcher labels the Nodes, it also labels the unfit ones, and withdraws labels that the Job found wrong.
"""

from __future__ import annotations

import logging
import time

import msgspec
from msgspec.structs import replace

from kata_node.cluster import labels as node_labels
from kata_node.cluster.labels import NodeState
from kata_node.cluster.ownership import find_other_release
from kata_node.dispatcher.api import ApiClient, RefusedError, is_rbac_denial
from kata_node.dispatcher.config import Config
from kata_node.dispatcher.kubernetes_objects import NODES, Node, NodePage, only_node
from kata_node.dispatcher.rollout import Task
from kata_node.errors import KubeError, RolledBackError
from kata_node.kube import node_status
from kata_node.kube.node_status import NodeStatus, Outcome
from kata_node.text import utc

TIMEOUT = 5.0
"""Seconds for each of the two requests for one Node."""

MAX_CONSECUTIVE_FAILURES = 3
"""After this many failed requests in a row, no more Nodes are changed: other nodes must not wait for them."""

log = logging.getLogger(__name__)


class NodeRecorder:
    """Record failures on Nodes, with one try for each. A failed request is only logged."""

    def __init__(self, api: ApiClient, config: Config) -> None:
        self._api = api
        self._label, self._installation = config.installation_label, config.installation
        self._release = config.release
        self._labels_nodes = config.label_nodes is not None
        self._consecutive_failures = 0

    def record_failure(self, task: Task) -> None:
        """Record the failure of a task on its Node, if the installation has claimed the Node."""
        gives_up = self._consecutive_failures >= MAX_CONSECUTIVE_FAILURES
        if task.problem is None or not task.target.uid or not self._label or gives_up:
            return
        try:
            node = self._read(task.target.name)
            if node is not None and self._label in node.metadata.labels and not self._is_of_another(node):
                self._write(node, task)
        except KubeError as error:
            self._consecutive_failures += 1
            if isinstance(error, RefusedError) and is_rbac_denial(error.failure):
                self._consecutive_failures = MAX_CONSECUTIVE_FAILURES
                log.info("failures are not recorded on Nodes, because this account may not change Nodes")
                return
            log.warning("the failure could not be recorded on the Node %s: %s", task.target.name, error)
        else:
            self._consecutive_failures = 0

    def _is_of_another(self, node: Node) -> bool:
        return bool(find_other_release(node.metadata.annotations, self._installation, self._release))

    def _read(self, name: str) -> Node | None:
        content = self._api.call_once("GET", NODES, "list nodes", query=only_node(name), timeout=TIMEOUT)
        return next(iter(msgspec.json.decode(content, type=NodePage).items or ()), None)

    def _write(self, node: Node, task: Task) -> None:
        installation = self._installation
        metadata, problem = node.metadata, task.problem
        assert problem is not None
        unfit = problem.unfit and task.action == "install"
        rolled_back = problem.exit_code == RolledBackError.exit_code
        outcome: Outcome = "unfit" if unfit else "rolled-back" if rolled_back else "failed"
        before = node_status.read(metadata.annotations, installation) or NodeStatus(outcome)
        status = replace(before, outcome=outcome, reason=str(problem), since=utc(time.time()))
        changes = node_status.changes(metadata.labels, metadata.annotations, installation, status)
        # The label of the version is the stages' own, and nothing is known about the version here.
        own = node_status.outcome_label(installation)
        labels: node_labels.Changes = {key: value for key, value in changes.labels.items() if key == own}
        annotations = dict(changes.annotations)
        if self._labels_nodes and task.action == "install":
            state = NodeState(metadata.labels, metadata.annotations, is_served=not task.not_served)
            more = node_labels.changes("unfit" if unfit else "claimed", state, installation)
            labels, annotations = {**labels, **more.labels}, {**annotations, **more.annotations}
        if not labels and not annotations:
            return
        patch = {
            "metadata": {
                "resourceVersion": metadata.resource_version,
                "labels": labels,
                "annotations": annotations,
            }
        }
        self._api.call_once(
            *("PATCH", f"{NODES}/{metadata.name}", "patch a node"),
            body=msgspec.json.encode(patch),
            timeout=TIMEOUT,
        )
