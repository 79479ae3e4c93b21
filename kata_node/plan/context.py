"""What is there: gathered from the host, the runtime and the payload. Decides nothing."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from kata_node.plan.actions import Clients
from kata_node.plan.receipt import Receipt
from kata_node.settings.model import Settings


@dataclass(frozen=True)
class Options:
    """How to work, as opposed to what is wanted. Times are in seconds."""

    payload: Path
    offline: bool = False
    runtime: str = ""
    """``containerd://2.1.9``: what the node runs, when it cannot or shall not be asked."""
    cri_socket: str = ""
    """Where the CRI is served, when it is not where the settings or the distribution have it."""
    restart_timeout: float = 120.0
    label_timeout: float = 300.0
    stable_for: float = 10.0
    wait_for_pods: float = 0.0
    """How long pods on handlers that are to be taken away are waited for."""
    ignore_pods: bool = False
    """Whether such handlers are taken away from pods that run on them."""
    node_name: str = ""
    expected_machine_id: str = ""
    has_host_root: bool = False
    """Whether ``host_root`` is the host's: a container that labels has nothing of it."""


@dataclass(frozen=True)
class StageContext:
    """All a stage needs to look at the node."""

    settings: Settings
    receipt: Receipt
    clients: Clients
    options: Options
    since: float = field(default_factory=time.monotonic)
    """When the stage began: a point of :func:`time.monotonic`."""
