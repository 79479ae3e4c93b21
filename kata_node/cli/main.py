"""Run a command line. Stages whose options all come from variables, as in a pod, run without typer."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence

from kata_node import log as logs
from kata_node.cli.options import LogLevel, StageName
from kata_node.cli.output import PROGRAM_NAME, escape_unencodable, has_color, report_error
from kata_node.cli.run_stages import INSTALL, REVERT, run_stages
from kata_node.cli.usage import call_checked
from kata_node.cli.variables import COMPLETION_VARIABLE, common_of_variables
from kata_node.errors import KataNodeError


def run(arguments: Sequence[str]) -> int:
    """Execute a command line and return the exit code. Report every error; raise none."""
    escape_unencodable()
    logs.configure_logging(LogLevel.INFO, color=has_color(sys.stderr))
    try:
        return _run(arguments)
    except KataNodeError as error:
        return report_error(arguments, error)
    except Exception as error:
        from kata_node import pipeline

        return report_error(arguments, pipeline.as_kata_node_error(error, where=PROGRAM_NAME))


def _run(arguments: Sequence[str]) -> int:
    names = _stages_without_options(arguments)
    common = common_of_variables(arguments[0]) if names else None
    if common is not None and COMPLETION_VARIABLE not in os.environ:
        return call_checked(lambda common: run_stages(common, names), common, typed=())
    # Importing typer takes as long as a stage that has nothing to do.
    from kata_node.cli import commands

    gc.enable()
    return commands.run(arguments)


def _stages_without_options(arguments: Sequence[str]) -> tuple[StageName, ...]:
    match list(arguments):
        case ["stage", name] if name in list(StageName):
            return (StageName(name),)
        case ["install"]:
            return INSTALL
        case ["revert"]:
            return REVERT
        case _:
            return ()
