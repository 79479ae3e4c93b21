"""Run stages for a command: ``install``, ``revert``, ``plan`` and ``stage``.

This is the only module that imports ``stages``.
"""

from __future__ import annotations

import gc
import importlib
import logging
import os
from typing import TYPE_CHECKING, cast

from msgspec.structs import replace

from kata_node import __version__, signals
from kata_node.cli.context import invocation_of, open_tools, options_of, settings_of
from kata_node.cli.options import Common, Output, StageName
from kata_node.cli.output import print_run, print_text_result
from kata_node.cli.usage import check_host_root, check_reports, check_rights

if TYPE_CHECKING:
    from kata_node.cluster.events import EventRecorder
    from kata_node.pipeline import Stage
    from kata_node.plan.context import StageContext
    from kata_node.plan.report import StageReport

log = logging.getLogger(__name__)

INSTALL = (
    StageName.HOST_CHECK,
    StageName.CLAIM,
    StageName.ARTIFACTS,
    StageName.CRI,
    StageName.LABEL,
)
REVERT = (StageName.UNLABEL, StageName.REVERT_CRI, StageName.REMOVE_ARTIFACTS, StageName.UNCLAIM)


def run_stages(
    common: Common,
    names: tuple[StageName, ...],
    *,
    exit_code_if_planned: int = 0,
    writes_termination_message: bool = True,
) -> int:
    """Run the stages ``names`` in this order. Print the result and return the exit code."""
    from kata_node import pipeline
    from kata_node.cli.left_to_claim import failure_before, leave_to_claim
    from kata_node.plan import report
    from kata_node.plan.context import StageContext
    from kata_node.plan.receipt import Receipt

    check_host_root(common)
    check_rights(common, names)
    check_reports(common)
    modules = [cast("Stage", importlib.import_module(f"stages.{name.replace('-', '_')}")) for name in names]
    if not gc.isenabled():  # see kata_node.__main__
        gc.freeze()
        gc.enable()

    def report_stage(done: StageReport) -> None:
        if writes_termination_message:
            report.write_termination_message(common.termination_log, done)
        if common.output is Output.TEXT and not common.dry_run:
            # The run has already logged each change.
            print_text_result(common, report.to_text(replace(done, changes=())))
        if recorder is not None:
            recorder.add(done)

    with open_tools(common) as clients:
        has_host_root = not pipeline.READ_ONLY_STAGES.issuperset(names)
        settings = settings_of(common)
        options = replace(options_of(common), settings_digest=settings.digest(), has_host_root=has_host_root)
        if common.reports is not None and names == (StageName.LABEL,):
            # This container cannot read the receipt, which says what the stage cri left out.
            cri = report.read_shared_reports(common.reports, (StageName.CRI,))
            absent = {name for each in cri for name in each.left_out} - settings.named
            settings = settings.without(dict.fromkeys(absent, "is left out on this node"))
        receipt = Receipt(settings.instance, settings.install_dir, __version__)
        context = StageContext(settings, receipt, clients, options)
        recorder = None
        if not common.dry_run and not common.offline:
            from kata_node.cluster.events import EventRecorder

            reporter = os.uname().nodename
            recorder = EventRecorder(clients, common.node_name, settings.instance, reporter, common.reports)
        command = {INSTALL: "install", REVERT: "revert"}.get(names, f"stage {names[0]}")
        invocation = invocation_of(common, command)
        run = pipeline.Run(
            settings, options, clients, common.lock_timeout, common.dry_run, report_stage, invocation
        )
        earlier = failure_before(common, names, settings)
        if earlier is not None:
            reports = [earlier]
            report_stage(earlier)
        else:
            reports = pipeline.run(modules, run)
        failed = next((done for done in reports if done.error), None)
        if failed and recorder is not None and names != (StageName.HOST_CHECK,):
            _record_failure_on_node(replace(context, earlier=tuple(reports)), names, failed, recorder)
    with signals.held():  # half a document would be of no use
        print_run(reports, clients.root, settings.install_dir, common)
    if failed and (told_later := leave_to_claim(common, names, reports)):
        log.info("%s", told_later)
        return 0
    if failed:
        return failed.exit_code
    return exit_code_if_planned if any(done.outcome == "planned" for done in reports) else 0


def _record_failure_on_node(
    context: StageContext, names: tuple[StageName, ...], failed: StageReport, recorder: EventRecorder
) -> None:
    """Change the labels of the Node, and its record, after the failure of a stage."""
    from kata_node.cluster.labelling import mark_failed, mark_unfit, withdraw_not_served

    instance = context.settings.instance
    if failed.error and failed.error.unfit and StageName.CLAIM in names:
        mark_unfit(context, instance, failed.error.what)
        return
    # The stage claim, which withdraws them otherwise, is not reached.
    not_served = failed.not_served if failed.stage == StageName.HOST_CHECK else ""
    if not_served and (withdrawn := withdraw_not_served(context, not_served)):
        recorder.add(withdrawn)
    mark_failed(context, instance, failed)
