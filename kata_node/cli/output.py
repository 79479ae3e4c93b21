"""What is printed where, for results and for errors.

stdout carries the result and nothing else: text, or with ``--output json`` one document, which there
is also when nothing could be done::

    {"outcome": "ok" or "failed",
     "error": {"what", "where", "hint", "exit_code"},                      when it failed
     "stages": [...] or "installations": [...] or "manifest": "PATH"}      by the command

stderr carries the log, and every error that no text on stdout has told. The pod's termination message
has the error as well, for an operator reads it first.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import typer

from kata_node.cli.options import DEFAULT_TERMINATION_LOG, Output, StageName, raw_option_value
from kata_node.errors import HostError, KataNodeError, UsageError
from kata_node.plan import report

PROGRAM_NAME = "kata-node"

TyperUsageError: Any = typer.BadParameter.__mro__[1]
"""What typer raises for wrong usage: it exports only this one of the classes below it."""


def escape_unencodable() -> None:
    """Have characters that the locale lacks shown as escapes, instead of failing over them."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # there is none where it was closed
            stream.reconfigure(errors="backslashreplace")


def print_result(text: str) -> None:
    """Print a result. A reader that went away, as ``head`` does, does not stop the work."""
    _print(sys.stdout, text)


def print_json_result(result: Mapping[str, Any]) -> None:
    """Print a result as the one document."""
    print_result(json.dumps(result, indent=2))


def print_error(text: str) -> None:
    """Print to stderr what no log level hides."""
    with contextlib.suppress(HostError):
        _print(sys.stderr, text)


def _print(stream: TextIO | None, text: str) -> None:
    if stream is None:  # closed before the start
        return
    try:
        stream.write(f"{text}\n")
        stream.flush()
    except BrokenPipeError:
        # Whatever is written from now on, also by Python's own last flush, has a place to go.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
    except OSError as error:
        raise HostError(
            f"the result cannot be written: {error.strerror}", where="stdout", hint="run it again"
        ) from error


def report_error(arguments: Sequence[str], error: KataNodeError) -> int:
    """Tell of an error that no stage's report tells of, wherever somebody may look for it."""
    problem = report.Problem.from_error(error)
    if raw_option_value(arguments, "output") == Output.JSON:
        with contextlib.suppress(HostError):
            print_json_result(report.failure_document(problem))
    print_error(f"error: {error}")
    # The command's name, or the stage's.
    command_name = "".join(arguments[:1])
    if command_name == "stage":
        command_name = next((argument for argument in arguments if argument in list(StageName)), command_name)
    path = raw_option_value(arguments, "termination-log") or str(DEFAULT_TERMINATION_LOG)
    report.write_termination_message(
        Path(path), report.StageReport(command_name, "failed", error.what, error=problem)
    )
    return error.exit_code


def usage_error(arguments: Sequence[str], error: Any) -> UsageError:
    """One of typer's as one of ours: it names the option, or the variable, a bad value came from."""
    parameter, context = getattr(error, "param", None), error.ctx
    hint = f"see {context.command_path if context else ' '.join([PROGRAM_NAME, *arguments[:1]])} --help"
    if parameter is None:
        message = error.format_message().rstrip(".")
        if context and context.parent is None and hasattr(error, "option_name"):
            hint = f"options follow the command, as in {PROGRAM_NAME} install {error.option_name} ..."
        return UsageError(message[:1].lower() + message[1:], hint=hint)
    where = next(iter(parameter.opts)) if parameter.param_type_name == "option" else parameter.metavar
    source = context.get_parameter_source(parameter.name)
    if source is not None and source.name == "ENVIRONMENT":
        where = next(name for name in parameter.envvar if os.environ.get(name))
    return UsageError(error.message.rstrip(".") or "it is missing", where=where, hint=hint)
