"""The acts on the Node object: wait for it, set or remove this instance's labels, lift its startup taints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kata_node.cluster import labels, taints
from kata_node.cluster.facts import LabelFacts
from kata_node.cluster.labels import Goal
from kata_node.kube.node import check_host, check_machine_id
from kata_node.plan.actions import Clients

LIFTING_TIMEOUT = 60.0
"""Seconds that lifting a startup taint may take; the API server has just answered."""


def plan_labels(
    facts: LabelFacts,
    instance: str,
    goal: Goal,
    *,
    handlers: tuple[str, ...] = (),
    stable_for: float | None = None,
) -> tuple[EnsureLabels, ...]:
    """What brings the labels of ``instance`` to ``goal``; nothing when they are there.

    By default they must hold for as long as ``facts`` say; ``handlers`` are what the Node must go on
    reporting meanwhile. Raises
    :class:`~kata_node.errors.UnfitNodeError` when the Node is on another machine than the one meant.
    """
    current_labels: Mapping[str, str]
    if facts.node:
        check_machine_id(facts.node, facts.expected_machine_id)
        check_host(facts.node, facts.host_machine_id)
        current_labels = facts.node.labels
    elif goal in ("claimed", "served"):
        current_labels = {}
    else:  # of a Node that is away just now, all that it can have
        current_labels = dict.fromkeys(
            (labels.SHARED_LABEL, labels.installation_label(instance)), labels.SERVING
        )
    changes = labels.CHANGES[goal](current_labels, instance)
    if not changes:
        return ()
    window = facts.stable_for if stable_for is None else stable_for
    return (
        EnsureLabels(
            facts.name,
            instance,
            goal,
            tuple(changes.items()),
            facts.timeout,
            facts.deadline,
            window,
            facts.expected_machine_id,
            handlers,
        ),
    )


@dataclass(frozen=True)
class WaitForNode:
    """Wait until the Node is Ready and, if it reports handlers at all, reports ours."""

    name: str
    handlers: tuple[str, ...]
    timeout: float
    deadline: float
    expected_machine_id: str
    missing: tuple[str, ...] = ()
    """Those of the handlers that the Node was seen not to report."""

    def describe(self) -> str:
        """One line."""
        return f"wait for Node {self.name} to be Ready and to report {', '.join(self.handlers)}"

    def diff(self) -> str:
        """Nothing changes."""
        return ""

    def apply(self, clients: Clients) -> None:
        """Raises :class:`~kata_node.errors.KubeError` when the time is up."""
        clients.kube().wait_ready(
            self.name,
            self.handlers,
            timeout=self.timeout,
            deadline=self.deadline,
            expected_machine_id=self.expected_machine_id or None,
        )

    def check(self, clients: Clients) -> None:
        """Applying it is the check."""


@dataclass(frozen=True)
class EnsureLabels:
    """Make ``changes`` on the Node and see them hold for ``stable_for`` seconds.

    ``changes`` are those seen when the plan was made. What is sent is worked out anew each time,
    for another instance may have set its labels meanwhile.
    """

    name: str
    instance: str
    goal: Goal
    changes: tuple[tuple[str, str | None], ...]
    timeout: float
    deadline: float
    stable_for: float
    expected_machine_id: str
    handlers: tuple[str, ...] = ()
    """What the Node must go on reporting meanwhile, if it reports handlers at all."""

    def describe(self) -> str:
        """One line."""
        done = ", ".join(
            f"remove {key}" if value is None else f"{key}={value}" for key, value in self.changes
        )
        return f"label Node {self.name}: {done}"

    def diff(self) -> str:
        """A line each."""
        return "".join(
            f"- {key} on Node {self.name}\n" if value is None else f"+ {key}={value} on Node {self.name}\n"
            for key, value in self.changes
        )

    def apply(self, clients: Clients) -> None:
        """Raises :class:`~kata_node.errors.KubeError` when they do not hold."""
        clients.kube().ensure_labels(
            self.name,
            lambda node: labels.CHANGES[self.goal](node.labels, self.instance),
            required_handlers=self.handlers,
            window=self.stable_for,
            timeout=self.timeout,
            deadline=self.deadline,
            expected_machine_id=self.expected_machine_id or None,
        )

    def check(self, clients: Clients) -> None:
        """That they hold was seen when they were made."""


@dataclass(frozen=True)
class RemoveTaint:
    """Take a startup taint, ``key:effect``, off the Node."""

    name: str
    taint: str
    expected_machine_id: str

    def describe(self) -> str:
        """One line."""
        return f"lift the startup taint {self.taint} from Node {self.name}"

    def diff(self) -> str:
        """One line."""
        return f"- taint {self.taint} on Node {self.name}\n"

    def apply(self, clients: Clients) -> None:
        """Raises :class:`~kata_node.errors.KubeError` when it stays."""
        clients.kube().remove_taints(
            self.name,
            lambda there: taints.without_startup_taints(there, (self.taint,)),
            timeout=LIFTING_TIMEOUT,
            expected_machine_id=self.expected_machine_id or None,
        )

    def check(self, clients: Clients) -> None:
        """That it is gone was seen when it was lifted."""
