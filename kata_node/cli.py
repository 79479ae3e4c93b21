"""The command line: options, environment variables, and what is printed. The only importer of ``stages``."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from kata_node import __version__, log
from kata_node.errors import KataNodeError, UsageError

if TYPE_CHECKING:
    from kata_node.actions import Tools
    from kata_node.facts import Options
    from kata_node.pipeline import Stage
    from kata_node.report import StageReport
    from kata_node.settings import Settings

DEFAULT_PAYLOAD = Path("/opt/kata-payload")
PROGRESS_EVERY = 5.0  # seconds, where stderr is not a terminal
EXIT_PLANNED = 10
"""``plan``: something would change."""

app = typer.Typer(
    name="kata-node",
    help="Put Kata Containers on this node in short stages, and take it off again.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
payload_app = typer.Typer(help="The Kata files to install.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(payload_app, name="payload")


class Output(StrEnum):
    """The form of the result on stdout."""

    TEXT = "text"
    JSON = "json"


class LogLevel(StrEnum):
    """Least severity of what is logged on stderr."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class StageName(StrEnum):
    """What ``stage`` can run."""

    HOST_CHECK = "host-check"
    ARTIFACTS = "artifacts"
    CRI = "cri"
    LABEL = "label"
    UNLABEL = "unlabel"
    REVERT_CRI = "revert-cri"
    REMOVE_ARTIFACTS = "remove-artifacts"


INSTALL = (StageName.HOST_CHECK, StageName.ARTIFACTS, StageName.CRI, StageName.LABEL)
REVERT = (StageName.UNLABEL, StageName.REVERT_CRI, StageName.REMOVE_ARTIFACTS)


def _option(name: str, text: str, **more: Any) -> Any:
    variable = "KATA_NODE_" + name.upper().replace("-", "_")
    return typer.Option(f"--{name}", envvar=[variable, *more.pop("also", ())], help=text, **more)


@dataclasses.dataclass(frozen=True)
class Common:
    """The options every command takes. Each has a variable, ``KATA_NODE_`` and its name."""

    config: Annotated[
        Path | None, _option("config", "Values file (YAML), the same the Helm chart takes.")
    ] = None
    host_root: Annotated[Path, _option("host-root", "Where the host's file system is seen from here.")] = (
        Path("/")
    )
    payload: Annotated[Path, _option("payload", "Directory that holds the Kata files.")] = DEFAULT_PAYLOAD
    output: Annotated[Output, _option("output", "Form of the result on stdout.")] = Output.TEXT
    log_level: Annotated[LogLevel, _option("log-level", "Least severity logged on stderr.")] = LogLevel.INFO
    dry_run: Annotated[bool, _option("dry-run", "Show what would change, and change nothing.")] = False
    offline: Annotated[
        bool, _option("offline", "Write files only: no systemd, no CRI socket, no API server.")
    ] = False
    runtime: Annotated[
        str, _option("runtime", "What the node runs, as containerd://VERSION, instead of asking it.")
    ] = ""
    installation_prefix: Annotated[
        str, _option("installation-prefix", "Overrides env.installationPrefix of the values.")
    ] = ""
    multi_install_suffix: Annotated[
        str, _option("multi-install-suffix", "Overrides env.multiInstallSuffix of the values.")
    ] = ""
    shims: Annotated[str, _option("shims", "Overrides which shims the values enable: names, by commas.")] = ""
    node_name: Annotated[str, _option("node-name", "The Node to label.", also=("NODE_NAME",))] = ""
    expected_machine_id: Annotated[
        str, _option("expected-machine-id", "Refuse to work on a machine with another machine id.")
    ] = ""
    cri_socket: Annotated[str, _option("cri-socket", "The CRI socket on the host.")] = (
        "/run/containerd/containerd.sock"
    )
    lock_timeout: Annotated[
        float, _option("lock-timeout", "Seconds to wait for another run on this node.", min=0)
    ] = 300.0
    restart_timeout: Annotated[
        float, _option("restart-timeout", "Seconds the CRI runtime has to serve again.", min=1)
    ] = 120.0
    label_timeout: Annotated[
        float, _option("label-timeout", "Seconds the Node has to become ready and keep its labels.", min=1)
    ] = 300.0
    label_stable_for: Annotated[
        float, _option("label-stable-for", "Seconds the labels must hold without a break.", min=0)
    ] = 10.0
    termination_log: Annotated[
        Path, _option("termination-log", "Where the kubelet looks for the result.")
    ] = Path("/dev/termination-log")


