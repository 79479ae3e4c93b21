"""Ask systemd and the CRI what the node's container runtime does now, and read its configuration."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from msgspec import Struct, field
from msgspec.structs import replace

from kata_node.errors import KataNodeError
from kata_node.host.journal import journal_command
from kata_node.plan.context import StageContext
from kata_node.runtime.config_selection import config_for
from kata_node.runtime.identify import find_distribution_runtime, find_unit
from kata_node.runtime.install_dirs import named_install_dirs
from kata_node.runtime.model.config import StartProblem
from kata_node.settings.model import DEFAULT_INSTANCE
from kata_node.status.model import RuntimeStatus
from kata_node.versions import ASSUMED_RUNTIME, Runtime, Version, parse_version

if TYPE_CHECKING:
    from kata_node.host.systemd import Unit
    from kata_node.plan.receipt import Receipt
    from kata_node.runtime.model.distributions import DistributionRuntime

CRI_TIMEOUT = 5.0  # seconds


class NodeRuntime(Struct, frozen=True):
    """The status of the runtime, with what belongs to it."""

    status: RuntimeStatus
    invocation: str = ""
    """That of the unit; empty if it is not known."""
    install_dirs: Mapping[str, bool] = field(default_factory=dict)
    """The install dirs that its configuration names, and whether kata-node wrote that. They may not exist."""


def ask(context: StageContext) -> NodeRuntime:
    """Return what the runtime does now, and which install dirs its configuration names."""
    offline = context.options.offline
    status, unit, unit_error = RuntimeStatus(offline=offline), None, None
    try:
        unit = None if offline else find_unit(context, for_revert=False)
    except KataNodeError as error:
        unit_error = error
    if unit is not None:
        status = replace(status, unit=unit.name, state=unit.active_state)
    distribution_runtime = find_distribution_runtime(context, unit, for_revert=True)
    if not offline:
        status = _ask_cri(context, status, distribution_runtime.socket, unit, unit_error)
    error_text, install_dirs = _read_config(context, status, distribution_runtime)
    status = replace(status, config_error=error_text)
    return NodeRuntime(status, unit.invocation_id if unit else "", install_dirs)


def _read_config(
    context: StageContext, status: RuntimeStatus, distribution_runtime: DistributionRuntime
) -> tuple[str, dict[str, bool]]:
    """Return why the runtime would not start with its configuration, and the install dirs in it."""
    receipt, root = context.receipt, context.clients.root
    suffix = "" if receipt.instance == DEFAULT_INSTANCE else receipt.instance
    runtime = Runtime(distribution_runtime.runtime, _version(status, receipt))
    install_dirs: dict[str, bool] = {}
    try:
        config = config_for(receipt, suffix, runtime, distribution_runtime)
        files = config.read_files(root.read, root.glob)
        install_dirs = named_install_dirs(files)
        problems = config.check(files, own_paths=(), handlers=(), labels={}, exists=root.exists)
    except KataNodeError as error:
        return _sentence(error), install_dirs
    fatal = [problem for problem in problems if isinstance(problem, StartProblem)]
    return f"correct the named file: {'; '.join(fatal)}" if fatal else "", install_dirs


def _version(status: RuntimeStatus, receipt: Receipt) -> Version:
    """Return the version that the CRI says; else that of the receipt, else an assumed one."""
    recorded = receipt.cri.version if receipt.cri else ""
    for text in (status.runtime.partition("://")[2], recorded):
        with contextlib.suppress(KataNodeError):
            return parse_version(text)
    return ASSUMED_RUNTIME.version


def _ask_cri(
    context: StageContext,
    status: RuntimeStatus,
    socket: str,
    unit: Unit | None,
    unit_error: KataNodeError | None,
) -> RuntimeStatus:
    cri = context.clients.cri(socket)
    try:
        served = cri.status(CRI_TIMEOUT).handlers
        version = cri.version(CRI_TIMEOUT)
    except KataNodeError as error:
        return _not_answering(status, error, unit, unit_error, context.receipt.cri is not None)
    return replace(
        status, served=served, runtime=_runtime_text(version.runtime_name, version.runtime_version)
    )


def _runtime_text(name: str, version: str) -> str:
    """Return the runtime as receipts name it; a version of an unknown form as it is."""
    with contextlib.suppress(KataNodeError):
        version = str(parse_version(version))
    return f"{name}://{version}"


def _not_answering(
    status: RuntimeStatus,
    error: KataNodeError,
    unit: Unit | None,
    unit_error: KataNodeError | None,
    is_recorded: bool,
) -> RuntimeStatus:
    """Return the status of a runtime whose CRI gave ``error``: whether it is down, and what to do then."""
    from kata_node.host.cri import Reason

    reason = getattr(error, "reason", None)
    place = f" ({error.where})" if error.where else ""
    status = replace(status, error=f"{error.what}{place}", remedy=error.hint)
    if reason is Reason.DENIED:
        return replace(status, remedy="run `kata-node status` as root")
    if unit is not None and unit.active_state not in ("active", "reloading"):
        return _down(status, unit)
    if reason is Reason.NO_CRI:
        return replace(status, is_down=True)
    if unit is not None and reason in (Reason.MISSING, Reason.REFUSED):
        remedy = f"name the socket on which {unit.name} listens: `kata-node status --cri-socket PATH`"
        return replace(status, remedy=remedy)
    if unit_error is not None:
        return replace(status, error=unit_error.what, remedy=unit_error.hint)
    if unit is None and is_recorded and reason in (Reason.MISSING, Reason.REFUSED):
        error_text = "systemd has no unit of a container runtime"
        return replace(status, error=error_text, remedy="install the container runtime again", is_down=True)
    return status


def _down(status: RuntimeStatus, unit: Unit) -> RuntimeStatus:
    result = f", {unit.result}" if unit.result not in ("", "success") else ""
    remedy = f"systemctl start {unit.name}"
    if unit.active_state == "activating":
        remedy = f"see why it does not become active: `{journal_command(unit.name)}`"
    elif unit.active_state == "failed":
        remedy = f"{remedy}; if it fails again, see why: `{journal_command(unit.name)}`"
    return replace(status, error=f"{unit.name} is {unit.active_state}{result}", remedy=remedy, is_down=True)


def _sentence(error: KataNodeError) -> str:
    place = f"{error.where}: " if error.where else ""
    return f"{place}{error.what}; {error.hint}" if error.hint else f"{place}{error.what}"
