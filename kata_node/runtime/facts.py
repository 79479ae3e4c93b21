"""Gather the facts of the node's container runtime: which it is, its files, and the handlers it serves."""

from __future__ import annotations

import hashlib
import logging
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from msgspec import Struct, field
from msgspec.structs import replace

from kata_node.errors import CriError
from kata_node.host import kernel, reserve
from kata_node.host.files import FileState, missing_dirs
from kata_node.plan import receipt as receipts
from kata_node.plan import refusal as refusals
from kata_node.plan.context import StageContext
from kata_node.plan.receipt import Receipt, dirs_of_other_installations
from kata_node.runtime.config_selection import config_for, without_unread_drop_ins
from kata_node.runtime.configured_paths import ConfiguredPaths, command_search_path
from kata_node.runtime.containerd.config import ContainerdConfig
from kata_node.runtime.containerd.managed_block import dangling_imports
from kata_node.runtime.defined_handlers import linked_handlers, own_handlers
from kata_node.runtime.identify import (
    CALL_TIMEOUT,
    find_configured_paths,
    find_distribution_runtime,
    find_unit,
    identify_runtime,
    runtime_for_revert,
)
from kata_node.runtime.model import distributions
from kata_node.runtime.model.config import CriConfig, own_paths
from kata_node.runtime.model.distributions import (
    NO_SCHEMA,
    DistributionRuntime,
    wrong_distribution_error,
)
from kata_node.runtime.recorded_paths import require_known_paths
from kata_node.runtime.served_programs import SEARCH_PATH, handlers_below
from kata_node.settings.handlers import handler_names
from kata_node.snapshotters.facts import gather_nydus_facts
from kata_node.snapshotters.nydus import NydusFacts
from kata_node.versions import Runtime

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from kata_node.host.cri_sandboxes import Pod
    from kata_node.plan.refusal import Refusal
    from kata_node.settings.model import Settings

LIST_TIMEOUT = 30.0  # seconds to list the pods of a node, at most some hundreds


class RuntimeFacts(Struct, frozen=True):
    """The state of the container runtime. Offline, only what the files of the root show."""

    runtime: Runtime
    runtime_source: str
    """Where name and version come from: ``the CRI socket``, ``--runtime``, ``the receipt`` …"""
    distribution_runtime: DistributionRuntime
    """How the distribution runs it, with the paths and the socket of this node."""
    config: CriConfig
    """How this installation configures it."""
    files: Mapping[str, FileState]
    """By path: the files that the runtime reads, and those that this installation has or may have written."""
    backups: Mapping[str, bytes]
    """The content of the receipt's backups, by sha256; without missing and damaged ones."""
    missing_dirs: tuple[str, ...]
    """Missing directories that our drop-ins need."""
    foreign_dirs: frozenset[str] = frozenset()
    """Directories that other installations made."""
    unit: str = ""
    """Name of the systemd unit. Empty, like ``invocation``, when there is none and offline."""
    invocation: str = ""
    state: str = ""
    """The unit's ActiveState."""
    boot: str = ""
    handlers: tuple[str, ...] | None = None
    """The handlers that the CRI serves; ``None`` when it did not answer, and offline."""
    timeout: float = 120.0
    """Seconds for a restart of the runtime."""
    offline: bool = False
    configured_path: str = ""
    """The main file that the runtime reads; empty if that is not known, or no command line decides it."""
    pods: tuple[Pod, ...] | None = ()
    """Pods on our handlers that this stage may remove; ``None`` when the runtime cannot list them."""
    nydus: NydusFacts | None = None
    """The nydus-snapshotter of this installation; ``None`` for a runtime without snapshotters."""
    own_served: frozenset[str] = frozenset()
    """Handlers that the CRI serves with programs below the install dir. Only for a revert."""
    linked: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """By path of a file: its handlers that reach the install dir only by a link, with that link. Only for a
    revert."""
    search_path: tuple[str, ...] = SEARCH_PATH
    """The directories in which the runtime looks for programs."""
    reserves: tuple[str, ...] = ()
    """Files that an interrupted run left a reserve of (see ``host.reserve``)."""
    other_writers: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """(path, sha256 of the content that another installation last wrote there) -> its name."""
    has_state_dir: bool = False
    """Whether the install dir has the directory of a receipt, even if the receipt is lost."""
    refusal: Refusal | None = None
    """The configuration that this node's runtime refused last. Only for an install."""
    settings: Settings | None = None
    """The settings without the shims that this node cannot serve; ``None`` if it can serve all."""

    @property
    def contents(self) -> dict[str, bytes]:
        """The content of the files, by path."""
        return {path: state.content for path, state in self.files.items()}

    @property
    def own_handlers(self) -> frozenset[str]:
        """The handlers that need the install dir: those in any file, and those that the CRI serves."""
        return self.own_served.union(own_handlers(self.config, self.contents))

    @property
    def config_path(self) -> str:
        """The runtime's main file."""
        return self.config.main_path

    @property
    def drop_in_dir(self) -> str:
        """The directory of CRI-O's drop-ins; empty for containerd, where the main file decides it."""
        return self.distribution_runtime.drop_in_dirs.get(NO_SCHEMA, "")


