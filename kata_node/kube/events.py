"""Events on a Node, which ``kubectl describe node`` shows.

Stages record them if they have credentials. For stages without credentials the dispatcher does.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Literal

from msgspec import Struct

from kata_node.errors import RolledBackError
from kata_node.text import foreign_words, utc

NAMESPACE = "default"
"""The namespace for Events of objects that have no namespace."""

MESSAGE_LIMIT = 1024
"""Characters; the API server refuses longer messages in Events of the group events.k8s.io."""

_NODE_NAME_LIMIT = 230
"""Characters of the Node's name (up to 253) that fit in the name of an Event."""


class Event(Struct, frozen=True):
    """An Event. ``reason`` is one word in CamelCase, like the reasons of Kubernetes."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str

    def as_object(
        self, node: str, *, component: str, reporter: str, on_node: bool = True
    ) -> Mapping[str, Any]:
        """Return the API object about the Node ``node``, with the current time.

        ``reporter`` is the pod or node that ``component`` runs in. ``on_node`` says whether that is
        the Node of the Event.
        """
        import secrets

        now = utc(time.time())
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{node[:_NODE_NAME_LIMIT]}.{secrets.token_hex(8)}", "namespace": NAMESPACE},
            # The kubelet also uses the name as uid in Events of its Node, so no read of the Node is needed.
            "involvedObject": {"apiVersion": "v1", "kind": "Node", "name": node, "uid": node},
            "type": self.type,
            "reason": self.reason,
            # It can quote other programs, and a file name that is not UTF-8 contains surrogates.
            "message": foreign_words(self.message, MESSAGE_LIMIT),
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
            "source": {"component": component} | ({"host": node} if on_node else {}),
            "reportingComponent": component,
            "reportingInstance": reporter,
        }


def failure_event(message: str, *, removing: bool, exit_code: int | None) -> Event:
    """Return the Event of a stage that failed with ``exit_code``. ``removing``: it is a stage of a revert."""
    reason = "KataRemoveFailed" if removing else "KataInstallFailed"
    if exit_code == RolledBackError.exit_code:
        reason = "KataRolledBack"
    return Event("Warning", reason, message)
