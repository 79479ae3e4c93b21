"""The command ``verify``, which the daemon runs when something on the node has changed."""

from __future__ import annotations

import contextlib
import logging
import os
from typing import TYPE_CHECKING

from msgspec.structs import replace

from kata_node import __version__
from kata_node.cli.context import open_tools, options_of, settings_of
from kata_node.cli.options import Common
from kata_node.cli.output import print_json_result
from kata_node.errors import HostError, KataNodeError

if TYPE_CHECKING:
    from kata_node.host.files import Root
    from kata_node.plan.actions import Clients
    from kata_node.plan.context import Options
    from kata_node.plan.receipt import Receipt
    from kata_node.settings.model import Settings
    from kata_node.status.model import InstallationStatus, NodeStatus

LABEL_TIMEOUT = 15.0
"""Seconds for the labels. The repair that follows sets them too."""

SHIM = "containerd-shim-kata-v2"

log = logging.getLogger(__name__)


def verify(common: Common) -> int:
    """Print whether the installation is served, and withdraw its labels if it is not. Return 0."""
    from kata_node.plan import receipt as receipts
    from kata_node.status.gather import gather

    with open_tools(common) as clients:
        settings, options = settings_of(common), options_of(common)
        # It asks the API server only if labels must change.
        found = gather(settings, replace(options, node_name=""), clients, deep=False)
        own = next((each for each in found.installations if each.install_dir == settings.install_dir), None)
        state, reason = state_of(own, found)
        recorded = None
        with contextlib.suppress(KataNodeError):
            recorded = receipts.load(clients.root, settings.install_dir)
        if state == "not served":
            _withdraw(settings, options, clients, reason)
        paths = watched_paths(clients.root, settings.install_dir, recorded)
    print_json_result({"outcome": "ok", "state": state, "reason": reason, "watch": paths})
    return 0


def state_of(own: InstallationStatus | None, node: NodeStatus) -> tuple[str, str]:
    """Return ``served``, ``changed``, ``not served`` or ``unknown``, and the reason.

    ``changed``: something differs from the record, and the runtime still serves every handler. While another
    run works on the node, what is wrong says nothing.
    """
    if own is None:
        return "not served", "it is not installed"
    if own.verdict == "healthy" or (own.verdict == "unknown" and node.runtime.offline):
        return "served", ""
    reason = "; ".join(own.reasons)
    if node.run_in_progress or own.verdict == "unknown":
        return "unknown", reason
    served = node.runtime.served
    lost = served is None or not own.handlers or not {*own.handlers} <= {*served}
    programs = [each for each in own.drift if each.endswith(f"/{SHIM}: missing")]
    return ("not served" if own.error or lost or programs else "changed"), reason


def watched_paths(root: Root, install_dir: str, receipt: Receipt | None) -> list[str]:
    """Return the files, as this process sees them, that change when the installation does.

    They are the receipt, the runtime's configuration, the shims, and the socket, which a restart makes anew.
    """
    from kata_node.plan import receipt as receipts

    paths = [receipts.path(install_dir)]
    if receipt is not None:
        paths += [receipt.socket] if receipt.socket else []
        if receipt.cri is not None:
            paths += [*receipt.cri.paths(), *([receipt.cri.config] if receipt.cri.config else [])]
        files = receipt.artifacts.files if receipt.artifacts else {}
        paths += [f"{install_dir}/{each}" for each in files if each.rpartition("/")[2] == SHIM]
    found = []
    for path in dict.fromkeys(paths):
        with contextlib.suppress(HostError):
            found.append(str(root.resolve(path)))
    return found


def _withdraw(settings: Settings, options: Options, clients: Clients, reason: str) -> None:
    """Withdraw the labels, and record the Event. A failure is only logged: the repair tries it again."""
    from kata_node.cluster.events import EventRecorder
    from kata_node.cluster.labelling import withdraw_not_served
    from kata_node.plan.context import StageContext
    from kata_node.plan.receipt import Receipt

    receipt = Receipt(settings.instance, settings.install_dir, __version__)
    options = replace(options, label_timeout=LABEL_TIMEOUT, settings_digest=settings.digest())
    report = withdraw_not_served(StageContext(settings, receipt, clients, options), reason)
    if report is not None:
        recorder = EventRecorder(clients, options.node_name, settings.instance, os.uname().nodename)
        recorder.add(report)