def gather_facts(context: StageContext) -> RuntimeFacts:
    """Return the facts from the CRI and systemd; offline, from ``--runtime`` and the files of the root.

    Raises :class:`IneligibleNodeError` or :class:`CriError` when the runtime cannot be identified, or when
    it does not answer and no interrupted run explains that.
    """
    return _gather_facts(context, for_revert=False)


def gather_facts_for_revert(context: StageContext) -> RuntimeFacts:
    """Return the facts for a revert. The receipt is enough; the runtime may be down."""
    return _gather_facts(context, for_revert=True)


def _gather_facts(context: StageContext, *, for_revert: bool) -> RuntimeFacts:
    options, root, receipt = context.options, context.clients.root, context.receipt
    unit = None if options.offline else find_unit(context, for_revert=for_revert)
    told = find_configured_paths(context, unit)
    distribution_runtime = find_distribution_runtime(context, unit, told, for_revert=for_revert)
    try:
        runtime, runtime_source = (
            runtime_for_revert(context, distribution_runtime)
            if for_revert
            else identify_runtime(context, distribution_runtime, unit)
        )
    except CriError as error:
        # A container started for another distribution does not see this distribution's socket.
        if other := wrong_distribution_error(
            context.settings, distribution_runtime, unit.name if unit else ""
        ):
            raise other from error
        raise
    if runtime.name != distribution_runtime.runtime:
        # Another runtime answers than the one of the unit, so restarting this unit has no effect.
        unit, told, socket = None, ConfiguredPaths(), options.cri_socket
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
    require_known_paths(root, receipt, config)
    own = own_paths(config)
    paths = {
        *config.read_files(root.read, root.glob),
        *own,
        *config.shared_paths(),
        *(receipt.cri.paths() if receipt.cri else ()),
    }
    states = {path: root.read_state(path) for path in sorted(paths)}
    changeable = {*own, *config.shared_paths(), *(receipt.cri.paths() if receipt.cri else ())}
    reserves = {path: kept for path in sorted(changeable) if (kept := reserve.read(root, path))}
    served_now, cri_error = (
        (None, None)
        if options.offline
        else _served_handlers(context, distribution_runtime, may_be_down=for_revert)
    )
    log.debug(
        "the runtime is %s, as %s tells; unit %s, main file %s, socket %s, served handlers: %s",
        *(runtime, runtime_source, unit.name if unit else "none", config.main_path),
        *(
            distribution_runtime.socket,
            "not known" if served_now is None else ", ".join(served_now) or "none",
        ),
    )
    for path, state in states.items():
        log.debug("read %s: %s", path, "missing" if state is None else f"{len(state.content)} bytes")
    is_active = unit is not None and unit.active_state == "active"
    existing = {path: state for path, state in states.items() if state is not None}
    if isinstance(config, ContainerdConfig):
        shared = {path: existing[path].content for path in config.shared_paths() if path in existing}
        dangling = dangling_imports(receipt.install_dir, shared, root.exists)
        config = replace(config, dangling_imports=dangling)
    linked: dict[str, dict[str, str]] = {}
    own_served: frozenset[str] = frozenset()
    search_path = command_search_path(context, unit, distribution_runtime) if for_revert else SEARCH_PATH
    if for_revert:
        linked = linked_handlers(
            context.clients.root, context.receipt.install_dir, config, existing, search_path
        )
        own_served = frozenset(name for names in linked.values() for name in names).intersection(
            served_now or ()
        )
    if for_revert and served_now:
        own_served |= _own_served(context, distribution_runtime, search_path)
    handlers_to_remove = own_served | _handlers_to_remove(
        context, config, own, existing, served_now, for_revert=for_revert
    )
    return RuntimeFacts(
        runtime,
        runtime_source,
        distribution_runtime,
        config,
        existing,
        _backups(context, receipt, reserves.values()),
        tuple(dict.fromkeys(d for path in own for d in missing_dirs(root, posixpath.dirname(path)))),
        dirs_of_other_installations(root, receipt.install_dir),
        unit.name if unit else "",
        unit.invocation_id if unit else "",
        unit.active_state if unit else "",
        kernel.boot_id(),
        served_now,
        options.restart_timeout,
        options.offline,
        _configured_path(context, told, distribution_runtime),
        ()
        if options.offline
        else _blocking_pods(
            context,
            distribution_runtime,
            handlers_to_remove,
            served_now,
            cri_error if is_active else None,
            config.default_handler({path: state.content for path, state in existing.items()}),
        ),
        gather_nydus_facts(context, distribution_runtime.units) if runtime.name == "containerd" else None,
        own_served,
        linked,
        search_path,
        tuple(reserves),
        {
            (file.path, file.after): other.instance
            for other in receipts.other_receipts(root, receipt.install_dir)
            for file in (other.cri.files if other.cri else ())
        },
        root.is_dir(receipts.directory(receipt.install_dir)),
        None if for_revert or options.retry_refused else refusals.load(root, receipt.install_dir),
    )


