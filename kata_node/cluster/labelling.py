"""The actions on the Node object: wait for it, change its labels, remove its startup taints."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping

from msgspec import Struct
from msgspec.structs import replace

from kata_node import __version__, signals
from kata_node.cluster import labels, taints
from kata_node.cluster.facts import LabelFacts, gather_facts
from kata_node.cluster.labels import Goal, NodeState
from kata_node.errors import KataNodeError, LockedError, OutdatedPlanError, RolledBackError
from kata_node.kube import credentials, node_status
from kata_node.kube.node import SHARED_LABEL, MetadataChanges, NodeFacts, check_host, check_machine_id
from kata_node.kube.node_status import NodeStatus, Outcome
from kata_node.plan.actions import Clients
from kata_node.plan.context import StageContext
from kata_node.plan.effects import Effect, LabelEffect
from kata_node.plan.report import StageReport

log = logging.getLogger(__name__)

MARK_TIMEOUT = 15.0
"""Seconds to record on the Node why a run has failed."""

_STAGES_THAT_ONLY_LABEL = ("claim", "unlabel", "unclaim")
"""If one of these fails, the API server could not be used."""

TAINT_REMOVAL_TIMEOUT = 60.0
"""Seconds that the removal of a startup taint may take. The API server has just answered, so it is short."""


def plan_labels(
    facts: LabelFacts,
    instance: str,
    goal: Goal,
    *,
    handlers: tuple[str, ...] = (),
    stable_for: float | None = None,
    outcome: Outcome | None = None,
    reason: str = "",
) -> tuple[EnsureLabels, ...]:
    """Return the actions that bring the labels of ``instance`` to ``goal``; none when they are there.

    A revert changes nothing on a Node that shows nothing of ``instance``, see :func:`why_not_ours`. The
    labels must stay unchanged for ``stable_for`` seconds, by default for those of ``facts``. During that
    time the Node must report ``handlers``. The record on the Node gets ``outcome``, by default that of the
    goal, and ``reason``. Raises :class:`~kata_node.errors.IneligibleNodeError` when the Node belongs to
    another machine.
    """
    if facts.node:
        check_machine_id(facts.node, facts.expected_machine_id)
        check_host(facts.node, facts.host_machine_id)
    state = _state(facts, instance, goal)
    status = _status(facts, outcome or _OUTCOMES[goal], reason, handlers)
    changes = labels.changes(goal, state, instance, status)
    if not changes:
        return ()
    window = facts.stable_for if stable_for is None else stable_for
    if not labels.changes(goal, state, instance):
        window = 0  # nothing decides by the record, so it need not be watched
    return (
        EnsureLabels(
            facts.name,
            instance,
            goal,
            changes,
            facts.timeout,
            facts.deadline,
            window,
            facts.expected_machine_id,
            handlers,
            # The first change can remove the label that shows the installation.
            has_record=labels.is_ours(state, instance),
            serves_others=facts.serves_others,
            is_served=not facts.not_served,
            status=status,
            is_unread=facts.is_unread,
        ),
    )


_OUTCOMES: Mapping[Goal, Outcome] = {
    "claimed": "installing",
    "served": "installed",
    "withdrawn": "removing",
    "released": "removing",
    "unfit": "unfit",
    "failed": "failed",
}


def _status(facts: LabelFacts, outcome: Outcome, reason: str, handlers: tuple[str, ...]) -> NodeStatus:
    return NodeStatus(
        outcome,
        facts.kata_version,
        __version__,
        facts.settings,
        facts.now,
        reason,
        facts.node.machine_id if facts.node else facts.expected_machine_id,
        tuple(sorted(handlers)),
        facts.helm_release,
    )


def is_labeled_as_serving(facts: LabelFacts, instance: str) -> bool:
    """Return whether the Node has the label of ``instance`` with ``true``."""
    node = facts.node
    return node is not None and node.labels.get(labels.installation_label(instance)) == labels.SERVING


def why_not_ours(facts: LabelFacts, instance: str) -> str:
    """Return why a revert leaves the labels alone; empty if the Node or the node shows ``instance``.

    A missing Node may have its label.
    """
    if labels.is_ours(_state(facts, instance, "released"), instance):
        return ""
    return f"not ours: Node {facts.name} has no label of {instance}; its labels stay"


def _state(facts: LabelFacts, instance: str, goal: Goal) -> NodeState:
    """Return the state of the Node. For a revert, a missing Node is assumed to have every label."""
    if facts.node:
        node = facts.node
        return NodeState(
            node.labels, node.annotations, facts.has_record, facts.serves_others, not facts.not_served
        )
    if goal in ("claimed", "served", "unfit"):
        return NodeState({})
    keys = (SHARED_LABEL, labels.installation_label(instance))
    return NodeState(dict.fromkeys(keys, labels.SERVING), {}, facts.has_record, facts.serves_others)


def mark_unfit(context: StageContext, instance: str, reason: str) -> None:
    """Set the labels of a Node that cannot run Kata. A failure is only logged, and changes no result."""
    try:
        _mark(context, instance, "unfit", "unfit", reason)
    except KataNodeError as error:
        log.warning("cannot set the label %s: %s", labels.installation_label(instance), error)


def mark_failed(context: StageContext, instance: str, report: StageReport) -> None:
    """Record on a claimed Node that a stage failed. A failure is only logged, and changes no result.

    Without credentials there is nothing to do: in a node Job the dispatcher records what became of the stage.
    A run that was stopped, and one that another run keeps from working, change nothing either.
    """
    error = report.error
    if (
        error is None
        or error.exit_code == LockedError.exit_code
        or report.stage in _STAGES_THAT_ONLY_LABEL
        or signals.is_stopping()
        or context.options.offline
        or credentials.find_credentials() is None
    ):
        return
    outcome: Outcome = "rolled-back" if error.exit_code == RolledBackError.exit_code else "failed"
    place = f"{error.where}: " if error.where else ""
    try:
        _mark(context, instance, "failed", outcome, f"{report.stage}: {place}{error.what}")
    except KataNodeError as failure:
        log.warning("cannot record on the Node that %s failed: %s", report.stage, failure)


def _mark(context: StageContext, instance: str, goal: Goal, outcome: Outcome, reason: str) -> None:
    options = replace(context.options, label_timeout=MARK_TIMEOUT)
    facts = gather_facts(replace(context, options=options, since=time.monotonic()))
    if _has_conflict(facts, instance):
        return
    if facts.name and (facts.node or goal == "unfit"):
        actions = plan_labels(facts, instance, goal, stable_for=0, outcome=outcome, reason=reason)
        _apply(actions, context.clients)


def _has_conflict(facts: LabelFacts, instance: str) -> bool:
    """Return whether the Node belongs to another release, or has another suffix of this one."""
    from kata_node.cluster.ownership import find_other_installation, find_other_release

    if (node := facts.node) is None:
        return False
    other = find_other_installation(node.labels, node.annotations, instance, facts.helm_release)
    return bool(other or find_other_release(node.annotations, instance, facts.helm_release))


def _apply(actions: Iterable[EnsureLabels], clients: Clients) -> None:
    for action in actions:
        log.info("%s", action.describe())
        action.apply(clients)


def withdraw_not_served(context: StageContext, reason: str) -> StageReport | None:
    """Withdraw the labels of a node that does not serve, and return the report; ``None`` without a change.

    A failure is only logged.
    """
    instance = context.settings.instance
    try:
        facts = replace(gather_facts(context), not_served=reason)
        if not is_labeled_as_serving(facts, instance) or _has_conflict(facts, instance):
            return None
        _apply(plan_labels(facts, instance, "claimed", stable_for=0, reason=reason), context.clients)
    except KataNodeError as error:
        log.warning("cannot withdraw the label %s: %s", labels.installation_label(instance), error)
        return None
    return StageReport("claim", "done", withdrawal_summary(facts), not_served=reason)


def withdrawal_summary(facts: LabelFacts) -> str:
    """Return what was done to the labels of a Node that does not serve, and why."""
    return f"Node {facts.name} is no longer labeled as serving, until it is repaired: {facts.not_served}"


class WaitForNode(Struct, frozen=True):
    """Wait until the Node is Ready and reports ``handlers``. If it reports none at all, Ready is enough."""

    name: str
    handlers: tuple[str, ...]
    timeout: float
    deadline: float
    expected_machine_id: str
    missing: tuple[str, ...] = ()
    """The handlers that the Node did not report when the plan was made."""

    def describe(self) -> str:
        """Return a line."""
        return f"wait for Node {self.name} to be Ready and to report {', '.join(self.handlers)}"

    def effects(self) -> tuple[Effect, ...]:
        """Return nothing, because nothing changes."""
        return ()

    def apply(self, clients: Clients) -> None:
        """Wait. Raise :class:`~kata_node.errors.KubeError` at the deadline."""
        clients.kube().wait_ready(
            self.name,
            self.handlers,
            timeout=self.timeout,
            deadline=self.deadline,
            expected_machine_id=self.expected_machine_id or None,
        )

    def check(self, clients: Clients) -> None:
        """Check nothing: the wait has seen the Node Ready."""


class EnsureLabels(Struct, frozen=True):
    """Change the labels of the Node, and prove that they stay unchanged for ``stable_for`` seconds.

    An annotation that records who set the shared label changes with them. ``changes`` are those that were
    necessary when the plan was made. Each request computes them again, because another installation may have
    changed its labels since.
    """

    name: str
    instance: str
    goal: Goal
    changes: MetadataChanges
    timeout: float
    deadline: float
    stable_for: float
    expected_machine_id: str
    handlers: tuple[str, ...] = ()
    """The handlers that the Node must report during that time, if it reports handlers at all."""
    has_record: bool = False
    serves_others: bool = False
    is_served: bool = True
    """All three as in :class:`~kata_node.cluster.labels.NodeState`."""
    status: NodeStatus | None = None
    """What the record of the installation shall say."""
    is_unread: bool = False
    """Whether the plan was made without the Node, because it should have nothing of the installation."""

    def describe(self) -> str:
        """Return a line."""
        changes = ", ".join(
            f"remove {key}" if value is None else f"{key}={value}" for key, value in self._shown.items()
        )
        if not changes:
            return f"record on Node {self.name} what became of {self.instance}"
        return f"label Node {self.name}: {changes}"

    def effects(self) -> tuple[Effect, ...]:
        """Return the labels."""
        return tuple(
            LabelEffect(
                f"- {key} on Node {self.name}" if value is None else f"+ {key}={value} on Node {self.name}",
                key,
                value,
            )
            for key, value in self._shown.items()
        )

    @property
    def _shown(self) -> Mapping[str, str | None]:
        """The changes of labels that decide where pods run, without those of the record."""
        recorded = (node_status.version_label(self.instance), node_status.outcome_label(self.instance))
        return {key: value for key, value in self.changes.labels.items() if key not in recorded}

    def apply(self, clients: Clients) -> None:
        """Change the labels. Raise :class:`~kata_node.errors.KubeError` when they do not stay unchanged.

        Raises :class:`~kata_node.errors.OutdatedPlanError` if the Node was not read, and is not new.
        """
        kube = clients.kube()
        if self.is_unread:
            if not kube.add_metadata(self.name, self.changes, self.expected_machine_id, self.deadline):
                raise OutdatedPlanError("it is not new", where=f"node/{self.name}")
            return
        kube.ensure_labels(
            self.name,
            self._changes,
            required_handlers=self.handlers,
            window=self.stable_for,
            timeout=self.timeout,
            deadline=self.deadline,
            expected_machine_id=self.expected_machine_id or None,
        )

    def _changes(self, node: NodeFacts) -> MetadataChanges:
        state = NodeState(node.labels, node.annotations, self.has_record, self.serves_others, self.is_served)
        status = self.status and replace(self.status, machine_id=node.machine_id)
        return labels.changes(self.goal, state, self.instance, status)

    def check(self, clients: Clients) -> None:
        """Check nothing: :meth:`apply` has seen the labels stay."""


class RemoveTaint(Struct, frozen=True):
    """Remove the startup taint ``key:effect`` from the Node."""

    name: str
    taint: str
    expected_machine_id: str

    def describe(self) -> str:
        """Return a line."""
        return f"remove the startup taint {self.taint} from Node {self.name}"

    def effects(self) -> tuple[Effect, ...]:
        """Return the removal."""
        return (Effect(f"- taint {self.taint} on Node {self.name}"),)

    def apply(self, clients: Clients) -> None:
        """Remove it. Raise :class:`~kata_node.errors.KubeError` when it is still there."""
        clients.kube().remove_taints(
            self.name,
            lambda current: taints.without_startup_taints(current, (self.taint,)),
            timeout=TAINT_REMOVAL_TIMEOUT,
            expected_machine_id=self.expected_machine_id or None,
        )

    def check(self, clients: Clients) -> None:
        """Check nothing: :meth:`apply` has seen the Node without the taint."""
