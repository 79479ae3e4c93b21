"""Which CRI runtime the node has, how it is configured, and what it serves."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from kata_node.errors import CriError, IneligibleNodeError, KataNodeError
from kata_node.host import kernel
from kata_node.host.files import FileState, missing_dirs
from kata_node.plan import receipt as receipts
from kata_node.plan.context import StageContext
from kata_node.plan.receipt import Receipt, dirs_of_other_installations
from kata_node.runtime.config_selection import config_for, with_configured_paths, without_unread_drop_ins
from kata_node.runtime.containerd.config import config_path
from kata_node.runtime.model import distributions
from kata_node.runtime.model.config import CriConfig, own_paths
from kata_node.runtime.model.distributions import (
    DISTRIBUTION_RUNTIMES,
    DistributionRuntime,
    wrong_distribution_error,
)
from kata_node.settings.handlers import handler_names
from kata_node.snapshotters.facts import gather_nydus_facts
from kata_node.snapshotters.nydus import NydusFacts
from kata_node.versions import ASSUMED_RUNTIME, Runtime, parse_version, runtime_version, version_from_files

if TYPE_CHECKING:
    from kata_node.host.cri_sandboxes import Pod
    from kata_node.host.systemd import Unit

CALL_TIMEOUT = 10.0  # seconds for one question to a runtime that is up
LIST_TIMEOUT = 30.0  # seconds to hear of all pods of a node, hundreds at most


@dataclass(frozen=True)
class RuntimeFacts:
    """The CRI runtime as it is. Of an offline root, only what its files tell."""

    runtime: Runtime
    runtime_source: str
    """Who says so: ``the CRI socket``, ``--runtime``, …"""
    distribution_runtime: DistributionRuntime
    """The distribution's way to keep it, at the places where it is here."""
    config: CriConfig
    """How this instance configures it."""
    files: Mapping[str, FileState] = field(repr=False)
    """Every configuration file that the runtime reads, and every one this instance could have."""
    backups: Mapping[str, bytes] = field(repr=False)
    """The content of the receipt's backups, by digest; without those that are lost or damaged."""
    missing_dirs: tuple[str, ...]
    """Directories a configuration file of ours would need that are not there."""
    foreign_dirs: frozenset[str] = frozenset()
    """Directories that other instances made."""
    unit: str = ""
    """Empty when there is none, and offline, as is ``invocation``."""
    invocation: str = ""
    state: str = ""
    """The unit's ActiveState."""
    boot: str = ""
    handlers: tuple[str, ...] | None = None
    """What the CRI serves; ``None`` when it does not answer, or was not asked."""
    timeout: float = 120.0
    offline: bool = False
    configured_path: str = ""
    """The main file by the unit's command line; empty where that tells none."""
    pods: tuple[Pod, ...] | None = ()
    """Those that run on handlers of ours which may be taken away; ``None`` when nobody could tell."""
    nydus: NydusFacts | None = None
    """The nydus-snapshotter of this instance; ``None`` where the runtime has no snapshotters."""
    other_writers: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """By a file's path and the digest of what another instance wrote there last: which one."""

    @property
    def contents(self) -> dict[str, bytes]:
        """What the files hold, by path."""
        return {path: state.content for path, state in self.files.items()}

    @property
    def config_path(self) -> str:
        """The runtime's main configuration file."""
        return self.config.main_path


def look(context: StageContext) -> RuntimeFacts:
    """Ask the CRI and systemd; offline, ``--runtime`` and the root's own files.

    Raises :class:`UnfitNodeError` or :class:`CriError` when nothing tells which runtime this is, or
    when it does not answer though no unfinished run of ours could have caused that.
    """
    return _look(context, for_revert=False)


def look_for_revert(context: StageContext) -> RuntimeFacts:
    """The same for the way back, which the record alone must suffice for: the runtime may be down."""
    return _look(context, for_revert=True)


