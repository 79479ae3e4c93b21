"""The options every command takes, and their variables.

On the command line, in the environment as ``KATA_NODE_`` and the option's name, or by default, in this
order. An empty variable counts as none, so that a pod's template may leave it empty.
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

EPILOG = f"""Every option has a variable, {PREFIX} and its name: {PREFIX}HOST_ROOT for --host-root. What is
given on the command line wins."""


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
    CLAIM = "claim"
    ARTIFACTS = "artifacts"
    CRI = "cri"
    LABEL = "label"
    UNLABEL = "unlabel"
    REVERT_CRI = "revert-cri"
    REMOVE_ARTIFACTS = "remove-artifacts"
    UNCLAIM = "unclaim"


def env_variable(option: str) -> str:
    """The variable of an option, which is given without its dashes in front."""
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
    """What they were set to. The names are those of the options."""

    config: Annotated[
        Path | None,
        _path_option("config", "FILE", "The Helm chart's values file (YAML)."),
    ] = None
    host_root: Annotated[Path, _path_option("host-root", "DIR", "Where the host's files are seen.")] = Path(
        "/"
    )
    payload: Annotated[Path, _path_option("payload", "DIR", "Where the Kata files are.")] = DEFAULT_PAYLOAD
    offline: Annotated[
        bool, _option("offline", None, "Write files only: no systemd, no CRI, no cluster.")
    ] = False
    dry_run: Annotated[bool, _option("dry-run", None, "Show what would change, and change nothing.")] = False
    output: Annotated[Output, _option("output", None, "Form of the result on stdout.")] = Output.TEXT
    log_level: Annotated[
        LogLevel,
        _option("log-level", "LEVEL", "Log from this severity up: debug, info, warning or error."),
    ] = LogLevel.INFO
    runtime: Annotated[
        str,
        _option("runtime", "NAME://VERSION", "Runtime of the node, instead of asking it."),
    ] = ""
    shims: Annotated[str, _option("shims", "NAMES", "Overrides which shims the values enable (a,b,c).")] = ""
    installation_prefix: Annotated[
        str, _option("installation-prefix", "DIR", "Overrides env.installationPrefix of the values.")
    ] = ""
    multi_install_suffix: Annotated[
        str, _option("multi-install-suffix", "NAME", "Overrides env.multiInstallSuffix of the values.")
    ] = ""
    k8s_distribution: Annotated[
        str, _option("k8s-distribution", "NAME", "Overrides k8sDistribution of the values.")
    ] = ""
    node_name: Annotated[
        str,
        _option(
            "node-name",
            "NAME",
            "The Node to label; also taken from NODE_NAME.",
            extra_variables=("NODE_NAME",),
        ),
    ] = ""
    expected_machine_id: Annotated[
        str, _option("expected-machine-id", "ID", "Refuse to work on any other machine.")
    ] = ""
    cri_socket: Annotated[
        str, _option("cri-socket", "PATH", "The CRI socket, when it is not where its runtime has it.")
    ] = ""
    lock_timeout: Annotated[
        float, _seconds_option("lock-timeout", "How long to wait for another run.", least=0)
    ] = 300
    restart_timeout: Annotated[
        float,
        _seconds_option("restart-timeout", "How long the runtime may take to serve again.", least=1),
    ] = 120
    wait_for_pods: Annotated[
        float,
        _seconds_option("wait-for-pods", "How long to wait for pods on handlers that are to go.", least=0),
    ] = 0
    ignore_pods: Annotated[
        bool, _option("ignore-pods", None, "Take handlers away though pods run on them.")
    ] = False
    label_timeout: Annotated[
        float,
        _seconds_option(
            "label-timeout", "How long the Node may take to be ready, and its labels to hold.", least=1
        ),
    ] = 300
    label_stable_for: Annotated[
        float, _seconds_option("label-stable-for", "How long the labels must hold without a break.", least=0)
    ] = 10
    reports: Annotated[
        Path | None,
        _path_option("reports", "DIR", "Shared by the containers of a Job, for an Event that tells of all."),
    ] = None
    termination_log: Annotated[
        Path, _path_option("termination-log", "FILE", "Written for the pod's status, if it is there.")
    ] = DEFAULT_TERMINATION_LOG


DEFAULT_LISTEN = ":8090"
DEFAULT_DAEMONSET_TIMEOUT = 30.0

Listen = Annotated[
    str, _option("listen", "[HOST]:PORT", "Where /healthz and /readyz are answered, without a host on all.")
]
DaemonSet = Annotated[
    str, _option("daemonset", "NAMESPACE/NAME", "The DaemonSet that the pod is of.", show_default=False)
]
DaemonSetTimeout = Annotated[
    float, _seconds_option("daemonset-timeout", "How long to ask the API server about it.", least=1)
]
"""Of the commands that a DaemonSet's pod runs, and of no others."""

ONLINE_ONLY_OPTIONS = ("node_name", "cri_socket")
"""What cannot be asked for together with ``--offline``."""


def raw_option_value(arguments: Sequence[str], option: str) -> str:
    """The value of an option as far as it can be told when the command line as a whole is wrong."""
    value = os.environ.get(env_variable(option), "")
    for at, argument in enumerate(arguments):
        name, equals, text = argument.partition("=")
        if name == f"--{option}":
            value = text if equals else "".join(arguments[at + 1 : at + 2])
    return value


def misspelled_variables() -> dict[str, str]:
    """Variables that are set and mean nothing, each with the one that was probably meant."""
    known = {env_variable(field.name) for field in fields(Common)}
    # Kubernetes gives pods variables of its own for a Service called kata-node: KATA_NODE_PORT is one.
    set_variables = (name for name in os.environ if name.startswith(PREFIX) and not name.endswith("_PORT"))
    strange = [name for name in set_variables if name not in known]
    if not strange:
        return {}
    import difflib

    # Only near misses, for the same reason.
    close = {name: difflib.get_close_matches(name, known, n=1, cutoff=0.9) for name in strange}
    return {name: found[0] for name, found in close.items() if found}
