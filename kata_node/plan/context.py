"""The input of a stage: settings, receipt, clients and options."""

from __future__ import annotations

import time
from pathlib import Path

from msgspec import Struct, field

from kata_node.kube.node import STABLE_FOR
from kata_node.plan.actions import Clients
from kata_node.plan.receipt import Receipt
from kata_node.plan.report import StageReport
from kata_node.settings.model import Settings


class Options(Struct, frozen=True):
    """How a run works, as opposed to the settings, which say what it installs. Times are in seconds."""

    payload: Path
    """The directory with the payload, or the archive of a release; not relative to the host root."""
    payload_release: str = ""
    """The release of a payload that does not name it."""
    payload_is_optional: bool = False
    """Whether a plan is made from the receipt alone if there is no payload."""
    offline: bool = False
    """Whether the run changes only files, and connects to neither systemd, CRI nor API server."""
    runtime: str = ""
    """The runtime and its version, as ``containerd://2.1.9``; if empty, the node is asked."""
    cri_socket: str = ""
    """The path of the CRI socket; if empty, that of the settings or the distribution."""
    restart_timeout: float = 120.0
    label_timeout: float = 300.0
    stable_for: float = STABLE_FOR
    wait_for_pods: float = 0.0
    """How long to wait for the end of pods on handlers that would be removed."""
    ignore_pods: bool = False
    """Whether to remove handlers after that time although pods run on them."""
    ignore_unread_config: bool = False
    """Whether to install although the runtime does not start with files that it has not read yet."""
    retry_refused: bool = False
    """Whether to try a configuration again that the runtime of this node refused."""
    node_name: str = ""
    expected_machine_id: str = ""
    helm_release: str = ""
    """The release that installs, as ``NAMESPACE/NAME``; empty for a run by hand."""
    settings_digest: str = ""
    """The sha256 of all settings, also of those that a stage leaves out on this node."""
    reports: Path | None = None
    """The directory in which the containers of a node Job share the reports of their stages."""
    has_host_root: bool = False
    """Whether the node's root directory is mounted; the container that sets labels does not have it."""


class StageContext(Struct, frozen=True):
    """Everything a stage needs to gather its facts."""

    settings: Settings
    receipt: Receipt
    clients: Clients
    options: Options
    since: float = field(default_factory=time.monotonic)
    """The start of the stage, from :func:`time.monotonic`."""
    earlier: tuple[StageReport, ...] = ()
    """The reports of the stages that ran before this one in the same process."""
    plans_again: bool = False
    """Whether the facts are for a later plan of the same stage, which proves its changes or replaces an
    outdated plan. If the last answer of the API server has the Node, it is not read again."""
    is_dry_run: bool = False
    """Whether the plan is only shown."""