def _configured_path(
    context: StageContext, told: ConfiguredPaths, distribution_runtime: DistributionRuntime
) -> str:
    """Return the main file that the node shows, by the name of the settings if it is the same file."""
    root = context.clients.root
    if not told.main or root.real_path(told.main) == root.real_path(distribution_runtime.config):
        return distribution_runtime.config if told.main else ""
    return told.main


def _served_handlers(
    context: StageContext, distribution_runtime: DistributionRuntime, *, may_be_down: bool
) -> tuple[tuple[str, ...] | None, CriError | None]:
    """Return the served handlers; or ``None`` and the error, where the runtime may be down."""
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
    """Return the served handlers that this stage may remove."""
    recorded, wanted = context.receipt.cri, set(handler_names(context.settings))
    if recorded is not None:
        loaded = set(recorded.possibly_loaded_handlers)
        if for_revert:
            loaded |= own_handlers(config, {path: state.content for path, state in files.items()})
    elif for_revert:  # the receipt is lost, and the settings may differ from those of the install
        loaded = set(served_now or ())
    else:
        loaded = set(config.defined_handlers({path: files[path].content for path in own if path in files}))
    return frozenset((loaded if for_revert else loaded - wanted) & set(served_now or ()))


def _own_served(
    context: StageContext, distribution_runtime: DistributionRuntime, search_path: Sequence[str]
) -> frozenset[str]:
    try:
        tables = context.clients.cri(distribution_runtime.socket).handler_tables(CALL_TIMEOUT)
    except CriError:  # it answered a moment ago; the proof asks again
        return frozenset()
    return handlers_below(context.clients.root, tables, context.receipt.install_dir, search_path)


def _blocking_pods(
    context: StageContext,
    distribution_runtime: DistributionRuntime,
    handlers_to_remove: frozenset[str],
    served_now: tuple[str, ...] | None,
    cri_error: CriError | None,
    default_handler: str,
) -> tuple[Pod, ...] | None:
    """Return the pods on ``handlers_to_remove``; ``None`` when the runtime cannot list them.

    A pod without handler runs on ``default_handler``.

    ``cri_error`` is the error of a running runtime. A runtime without a CRI cannot end pods, so it does not
    block. Any other error may hide running pods: it is raised unless ``--ignore-pods`` is given.
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
        hint = f"{error.hint}; or run with --ignore-pods to continue whatever pods run"
        raise CriError(error.what, where=error.where, hint=hint) from error
    named = (replace(pod, handler=pod.handler or default_handler) for pod in running)
    return tuple(pod for pod in named if pod.handler in handlers_to_remove)


def _has_no_cri(error: CriError) -> bool:
    from kata_node.host.cri import CriCallError, Reason

    return isinstance(error, CriCallError) and error.reason is Reason.NO_CRI


def _backups(context: StageContext, receipt: Receipt, reserves: Iterable[FileState]) -> dict[str, bytes]:
    """Return the content of the backups. A full disk may have kept only that of a reserve."""
    digests = {backup.sha256 for backup in receipt.cri.backups()} if receipt.cri else set()
    kept = {hashlib.sha256(each.content).hexdigest(): each.content for each in reserves}
    found = {
        digest: context.clients.root.read(receipts.backup_path(receipt.install_dir, digest))
        for digest in digests
    }
    return {digest: content for digest, content in kept.items() if digest in digests} | {
        digest: content
        for digest, content in found.items()
        if content is not None and hashlib.sha256(content).hexdigest() == digest
    }
