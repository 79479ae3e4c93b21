"""Label the Nodes in place of the node Jobs, whose pods then have no token.

Before the Job of a node, its labels become ``false``. After the Job they become ``true``, or are removed.
What the labels mean is in :mod:`kata_node.cluster.labels`. What only the node knows is in the termination
messages of the stages. A wait for a Node must not delay other nodes, so :meth:`NodeLabeler.proceed` returns
when to go on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from kata_node import __version__
from kata_node.cluster import labels, taints
from kata_node.cluster.events import event_of
from kata_node.cluster.labels import Goal, NodeState
from kata_node.cluster.ownership import (
    find_other_installation,
    find_other_release,
    release_error,
    suffix_error,
)
from kata_node.dispatcher.api import ApiClient, RefusedError
from kata_node.dispatcher.config import Config
from kata_node.dispatcher.config_parts import LabelConfig
from kata_node.dispatcher.drift import serving_state
from kata_node.dispatcher.events import EventRecorder
from kata_node.dispatcher.failures import stage_reports
from kata_node.dispatcher.jobs import PolicyGrace
from kata_node.dispatcher.kubernetes_objects import NODES, Node, Pod, only_node
from kata_node.dispatcher.rollout import Labeling, Outcome, Task
from kata_node.errors import KataNodeError, KubeError
from kata_node.kube import node_status
from kata_node.kube.failures import NoSuchNodeError
from kata_node.kube.node import (
    STABLE_FOR,
    MetadataChanges,
    NodeFacts,
    check_machine_id,
    labels_not_stable,
    node_not_ready,
    waiting_for,
)
from kata_node.kube.node_status import NodeStatus
from kata_node.plan.report import StageReport
from kata_node.text import utc

POLL_INTERVAL = 5.0
"""Seconds between two reads of a Node that is not Ready, or after a conflict."""

MAX_CONFLICTS = 10
"""Tries to change a Node before its Job, each refused because the Node had just changed."""

log = logging.getLogger(__name__)


class NotLabeledError(KataNodeError):
    """The Node did not get its labels, or did not keep them."""


class NodeLabeler:
    """Labels Nodes before and after their Jobs, and records Events about it.

    All methods raise the errors of :class:`ApiClient`, and
    :class:`~kata_node.errors.IneligibleNodeError` if the Node belongs to another machine than the task.
    """

    def __init__(
        self, api: ApiClient, config: Config, how: LabelConfig, events: EventRecorder | None
    ) -> None:
        self._api = api
        self._installation, self._label = config.installation, config.installation_label
        self._release = config.release
        self._how = how
        self._events = events
        self._policy_grace = PolicyGrace(api)

    def prepare(self, task: Task) -> None:
        """Set the labels of a Node to ``false`` before its Job, as the stages claim and unlabel do.

        Labels that are ``true`` stay before an install, unless the Node shows that it does not serve. A
        missing Node is left alone.
        """
        install, name = task.action == "install", task.target.name
        for _ in range(MAX_CONFLICTS):
            if (found := self._read(name)) is None:
                return
            node = NodeFacts.of(found)
            check_machine_id(node, task.target.machine_id)
            self._check_ownership(node, install=install)
            serving = serving_state(msgspec.convert(found, Node), self._label)
            why = serving.reason if install and serving.has_drifted else ""
            state = NodeState(node.labels, node.annotations, is_served=not why)
            status = self._status("installing" if install else "removing", node, reason=why)
            changes = labels.changes("claimed" if install else "withdrawn", state, self._installation, status)
            if not changes or self._patch(node, {"metadata": changes.patch()}):
                task.claim = self._first_report(name, changes, why, install=install)
                self._record([task.claim], name)
                return
        raise NotLabeledError(
            f"its labels could not be changed in {MAX_CONFLICTS} tries, because the Node changed each time",
            where=f"node/{name}",
            hint="find what else changes this Node; metadata.managedFields of the Node names the writers",
        )

    def _check_ownership(self, node: NodeFacts, *, install: bool) -> None:
        """Raise :class:`NotLabeledError` for another suffix or, before a revert, another release."""
        error = None
        if install:
            other = find_other_installation(node.labels, node.annotations, self._installation, self._release)
            error = other and suffix_error(other, [node.name], self._installation, self._release)
        elif other := find_other_release(node.annotations, self._installation, self._release):
            error = release_error(other, node.name, self._installation, self._release)
        if error:
            raise NotLabeledError(error.what, where=error.where, hint=error.hint)

    def begin(self, task: Task, pods: Sequence[Pod], outcome: Outcome, note: str) -> None:
        """Begin to label the Node of a Job that has succeeded. ``outcome`` is the node's after that."""
        deadline = self._api.clock.now() + self._how.timeout
        task.labeling = Labeling(stage_reports(pods), outcome, note, deadline)

    def proceed(self, task: Task) -> float | None:
        """Do what can be done now; return the seconds until the next call, ``None`` when nothing is left.

        Raises :class:`NoSuchNodeError`, and :class:`NotLabeledError` at the deadline.
        """
        labeling, name = task.labeling, task.target.name
        assert labeling is not None
        if (found := self._read(name)) is None:
            raise NoSuchNodeError("no Node has this name", where=f"node/{name}")
        node, now = NodeFacts.of(found), self._api.clock.now()
        check_machine_id(node, task.target.machine_id)
        left = labeling.deadline - now
        handlers = _handlers(labeling.reports) if task.action == "install" else ()
        missing = node.missing(handlers)
        if task.action == "install" and (not node.ready or missing):
            # The labels would promise handlers that the runtime does not serve, so do not set them.
            labeling.changed_at = None
            if left <= 0:
                raise _not_labeled(node_not_ready(node, missing, self._how.timeout))
            before, task.note = task.note, f"waiting for its Node: {waiting_for(node, missing)}"
            if task.note != before:
                log.info("%s: %s", name, task.note)
            return min(POLL_INTERVAL, left)
        goal, state = self._goal(task, labeling, node)
        changes = labels.changes(
            goal, state, self._installation, self._final_status(goal, node, labeling, handlers)
        )
        if not changes:
            since = labeling.changed_at
            if since is None or now - since >= STABLE_FOR:
                self._finish(task, labeling, node)
                return None
            return STABLE_FOR - (now - since)
        if left <= 0:
            counts = (labeling.overwritten, labeling.conflicts)
            raise _not_labeled(labels_not_stable(name, STABLE_FOR, self._how.timeout, *counts))
        if labeling.changed_at is not None:
            labeling.overwritten += 1
            log.warning("another writer undid the changes of Node %s; changing it again", name)
        if not self._patch(node, {"metadata": changes.patch()}):
            labeling.conflicts += 1
            return POLL_INTERVAL
        log.info("Node %s: %s", name, changes)
        labeling.has_changed = True
        if not labels.changes(goal, state, self._installation):
            self._finish(task, labeling, node)  # nothing decides by the record, so it need not be watched
            return None
        labeling.changed_at = now
        return STABLE_FOR

    def _goal(self, task: Task, labeling: Labeling, node: NodeFacts) -> tuple[Goal, NodeState]:
        if task.action == "install":
            return "served", NodeState(node.labels, node.annotations)
        removals = [each for each in labeling.reports if each.stage in ("revert-cri", "remove-artifacts")]
        # The first change removes the label that shows the installation.
        was_there = labeling.has_changed or any(each.outcome == "done" for each in removals)
        serves_others = any(each.other_install_dirs for each in removals)
        return "released", NodeState(node.labels, node.annotations, was_there, serves_others)

    def _final_status(
        self, goal: Goal, node: NodeFacts, labeling: Labeling, handlers: tuple[str, ...]
    ) -> NodeStatus:
        version = next((each.kata_version for each in labeling.reports if each.kata_version), "")
        return self._status(
            "installed" if goal == "served" else "removing", node, version=version, handlers=handlers
        )

    def _status(
        self,
        outcome: node_status.Outcome,
        node: NodeFacts,
        *,
        reason: str = "",
        version: str = "",
        handlers: tuple[str, ...] = (),
    ) -> NodeStatus:
        return NodeStatus(
            outcome,
            version,
            __version__,
            self._how.settings,
            utc(time.time()),
            reason,
            node.machine_id,
            tuple(sorted(handlers)),
            self._release,
        )

    def _finish(self, task: Task, labeling: Labeling, node: NodeFacts) -> None:
        name, install = task.target.name, task.action == "install"
        notes = self._remove_startup_taints(node) if install else ()
        if labeling.outcome is Outcome.UNCHANGED and not labeling.has_changed:
            return  # an earlier dispatcher recorded the Event
        what = f"Node {name} is {'' if labeling.has_changed else 'already '}labeled"
        if not install:
            what = f"Node {name} no longer has the labels of {self._installation}"
        stage = "label" if install else "unclaim"
        last = StageReport(stage, "done" if labeling.has_changed else "skipped", what, notes=notes)
        self._record([*([task.claim] if task.claim else []), *labeling.reports, last], name)

    def _remove_startup_taints(self, node: NodeFacts) -> tuple[str, ...]:
        """Remove the startup taints; return notes about those that stay. A failure fails nothing else."""
        startup = self._how.startup_taints
        notes = tuple(
            f"the taint {name} stays because startupTaints lists its key only with another effect"
            for name in taints.mismatched_taints(node.taints, startup)
        )
        try:
            for _ in range(MAX_CONFLICTS):
                kept = taints.without_startup_taints(node.taints, startup)
                if len(kept) == len(node.taints) or self._patch(node, {"spec": {"taints": kept}}):
                    return notes
                if (found := self._read(node.name)) is None:
                    return notes
                node = NodeFacts.of(found)
            what = f"{MAX_CONFLICTS} changes met a conflict"
        except RefusedError as error:
            what = error.what
        log.warning("%s: could not remove the startup taints: %s", node.name, what)
        return (*notes, f"could not remove the startup taints: {what}")

    def _first_report(self, name: str, changes: MetadataChanges, why: str, *, install: bool) -> StageReport:
        if changes:
            log.info("Node %s: %s", name, changes)
        if changes and why:
            what = f"Node {name} is no longer labeled as serving, until it is repaired: {why}"
            return StageReport("claim", "done", what, not_served=why)
        what = f"Node {name} is {'' if changes else 'already '}claimed"
        if not install:
            what = (
                f"Node {name} is {'no longer' if changes else 'not'} labeled as serving {self._installation}"
            )
        return StageReport("claim" if install else "unlabel", "done" if changes else "skipped", what)

    def _record(self, run: Sequence[StageReport], name: str) -> None:
        if self._events and (event := event_of(run, self._installation)):
            self._events.record(event, name)

    def _read(self, name: str) -> Mapping[str, Any] | None:
        content = self._api.call("GET", NODES, "read a node", query=only_node(name))
        found: Mapping[str, Any] = msgspec.json.decode(content)
        return next(iter(found.get("items") or ()), None)

    def _patch(self, node: NodeFacts, change: Mapping[str, Any]) -> bool:
        """Change a Node if it is still as it was read; return whether it was."""
        metadata = {**change.get("metadata", {}), "resourceVersion": node.resource_version}
        body = msgspec.json.encode({**change, "metadata": metadata})
        while True:
            try:
                self._api.call("PATCH", f"{NODES}/{node.name}", "patch a node", body=body)
            except RefusedError as error:
                if error.failure.status in (404, 409):
                    return False
                if not self._policy_grace.wait(error):
                    raise
            else:
                return True


def _handlers(reports: Sequence[StageReport]) -> tuple[str, ...]:
    return next((each.handlers for each in reports if each.stage == "cri"), ())


def _not_labeled(error: KubeError) -> NotLabeledError:
    return NotLabeledError(error.what, where=error.where, hint=error.hint)
