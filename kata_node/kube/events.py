"""Events on a Node, as objects of the API: what ``kubectl describe node`` shows of Kata.

The stages that have credentials record them, and so does the dispatcher, for those that have none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from kata_node.errors import RolledBackError

NAMESPACE = "default"
"""Where Events of objects without a namespace are."""

MESSAGE_LIMIT = 1024
"""Characters; the API server refuses longer ones of Events of the newer kind."""

_NODE_NAME_LIMIT = 230
"""How much of a Node's name, 253 characters at most, there is room for in the name of an Event."""


@dataclass(frozen=True)
class Event:
    """What happened. ``reason`` is one word in the manner of Kubernetes' own."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str

    def as_object(
        self, node: str, *, component: str, reporter: str, on_node: bool = True
    ) -> Mapping[str, Any]:
        """The object of the API, about the Node ``node``, of now.

        ``reporter`` is the pod or machine that ``component`` runs in; ``on_node`` tells whether that is
        on the Node.
        """
        import secrets

        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{node[:_NODE_NAME_LIMIT]}.{secrets.token_hex(8)}", "namespace": NAMESPACE},
            # The uid is the kubelet's own way for Events of its Node, and needs no look at it.
            "involvedObject": {"apiVersion": "v1", "kind": "Node", "name": node, "uid": node},
            "type": self.type,
            "reason": self.reason,
            # A file name that is no UTF-8 has surrogates in it.
            "message": self.message.encode("utf-8", "backslashreplace").decode()[:MESSAGE_LIMIT],
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
            "source": {"component": component} | ({"host": node} if on_node else {}),
            "reportingComponent": component,
            "reportingInstance": reporter,
        }


def failure_event(message: str, *, removing: bool, exit_code: int | None) -> Event:
    """The Event of a stage that failed with ``exit_code``, on the way there or, ``removing``, back."""
    reason = "KataRemoveFailed" if removing else "KataInstallFailed"
    if exit_code == RolledBackError.exit_code:
        reason = "KataRolledBack"
    return Event("Warning", reason, message)
