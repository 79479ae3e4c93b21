"""The command ``kata-deploy-job-dispatcher``.

It prints the result to stdout and the log to stderr. Exit codes:

- 0: the run succeeded, see :func:`kata_node.dispatcher.progress.build_result`.
- 1: a node failed, too many nodes were not ready, the run stopped early, or its deadline has passed.
- 2: the command line or the configuration is not valid.
- 143: SIGTERM ended it, for example because its Pod is evicted. Its Job replaces the Pod.

``kata-deploy-job-dispatcher check`` changes nothing. It ends with 1 if a node does not serve.
``kata-deploy-job-dispatcher stop`` deletes a DaemonSet or CronJob before an uninstall.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kata_node import __version__, log
from kata_node.errors import KataNodeError, UsageError
from kata_node.plan import report
from kata_node.text import escape_unprintable

if TYPE_CHECKING:
    from kata_node.dispatcher.progress import Result
    from kata_node.dispatcher.template import Owner

ENV_PREFIX = "KATA_DISPATCHER_"
NAME = "kata-deploy-job-dispatcher"


def main() -> None:
    """Run the command line of this process and exit with its exit code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run the command line ``arguments`` and return the exit code."""
    if list(arguments[:1]) == ["check"]:
        return _run(_check_parser().parse_args(arguments[1:]), _check)
    if list(arguments[:1]) == ["stop"]:
        return _run(_stop_parser().parse_args(arguments[1:]), _stop)
    return _run(_parser().parse_args(arguments), _install_or_clean)


def _run(options: argparse.Namespace, command: Callable[[argparse.Namespace], int]) -> int:
    log.configure_logging(options.log_level)
    try:
        return command(options)
    except KataNodeError as error:
        if options.output == "json":
            _print(json.dumps(report.failure_document(report.Problem.from_error(error)), indent=2))
        sys.stderr.write(escape_unprintable(f"error: {error}", keep="\n") + "\n")
        _write_termination_message(options, error.what, error)
        return error.exit_code


def _install_or_clean(options: argparse.Namespace) -> int:
    result = _dispatch(options)
    from kata_node.dispatcher import progress

    if options.output == "json":
        _print(json.dumps(progress.document(result), indent=2))
    else:
        _print(progress.text(result))
    failed = KataNodeError(result.reason) if result.exit_code else None
    _write_termination_message(options, progress.summary(result), failed)
    return result.exit_code


def _stop(options: argparse.Namespace) -> int:
    from kata_node.dispatcher import stop
    from kata_node.dispatcher.api import ApiClient
    from kata_node.dispatcher.config import Config
    from kata_node.dispatcher.deadline import set_deadline
    from kata_node.dispatcher.shutdown import Shutdown, ShutdownRequested, StoppedError
    from kata_node.dispatcher.template import Templates

    shutdown = Shutdown()
    config = Config(
        action="cleanup",
        namespace=options.namespace,
        name_prefix="",
        labels={},
        templates=Templates(),
        state_config_map=options.state,
        installation_label=options.mark,
        deadline=options.deadline_seconds,
    )
    target = stop.Target(options.kind, options.name, options.pod_selector)
    with shutdown.on_signals():
        try:
            with ApiClient.connect(stop=shutdown) as api:
                set_deadline(api, config, _owner(options))
                done = stop.stop(api, config, target, _owner(options))
        except ShutdownRequested:
            raise StoppedError(shutdown) from None
    _print(done)
    _write_termination_message(options, done, None)
    return 0


def _dispatch(options: argparse.Namespace) -> Result:
    if not options.config:
        raise UsageError(
            "no configuration file is given",
            where="--config",
            hint=f"set --config or {ENV_PREFIX}CONFIG to the file that the Helm chart renders",
        )
    from kata_node.dispatcher import config
    from kata_node.dispatcher.api import ApiClient
    from kata_node.dispatcher.run import run as run_dispatcher
    from kata_node.dispatcher.shutdown import Shutdown, ShutdownRequested, StoppedError

    stop = Shutdown()
    with stop.on_signals():
        try:
            # It can wait for the content that the digest names.
            loaded = stop.wait(lambda: config.load(Path(options.config), options.config_digest))
            with ApiClient.connect(stop=stop) as api:
                return run_dispatcher(loaded, api, owner=_owner(options), reporter=os.uname().nodename)
        except ShutdownRequested:
            raise StoppedError(stop) from None


def _check(options: argparse.Namespace) -> int:
    from kata_node.dispatcher import check
    from kata_node.dispatcher.api import ApiClient
    from kata_node.dispatcher.shutdown import Shutdown, ShutdownRequested

    stop, config = Shutdown(), check.parse(options.nodes)
    with stop.on_signals(), ApiClient.connect(stop=stop) as api:
        try:
            result = check.check(config, api)
        except ShutdownRequested:
            raise KataNodeError("the check was asked to stop", hint="run `helm test` again") from None
    shown = check.document(result) if options.output == "json" else None
    _print(check.text(result) if shown is None else json.dumps(shown, indent=2))
    failed = KataNodeError(result.problem) if result.problem else None
    _write_termination_message(options, result.problem or "every node serves", failed)
    return failed.exit_code if failed else 0


def _owner(options: argparse.Namespace) -> Owner | None:
    from kata_node.dispatcher.template import Owner

    if bool(options.owner_name) != bool(options.owner_uid):
        raise UsageError(
            "only one of the two options is set",
            where="--owner-name and --owner-uid",
            hint="set both; in a Pod of a Job they are its labels batch.kubernetes.io/job-name and "
            "batch.kubernetes.io/controller-uid",
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
        sys.stdout.write(escape_unprintable(text, keep="\n") + "\n")
        sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=NAME,
        description="Run one Job on each node that the configuration selects. The commands `check` and "
        "`stop` have options of their own: `check` only looks if the nodes serve; `stop` deletes a "
        "DaemonSet or CronJob before an uninstall.",
        epilog=f"Each option can be set by an environment variable: --config by {ENV_PREFIX}CONFIG, "
        f"--log-level by {ENV_PREFIX}LOG_LEVEL.",
        allow_abbrev=False,
    )

    add = functools.partial(_add_option, parser)
    add("config", "FILE", "", "configuration file (YAML or JSON); the Helm chart renders it")
    add("config-digest", "SHA256", "", "digest of the file; a file with another one is refused")
    add("output", None, "text", "format of the result on stdout", choices=("text", "json"))
    _add_common_options(parser)
    parser.add_argument("--version", action="version", version=f"{NAME} {__version__}")
    return parser


def _check_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"{NAME} check",
        description="Print whether each node serves Kata. It changes nothing, and fails if a node does not.",
        allow_abbrev=False,
    )
    add = functools.partial(_add_option, parser)
    add("nodes", "JSON", "", "the nodes; the Helm chart renders them")
    add("output", None, "text", "format of the result on stdout", choices=("text", "json"))
    _add_common_options(parser)
    return parser


def _stop_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"{NAME} stop",
        description="Delete the DaemonSet or CronJob of a release, and wait until its pods have ended.",
        allow_abbrev=False,
    )
    parser.add_argument("--kind", required=True, choices=("daemonset", "cronjob"), help="what to delete")
    for name, text in (
        ("name", "name of the object to delete"),
        ("namespace", "namespace of the release"),
        ("state", "name of the ConfigMap with the state of the release"),
        ("mark", "the installation label"),
        ("pod-selector", "label selector of the pods of the object"),
    ):
        parser.add_argument(f"--{name}", required=True, metavar="NAME", help=text)
    parser.add_argument("--deadline-seconds", type=int, default=0, metavar="N", help="0: no deadline")
    parser.set_defaults(output="text")
    _add_common_options(parser)
    return parser


def _add_common_options(parser: argparse.ArgumentParser) -> None:
    add = functools.partial(_add_option, parser)
    add("owner-name", "NAME", "", "name of the dispatcher's own Job; it becomes the owner of the node Jobs")
    add("owner-uid", "UID", "", "uid of the dispatcher's own Job")
    add("log-level", None, "info", "lowest severity to log", choices=log.LEVELS)
    add("termination-log", "FILE", "/dev/termination-log", "existing file for the termination message")


def _add_option(
    parser: argparse.ArgumentParser,
    name: str,
    metavar: str | None,
    default: str,
    text: str,
    **more: Sequence[str],
) -> None:
    variable = ENV_PREFIX + name.upper().replace("-", "_")
    value = os.environ.get(variable) or default
    choices = more.get("choices")
    if choices and value not in choices:
        parser.error(f"{variable}: expected one of {', '.join(choices)}, got {value!r}")
    parser.add_argument(f"--{name}", metavar=metavar, default=value, help=text, choices=choices)


if __name__ == "__main__":
    main()