def _look(context: StageContext, *, for_revert: bool) -> RuntimeFacts:
    options, root, receipt = context.options, context.clients.root, context.receipt
    unit = None if options.offline else find_unit(context, for_revert=for_revert)
    distribution_runtime = find_distribution_runtime(context, unit, for_revert=for_revert)
    try:
        runtime, runtime_source = (
            _runtime_for_revert(context, distribution_runtime)
            if for_revert
            else identify_runtime(context, distribution_runtime)
        )
    except CriError as error:
        # A container that was made for another distribution does not see the socket of this one.
        if other := wrong_distribution_error(
            context.settings, distribution_runtime, unit.name if unit else ""
        ):
            raise other from error
        raise
    if runtime.name != distribution_runtime.runtime:
        # What answers is not what the unit found runs: no restart of that one is of use.
        unit, socket = None, options.cri_socket
        distribution_runtime = distributions.distribution_runtime(
            distribution_runtime.distribution, runtime.name
        )
        distribution_runtime = (
            replace(distribution_runtime, socket=socket) if socket else distribution_runtime
        )
    if distribution_runtime.distribution == "k0s":
        distribution_runtime = without_unread_drop_ins(
            distribution_runtime, root.read(distribution_runtime.config)
        )
    config = config_for(receipt, context.settings.suffix, runtime, distribution_runtime)
    own = own_paths(config)
    paths = {
        *config.read_files(root.read, root.glob),
        *own,
        *config.shared_paths(),
        *(receipt.cri.paths() if receipt.cri else ()),
    }
    states = {path: root.read_state(path) for path in sorted(paths)}
    served_now, cri_error = (
        (None, None)
        if options.offline
        else _served_handlers(context, distribution_runtime, may_be_down=for_revert)
    )
    is_active = unit is not None and unit.active_state == "active"
    existing = {path: state for path, state in states.items() if state is not None}
    handlers_to_remove = _handlers_to_remove(
        context, config, own, existing, served_now, for_revert=for_revert
    )
    return RuntimeFacts(
        runtime,
        runtime_source,
        distribution_runtime,
        config,
        existing,
        _backups(context, receipt),
        tuple(dict.fromkeys(d for path in own for d in missing_dirs(root, path.rpartition("/")[0]))),
        dirs_of_other_installations(root, receipt.install_dir),
        unit.name if unit else "",
        unit.invocation_id if unit else "",
        unit.active_state if unit else "",
        kernel.boot_id(),
        served_now,
        options.restart_timeout,
        options.offline,
        _configured_path(unit),
        ()
        if options.offline
        else _blocking_pods(
            context, distribution_runtime, handlers_to_remove, served_now, cri_error if is_active else None
        ),
        gather_nydus_facts(context, distribution_runtime.units) if runtime.name == "containerd" else None,
        {
            (file.path, file.after): other.instance
            for other in receipts.other_receipts(root, receipt.install_dir)
            for file in (other.cri.files if other.cri else ())
        },
    )


def _configured_path(unit: Unit | None) -> str:
    distribution_runtime = distributions.distribution_runtime_of_unit(unit.name) if unit else None
    if unit is None or distribution_runtime is None or not distribution_runtime.config_from_argv:
        return ""
    return config_path(unit.argv, distribution_runtime.config)


