"""Record the results of a run as Events on the Node, for ``kubectl describe node``.

In a node Job each stage is a container, and only the containers that label have credentials for the API
server. The containers share a directory for the reports of their stages, so that the last container can
record an Event about all stages. It does not run when an earlier stage fails; the dispatcher then records
the Event from the termination message.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from kata_node.kube import credentials, events
from kata_node.kube.events import Event
from kata_node.plan import report as reports
from kata_node.plan.report import StageReport

if TYPE_CHECKING:
    from pathlib import Path

    from kata_node.plan.actions import Clients

COMPONENT = "kata-node"

_INSTALL_STAGES = ("host-check", "claim", "artifacts", "cri", "label")
_REVERT_STAGES = ("unlabel", "revert-cri", "remove-artifacts", "unclaim")
_FIRST_STAGES = ("claim", "unlabel")

log = logging.getLogger(__name__)


def event_of(run: Sequence[StageReport], instance: str) -> Event | None:
    """Return the Event for the last report of ``run``; ``None`` if that report needs no Event.

    Events are for the end of an install or revert, for each failure, and for labels that were withdrawn
    because the node does not serve. The record on the Node says that a run has begun; ``claim`` and
    ``unlabel`` write it. An Event that nothing changed requires the reports of all stages except host-check.
    """
    last = run[-1]
    stages = _REVERT_STAGES if last.stage in _REVERT_STAGES else _INSTALL_STAGES
    if last.error:
        return _failed(last, instance)
    if last.not_served and last.stage != "host-check":
        return Event("Warning", "KataNotServed", f"{instance}: {last.summary}")
    if last.stage != stages[-1]:
        return None
    changed = [report for report in run if report.outcome == "done" and report.stage != "host-check"]
    summaries = [report.summary for report in changed if report.stage not in _FIRST_STAGES] or [last.summary]
    notes = [note for report in run for note in report.notes]
    message = f"{instance}: " + "; ".join([*summaries, *notes])
    if not changed:
        saw_all_stages = {report.stage for report in run} >= set(stages) - {"host-check"}
        return Event("Normal", "KataUnchanged", message) if saw_all_stages else None
    kind: Literal["Normal", "Warning"] = "Warning" if last.notes else "Normal"
    return Event(kind, "KataRemoved" if stages is _REVERT_STAGES else "KataInstalled", message)


def _failed(report: StageReport, instance: str) -> Event:
    error = report.error
    assert error is not None
    place = f" ({error.where})" if error.where else ""
    hint = f"; {error.hint}" if error.hint else ""
    unit_log = f"; {error.unit_log}" if error.unit_log else ""
    message = f"{instance}: {report.stage}: {error.what}{place}{hint}{unit_log}"
    removing = report.stage in _REVERT_STAGES
    if error.unfit and not removing:
        return Event("Warning", "KataNodeUnfit", message)
    return events.failure_event(message, removing=removing, exit_code=error.exit_code)


class EventRecorder:
    """Records an Event for each report that needs one. A failure to do so is only logged."""

    def __init__(
        self, clients: Clients, node: str, instance: str, reporter: str, shared: Path | None = None
    ) -> None:
        """``shared`` is the directory in which the containers of a node Job share their reports."""
        self.clients = clients
        self.node = node
        self.instance = instance
        self.reporter = reporter
        self.shared = shared
        self.run: dict[str, StageReport] = {}

    def add(self, report: StageReport) -> None:
        """Add the report of an ended stage, and record its Event. A stage of no run has none."""
        if report.stage not in (*_INSTALL_STAGES, *_REVERT_STAGES):
            return
        if self.shared is not None:
            stages = _REVERT_STAGES if report.stage in _REVERT_STAGES else _INSTALL_STAGES
            before = stages[: stages.index(report.stage)]
            self.run = {
                each.stage: each for each in reports.read_shared_reports(self.shared, before)
            } | self.run
            reports.write_shared_report(self.shared, report)
        self.run.pop(report.stage, None)
        self.run[report.stage] = report
        event = event_of(list(self.run.values()), self.instance)
        if event is None or not self.node or credentials.find_credentials() is None:
            return
        try:
            event_object = event.as_object(self.node, component=COMPONENT, reporter=self.reporter)
            self.clients.kube().record_event(event_object)
        except Exception as error:  # no failure here may change the result of the stage
            level = logging.WARNING if event.type == "Warning" else logging.INFO
            log.log(level, "cannot record the Event %s on Node %s: %s", event.reason, self.node, error)
