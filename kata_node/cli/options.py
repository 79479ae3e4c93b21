"""The options of the commands, and their environment variables.

The command line wins over the variable ``KATA_NODE_<OPTION>``, which wins over the default. An empty
variable counts as not set, so that the template of a pod can leave it empty.
"""

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from msgspec import Struct

from kata_node.text import RELEASE

PREFIX = "KATA_NODE_"
DEFAULT_PAYLOAD = Path("/opt/kata-payload")
DEFAULT_TERMINATION_LOG = Path("/dev/termination-log")

EPILOG = f"""Every option has an environment variable: {PREFIX}HOST_ROOT for --host-root. The command line
wins over the variable."""


WHAT, WHERE, WAITING, OUTPUT = "What", "Where", "How to wait", "Output"
"""The groups of options in the help."""


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


class WantedState(StrEnum):
    """Whether Kata is wanted on the nodes of a release."""

    PRESENT = "present"
    ABSENT = "absent"


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
    CHECK_PODS = "check-pods"


def env_variable(option: str) -> str:
    """Return the environment variable of an option, which is named without its leading dashes."""
    return PREFIX + option.upper().replace("-", "_")


class Option(Struct, frozen=True):
    """An option, as :mod:`kata_node.cli.registration` passes it to typer."""

    group: str
    name: str
    """The name without its leading dashes."""
    metavar: str | None
    text: str
    parser: Callable[[str], Any] | None = None
    """Returns the value, or raises :class:`ValueError` with a sentence. Without it, the type decides."""
    variables: tuple[str, ...] = ()
    """More environment variables, read if that of :func:`env_variable` is not set."""
    complete: Callable[[str], list[str]] | None = None
    """Returns the values that begin with a text. The shells complete with it."""
    show_default: bool = True


def _path(text: str | Path) -> Path:
    if not str(text):  # Path() would make it the current directory
        raise ValueError("expected a path, got nothing")
    return Path(text)


def _seconds(least: float) -> Callable[[str | float], float]:
    def seconds(text: str | float) -> float:
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not least <= value < float("inf"):
            raise ValueError(f"expected a number of seconds, {least:g} or more, got {text}")
        return value

    return seconds


def _release(text: str) -> str:
    if text and not RELEASE.fullmatch(text):
        raise ValueError(f"expected NAMESPACE/NAME of a release, got {text}")
    return text


def _path_option(group: str, name: str, metavar: str, text: str) -> Option:
    return Option(group, name, metavar, text, parser=_path)


def _seconds_option(name: str, text: str, *, least: float) -> Option:
    return Option(WAITING, name, "SECONDS", text, parser=_seconds(least))


def _complete_shims(incomplete: str) -> list[str]:
    """Return completions of a comma-separated list of shims."""
    from kata_node.settings import shims

    before, comma, _ = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in shims.table() if name not in before.split(",")]


