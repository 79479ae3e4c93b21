"""What the API server tells of this Node: for the stages that speak to it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kata_node.facts import Look

if TYPE_CHECKING:
    from kata_node.kube import NodeFacts


@dataclass(frozen=True)
class LabelFacts:
    """The Node, or in its place the reason why there is none to be labelled.

    With a ``name`` and no ``node`` the cluster does not have it at this moment: some distributions delete
    their Node and register it anew when the runtime restarts.
    """

    node: NodeFacts | None
    reason: str
    timeout: float
    stable_for: float
    expected_machine_id: str
    name: str = ""


def look(look: Look) -> LabelFacts:
    """Read the Node, unless this run has nothing to do with a cluster."""
    options = look.options
    if options.offline:
        return LabelFacts(
            None, "offline", options.label_timeout, options.stable_for, options.expected_machine_id
        )

    from kata_node import kube

    reason, node, name = "", None, ""
    if not options.node_name and not kube.in_cluster_or_configured():
        reason = "no cluster: neither NODE_NAME nor credentials of an API server are set"
    else:
        client, name = look.tools.kube(), options.node_name
        with contextlib.suppress(kube.NoSuchNodeError):
            node = client.node(name, client.within(options.label_timeout))
    return LabelFacts(
        node, reason, options.label_timeout, options.stable_for, options.expected_machine_id, name
    )
