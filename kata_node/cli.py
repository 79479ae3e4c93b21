"""The command line: its commands, and what they are made of. The only importer of ``stages``."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import inspect
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from kata_node import __version__
from kata_node import log as logs
from kata_node.cli_options import (
    DEFAULT_DAEMONSET_TIMEOUT,
    DEFAULT_LISTEN,
    EPILOG,
    LIVE_ONLY,
    Common,
    DaemonSet,
    DaemonSetTimeout,
    Listen,
    LogLevel,
    Output,
    StageName,
    misspelt,
)
from kata_node.cli_progress import progress
from kata_node.cli_result import NAME, WrongUsage, complain, fail, say, say_json, show_anything, usage_error
from kata_node.errors import KataNodeError, UsageError

if TYPE_CHECKING:
    from kata_node.actions import Tools
    from kata_node.facts import Options
    from kata_node.pipeline import Stage
    from kata_node.report import StageReport
    from kata_node.settings import Settings

EXIT_PLANNED = 10
"""``plan``: something would change."""

log = logging.getLogger(__name__)

app = typer.Typer(
    name=NAME,
    help="Put Kata Containers on this node in short stages, and take it off again.",
    epilog="""To try it in an empty directory, as any user:

    \b
    mkdir node
    kata-node install --offline --host-root ./node --payload DIR --runtime containerd://2.1.9
    kata-node revert --offline --host-root ./node

    \b
    Exit codes: 0 done, or already done      3 this node cannot run it, never retry
                1 failed, a retry may help   4 failed and put back as it was
                2 wrong usage or settings    5 another run holds the node's lock
                                             10 plan: something would change""",
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
payload_app = typer.Typer(help="Prepare the Kata files that are to be installed.", rich_markup_mode=None)


class Direction(StrEnum):
    """What to plan."""

    INSTALL = "install"
    REVERT = "revert"


INSTALL = (
    StageName.HOST_CHECK,
    StageName.CLAIM,
    StageName.ARTIFACTS,
    StageName.CRI,
    StageName.LABEL,
)
REVERT = (StageName.UNLABEL, StageName.REVERT_CRI, StageName.REMOVE_ARTIFACTS, StageName.UNCLAIM)


COMMON = [
    each.replace(kind=inspect.Parameter.KEYWORD_ONLY)
    for each in inspect.signature(Common, eval_str=True).parameters.values()
]
"""The common options as parameters of a function, which is what typer makes options from."""


def run(arguments: Sequence[str]) -> int:
    """Carry out a command line and return the exit code. All that goes wrong is told, nothing is raised."""
    show_anything()
    logs.setup(LogLevel.INFO)
    try:
        return app(list(arguments), prog_name=NAME, standalone_mode=False) or 0
    except KataNodeError as error:
        return fail(arguments, error)
    except WrongUsage as error:
        return fail(arguments, usage_error(arguments, error))
    except Exception as error:
        from kata_node import pipeline

        return fail(arguments, pipeline.as_known(error, where=NAME))


def command(
    target: typer.Typer, name: str, *options: str, hidden: bool = False
) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Register ``function(common, **own)`` as a command; what it returns is the exit code.

    It takes its own options and the common ones, or those of them that are named.
    """
    shared = [each for each in COMMON if not options or each.name in options]

    def register(function: Callable[..., int]) -> Callable[..., int]:
        signature = inspect.signature(function, eval_str=True)
        own = list(signature.parameters.values())[1:]
        context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)

        def call(context: typer.Context, **values: Any) -> int:
            common = Common(**{each.name: values.pop(each.name) for each in shared})
            logs.setup(common.log_level)
            _check_usage(context, common)
            try:
                return function(common, **values)
            except KeyboardInterrupt:
                raise KataNodeError("interrupted", hint="run the same command again") from None

        call.__doc__ = function.__doc__
        parameters = [*own, *shared, context]
        call.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        call.__annotations__ = {each.name: each.annotation for each in parameters}
        target.command(name, epilog=EPILOG, hidden=hidden)(call)
        return function

    return register


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if version:
        say(f"{NAME} {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        complain(context.get_help())
        raise typer.Exit(UsageError.exit_code)


@command(app, "install")
def install(common: Common) -> int:
    """Run host-check, claim, artifacts, cri and label."""
    return _stages(common, INSTALL)


@command(app, "revert")
def revert(common: Common) -> int:
    """Run unlabel, revert-cri, remove-artifacts, unclaim."""
    return _stages(common, REVERT)


@command(app, "plan")
def plan(
    common: Common,
    direction: Annotated[
        Direction, typer.Argument(metavar="[install|revert]", show_default=False, help="By default install.")
    ] = Direction.INSTALL,
) -> int:
    """Show what install (or revert) would change, as diffs. Exit code: 0 nothing, 10 something."""
    names = INSTALL if direction is Direction.INSTALL else REVERT
    return _stages(dataclasses.replace(common, dry_run=True), names, code_if_planned=EXIT_PLANNED)


@command(app, "status")
def status(
    common: Common,
    deep: Annotated[
        bool, typer.Option("--deep", help="Compare content by digest, not by size and time.")
    ] = False,
) -> int:
    """Show what is installed, what changed since, and what is served."""
    from kata_node import status as statuses

    _check_host_root(common)
    with _tools(common) as tools:
        found = statuses.gather(_settings(common), _options(common), tools, deep=deep)
        node = statuses.look_at_node(_options(common), tools)
    if common.output is Output.TEXT:
        say(statuses.to_text(found, node))
    else:
        say_json(statuses.to_json(found, node))
    return 0


@command(app, "stage")
def stage(
    common: Common,
    name: Annotated[StageName, typer.Argument(metavar="STAGE", help=f"One of {', '.join(StageName)}.")],
) -> int:
    """Run one stage, as a container of a Job does."""
    return _stages(common, (name,))


# What the pod of a DaemonSet has no use for: to wait for nothing, and to tell other processes of a Job.
_OF_A_DAEMON = tuple(each.name for each in COMMON if each.name not in ("dry_run", "reports"))


@command(app, "daemon", *_OF_A_DAEMON)
def daemon(
    common: Common,
    daemonset: DaemonSet = "",
    daemonset_timeout: DaemonSetTimeout = DEFAULT_DAEMONSET_TIMEOUT,
    listen: Listen = DEFAULT_LISTEN,
) -> int:
    """Install, stay, and revert at the end if it is no longer wanted.

    This is what the pod of a DaemonSet runs. On SIGTERM it asks the API server: only when the DaemonSet
    is gone, or selects this node no more, is everything taken away again; a rolling restart, or an API
    server that cannot be asked, leaves it. Exit codes as everywhere.
    """
    from kata_node import cli_daemon

    cli_daemon.check(common, daemonset)
    _check_host_root(common)
    _check_rights(common, INSTALL)
    own = {"daemonset": daemonset, "daemonset_timeout": daemonset_timeout}
    cli_daemon.become(common, listen, own)


@command(app, "wanted", "offline", "node_name", "output", "log_level", "termination_log", hidden=True)
def wanted(
    common: Common,
    daemonset: DaemonSet = "",
    daemonset_timeout: DaemonSetTimeout = DEFAULT_DAEMONSET_TIMEOUT,
) -> int:
    """Ask whether the DaemonSet still selects this node. Exit code: 0 it does, 10 it does not."""
    from kata_node import cli_daemon

    return cli_daemon.wanted(common, daemonset, daemonset_timeout)


app.add_typer(payload_app, name="payload")


@command(payload_app, "index", "output", "log_level")
def payload_index(
    common: Common, directory: Annotated[Path, typer.Argument(metavar="DIR", help="The payload.")]
) -> int:
    """Write the payload's manifest, once, when its image is built."""
    from kata_node import payload_index

    path = str(payload_index.write_index(directory))
    if common.output is Output.TEXT:
        say(path)
    else:
        say_json({"outcome": "ok", "manifest": path})
    return 0


def _stages(common: Common, names: tuple[StageName, ...], *, code_if_planned: int = 0) -> int:
    from kata_node import events, pipeline, report

    _check_host_root(common)
    _check_rights(common, names)
    _check_reports(common)
    modules = [cast("Stage", importlib.import_module(f"stages.{name.replace('-', '_')}")) for name in names]

    def show(done: StageReport) -> None:
        report.write_termination_message(common.termination_log, done)
        if common.output is Output.TEXT:
            # The log has told what a real run changes, at the time.
            shown = done if common.dry_run else dataclasses.replace(done, changes=())
            say(report.to_text(shown, diffs=common.dry_run))
        if not common.dry_run and not common.offline:
            recorder.add(done)

    with _tools(common) as tools:
        sees_host = not pipeline.READS_ONLY.issuperset(names)
        settings = _settings(common)
        options = dataclasses.replace(_options(common), sees_host=sees_host)
        reporter = os.uname().nodename
        recorder = events.Recorder(tools, common.node_name, settings.instance, reporter, common.reports)
        run = pipeline.Run(settings, options, tools, common.lock_timeout, common.dry_run, show)
        reports = pipeline.run(modules, run)
    failed = next((done for done in reports if done.error), None)
    if common.output is Output.JSON:
        say_json(report.to_json(reports))
        if failed and failed.error:
            complain(f"error: {failed.stage}: {failed.error}")
    if failed:
        return failed.exit_code
    return code_if_planned if any(done.outcome == "planned" for done in reports) else 0


def _check_usage(context: typer.Context, common: Common) -> None:
    for strange, meant in misspelt().items():
        log.warning("the variable %s means nothing; did you mean %s?", strange, meant)
    for name in LIVE_ONLY if common.offline else ():
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


def _check_host_root(common: Common) -> None:
    if not common.host_root.is_dir():
        raise UsageError(
            f"the host root is {'no directory' if common.host_root.exists() else 'not there'}",
            where=str(common.host_root),
            hint="name with --host-root the directory that the host's file system is seen in",
        )


def _check_reports(common: Common) -> None:
    if common.reports is not None and not common.reports.is_dir():
        raise UsageError(
            "there is no such directory",
            where=f"--reports {common.reports}",
            hint="mount the same volume there in every container of the Job, or leave the option out",
        )


def _check_rights(common: Common, names: Sequence[str]) -> None:
    from kata_node.pipeline import READS_ONLY

    if os.geteuid() and not common.offline and not common.dry_run and not READS_ONLY.issuperset(names):
        raise UsageError(
            "changing a live node needs root",
            hint="run it as root, or with --offline --host-root DIR on a directory of your own",
        )


def _settings(common: Common) -> Settings:
    from kata_node import settings
    from kata_node.host import kernel

    return settings.load(
        str(common.config) if common.config else None,
        overrides={
            name: getattr(common, name)
            for name in ("installation_prefix", "k8s_distribution", "multi_install_suffix", "shims")
        },
        arch=kernel.arch(),
    )


def _options(common: Common) -> Options:
    from kata_node.facts import Options

    return Options(
        payload=common.payload,
        offline=common.offline,
        runtime=common.runtime,
        cri_socket=common.cri_socket.removeprefix("unix://"),
        restart_timeout=common.restart_timeout,
        wait_for_pods=common.wait_for_pods,
        ignore_pods=common.ignore_pods,
        label_timeout=common.label_timeout,
        stable_for=common.label_stable_for,
        node_name=common.node_name,
        expected_machine_id=common.expected_machine_id,
    )


@contextlib.contextmanager
def _tools(common: Common) -> Iterator[Tools]:
    """The doors to the node and the API server, opened when first used and closed at the end."""
    from functools import cache

    from kata_node.actions import Tools
    from kata_node.host.files import Root

    root = Root(common.host_root)
    with contextlib.ExitStack() as opened:

        @cache
        def systemd() -> Any:
            from kata_node.host.systemd import Systemd

            return opened.enter_context(Systemd.connect(root))

        def cri(socket: str) -> Any:
            from kata_node.host.cri import Cri

            return Cri(root, socket)

        @cache
        def kube() -> Any:
            from kata_node.kube import Kube

            return opened.enter_context(Kube.connect())

        yield Tools(root, systemd, cri, kube, progress)
