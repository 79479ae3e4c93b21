"""The acts on the Node object: wait for it, and set or remove this instance's labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kata_node import labels
from kata_node.actions import Tools


@dataclass(frozen=True)
class AwaitNode:
    """Wait until the Node is Ready and, if it reports handlers at all, reports ours."""

    name: str
    handlers: tuple[str, ...]
    timeout: float
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
    goal: Literal["wanted", "unwanted"]
    changes: tuple[tuple[str, str | None], ...]
    timeout: float
    stable_for: float
    expected_machine_id: str

    def describe(self) -> str:
        """One line."""
        done = ", ".join(key if value is None else f"{key}={value}" for key, value in self.changes)
        return f"{'label' if self.goal == 'wanted' else 'unlabel'} Node {self.name}: {done}"

    def diff(self) -> str:
        """A line each."""
        return "".join(
            f"- {key} on Node {self.name}\n" if value is None else f"+ {key}={value} on Node {self.name}\n"
            for key, value in self.changes
        )

    def apply(self, tools: Tools) -> None:
        """Raises :class:`~kata_node.errors.KubeError` when they do not hold."""
        goal = labels.wanted if self.goal == "wanted" else labels.unwanted
        tools.kube().settle(
            self.name,
            lambda present: goal(present, self.instance),
            window=self.stable_for,
            timeout=self.timeout,
            expected_machine_id=self.expected_machine_id or None,
        )

    def check(self, tools: Tools) -> None:
        """That they hold was seen when they were made."""
