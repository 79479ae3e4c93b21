"""Decide whether a Node serves Kata, by its labels, its machine, and the handlers that it reports. Pure.

A label stays when somebody changes the node afterwards. So the record that the last install left on the Node
is compared with what its kubelet reports now.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from kata_node.dispatcher.kubernetes_objects import Node
from kata_node.kube import node_status
from kata_node.kube.node import SHARED_LABEL
from kata_node.text import foreign_words

SERVING, UNFIT = "true", "unfit"

State = Literal["served", "unproven", "unfit", "not served"]


class Serving(Struct, frozen=True):
    """Whether a Node serves Kata.

    ``unfit``: its label says that it cannot run Kata. ``unproven``: its labels say that it serves, and
    nothing contradicts them, but its kubelet does not report the handlers. ``reason`` is for a table.
    """

    state: State
    reason: str
    has_drifted: bool = False
    """Whether the labels say that the Node serves, and something else on the Node contradicts them."""


def serving_state(node: Node, installation_label: str) -> Serving:
    """Return whether ``node`` serves the installation with this label."""
    labels = node.metadata.labels
    for key in (installation_label, SHARED_LABEL):
        if labels.get(key) != SERVING:
            found = f"is {foreign_words(labels[key])}" if key in labels else "is not set"
            is_unfit = key == installation_label and labels.get(key) == UNFIT
            return Serving("unfit" if is_unfit else "not served", f"its label {key} {found}")
    installation = installation_label.rpartition("/")[2]
    record = node_status.read(node.metadata.annotations, installation)
    if record is None:
        return Serving("unproven", "its Node has no record of the installation")
    machine_id = node.status.node_info.machine_id
    if node_status.is_of_other_machine(record, machine_id):
        found = foreign_words(machine_id)
        reason = f"its machine has the id {found}, and Kata was installed on {record.machine_id}"
        return Serving("not served", reason, has_drifted=True)
    reported = node.handlers
    if missing := sorted(set(record.handlers) - reported) if reported else ():
        return Serving("not served", f"its Node does not report {', '.join(missing)}", has_drifted=True)
    if not reported:
        return Serving("unproven", "its kubelet reports no handlers")
    if not record.handlers:
        return Serving("unproven", "the record of its Node names no handlers")
    return Serving("served", "its labels are true, and it reports its handlers")
