"""Tell that a node is unfit: that it cannot run Kata because of what it is.

In a node Job the container of host-check finds out, and has no credentials. It leaves its report in the
shared directory and succeeds. The container of claim then labels the Node, records the Event, and fails in
its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kata_node.cli.options import Common, StageName
from kata_node.errors import UnfitNodeError

if TYPE_CHECKING:
    from kata_node.plan.report import Problem, StageReport
    from kata_node.settings.model import Settings


def unfitness(common: Common, names: Sequence[StageName], settings: Settings) -> Problem | None:
    """Return why the node is unfit, if that is known before the first of the stages ``names``.

    The settings alone show it if no enabled shim runs on the node's architecture. For claim, the report of
    host-check shows it. A revert never asks, because it needs no shim.
    """
    from kata_node.plan import report
    from kata_node.settings.load import require_handlers

    if names[0] in (StageName.UNLABEL, StageName.REVERT_CRI, StageName.REMOVE_ARTIFACTS, StageName.UNCLAIM):
        return None
    if names == (StageName.CLAIM,) and common.reports is not None:
        return report.read_unfit(common.reports)
    try:
        require_handlers(settings)
    except UnfitNodeError as error:
        return report.Problem.from_error(error)
    return None


def leave_to_claim(common: Common, names: Sequence[StageName], reports: Sequence[StageReport]) -> str:
    """Return a sentence if the stage claim tells that the node is unfit; else an empty string.

    The report must be in the shared directory: without it, claim would go on with the install.
    """
    from kata_node.plan import report

    if names != (StageName.HOST_CHECK,) or common.reports is None or common.dry_run:
        return ""
    error = reports[-1].error
    if error is None or not error.unfit or report.read_unfit(common.reports) is None:
        return ""
    return "this node is unfit; the stage claim tells the cluster, and ends the install"