def find_unit(context: StageContext, *, for_revert: bool) -> Unit | None:
    """The unit that runs the CRI: the one that is up, or that the record of an unfinished run names.

    Raises :class:`UnfitNodeError` when several are up and nothing tells which one the kubelet uses.
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
        # Another runtime never read what is to be taken back, and has no part in it.
        units = {name: unit for name, unit in units.items() if _unit_runs(unit, recorded.runtime)}
    own = {name: unit for name, unit in units.items() if not _uses_external_runtime(unit)}
    found = {name for name, unit in own.items() if unit.active_state not in ("inactive", "failed")}
    candidates = distributions.distribution_runtimes_of_units(found or own)
    socket = _normalized_socket(context.options.cri_socket or context.settings.containerd.runtime_socket)
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
            "several container runtimes are up: " + ", ".join(unit_names),
            hint="tell which one the kubelet uses with --cri-socket, or stop the other",
        )
    return units[unit_names[0]] if unit_names else None


def _normalized_socket(socket: str) -> str:
    """The path with ``/run`` where it is written as ``/var/run``, which everywhere leads there."""
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


def find_distribution_runtime(
    context: StageContext, unit: Unit | None, *, for_revert: bool
) -> DistributionRuntime:
    """Where the runtime of ``unit`` keeps its things; without one, as the settings and the record have it."""
    options, containerd = context.options, context.settings.containerd
    distribution_runtime = distributions.distribution_runtime_of_unit(unit.name) if unit is not None else None
    if distribution_runtime is not None and unit is not None:
        distribution_runtime = with_configured_paths(distribution_runtime, containerd, unit.argv)
    else:
        recorded = context.receipt.cri
        name = runtime_version(options.runtime).name if options.runtime else "containerd"
        if recorded is not None and (for_revert or not options.runtime):
            name = recorded.runtime
        distribution_runtime = with_configured_paths(
            distributions.distribution_runtime(context.settings.distribution, name), containerd, ()
        )
    return (
        replace(distribution_runtime, socket=options.cri_socket)
        if options.cri_socket
        else distribution_runtime
    )


def identify_runtime(context: StageContext, distribution_runtime: DistributionRuntime) -> tuple[Runtime, str]:
    """The runtime, and who told: flag, running CRI, receipt, files, in this order."""
    options, recorded = context.options, context.receipt.cri
    if options.runtime:
        return runtime_version(options.runtime), "--runtime"
    if options.offline:
        return _runtime_from_files(context, distribution_runtime)
    try:
        answer = context.clients.cri(distribution_runtime.socket).version(CALL_TIMEOUT)
    except CriError as error:
        recorded_runtime = _recorded_runtime(context)
        if recorded_runtime is None or recorded is None:
            raise
        if recorded.state == "serving":
            raise CriError(
                error.what,
                where=error.where,
                hint=f"{error.hint}; if it is another release since it was configured as "
                f"{recorded_runtime[0]}, run kata-node revert, and then install again",
            ) from error
        # A run that was killed may have left it down; then this one is here to get it up again.
        return recorded_runtime
    version = parse_version(answer.runtime_version, where=distribution_runtime.socket)
    return Runtime(answer.runtime_name, version), "the CRI socket"


def _runtime_from_files(
    context: StageContext, distribution_runtime: DistributionRuntime
) -> tuple[Runtime, str]:
    root = context.clients.root
    dpkg = root.read("/var/lib/dpkg/status")
    if version := version_from_files(dpkg, None):
        return Runtime("containerd", version), "its package"
    # Before the configuration, which may be of our own making.
    if recorded_runtime := _recorded_runtime(context):
        return recorded_runtime
    if version := version_from_files(dpkg, root.read(distribution_runtime.config)):
        return Runtime("containerd", version), "its configuration"
    raise IneligibleNodeError(
        "no file here tells which container runtime the node will run",
        where=str(root.base),
        hint="name it: --runtime containerd://2.1.9",
    )


def _runtime_for_revert(
    context: StageContext, distribution_runtime: DistributionRuntime
) -> tuple[Runtime, str]:
    """For the way back: what is taken away is known by name, and the runtime may be down.

    One that is up tells its version, by which the rest of its configuration is judged.
    """
    recorded_runtime = _recorded_runtime(context)
    try:
        found = identify_runtime(context, distribution_runtime)
    except KataNodeError:
        return recorded_runtime or (ASSUMED_RUNTIME, "nobody")
    return recorded_runtime if recorded_runtime and found[0].name != recorded_runtime[0].name else found


def _recorded_runtime(context: StageContext) -> tuple[Runtime, str] | None:
    cri = context.receipt.cri
    return (Runtime(cri.runtime, parse_version(cri.version)), "the receipt") if cri else None


def _served_handlers(
    context: StageContext, distribution_runtime: DistributionRuntime, *, may_be_down: bool
) -> tuple[tuple[str, ...] | None, CriError | None]:
    """What is served; or ``None`` and why that cannot be told, where the runtime may be down."""
    recorded = context.receipt.cri
    try:
        return context.clients.cri(distribution_runtime.socket).status(CALL_TIMEOUT).handlers, None
    except CriError as error:
        if may_be_down or (recorded is not None and recorded.state != "serving"):
            return None, error
        raise


def _handlers_to_remove(
    context: StageContext,
    config: CriConfig,
    own: tuple[str, ...],
    files: Mapping[str, FileState],
    served_now: tuple[str, ...] | None,
    *,
    for_revert: bool,
) -> frozenset[str]:
    """The handlers that this stage may take away, of those that are served."""
    recorded, wanted = context.receipt.cri, set(handler_names(context.settings))
    if recorded is not None:
        loaded = set(recorded.possibly_loaded_handlers)
    elif for_revert:  # the record is lost, and the settings need not be those of the install
        loaded = set(served_now or ())
    else:
        loaded = set(config.defined_handlers({path: files[path].content for path in own if path in files}))
    return frozenset((loaded if for_revert else loaded - wanted) & set(served_now or ()))


def _blocking_pods(
    context: StageContext,
    distribution_runtime: DistributionRuntime,
    handlers_to_remove: frozenset[str],
    served_now: tuple[str, ...] | None,
    cri_error: CriError | None,
) -> tuple[Pod, ...] | None:
    """The runtime is asked only where a handler is served that this stage may take away.

    ``silence`` is why a runtime that is up does not tell. One without a CRI has no pods that could be
    ended through it; of any other it has to be feared that it has.
    """
    if served_now is not None and not handlers_to_remove:
        return ()
    if served_now is None and (cri_error is None or _has_no_cri(cri_error)):
        return None
    try:
        if cri_error is not None:
            raise cri_error
        running = context.clients.cri(distribution_runtime.socket).pods(
            distribution_runtime.runtime, LIST_TIMEOUT
        )
    except CriError as error:
        if context.options.ignore_pods:
            return None
        hint = f"{error.hint}; or go on whatever runs with --ignore-pods"
        raise CriError(error.what, where=error.where, hint=hint) from error
    return tuple(pod for pod in running if pod.handler in handlers_to_remove)


def _has_no_cri(error: CriError) -> bool:
    from kata_node.host.cri import CriCallError, Reason

    return isinstance(error, CriCallError) and error.reason is Reason.NO_CRI


def _backups(context: StageContext, receipt: Receipt) -> dict[str, bytes]:
    digests = {backup.sha256 for backup in receipt.cri.backups()} if receipt.cri else set()
    found = {
        digest: context.clients.root.read(receipts.backup_path(receipt.install_dir, digest))
        for digest in digests
    }
    return {
        digest: content
        for digest, content in found.items()
        if content is not None and hashlib.sha256(content).hexdigest() == digest
    }
