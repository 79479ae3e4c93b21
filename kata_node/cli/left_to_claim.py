"""Hand a failure of host-check that concerns the labels of the Node to the stage claim.

The node is unfit: it cannot run Kata because of what it is. Or it does not serve the installation, and its
labels may say that it does. In a node Job the container of host-check finds out, and has no credentials. It
leaves its report in the shared directory and succeeds. The container of claim then changes the labels,
records the Event, and fails in its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kata_node.cli.options import Common, StageName
from kata_node.errors import UnfitNodeError

if TYPE_CHECKING:
    from kata_node.plan.report import StageReport
    from kata_node.settings.model import Settings


def failure_before(common: Common, names: Sequence[StageName], settings: Settings) -> StageReport | None:
    """Return the failure of host-check that is known before the first of the stages ``names``.

    The settings alone show that the node is unfit if no enabled shim runs on its architecture. For claim, the
    report of host-check shows it. A revert never asks, because it needs no shim.
    """
    from kata_node.plan import report
    from kata_node.settings.load import require_handlers

    if names[0] in (StageName.UNLABEL, StageName.REVERT_CRI, StageName.REMOVE_ARTIFACTS, StageName.UNCLAIM):
        return None
    if names == (StageName.CLAIM,) and common.reports is not None:
        return report.read_failure_for_claim(common.reports)
    try:
        require_handlers(settings)
    except UnfitNodeError as error:
        problem = report.Problem.from_error(error)
        return report.StageReport(StageName.HOST_CHECK, "failed", problem.what, error=problem)
    return None


def leave_to_claim(common: Common, names: Sequence[StageName], reports: Sequence[StageReport]) -> str:
    """Return a sentence if the stage claim tells what host-check found; else an empty string.

    The report must be in the shared directory: without it, claim would go on with the install.
    """
    from kata_node.plan import report

    if names != (StageName.HOST_CHECK,) or common.reports is None or common.dry_run:
        return ""
    if reports[-1].error is None or report.read_failure_for_claim(common.reports) is None:
        return ""
    found = "is unfit" if reports[-1].error.unfit else "does not serve Kata"
    return f"this node {found}; the stage claim tells the cluster, and ends the install"
