"""Print results and errors.

stdout carries only the result: text, or with ``--output json`` one document. The document is printed
even when the command fails before the first stage::

    {"outcome": "ok" or "failed"; of status: the verdict,
     "error": {"what", "where", "hint", "exit_code"},                      if it failed
     "stages": [...] or "installations": [...] or "manifest": "PATH"}      depending on the command
    {..., "plan": {...}}                                                  a dry run, see plan/dry_run.py
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
from typing import TYPE_CHECKING, Any, TextIO

from kata_node.cli.options import (
    COMMAND_OPTIONS,
    DEFAULT_TERMINATION_LOG,
    Common,
    Output,
    StageName,
)
from kata_node.cli.variables import raw_option_value
from kata_node.errors import HostError, KataNodeError
from kata_node.plan import report
from kata_node.text import escape_unprintable

LAYOUT = "\n\t"
"""The characters of a result that are not printable. A terminal obeys others, which a path can have."""

if TYPE_CHECKING:
    from kata_node.host.files import Root

PROGRAM_NAME = "kata-node"


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


def print_text_result(common: Common, text: str) -> None:
    """Print a result as text, unless ``--quiet`` is set."""
    if not common.quiet:
        print_result(text)


def print_json_result(result: Mapping[str, Any]) -> None:
    """Print a result as one JSON document."""
    _print(sys.stdout, json.dumps(result, indent=2), color=False)


def print_run(done: Sequence[report.StageReport], root: Root, install_dir: str, common: Common) -> None:
    """Print the result of stages, except for the text of a real run: that is printed stage by stage."""
    if common.dry_run:
        _print_dry_run(done, root, install_dir, common)
    elif common.output is Output.JSON:
        print_json_result(report.to_json(done))
    failed = next((each for each in done if each.error), None)
    if failed and (common.quiet or common.output is Output.JSON):
        print_error(f"error: {failed.stage}: {failed.error}")


def _print_dry_run(done: Sequence[report.StageReport], root: Root, install_dir: str, common: Common) -> None:
    """Print what the stages would change. Reads the free space if they would place files."""
    from kata_node.host.write_access import write_access
    from kata_node.plan import dry_run
    from kata_node.plan.preview import Space

    free = None
    if dry_run.bytes_to_write(done):
        with contextlib.suppress(HostError):
            access = write_access(root, install_dir, is_directory=True)
            free = Space(access.directory, access.free)
    if common.output is Output.TEXT:
        print_text_result(common, dry_run.to_text(done, free, verbose=common.verbose))
    else:
        print_json_result(dry_run.to_json(done, free, verbose=common.verbose))


def print_error(text: str) -> None:
    """Print to stderr, at every log level. A failure to print is ignored."""
    with contextlib.suppress(HostError):
        _print(sys.stderr, text)


def has_color(stream: TextIO | None) -> bool:
    """Return whether a text on ``stream`` may have colors: it is a terminal, and its user wants them."""
    if stream is None or os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") == "dumb":
        return False
    return stream.isatty()


def _print(stream: TextIO | None, text: str, *, color: bool = True) -> None:
    if stream is None:  # the stream was closed before the program started
        return
    text = escape_unprintable(text, keep=LAYOUT)
    if color and has_color(stream):
        from kata_node.cli import colors

        text = colors.paint(text)
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
    # In a pod, people run the other commands beside the program of the pod, which owns the message.
    if "termination_log" in COMMAND_OPTIONS.get("".join(arguments[:1]), ("termination_log",)):
        path = raw_option_value(arguments, "termination-log") or str(DEFAULT_TERMINATION_LOG)
        report.write_termination_message(
            Path(path), report.StageReport(command_name, "failed", error.what, error=problem)
        )
    return error.exit_code