def command(target: typer.Typer, name: str) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Register ``function(common, **own)`` as a command that takes its own and all common options.

    What it returns is the exit code. Errors raised before a stage runs end here.
    """

    def register(function: Callable[..., int]) -> Callable[..., int]:
        signature = inspect.signature(function, eval_str=True)
        own = list(signature.parameters.values())[1:]
        fields = dataclasses.fields(Common)
        hints = inspect.get_annotations(Common, eval_str=True)
        shared = [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=hints[field.name],
            )
            for field in fields
        ]

        def run(**values: Any) -> None:
            common = Common(**{field.name: values.pop(field.name) for field in fields})
            log.setup(common.log_level)
            try:
                code = function(common, **values)
            except KataNodeError as error:
                typer.echo(f"error: {error}", err=True)
                code = error.exit_code
            except KeyboardInterrupt:
                typer.echo("interrupted; running the same command again goes on from here", err=True)
                code = 1
            raise typer.Exit(code)

        run.__doc__ = function.__doc__
        run.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[*own, *shared], return_annotation=None
        )
        run.__annotations__ = {each.name: each.annotation for each in (*own, *shared)}
        target.command(name)(run)
        return function

    return register


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(f"kata-node {__version__}")
        raise typer.Exit


@command(app, "stage")
def stage(common: Common, name: Annotated[StageName, typer.Argument(help="The stage to run.")]) -> int:
    """Run one stage, as an initContainer does."""
    return _stages(common, (name,))


@command(app, "install")
def install(common: Common) -> int:
    """Run host-check, artifacts, cri and label, in this order."""
    return _stages(common, INSTALL)


@command(app, "revert")
def revert(common: Common) -> int:
    """Run unlabel, revert-cri and remove-artifacts, in this order."""
    return _stages(common, REVERT)


class Direction(StrEnum):
    """What to plan."""

    INSTALL = "install"
    REVERT = "revert"


@command(app, "plan")
def plan(common: Common, direction: Annotated[Direction, typer.Argument()] = Direction.INSTALL) -> int:
    """Show what install (or revert) would change, as diffs. Exit code: 0 nothing, 10 something."""
    names = INSTALL if direction is Direction.INSTALL else REVERT
    return _stages(dataclasses.replace(common, dry_run=True), names, diffs=True)


@command(app, "status")
def status(
    common: Common,
    deep: Annotated[
        bool, typer.Option("--deep", help="Compare content by digest, not by size and time.")
    ] = False,
) -> int:
    """Show every installation on this node: release, drift, handlers served, restart owed."""
    from kata_node import status as statuses

    with _tools(common) as tools:
        found = statuses.gather(_settings(common), _options(common), tools, deep=deep)
    if common.output is Output.JSON:
        typer.echo(json.dumps(statuses.to_json(found), indent=2))
    else:
        typer.echo(statuses.to_text(found))
    return 0


@payload_app.command("index")
def payload_index(directory: Annotated[Path, typer.Argument(help="The payload's directory.")]) -> None:
    """Write the payload's manifest, once, when its image is built."""
    from kata_node import payload_index

    try:
        path = payload_index.write_index(directory)
    except KataNodeError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(error.exit_code) from None
    typer.echo(str(path))


def _stages(common: Common, names: tuple[StageName, ...], *, diffs: bool = False) -> int:
    from kata_node import pipeline, report

    _check_root(common)
    modules = [cast("Stage", importlib.import_module(f"stages.{name.replace('-', '_')}")) for name in names]
    as_text = common.output is Output.TEXT

    def show(done: StageReport) -> None:
        if as_text:
            typer.echo(report.to_text(done, diffs=diffs or common.dry_run))
        report.write_termination_message(common.termination_log, done)

    with _tools(common) as tools:
        run = pipeline.Run(
            _settings(common), _options(common), tools, common.lock_timeout, common.dry_run, show
        )
        reports = pipeline.run(modules, run)
    if not as_text:
        typer.echo(json.dumps(report.to_json(reports), indent=2))
    code = next((done.exit_code for done in reports if done.error), 0)
    if diffs and code == 0 and any(done.outcome == "planned" for done in reports):
        return EXIT_PLANNED
    return code


def _check_root(common: Common) -> None:
    import os

    if not common.host_root.is_dir():
        raise UsageError(
            "the host root is not a directory",
            where=str(common.host_root),
            hint="give --host-root a directory",
        )
    if os.geteuid() != 0 and not common.offline and not common.dry_run:
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
            name: getattr(common, name) for name in ("installation_prefix", "multi_install_suffix", "shims")
        },
        arch=kernel.arch(),
    )


def _options(common: Common) -> Options:
    from kata_node.facts import Options

    return Options(
        payload=common.payload,
        offline=common.offline,
        runtime=common.runtime,
        cri_socket=common.cri_socket,
        restart_timeout=common.restart_timeout,
        label_timeout=common.label_timeout,
        stable_for=common.label_stable_for,
        node_name=common.node_name,
        expected_machine_id=common.expected_machine_id,
    )


@contextmanager
def _tools(common: Common) -> Iterator[Tools]:
    """The doors to the node and the API server, opened when first used and closed at the end."""
    from contextlib import ExitStack
    from functools import cache

    from kata_node.actions import Tools
    from kata_node.host.files import Root

    root = Root(common.host_root)
    with ExitStack() as opened:

        @cache
        def systemd() -> Any:
            from kata_node.host.systemd import Systemd

            return opened.enter_context(Systemd.connect(root))

        @cache
        def cri() -> Any:
            from kata_node.host.cri import Cri

            return Cri(root, common.cri_socket)

        @cache
        def kube() -> Any:
            from kata_node.kube import Kube

            return opened.enter_context(Kube.connect())

        yield Tools(root, systemd, cri, kube, _progress)


@contextmanager
def _progress(total: int, title: str) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal; elsewhere a line now and then."""
    if sys.stderr.isatty():
        with typer.progressbar(length=total, label=title, file=sys.stderr) as bar:
            yield bar.update
        return
    import logging
    import threading
    import time

    logger, lock, done, told = logging.getLogger(__name__), threading.Lock(), 0, time.monotonic()

    def advance(size: int) -> None:
        nonlocal done, told
        with lock:
            done += size
            if (now := time.monotonic()) - told >= PROGRESS_EVERY:
                told = now
                logger.info("%s: %d %%", title, min(100, done * 100 // (total or 1)))

    yield advance
