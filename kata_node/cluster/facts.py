"""The facts about the Node for the stages that label it."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from msgspec import Struct

from kata_node.kube import credentials
from kata_node.kube.failures import NoSuchNodeError
from kata_node.kube.node import check_name
from kata_node.plan import receipt as receipts
from kata_node.plan import report as reports
from kata_node.plan.context import StageContext
from kata_node.text import utc

if TYPE_CHECKING:
    from kata_node.kube.node import NodeFacts
    from kata_node.plan.report import StageReport


OFFLINE = "offline"

_REMOVING_STAGES = ("revert-cri", "remove-artifacts")
_READING_STAGES = ("host-check", "artifacts")
"""The stages that read the payload."""

_DIGEST_LENGTH = 12


class LabelFacts(Struct, frozen=True):
    """The Node to label. Without a ``name`` there is none, and ``reason`` says why.

    ``node`` is ``None`` while the cluster has no Node with this name: some distributions delete their Node
    and register it again when the runtime restarts. ``timeout`` is the time limit of the stage in seconds;
    it ends at ``deadline``, a value of :func:`time.monotonic`.
    """

    node: NodeFacts | None
    reason: str
    timeout: float
    deadline: float
    stable_for: float
    expected_machine_id: str
    name: str = ""
    host_machine_id: str = ""
    """The id of the machine that this process runs on; empty in a container without the host root."""
    has_other_installations: bool = False
    """Whether other installations are on this node. Only determined without a ``name``."""
    has_record: bool = False
    """Whether the receipt, or what an earlier stage removed, shows the installation on this node."""
    serves_others: bool = False
    """Whether the runtime's configuration has handlers of another program, as ``revert-cri`` found."""
    kata_version: str = ""
    """The version of Kata that the payload has, or else the receipt; empty if neither can be read here."""
    settings: str = ""
    """The beginning of the digest of the settings."""
    helm_release: str = ""
    """The release that installs, as ``NAMESPACE/NAME``; empty for a run by hand."""
    now: str = ""
    """The time in UTC, as ``2026-10-03T08:12:44Z``."""
    not_served: str = ""
    """Why the runtime does not serve the installation, as ``host-check`` found; empty if it does."""
    is_unread: bool = False
    """Whether there is no ``node`` because it was not read: ``host-check`` found a new node."""


def gather_facts(context: StageContext, *, unread_if_new: bool = False) -> LabelFacts:
    """Read the Node, unless the run is offline or has neither NODE_NAME nor credentials.

    With ``unread_if_new``, the first plan of a node Job is made without the Node if host-check found a new
    node. Raises :class:`~kata_node.errors.UsageError` if NODE_NAME cannot be the name of a Node.
    """
    options = context.options
    reason, node, name = "", None, ""
    is_unread = False
    deadline = context.since + options.label_timeout
    if options.offline:
        reason = OFFLINE
    elif not options.node_name and credentials.find_credentials() is None:
        reason = "no cluster: neither NODE_NAME nor credentials for an API server are set"
    else:
        name = options.node_name
        kube = context.clients.kube()
        check_name(name)
        node = kube.last_answer(name) if context.plans_again else None
        is_unread = unread_if_new and not context.plans_again and _is_new(context)
        if node is None and not is_unread:
            with contextlib.suppress(NoSuchNodeError):
                node = kube.node(name, deadline)
    host = ""
    if options.has_host_root and name:
        from kata_node.host.machine_id import machine_id

        host = machine_id(context.clients.root)
    removals = _reports(context, _REMOVING_STAGES)
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
        context.receipt.artifacts is not None or context.receipt.cri is not None or _removed(removals),
        any(report.other_install_dirs for report in removals),
        _kata_version(context),
        options.settings_digest[:_DIGEST_LENGTH],
        options.helm_release,
        utc(time.time()),
        next((report.not_served for report in _reports(context, ("host-check",))), ""),
        is_unread,
    )


def _is_new(context: StageContext) -> bool:
    """Return whether host-check, in another container of the node Job for this machine, found a new node."""
    in_job = context.options.reports is not None and context.options.expected_machine_id
    return bool(in_job) and any(report.is_new for report in _reports(context, ("host-check",)))


def _reports(context: StageContext, stages: tuple[str, ...]) -> list[StageReport]:
    """Return the reports of ``stages``, of this process or else of other containers."""
    earlier = [report for report in context.earlier if report.stage in stages]
    if earlier or context.options.reports is None:
        return earlier
    return reports.read_shared_reports(context.options.reports, stages)


def _kata_version(context: StageContext) -> str:
    found = [each.kata_version for each in _reports(context, _READING_STAGES) if each.kata_version]
    recorded = context.receipt.artifacts.release if context.receipt.artifacts else ""
    return found[-1] if found else recorded


def _removed(removals: list[StageReport]) -> bool:
    return any(report.outcome in ("done", "planned") for report in removals)
