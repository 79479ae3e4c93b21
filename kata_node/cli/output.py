"""Print results and errors.

stdout carries only the result: text, or with ``--output json`` one document. The document is printed
even when the command fails before the first stage::

    {"outcome": "ok" or "failed"; of status: the verdict,
     "error": {"what", "where", "hint", "exit_code"},                      if it failed
     "stages": [...] or "installations": [...] or "manifest": "PATH"}      depending on the command
    {..., "findings": [{"level": "error" or "note", "source": "chart" or "node", "what", "arches": [...]}],
     "shims": {ARCH: [...]}, "skipped": {ARCH: {SHIM: REASON}}}            values check
    {..., "diff", "notes": [...], "values": "the converted file"}          values convert

stderr carries the log, and every error that is not in the text on stdout. The pod's termination message
carries the error too, because operators read it first.
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
"""The base class of what typer raises for wrong usage. typer exports only its subclass ``BadParameter``."""


def escape_unencodable() -> None:
    """Make stdout and stderr print escapes for characters that their encoding lacks, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # None if the stream was closed
            stream.reconfigure(errors="backslashreplace")


def print_result(text: str) -> None:
    """Print a result. A closed pipe, for example to ``head``, is not an error.

    Raises :class:`HostError` when the result cannot be written.
    """
    _print(sys.stdout, text)


def print_json_result(result: Mapping[str, Any]) -> None:
    """Print a result as one JSON document."""
    print_result(json.dumps(result, indent=2))


def print_error(text: str) -> None:
    """Print to stderr, at every log level. A failure to print is ignored."""
    with contextlib.suppress(HostError):
        _print(sys.stderr, text)


def _print(stream: TextIO | None, text: str) -> None:
    if stream is None:  # the stream was closed before the program started
        return
    try:
        stream.write(f"{text}\n")
        stream.flush()
    except BrokenPipeError:
        # Later output, and the flush of Python at exit, must not fail again.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
    except OSError as error:
        raise HostError(
            f"cannot write the result: {error.strerror}",
            where="stdout",
            hint="redirect stdout to a file that can be written, then run the same command again",
        ) from error


def report_error(arguments: Sequence[str], error: KataNodeError) -> int:
    """Report an error that no stage has reported, and return its exit code.

    It goes to stderr, to the termination message, and with ``--output json`` also to stdout.
    """
    problem = report.Problem.from_error(error)
    if raw_option_value(arguments, "output") == Output.JSON:
        with contextlib.suppress(HostError):
            print_json_result(report.failure_document(problem))
    print_error(f"error: {error}")
    command_name = "".join(arguments[:1])
    if command_name == "stage":
        command_name = next((argument for argument in arguments if argument in list(StageName)), command_name)
    path = raw_option_value(arguments, "termination-log") or str(DEFAULT_TERMINATION_LOG)
    report.write_termination_message(
        Path(path), report.StageReport(command_name, "failed", error.what, error=problem)
    )
    return error.exit_code


def usage_error(arguments: Sequence[str], error: Any) -> UsageError:
    """Return typer's ``error`` as a :class:`UsageError` that names the wrong option or variable."""
    parameter, context = getattr(error, "param", None), error.ctx
    hint = f"run {context.command_path if context else ' '.join([PROGRAM_NAME, *arguments[:1]])} --help"
    if parameter is None:
        message = error.format_message().rstrip(".")
        if context and context.parent is None and hasattr(error, "option_name"):
            hint = f"put options after the command: {PROGRAM_NAME} install {error.option_name} ..."
        return UsageError(message[:1].lower() + message[1:], hint=hint)
    where = next(iter(parameter.opts)) if parameter.param_type_name == "option" else parameter.metavar
    source = context.get_parameter_source(parameter.name)
    if source is not None and source.name == "ENVIRONMENT":
        where = next(name for name in parameter.envvar if os.environ.get(name))
    return UsageError(error.message.rstrip(".") or "it is missing", where=where, hint=hint)
