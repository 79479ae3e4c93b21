"""The options of the commands, and their environment variables.

The command line wins over the variable ``KATA_NODE_<OPTION>``, which wins over the default. An empty
variable counts as not set, so that the template of a pod can leave it empty.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

PREFIX = "KATA_NODE_"
DEFAULT_PAYLOAD = Path("/opt/kata-payload")
DEFAULT_TERMINATION_LOG = Path("/dev/termination-log")

EPILOG = f"""Every option has an environment variable: {PREFIX}HOST_ROOT for --host-root. The command line
wins over the variable."""


class Output(StrEnum):
    """The format of the result on stdout."""

    TEXT = "text"
    JSON = "json"


class LogLevel(StrEnum):
    """The lowest severity that is logged on stderr."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class UnfitPolicy(StrEnum):
    """What a node that cannot run Kata means for the pod of a DaemonSet."""

    REPORT = "report"
    FAIL = "fail"


class StageName(StrEnum):
    """The stages that ``stage`` can run."""

    HOST_CHECK = "host-check"
    CLAIM = "claim"
    ARTIFACTS = "artifacts"
    CRI = "cri"
    LABEL = "label"
    UNLABEL = "unlabel"
    REVERT_CRI = "revert-cri"
    REMOVE_ARTIFACTS = "remove-artifacts"
    UNCLAIM = "unclaim"


def env_variable(option: str) -> str:
    """Return the environment variable of an option, which is named without its leading dashes."""
    return PREFIX + option.upper().replace("-", "_")


def _path(text: str | Path) -> Path:
    if not str(text):  # Path() would make it the current directory
        raise typer.BadParameter("expected a path, got nothing")
    return Path(text)


def _seconds(least: float) -> Callable[[str | float], float]:
    def seconds(text: str | float) -> float:
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not least <= value < float("inf"):
            raise typer.BadParameter(f"expected a number of seconds, {least:g} or more, got {text}")
        return value

    return seconds


def _option(
    name: str, metavar: str | None, text: str, *, extra_variables: tuple[str, ...] = (), **more: Any
) -> Any:
    return typer.Option(
        f"--{name}",
        metavar=metavar,
        help=text,
        envvar=[env_variable(name), *extra_variables],
        show_envvar=False,
        **more,
    )


def _path_option(name: str, metavar: str, text: str) -> Any:
    return _option(name, metavar, text, parser=_path)


def _seconds_option(name: str, text: str, *, least: float) -> Any:
    return _option(name, "SECONDS", text, parser=_seconds(least))


