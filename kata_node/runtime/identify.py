"""Find the unit that runs the container runtime, its distribution, and its version."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from kata_node.errors import CriError, IneligibleNodeError, KataNodeError, UsageError
from kata_node.plan.context import StageContext
from kata_node.runtime.config_selection import with_configured_paths
from kata_node.runtime.configured_paths import ConfiguredPaths, configured_paths, unknown_error
from kata_node.runtime.model import distributions
from kata_node.runtime.model.distributions import (
    DISTRIBUTION_RUNTIMES,
    DistributionRuntime,
)
from kata_node.versions import ASSUMED_RUNTIME, Runtime, parse_version, runtime_version, version_from_files

if TYPE_CHECKING:
    from kata_node.host.systemd import Unit

CALL_TIMEOUT = 10.0  # seconds for one call of a running runtime


def find_unit(context: StageContext, *, for_revert: bool) -> Unit | None:
    """Return the unit of the container runtime: the running one, or the recorded one of an unfinished run.

    Raises :class:`IneligibleNodeError` when several runtimes run and no setting names the kubelet's socket.
    """
    systemd, recorded = context.clients.systemd(), context.receipt.cri
    known = (
        systemd.unit(name)
        for distribution_runtime in DISTRIBUTION_RUNTIMES
        for name in distribution_runtime.units
    )
    units = {unit.name: unit for unit in known if unit is not None}
    if recorded is not None and recorded.unit in units and (for_revert or recorded.state != "serving"):
        return units[recorded.unit]
    if recorded is not None and for_revert:
        # Another runtime never read the files that a revert restores.
        units = {name: unit for name, unit in units.items() if _unit_runs(unit, recorded.runtime)}
    own = {name: unit for name, unit in units.items() if not _uses_external_runtime(unit)}
    found = {name for name, unit in own.items() if unit.active_state not in ("inactive", "failed")}
    candidates = distributions.distribution_runtimes_of_units(found or own)
    socket = context.options.cri_socket or context.settings.containerd.runtime_socket
    if not socket and for_revert:
        socket = context.receipt.socket
    socket = _normalized_socket(socket)
    candidates = (
        tuple(
            distribution_runtime
            for distribution_runtime in candidates
            if distribution_runtime.socket == socket
        )
        or candidates
    )
    unit_names = [
        name
        for distribution_runtime in candidates
        for name in distribution_runtime.units
        if name in (found or own)
    ]
    if found and len(candidates) > 1:
        raise IneligibleNodeError(
            "several container runtimes are running: " + ", ".join(unit_names),
            hint="name the socket that the kubelet uses with --cri-socket, or stop the other runtime",
        )
    return units[unit_names[0]] if unit_names else None


def _normalized_socket(socket: str) -> str:
    """Return the path with ``/run`` instead of ``/var/run``, which is a link to it."""
    return socket.removeprefix("/var") if socket.startswith("/var/run/") else socket


def _unit_runs(unit: Unit, runtime: str) -> bool:
    distribution_runtime = distributions.distribution_runtime_of_unit(unit.name)
    return distribution_runtime is not None and distribution_runtime.runtime == runtime


def _uses_external_runtime(unit: Unit) -> bool:
    distribution_runtime = distributions.distribution_runtime_of_unit(unit.name)
    return (
        distribution_runtime is not None
        and distributions.external_runtime_option(distribution_runtime, unit.argv) != ""
    )


def find_configured_paths(context: StageContext, unit: Unit | None) -> ConfiguredPaths:
    """Return the files that the runtime of ``unit`` reads; empty paths if there is no unit."""
    distribution_runtime = distributions.distribution_runtime_of_unit(unit.name) if unit is not None else None
    if unit is None or distribution_runtime is None:
        return ConfiguredPaths()
    return configured_paths(context, unit, distribution_runtime)


def find_distribution_runtime(
    context: StageContext, unit: Unit | None, told: ConfiguredPaths | None = None, *, for_revert: bool
) -> DistributionRuntime:
    """Return how the distribution runs the runtime of ``unit``; without a unit, by settings and receipt.

    ``told`` is the result of :func:`find_configured_paths`. Raises :class:`IneligibleNodeError` if it has no
    main file, and neither the settings nor the receipt name one.
    """
    options, containerd, recorded = context.options, context.settings.containerd, context.receipt.cri
    distribution_runtime = distributions.distribution_runtime_of_unit(unit.name) if unit is not None else None
    if distribution_runtime is not None and unit is not None:
        told = find_configured_paths(context, unit) if told is None else told
        if told.unknown and not (containerd.config_dir or containerd.config_file_name):
            if recorded is not None and recorded.unit == unit.name and recorded.config:
                told = ConfiguredPaths(recorded.config, recorded.drop_in_dir)
            elif not for_revert:
                raise unknown_error(unit, distribution_runtime, told.unknown)
        distribution_runtime = with_configured_paths(distribution_runtime, containerd, told)
    else:
        name = runtime_version(options.runtime).name if options.runtime else "containerd"
        if recorded is not None and (for_revert or not options.runtime):
            name = recorded.runtime
        distribution_runtime = with_configured_paths(
            distributions.distribution_runtime(context.settings.distribution, name),
            containerd,
            ConfiguredPaths(),
        )
    socket = options.cri_socket
    if not socket and for_revert and not containerd.runtime_socket:
        socket = context.receipt.socket
    return replace(distribution_runtime, socket=socket) if socket else distribution_runtime


def identify_runtime(
    context: StageContext, distribution_runtime: DistributionRuntime, unit: Unit | None = None
) -> tuple[Runtime, str]:
    """Return the runtime, and the source of that fact: flag, running CRI, receipt or files, in this order.

    ``unit`` is the unit of the runtime: while it runs, a socket that nobody serves is a wrong path.
    Raises :class:`CriError` when the runtime does not answer and no unfinished run is recorded, and
    :class:`UsageError` when the files of an offline root do not show the runtime.
    """
    options, recorded = context.options, context.receipt.cri
    if options.runtime:
        return runtime_version(options.runtime), "--runtime"
    if options.offline:
        return _runtime_from_files(context, distribution_runtime)
    try:
        answer = context.clients.cri(distribution_runtime.socket).version(CALL_TIMEOUT)
    except CriError as error:
        from_receipt = recorded_runtime(context)
        hint = _socket_hint(error, unit) or error.hint
        if from_receipt is not None and recorded is not None:
            if recorded.state != "serving":
                # A killed run may have left the runtime down. This run then starts it again.
                return from_receipt
            hint += (
                f"; if the runtime is no longer {from_receipt[0]}, for which it was configured, run "
                "`kata-node revert` and then `kata-node install`"
            )
        raise CriError(error.what, where=error.where, hint=hint) from error
    version = parse_version(answer.runtime_version, where=distribution_runtime.socket)
    return Runtime(answer.runtime_name, version), "the CRI socket"


def _socket_hint(error: CriError, unit: Unit | None) -> str:
    from kata_node.host.cri import CriCallError, Reason

    if not isinstance(error, CriCallError) or error.reason not in (Reason.MISSING, Reason.REFUSED):
        return ""
    if unit is None or unit.active_state != "active":
        return ""
    return (
        f"{unit.name} runs: name the socket on which it listens with --cri-socket, or with "
        "containerd.runtimeSocket; in a container, mount the directory of that socket"
    )


def _runtime_from_files(
    context: StageContext, distribution_runtime: DistributionRuntime
) -> tuple[Runtime, str]:
    root = context.clients.root
    dpkg = root.read("/var/lib/dpkg/status")
    if version := version_from_files(dpkg, None):
        return Runtime("containerd", version), "its package"
    # The receipt comes before the configuration, which kata-node may have written.
    if from_receipt := recorded_runtime(context):
        return from_receipt
    if version := version_from_files(dpkg, root.read(distribution_runtime.config)):
        return Runtime("containerd", version), "its configuration"
    raise UsageError(
        "the files of this root do not show which container runtime the node will run",
        where=str(root.base),
        hint="name the runtime, for example --runtime containerd://2.1.9",
    )


def runtime_for_revert(
    context: StageContext, distribution_runtime: DistributionRuntime
) -> tuple[Runtime, str]:
    """Return the runtime, and the source of that fact, for a revert.

    A running runtime answers with its version, which decides how its other files are checked. If it is down
    or another runtime answers, the receipt is used.
    """
    from_receipt = recorded_runtime(context)
    try:
        found = identify_runtime(context, distribution_runtime)
    except KataNodeError:
        return from_receipt or (ASSUMED_RUNTIME, "an assumption")
    return from_receipt if from_receipt and found[0].name != from_receipt[0].name else found


def recorded_runtime(context: StageContext) -> tuple[Runtime, str] | None:
    """Return the runtime that the receipt records, with its source, if it records one."""
    cri = context.receipt.cri
    return (Runtime(cri.runtime, parse_version(cri.version)), "the receipt") if cri else None
