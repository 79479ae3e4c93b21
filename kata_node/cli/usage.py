"""Check a command line before anything is done. Each check raises :class:`UsageError`."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Collection, Iterator, Sequence

from msgspec.structs import replace

from kata_node import log as logs
from kata_node import signals
from kata_node.cli.options import ONLINE_ONLY_OPTIONS, Common
from kata_node.cli.output import has_color
from kata_node.cli.variables import misspelled_variables
from kata_node.errors import HostError, UsageError

log = logging.getLogger(__name__)


def call_checked(function: Callable[[Common], int], common: Common, typed: Collection[str]) -> int:
    """Check the options, then call ``function`` and return its exit code.

    ``typed`` has the names of those that are on the command line. The others come from variables.
    """
    common = _without_overruled_variables(common, typed)
    logs.configure_logging(common.effective_log_level, color=has_color(sys.stderr))
    _check_options(common, typed)
    try:
        return function(common)
    except KeyboardInterrupt as error:
        raise signals.stopped_error(error) from None


def _check_options(common: Common, typed: Collection[str]) -> None:
    """Refuse options that contradict each other. Warn of environment variables with unknown names."""
    for unknown_variable, suggestion in misspelled_variables().items():
        log.warning("the variable %s is not an option; did you mean %s?", unknown_variable, suggestion)
    for name in ONLINE_ONLY_OPTIONS if common.offline else ():
        if name in typed:
            raise UsageError(
                "it cannot be combined with --offline, which uses neither the CRI socket nor a cluster",
                where=f"--{name.replace('_', '-')}",
                hint=f"remove either --{name.replace('_', '-')} or --offline",
            )
    if common.effective_log_level != common.log_level and "log_level" in typed:
        # A variable sets no --quiet here: see _without_overruled_variables.
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


def _without_overruled_variables(common: Common, typed: Collection[str]) -> Common:
    """Return the options without the variable for ``--quiet`` if ``--log-level`` asks for more than it."""
    if not common.quiet or "quiet" in typed:
        return common
    is_louder = common.effective_log_level != common.log_level
    return replace(common, quiet=False) if is_louder and "log_level" in typed else common


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
