"""What the API server tells of this Node: for label and unlabel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kata_node.facts import Look

if TYPE_CHECKING:
    from kata_node.kube import NodeFacts


@dataclass(frozen=True)
class LabelFacts:
    """The Node, or in its place the reason why there is none to be labelled."""

    node: NodeFacts | None
    reason: str
    timeout: float
    stable_for: float
    expected_machine_id: str


def look(look: Look) -> LabelFacts:
    """Read the Node, unless this run has nothing to do with a cluster."""
    from kata_node import kube

    options = look.options
    reason, node = "", None
    if options.offline:
        reason = "offline"
    elif not options.node_name and not kube.in_cluster_or_configured():
        reason = "no cluster: neither NODE_NAME nor credentials of an API server are set"
    else:
        client = look.tools.kube()
        node = client.node(options.node_name, client.within(options.label_timeout))
    return LabelFacts(node, reason, options.label_timeout, options.stable_for, options.expected_machine_id)