@dataclass(frozen=True)
class Common:
    """The values of the common options. Each field is named like its option."""

    config: Annotated[
        Path | None,
        _path_option("config", "FILE", "The values file of the Helm chart (YAML)."),
    ] = None
    config_digest: Annotated[
        str,
        _option("config-digest", "SHA256", "The digest of the values file. Refuse a file with another one."),
    ] = ""
    host_root: Annotated[
        Path, _path_option("host-root", "DIR", "The directory with the root file system of the node.")
    ] = Path("/")
    payload: Annotated[
        Path, _path_option("payload", "DIR", "The directory with the Kata files to install.")
    ] = DEFAULT_PAYLOAD
    offline: Annotated[
        bool, _option("offline", None, "Only write files. Use no systemd, no CRI socket and no cluster.")
    ] = False
    dry_run: Annotated[bool, _option("dry-run", None, "Show what would change, but change nothing.")] = False
    verbose: Annotated[
        bool,
        _option("verbose", None, "With a dry run: list every file, and show every diff in full."),
    ] = False
    output: Annotated[Output, _option("output", None, "The format of the result on stdout.")] = Output.TEXT
    log_level: Annotated[
        LogLevel,
        _option("log-level", "LEVEL", "The lowest severity to log on stderr: debug, info, warning or error."),
    ] = LogLevel.INFO
    runtime: Annotated[
        str,
        _option(
            "runtime",
            "NAME://VERSION",
            "The runtime and its version. Without it, kata-node asks the CRI socket.",
        ),
    ] = ""
    shims: Annotated[
        str, _option("shims", "NAMES", "Enable these shims (a,b,c) instead of those of the values.")
    ] = ""
    installation_prefix: Annotated[
        str, _option("installation-prefix", "DIR", "Override env.installationPrefix of the values.")
    ] = ""
    multi_install_suffix: Annotated[
        str, _option("multi-install-suffix", "NAME", "Override env.multiInstallSuffix of the values.")
    ] = ""
    k8s_distribution: Annotated[
        str, _option("k8s-distribution", "NAME", "Override k8sDistribution of the values.")
    ] = ""
    node_name: Annotated[
        str,
        _option(
            "node-name",
            "NAME",
            "The Node to label. Also read from NODE_NAME.",
            extra_variables=("NODE_NAME",),
        ),
    ] = ""
    expected_machine_id: Annotated[
        str, _option("expected-machine-id", "ID", "Refuse to work on a node with another machine id.")
    ] = ""
    cri_socket: Annotated[
        str,
        _option(
            "cri-socket",
            "PATH",
            "The CRI socket. Set it if the socket is not at the default path of the runtime.",
        ),
    ] = ""
    lock_timeout: Annotated[
        float,
        _seconds_option("lock-timeout", "How long to wait while another run holds the node's lock.", least=0),
    ] = 300
    restart_timeout: Annotated[
        float,
        _seconds_option(
            "restart-timeout", "How long the runtime may take to serve the handlers after a restart.", least=1
        ),
    ] = 120
    wait_for_pods: Annotated[
        float,
        _seconds_option(
            "wait-for-pods", "How long to wait for pods on handlers that the run removes.", least=0
        ),
    ] = 0
    ignore_pods: Annotated[
        bool, _option("ignore-pods", None, "Remove handlers even if pods run on them.")
    ] = False
    ignore_unread_config: Annotated[
        bool,
        _option(
            "ignore-unread-config",
            None,
            "Install even if the runtime does not start with files that changed after its last start.",
        ),
    ] = False
    label_timeout: Annotated[
        float,
        _seconds_option(
            "label-timeout", "How long to wait until the Node is Ready and its labels are stable.", least=1
        ),
    ] = 300
    label_stable_for: Annotated[
        float, _seconds_option("label-stable-for", "How long the labels must stay unchanged.", least=0)
    ] = 10
    reports: Annotated[
        Path | None,
        _path_option(
            "reports",
            "DIR",
            "A directory that the containers of a node Job share, for Events about all its stages.",
        ),
    ] = None
    termination_log: Annotated[
        Path,
        _path_option(
            "termination-log", "FILE", "The termination message of the pod. Written only if the file exists."
        ),
    ] = DEFAULT_TERMINATION_LOG


DEFAULT_LISTEN = ":8090"
DEFAULT_DAEMONSET_TIMEOUT = 30.0

Listen = Annotated[
    str,
    _option("listen", "[HOST]:PORT", "The address for /healthz and /readyz. Without HOST: all addresses."),
]
DaemonSet = Annotated[
    str, _option("daemonset", "NAMESPACE/NAME", "The DaemonSet of this pod.", show_default=False)
]
DaemonSetTimeout = Annotated[
    float, _seconds_option("daemonset-timeout", "How long to ask the API server for the DaemonSet.", least=1)
]
UnfitNodes = Annotated[
    UnfitPolicy,
    _option("unfit-nodes", "report|fail", "Whether the pod of a node that cannot run Kata is ready: report."),
]
"""These options belong only to the commands that the pod of a DaemonSet runs."""

ONLINE_ONLY_OPTIONS = ("node_name", "cri_socket")
"""Options that cannot be combined with ``--offline``."""


def raw_option_value(arguments: Sequence[str], option: str) -> str:
    """Return the value of an option from a command line that may be invalid; empty when it has none."""
    value = os.environ.get(env_variable(option), "")
    for at, argument in enumerate(arguments):
        name, equals, text = argument.partition("=")
        if name == f"--{option}":
            value = text if equals else "".join(arguments[at + 1 : at + 2])
    return value


def misspelled_variables() -> dict[str, str]:
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