class Common(Struct, frozen=True):
    """The values of the common options. Each field is named like its option.

    A command has some of them, see :data:`COMMAND_OPTIONS`; the others keep their defaults.
    """

    config: Annotated[
        Path | None,
        _path_option(WHAT, "config", "FILE", "The values file of the Helm chart (YAML)."),
    ] = None
    config_digest: Annotated[
        str,
        Option(
            WHAT, "config-digest", "SHA256", "The digest of the values file. Refuse a file with another one."
        ),
    ] = ""
    user_drop_in: Annotated[
        Path | None, _path_option(WHAT, "user-drop-in", "FILE", "A file in place of containerd.userDropIn.")
    ] = None
    payload: Annotated[
        Path, _path_option(WHAT, "payload", "DIR", "The Kata files: a directory, or a release's archive.")
    ] = DEFAULT_PAYLOAD
    payload_release: Annotated[
        str, Option(WHAT, "payload-release", "NAME", "The release of Kata, if the payload does not name it.")
    ] = ""
    shims: Annotated[
        str,
        Option(
            WHAT,
            "shims",
            "NAMES",
            "Enable these shims (a,b,c) instead of those of the values.",
            complete=_complete_shims,
        ),
    ] = ""
    installation_prefix: Annotated[
        str, Option(WHAT, "installation-prefix", "DIR", "Override env.installationPrefix of the values.")
    ] = ""
    multi_install_suffix: Annotated[
        str, Option(WHAT, "multi-install-suffix", "NAME", "Override env.multiInstallSuffix of the values.")
    ] = ""
    k8s_distribution: Annotated[
        str, Option(WHAT, "k8s-distribution", "NAME", "Override k8sDistribution of the values.")
    ] = ""
    dry_run: Annotated[bool, Option(WHAT, "dry-run", None, "Show what would change, but change nothing.")] = (
        False
    )
    host_root: Annotated[
        Path, _path_option(WHERE, "host-root", "DIR", "The directory with the root file system of the node.")
    ] = Path("/")
    offline: Annotated[
        bool,
        Option(WHERE, "offline", None, "Only write files. Use no systemd, no CRI socket and no cluster."),
    ] = False
    runtime: Annotated[
        str,
        Option(
            WHERE,
            "runtime",
            "NAME://VERSION",
            "The runtime and its version. Without it, kata-node asks the CRI socket.",
        ),
    ] = ""
    cri_socket: Annotated[
        str,
        Option(
            WHERE,
            "cri-socket",
            "PATH",
            "The CRI socket. Set it if the socket is not at the default path of the runtime.",
        ),
    ] = ""
    node_name: Annotated[
        str,
        Option(
            *(WHERE, "node-name", "NAME", "The Node to label. Also read from NODE_NAME."),
            variables=("NODE_NAME",),
        ),
    ] = ""
    expected_machine_id: Annotated[
        str, Option(WHERE, "expected-machine-id", "ID", "Refuse to work on a node with another machine id.")
    ] = ""
    helm_release: Annotated[
        str,
        Option(
            WHERE,
            "helm-release",
            "NAMESPACE/NAME",
            "The Helm release that installs, for the record on the Node.",
            parser=_release,
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
        bool, Option(WAITING, "ignore-pods", None, "Remove handlers even if pods run on them.")
    ] = False
    ignore_unread_config: Annotated[
        bool,
        Option(
            WHAT,
            "ignore-unread-config",
            None,
            "Install even if the runtime does not start with files that changed after its last start.",
        ),
    ] = False
    retry_refused: Annotated[
        bool,
        Option(
            WHAT,
            "retry-refused",
            None,
            "Try a configuration again that the container runtime of this node refused.",
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
    output: Annotated[Output, Option(OUTPUT, "output", None, "The format of the result on stdout.")] = (
        Output.TEXT
    )
    verbose: Annotated[
        bool,
        Option(OUTPUT, "verbose", None, "With a dry run: list every file, and show every diff in full."),
    ] = False
    quiet: Annotated[
        bool,
        Option(OUTPUT, "quiet", None, "Print only warnings and errors. The exit code tells the result."),
    ] = False
    log_level: Annotated[
        LogLevel,
        Option(
            OUTPUT,
            "log-level",
            "LEVEL",
            "The lowest severity to log on stderr: debug, info, warning or error.",
        ),
    ] = LogLevel.INFO
    reports: Annotated[
        Path | None,
        _path_option(
            OUTPUT,
            "reports",
            "DIR",
            "A directory that the containers of a node Job share, for Events about all its stages.",
        ),
    ] = None
    termination_log: Annotated[
        Path,
        _path_option(
            OUTPUT,
            "termination-log",
            "FILE",
            "The termination message of the pod. Written only if the file exists.",
        ),
    ] = DEFAULT_TERMINATION_LOG

    @property
    def effective_log_level(self) -> LogLevel:
        """The lowest severity that is logged: with ``--quiet`` at least warnings."""
        louder = self.log_level in (LogLevel.DEBUG, LogLevel.INFO)
        return LogLevel.WARNING if self.quiet and louder else self.log_level


LOGGING = ("output", "quiet", "log_level")
_INSTALLATION = (
    *("config", "config_digest", "installation_prefix", "multi_install_suffix", "k8s_distribution"),
    *("host_root", "offline", "runtime", "cri_socket", "node_name"),
)
_CHANGES = (
    *(
        "expected_machine_id",
        "helm_release",
        "lock_timeout",
        "restart_timeout",
        "wait_for_pods",
        "ignore_pods",
    ),
    *("label_timeout", "label_stable_for", "termination_log"),
)
_PLACING = ("user_drop_in", "payload", "payload_release", "shims", "ignore_unread_config", "retry_refused")
_PLANNING = ("dry_run", "verbose")
COMMAND_OPTIONS = {
    "install": (*_INSTALLATION, *_CHANGES, *LOGGING, *_PLACING, *_PLANNING),
    "revert": (*_INSTALLATION, *_CHANGES, *LOGGING, *_PLANNING),
    "plan": (
        *(*_INSTALLATION, *LOGGING, *_PLACING),
        *("verbose", "expected_machine_id", "helm_release", "lock_timeout"),
    ),
    "status": (*_INSTALLATION, *LOGGING),
    "stage": (*_INSTALLATION, *_CHANGES, *LOGGING, *_PLACING, *_PLANNING, "reports"),
    # It runs install and revert itself, and applies what they plan.
    "daemon": (*_INSTALLATION, *_CHANGES, "output", "log_level", *_PLACING),
    "wanted": ("offline", "node_name", "output", "log_level", "termination_log"),
    "verify": (*_INSTALLATION, "log_level"),
    "payload": LOGGING,
    "cluster": LOGGING,
    "values": LOGGING,
    "explain": ("output",),
    "completion": (),
}
"""The common options of each command, and of the commands of a group. :data:`LOGGING` is the default."""


DEFAULT_LISTEN = ":8090"
DEFAULT_DAEMONSET_TIMEOUT = 30.0

Listen = Annotated[
    str,
    Option(
        WHERE, "listen", "[HOST]:PORT", "The address for /healthz and /readyz. Without HOST: all addresses."
    ),
]
DaemonSet = Annotated[
    str, Option(WHERE, "daemonset", "NAMESPACE/NAME", "The DaemonSet of this pod.", show_default=False)
]
DaemonSetTimeout = Annotated[
    float, _seconds_option("daemonset-timeout", "How long to ask the API server for the DaemonSet.", least=1)
]
UnfitNodes = Annotated[
    UnfitPolicy,
    Option(
        OUTPUT,
        "unfit-nodes",
        "report|fail",
        "Whether the pod of a node that cannot run Kata is ready: report.",
    ),
]
DesiredState = Annotated[
    WantedState,
    Option(WHERE, "desired-state", "present|absent", "Whether the pod installs Kata or removes it."),
]
"""These options belong only to the commands that the pod of a DaemonSet runs."""

ONLINE_ONLY_OPTIONS = ("node_name", "cri_socket")
"""Options that cannot be combined with ``--offline``."""
