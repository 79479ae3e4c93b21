"""What the API server tells of this Node: for the stages that speak to it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kata_node.kube import credentials
from kata_node.kube.failures import NoSuchNodeError
from kata_node.plan import receipt as receipts
from kata_node.plan.context import StageContext

if TYPE_CHECKING:
    from kata_node.kube.node import NodeFacts


OFFLINE = "offline"


@dataclass(frozen=True)
class LabelFacts:
    """The Node, or in its place the reason why there is none to be labelled.

    ``deadline`` is the point of :func:`time.monotonic` at which the ``timeout`` seconds of the stage are up.
    With a ``name`` and no ``node`` the cluster does not have it at this moment: some distributions delete
    their Node and register it anew when the runtime restarts.
    """

    node: NodeFacts | None
    reason: str
    timeout: float
    deadline: float
    stable_for: float
    expected_machine_id: str
    name: str = ""
    host_machine_id: str = ""
    """Of the machine this runs on; empty in a container that has nothing of it."""
    has_other_installations: bool = False
    """Whether other instances are on this machine, as far as it is seen; not looked for with a ``name``."""


def gather_facts(context: StageContext) -> LabelFacts:
    """Read the Node, unless this run has nothing to do with a cluster."""
    options = context.options
    reason, node, name = "", None, ""
    deadline = context.since + options.label_timeout
    if options.offline:
        reason = OFFLINE
    elif not options.node_name and credentials.find_credentials() is None:
        reason = "no cluster: neither NODE_NAME nor credentials of an API server are set"
    else:
        name = options.node_name
        with contextlib.suppress(NoSuchNodeError):
            node = context.clients.kube().node(name, deadline)
    host = ""
    if options.has_host_root and name:
        from kata_node.host.machine_id import machine_id

        host = machine_id(context.clients.root)
    return LabelFacts(
        node,
        reason,
        options.label_timeout,
        deadline,
        options.stable_for,
        options.expected_machine_id,
        name,
        host,
        not name and any(receipts.other_receipts(context.clients.root, context.receipt.install_dir)),
    )
