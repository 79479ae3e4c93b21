"""The commands of ``kata-node``, as typer makes them."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from msgspec.structs import replace

from kata_node import __version__
from kata_node.cli import cluster_commands, help_commands
from kata_node.cli.context import invocation_of, open_tools, options_of, settings_of
from kata_node.cli.options import (
    DEFAULT_DAEMONSET_TIMEOUT,
    DEFAULT_LISTEN,
    Common,
    DaemonSet,
    DaemonSetTimeout,
    DesiredState,
    Listen,
    Output,
    StageName,
    UnfitNodes,
    UnfitPolicy,
    WantedState,
)
from kata_node.cli.output import (
    PROGRAM_NAME,
    print_error,
    print_json_result,
    print_result,
    print_text_result,
)
from kata_node.cli.registration import command
from kata_node.cli.run_stages import INSTALL, REVERT, run_stages
from kata_node.cli.typer_errors import TyperUsageError, usage_error
from kata_node.cli.usage import check_host_root, check_rights, require_read_access
from kata_node.errors import UsageError

EXIT_PLANNED = 10
"""The exit code of ``plan`` when something would change."""
EXIT_NOT_HEALTHY = 10
"""The exit code of ``status`` unless everything on the node is healthy."""

app = typer.Typer(
    name=PROGRAM_NAME,
    help="Install Kata Containers on this node in short stages, or remove it.",
    epilog="""To try it without root in an empty directory, where DIR has the Kata files:

    \b
    mkdir node
    kata-node install --offline --host-root ./node --payload DIR --runtime containerd://2.1.9
    kata-node revert --offline --host-root ./node

    \b
    Exit codes: 0 done, or nothing to do     3 this node cannot run it; a retry does not help
                1 failed; a retry may help   4 failed and rolled back
                2 wrong usage or settings    5 another run holds the node's lock
                                             10 plan: something would change
                                                status: not healthy

    \b
    kata-node explain 3 explains an exit code, kata-node explain kvm a check of host-check.""",
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
payload_app = typer.Typer(help="Prepare the Kata files for the installation.", rich_markup_mode=None)
values_app = typer.Typer(help="Check or convert a values file of the Helm chart.", rich_markup_mode=None)


class Direction(StrEnum):
    """What ``plan`` plans."""

    INSTALL = "install"
    REVERT = "revert"


def run(arguments: Sequence[str]) -> int:
    """Execute a command line and return the exit code.

    With the variable of the shells' completion, print completions instead. Raises what the command raises,
    and :class:`UsageError` for wrong usage.
    """
    help_commands.enable_completion()
    try:
        return app(list(arguments), prog_name=PROGRAM_NAME, standalone_mode=False) or 0
    except TyperUsageError as error:
        raise usage_error(arguments, error) from error


@app.callback(invoke_without_command=True)
def _main(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if version:
        print_result(f"{PROGRAM_NAME} {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print_error(context.get_help())
        raise typer.Exit(UsageError.exit_code)


@command(app, "install")
def install(common: Common) -> int:
    """Install Kata on this node. Runs the stages host-check, claim, artifacts, cri and label."""
    return run_stages(common, INSTALL)


@command(app, "revert")
def revert(common: Common) -> int:
    """Remove Kata from this node. Runs the stages unlabel, revert-cri, remove-artifacts and unclaim."""
    return run_stages(common, REVERT)


@command(app, "plan")
def plan(
    common: Common,
    direction: Annotated[
        Direction,
        typer.Argument(
            metavar="[install|revert]", show_default=False, help="What to plan. Default: install."
        ),
    ] = Direction.INSTALL,
) -> int:
    """Show what install or revert would change. Exit code: 0 for no changes, 10 for changes.

    First comes a summary, then the steps and the diffs of configuration. Without a payload, an installed node
    is planned from its receipt.

    If a configuration file changed after the container runtime started, plan tries whether the runtime starts
    with it: systemd starts a second containerd beside the running one, or runs crio config, for at most ten
    seconds. It has its own root directory and its own sockets, and it reads the node without changing it.
    """
    names = INSTALL if direction is Direction.INSTALL else REVERT
    return run_stages(
        replace(common, dry_run=True),
        names,
        exit_code_if_planned=EXIT_PLANNED,
        writes_termination_message=False,
    )


@command(app, "status")
def status(
    common: Common,
    deep: Annotated[
        bool, typer.Option("--deep", help="Compare files by digest instead of size and time.")
    ] = False,
) -> int:
    """Show what is on this node now, and what to do. Exit code: 0 if all is healthy, 10 if not.

    Compares the files with the receipt, and asks systemd and the CRI socket. A node without an installation
    is not healthy.
    """
    from kata_node.status import text
    from kata_node.status.gather import gather
    from kata_node.status.verdict import Caller

    check_host_root(common)
    caller = Caller(invocation_of(common, "status"), exists=lambda path: Path(path).exists())
    with open_tools(common) as clients, require_read_access("status"):
        found = gather(settings_of(common), options_of(common), clients, deep=deep, caller=caller)
    if common.output is Output.TEXT:
        print_text_result(common, text.to_text(found))
    else:
        print_json_result(text.to_json(found))
    return 0 if found.outcome == "healthy" else EXIT_NOT_HEALTHY


@command(app, "stage")
def stage(
    common: Common,
    name: Annotated[StageName, typer.Argument(metavar="STAGE", help=f"One of {', '.join(StageName)}.")],
) -> int:
    """Run one stage. Each container of a node Job runs one stage."""
    return run_stages(common, (name,))


@command(app, "daemon")
def daemon(
    common: Common,
    daemonset: DaemonSet = "",
    daemonset_timeout: DaemonSetTimeout = DEFAULT_DAEMONSET_TIMEOUT,
    listen: Listen = DEFAULT_LISTEN,
    unfit_nodes: UnfitNodes = UnfitPolicy.REPORT,
    desired_state: DesiredState = WantedState.PRESENT,
) -> int:
    """Run in the pod of a DaemonSet: install, wait, revert.

    On SIGTERM, it asks the API server for the DaemonSet. It reverts only if the DaemonSet is gone, is being
    deleted, or no longer selects this node. Otherwise Kata stays on the node, for example after a rolling
    restart or when the API server does not answer. With the desired state absent, it reverts at once, and
    waits.
    """
    from kata_node.cli import daemon as cli_daemon

    cli_daemon.check(common, daemonset)
    check_host_root(common)
    check_rights(common, INSTALL)
    daemon_options = {"daemonset": daemonset, "daemonset_timeout": daemonset_timeout}
    ready = unfit_nodes is UnfitPolicy.REPORT
    absent = desired_state is WantedState.ABSENT
    cli_daemon.exec_daemon(common, listen, daemon_options, unfit_is_ready=ready, absent=absent)


@command(app, "wanted", hidden=True)
def wanted(
    common: Common,
    daemonset: DaemonSet = "",
    daemonset_timeout: DaemonSetTimeout = DEFAULT_DAEMONSET_TIMEOUT,
) -> int:
    """Ask the API server if the DaemonSet still selects this node. Exit code: 0 for yes, 10 for no."""
    from kata_node.cli import daemon as cli_daemon

    return cli_daemon.wanted(common, daemonset, daemonset_timeout)


@command(app, "verify", hidden=True)
def verify(common: Common) -> int:
    """Say if this installation is served, as JSON. If it is not, set the labels of the Node to false."""
    from kata_node.cli import verify as cli_verify

    check_host_root(common)
    return cli_verify.verify(common)


app.add_typer(payload_app, name="payload")


@command(payload_app, "index")
def payload_index(
    common: Common,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The directory of the payload.")],
) -> int:
    """Write the manifest of a payload. Run this when you build its image."""
    from kata_node.payload import index

    path = str(index.write_manifest(directory))
    if common.output is Output.TEXT:
        print_text_result(common, path)
    else:
        print_json_result({"outcome": "ok", "manifest": path})
    return 0


app.add_typer(values_app, name="values")

ValuesFile = Annotated[Path, typer.Argument(metavar="FILE", help="The values file of the Helm chart (YAML).")]


@command(values_app, "check")
def values_check(common: Common, file: ValuesFile) -> int:
    """Show what the chart and the nodes say of a values file, for each architecture, without a cluster.

    Exit code: 0 if helm and the nodes accept it, 2 if it has an error.
    """
    from kata_node.cli import values

    return values.check_file(file, common)


@command(values_app, "convert")
def values_convert(
    common: Common,
    file: ValuesFile,
    write: Annotated[
        Path | None,
        typer.Option("--write", metavar="FILE", help="Write the result to this file. It may be the same."),
    ] = None,
) -> int:
    """Replace the keys of older charts in a values file, and show the change as a diff. Comments stay."""
    from kata_node.cli import values

    return values.convert_file(file, write, common)


cluster_commands.register(app)
help_commands.register(app)
