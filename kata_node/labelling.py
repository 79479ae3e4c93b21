"""The acts on the Node object: wait for it, set or remove this instance's labels, lift its startup taints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kata_node import labels, taints
from kata_node.actions import Tools
from kata_node.facts.node import LabelFacts
from kata_node.kube_node import check_machine
from kata_node.labels import Goal

LIFTING_TIMEOUT = 60.0
"""Seconds that lifting the startup taints may take; the API server has just answered."""


def settled(
    facts: LabelFacts, instance: str, goal: Goal, *, stable_for: float | None = None
) -> tuple[SettleLabels, ...]:
    """What brings the labels of ``instance`` to ``goal``; nothing when they are there.

    By default they must hold for as long as ``facts`` say. Raises
    :class:`~kata_node.errors.UnfitNodeError` when the Node is on another machine than the one meant.
    """
    there: Mapping[str, str]
    if facts.node:
        check_machine(facts.node, facts.expected_machine_id)
        there = facts.node.labels
    elif goal in ("claimed", "served"):
        there = {}
    else:  # of a Node that is away just now, all that it can have
        there = dict.fromkeys((labels.SHARED, labels.mark(instance)), labels.SERVING)
    changes = labels.CHANGES[goal](there, instance)
    if not changes:
        return ()
    window = facts.stable_for if stable_for is None else stable_for
    return (
        SettleLabels(
            facts.name,
            instance,
            goal,
            tuple(changes.items()),
            facts.timeout,
            facts.deadline,
            window,
            facts.expected_machine_id,
        ),
    )


@dataclass(frozen=True)
class AwaitNode:
    """Wait until the Node is Ready and, if it reports handlers at all, reports ours."""

    name: str
    handlers: tuple[str, ...]
    timeout: float
    deadline: float
    expected_machine_id: str

    def describe(self) -> str:
        """One line."""
        return f"wait for Node {self.name} to be Ready and to report {', '.join(self.handlers)}"

    def diff(self) -> str:
        """Nothing changes."""
        return ""

    def apply(self, tools: Tools) -> None:
        """Raises :class:`~kata_node.errors.KubeError` when the time is up."""
        tools.kube().wait_ready(
            self.name,
            self.handlers,
            timeout=self.timeout,
            deadline=self.deadline,
            expected_machine_id=self.expected_machine_id or None,
        )

    def check(self, tools: Tools) -> None:
        """Applying it is the check."""


@dataclass(frozen=True)
class SettleLabels:
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

    def apply(self, tools: Tools) -> None:
        """Raises :class:`~kata_node.errors.KubeError` when they do not hold."""
        tools.kube().settle(
            self.name,
            lambda present: labels.CHANGES[self.goal](present, self.instance),
            window=self.stable_for,
            timeout=self.timeout,
            deadline=self.deadline,
            expected_machine_id=self.expected_machine_id or None,
        )

    def check(self, tools: Tools) -> None:
        """That they hold was seen when they were made."""


@dataclass(frozen=True)
class LiftTaints:
    """Take the startup taints off the Node: ``startup`` as in the settings, ``present`` those it has."""

    name: str
    startup: tuple[str, ...]
    present: tuple[str, ...]
    expected_machine_id: str

    def describe(self) -> str:
        """One line."""
        return f"lift from Node {self.name} the startup taints {', '.join(self.present)}"

    def diff(self) -> str:
        """A line each."""
        return "".join(f"- taint {taint} on Node {self.name}\n" for taint in self.present)

    def apply(self, tools: Tools) -> None:
        """Raises :class:`~kata_node.errors.KubeError` when they stay."""
        tools.kube().lift_taints(
            self.name,
            lambda there: taints.remaining(there, self.startup),
            timeout=LIFTING_TIMEOUT,
            expected_machine_id=self.expected_machine_id or None,
        )

    def check(self, tools: Tools) -> None:
        """That they are gone was seen when they were lifted."""
