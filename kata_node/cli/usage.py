"""Check a command line before anything is done. Each check raises :class:`UsageError`."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace

import typer

from kata_node.cli.options import ONLINE_ONLY_OPTIONS, PREFIX, Common, env_variable
from kata_node.errors import HostError, UsageError

log = logging.getLogger(__name__)


def check_usage(context: typer.Context, common: Common) -> None:
    """Refuse options that contradict each other. Warn of environment variables with unknown names."""
    for unknown_variable, suggestion in _misspelled_variables().items():
        log.warning("the variable %s is not an option; did you mean %s?", unknown_variable, suggestion)
    for name in ONLINE_ONLY_OPTIONS if common.offline else ():
        if _is_on_command_line(context, name):
            raise UsageError(
                "it cannot be combined with --offline, which uses neither the CRI socket nor a cluster",
                where=f"--{name.replace('_', '-')}",
                hint=f"remove either --{name.replace('_', '-')} or --offline",
            )
    if common.effective_log_level != common.log_level and _is_on_command_line(context, "log_level"):
        # A variable sets no --quiet here: see without_overruled_variables.
        raise UsageError(
            f"it cannot be combined with --log-level {common.log_level}",
            where="--quiet",
            hint="remove one of the two options",
        )
    if common.cri_socket and not common.cri_socket.removeprefix("unix://").startswith("/"):
        raise UsageError(
            f"expected an absolute path, got {common.cri_socket}",
            where="--cri-socket",
            hint="set it to the path of the socket on the node, such as /run/containerd/containerd.sock",
        )
    if common.runtime:
        from kata_node.versions import runtime_version

        runtime_version(common.runtime)


def without_overruled_variables(context: typer.Context, common: Common) -> Common:
    """Return the options without the variable for ``--quiet`` if ``--log-level`` asks for more than it."""
    if not common.quiet or _is_on_command_line(context, "quiet"):
        return common
    is_louder = common.effective_log_level != common.log_level
    return replace(common, quiet=False) if is_louder and _is_on_command_line(context, "log_level") else common


def _is_on_command_line(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def check_host_root(common: Common) -> None:
    """Refuse a ``--host-root`` that is not a directory."""
    if not common.host_root.is_dir():
        raise UsageError(
            f"the host root {'is not a directory' if common.host_root.exists() else 'does not exist'}",
            where=str(common.host_root),
            hint="set --host-root to the directory with the root file system of the node",
        )


@contextlib.contextmanager
def require_read_access(command: str) -> Iterator[None]:
    """Refuse to look at what only another user can read: an installation by root is such."""
    try:
        yield
    except HostError as error:
        if not os.geteuid() or not isinstance(error.__cause__, PermissionError):
            raise
        raise UsageError(
            "the user of this command cannot read it",
            where=error.where,
            hint=f"run `kata-node {command}` as root",
        ) from error


def check_reports(common: Common) -> None:
    """Refuse a ``--reports`` that is not a directory."""
    if common.reports is not None and not common.reports.is_dir():
        raise UsageError(
            "there is no such directory",
            where=f"--reports {common.reports}",
            hint="mount the same volume there in every container of the node Job, or remove the option",
        )


def check_rights(common: Common, names: Sequence[str]) -> None:
    """Refuse to run stages that change a live node unless the user is root."""
    from kata_node.pipeline import READ_ONLY_STAGES

    if os.geteuid() and not common.offline and not common.dry_run and not READ_ONLY_STAGES.issuperset(names):
        raise UsageError(
            "a run that changes a live node needs root",
            hint="run it as root, or use --offline --host-root DIR with a directory of your own",
        )


def _misspelled_variables() -> dict[str, str]:
    """Return the set variables that belong to no option, each with the similar variable of an option."""
    known = {env_variable(field.name) for field in fields(Common)}
    # Kubernetes sets KATA_NODE_PORT and others in pods when there is a Service named kata-node.
    set_variables = (name for name in os.environ if name.startswith(PREFIX) and not name.endswith("_PORT"))
    unknown = [name for name in set_variables if name not in known]
    if not unknown:
        return {}
    import difflib

    # Ignore names that resemble no option: they may be variables of such a Service too.
    close = {name: difflib.get_close_matches(name, known, n=1, cutoff=0.9) for name in unknown}
    return {name: found[0] for name, found in close.items() if found}
