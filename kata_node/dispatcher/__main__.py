"""The command ``kata-deploy-job-dispatcher``.

Exit codes: 0 every node is as wanted; 1 a node failed, or it was stopped or interrupted; 2 the command
line or the configuration cannot be used. stdout carries the result, stderr the log.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kata_node import __version__, log
from kata_node.errors import KataNodeError, UsageError
from kata_node.plan import report

if TYPE_CHECKING:
    from kata_node.dispatcher.progress import Result
    from kata_node.dispatcher.template import Owner

ENV_PREFIX = "KATA_DISPATCHER_"
NAME = "kata-deploy-job-dispatcher"


def main() -> None:
    """Run the command line."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Carry out a command line and return its exit code."""
    options = _parser().parse_args(arguments)
    log.configure_logging(options.log_level)
    try:
        result = _dispatch(options)
    except KataNodeError as error:
        if options.output == "json":
            _print(json.dumps(report.failure_document(report.Problem.from_error(error)), indent=2))
        sys.stderr.write(f"error: {error}\n")
        _write_termination_message(options, error.what, error)
        return error.exit_code
    from kata_node.dispatcher import progress

    if options.output == "json":
        _print(json.dumps(progress.document(result), indent=2))
    else:
        _print(progress.text(result))
    failed = KataNodeError(result.reason) if result.exit_code else None
    _write_termination_message(options, progress.summary(result), failed)
    return result.exit_code


def _dispatch(options: argparse.Namespace) -> Result:
    if not options.config:
        raise UsageError("there is no configuration", where="--config", hint=f"see {NAME} --help")
    from kata_node.dispatcher import config
    from kata_node.dispatcher.api import ApiClient
    from kata_node.dispatcher.run import run as run_dispatcher
    from kata_node.dispatcher.shutdown import Shutdown, ShutdownRequested

    loaded = config.load(Path(options.config))
    stop = Shutdown()
    with stop.on_signals(), ApiClient.connect(stop=stop) as api:
        try:
            return run_dispatcher(loaded, api, owner=_owner(options), reporter=os.uname().nodename)
        except ShutdownRequested:
            raise KataNodeError("asked to stop before the first Job was made", hint="run it again") from None


def _owner(options: argparse.Namespace) -> Owner | None:
    from kata_node.dispatcher.template import Owner

    if bool(options.owner_name) != bool(options.owner_uid):
        raise UsageError(
            "the Job of the dispatcher needs both a name and a uid",
            where="--owner-name and --owner-uid",
            hint="a Pod has them as its labels batch.kubernetes.io/job-name and …/controller-uid",
        )
    return Owner(options.owner_name, options.owner_uid) if options.owner_uid else None


def _write_termination_message(
    options: argparse.Namespace, summary: str, error: KataNodeError | None
) -> None:
    problem = report.Problem.from_error(error) if error else None
    stage_report = report.StageReport("dispatcher", "failed" if error else "done", summary, error=problem)
    report.write_termination_message(Path(options.termination_log), stage_report)


def _print(text: str) -> None:
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=NAME,
        description="Runs one Job on each node that the configuration selects, so many at a time.",
        epilog=f"Every option has a variable, {ENV_PREFIX} and its name: {ENV_PREFIX}CONFIG for --config.",
        allow_abbrev=False,
    )

    def option(name: str, metavar: str | None, default: str, text: str, **more: Sequence[str]) -> None:
        variable = ENV_PREFIX + name.upper().replace("-", "_")
        value = os.environ.get(variable) or default
        choices = more.get("choices")
        if choices and value not in choices:
            parser.error(f"{variable}: expected one of {', '.join(choices)}, got {value!r}")
        parser.add_argument(f"--{name}", metavar=metavar, default=value, help=text, choices=choices)

    option("config", "FILE", "", "what to do on which nodes (YAML or JSON); the chart makes it")
    option("owner-name", "NAME", "", "the Job this runs in, with which the Jobs it makes are removed")
    option("owner-uid", "UID", "", "the uid of that Job")
    option("output", None, "text", "form of the result on stdout", choices=("text", "json"))
    option("log-level", None, "info", "log from this severity up", choices=log.LEVELS)
    option("termination-log", "FILE", "/dev/termination-log", "written for the pod's status, if it is there")
    parser.add_argument("--version", action="version", version=f"{NAME} {__version__}")
    return parser


if __name__ == "__main__":
    main()
