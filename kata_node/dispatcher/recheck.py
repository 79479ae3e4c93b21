"""Read a Node again before it gets its Job.

Hours can pass between the selection and the Job of a node. Meanwhile its Node can get a taint, lose its
labels, or be registered again for another machine. One list of the Nodes that come next serves all Jobs of
the next seconds.
"""

from __future__ import annotations

import logging

from kata_node.dispatcher.api import RefusedError
from kata_node.dispatcher.config import Config
from kata_node.dispatcher.eligibility import TaskResult, no_longer_selected, not_labeled, unready_result
from kata_node.dispatcher.node_jobs import NodeJobs
from kata_node.dispatcher.nodes import UNREACHABLE, Nodes, Selection
from kata_node.dispatcher.rollout import Rollout, Task
from kata_node.dispatcher.template import Target
from kata_node.kube.retry import Clock

FRESH = 15.0
"""Seconds for which the first nodes of a run need not be read again. They were selected just before."""

LIST_MAX_AGE = 5.0
"""Seconds for which one list of Nodes is used."""

LIST_MAX_NODES = 100
"""The most Nodes in one list. Its request names them."""

TOO_LONG = (400, 414, 431)
"""How a proxy before the API server refuses a long request."""

POLL_INTERVAL = 5.0
"""Seconds between two reads of a Node that is not ready."""

log = logging.getLogger(__name__)


class NodeRecheck:
    """Checks whether a node can get its Job now."""

    def __init__(
        self, config: Config, nodes: Nodes, node_jobs: NodeJobs, clock: Clock, rollout: Rollout
    ) -> None:
        self._config = config
        self._nodes = nodes
        self._node_jobs = node_jobs
        self._clock = clock
        self._fresh_until = clock.now() + FRESH
        self._rollout = rollout
        self._listed = Selection()
        self._listed_names: frozenset[str] = frozenset()
        self._listed_at = 0.0
        self._used = LIST_MAX_NODES
        """How many Nodes of the last list were used. The first list is as long as possible."""
        self._longest = LIST_MAX_NODES
        self._ready_deadline = clock.now() + config.wait_for_ready

    def expire(self) -> None:
        """Read every Node again from now on."""
        self._fresh_until = 0.0

    def check(self, task: Task) -> TaskResult | None:
        """Update ``task`` for the present state of its Node; return the result of a node that gets no Job.

        Without a result, ``task.unready`` and ``task.absent_since`` say whether the node has to be waited
        for. ``task.next_node_check`` is then the time of the next check.
        """
        now = self._clock.now()
        if not task.unready and now <= self._fresh_until:
            return None
        name, install = task.target.name, task.action == self._config.action == "install"
        found = self._read(task, now)
        running = self._node_jobs.running(name) and not _unreachable(found)
        if target := _target(found):
            if target.uid != task.target.uid:
                log.info("%s: its Node was registered again since the selection", name)
            task.target = target
            if found.eligible or running:
                if task.unready:
                    task.began, task.unready, task.note = now, "", ""
                task.absent_since = task.ready_deadline = None
                return None
        if install and not found.selected and self._nodes.exists(name):
            return None if running else no_longer_selected()
        return self._wait(task, found, now)

    def _read(self, task: Task, now: float) -> Selection:
        """Return the selection of one node, from a list that is new enough or from a read of its Node."""
        name, configured = task.target.name, task.action == self._config.action
        can_list = configured and task.target.hostname and self._longest and not self._config.nodes
        if can_list and not task.unready and task.absent_since is None:
            if name not in self._listed_names or now - self._listed_at > LIST_MAX_AGE:
                self._list(task.target, now)
            found = self._listed.only(name)
            target = _target(found)
            # The cache of another API server may still have the machine before the last registration.
            if target and target.uid == task.target.uid:
                self._used += 1
                return found
        install = configured and task.action == "install"
        return self._nodes.reselect(name, self._node_jobs.templates(task), selected=install)

    def _list(self, first: Target, now: float) -> None:
        """List the Nodes that come next, twice as many as the last list was used for."""
        count = min(max(2, 2 * self._used), self._longest)
        targets = [first, *self._rollout.next_targets(count - 1)]
        self._listed_names, self._listed_at = frozenset(each.name for each in targets), now
        self._used = 0
        try:
            self._listed = self._nodes.select_again(targets)
        except RefusedError as error:
            if error.failure.status not in TOO_LONG:
                raise
            log.info("reading each Node alone, because the list of %d was refused: %s", len(targets), error)
            self._listed, self._longest = Selection(), 0

    def _wait(self, task: Task, found: Selection, now: float) -> TaskResult | None:
        """Make a node wait that is not ready, or that does not exist at the moment."""
        if not found.selected and not task.unready:
            task.absent_since = now if task.absent_since is None else task.absent_since
            task.note = "its Node does not exist; waiting for it to come back"
            task.next_node_check = now + POLL_INTERVAL
            return None
        if task.ready_deadline is None:
            # The nodes that were not ready at the selection share one deadline.
            task.ready_deadline = self._ready_deadline if task.unready else now + self._config.wait_for_ready
        left = task.ready_deadline - now
        if ended := unready_result(task.action, found, left, self._config.wait_for_ready):
            return ended
        if found.unlabeled and not task.unready:
            return not_labeled()
        note = "waiting until node-feature-discovery has labeled the node"
        if not found.unlabeled:
            task.unready = next((taint for _, taint in found.unready), task.unready)
            note = f"waiting until the node is ready, it has the taint {task.unready}"
        if task.note != note:
            log.info("%s: %s", task.target.name, note)
        task.note = note
        task.next_node_check = now + min(POLL_INTERVAL, left)
        return None


def _target(found: Selection) -> Target | None:
    """Return the only node of a selection, if it has a template; ``None`` when it is empty."""
    held = (node for node, _ in (*found.unready, *found.tainted))
    return next(iter((*found.eligible, *held)), None)


def _unreachable(found: Selection) -> bool:
    return any(taint.startswith(UNREACHABLE) for _, taint in found.unready)
