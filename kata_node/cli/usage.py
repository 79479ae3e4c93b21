"""What is checked of a command line before anything is done."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

import typer

from kata_node.cli.options import ONLINE_ONLY_OPTIONS, Common, misspelled_variables
from kata_node.errors import UsageError

log = logging.getLogger(__name__)


def check_usage(context: typer.Context, common: Common) -> None:
    """Refuse options that contradict each other, and warn of variables with unknown names."""
    for unknown_variable, suggestion in misspelled_variables().items():
        log.warning("the variable %s means nothing; did you mean %s?", unknown_variable, suggestion)
    for name in ONLINE_ONLY_OPTIONS if common.offline else ():
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise UsageError(
                "it cannot be used together with --offline, which asks neither the CRI socket nor a cluster",
                where=f"--{name.replace('_', '-')}",
                hint="leave out one of the two",
            )
    if common.runtime:
        from kata_node.versions import runtime_version

        runtime_version(common.runtime)


def check_host_root(common: Common) -> None:
    """Refuse a ``--host-root`` that is not a directory."""
    if not common.host_root.is_dir():
        raise UsageError(
            f"the host root is {'no directory' if common.host_root.exists() else 'not there'}",
            where=str(common.host_root),
            hint="name with --host-root the directory that the host's file system is seen in",
        )


def check_reports(common: Common) -> None:
    """Refuse a ``--reports`` that is not a directory."""
    if common.reports is not None and not common.reports.is_dir():
        raise UsageError(
            "there is no such directory",
            where=f"--reports {common.reports}",
            hint="mount the same volume there in every container of the Job, or leave the option out",
        )


def check_rights(common: Common, names: Sequence[str]) -> None:
    """Refuse to change a live node without root."""
    from kata_node.pipeline import READ_ONLY_STAGES

    if os.geteuid() and not common.offline and not common.dry_run and not READ_ONLY_STAGES.issuperset(names):
        raise UsageError(
            "changing a live node needs root",
            hint="run it as root, or with --offline --host-root DIR on a directory of your own",
        )
