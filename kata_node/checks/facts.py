"""The facts that host-check uses. A part that cannot be gathered is replaced by its error."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

from msgspec import Struct, field

from kata_node.checks.hardware import HardwareFacts, gather_hardware_facts
from kata_node.checks.kata_configurations import kata_configurations
from kata_node.checks.kubelet import slow_handlers
from kata_node.checks.kubelet_facts import RequestTimeout, request_timeout
from kata_node.checks.memory import DEFAULT_GUEST_MEMORY
from kata_node.checks.unread_facts import UnreadConfig, unread_config
from kata_node.errors import CriError, KataNodeError
from kata_node.host.devices import VHOST_NET
from kata_node.host.files import host_error
from kata_node.host.ownership import Untrusted
from kata_node.host.write_access import WriteAccess, write_access
from kata_node.kata.merge import Table
from kata_node.payload import facts as artifact_facts
from kata_node.payload import layout
from kata_node.payload.facts import ArtifactFacts
from kata_node.payload.ownership import find_untrusted
from kata_node.plan import receipt as receipts
from kata_node.plan.context import StageContext
from kata_node.plan.receipt import Receipt
from kata_node.runtime import facts as runtime_facts
from kata_node.runtime.containerd.read import is_glob, resolved_imports
from kata_node.runtime.facts import RuntimeFacts
from kata_node.runtime.model.config import own_paths
from kata_node.settings.handlers import handlers
from kata_node.snapshotters import facts as snapshotter_facts
from kata_node.snapshotters import mapping, nydus
from kata_node.snapshotters.facts import SnapshotterFacts
from kata_node.snapshotters.mapping import NYDUS, NydusInstance

T = TypeVar("T")

RESTART_GRACE_PERIOD = 3.0
"""Seconds that a runtime may be down before host-check reports it. A restart takes less than one second."""

RESTART_POLL = 0.2  # seconds


class HostCheckFacts(Struct, frozen=True):
    """The facts of one node. A field holds an error if its facts could not be gathered."""

    offline: bool
    expected_machine_id: str
    machine: HardwareFacts
    systemd: KataNodeError | None
    """Why systemd cannot be reached; ``None`` if it can, or if offline."""
    runtime: RuntimeFacts | KataNodeError
    artifacts: ArtifactFacts | KataNodeError
    missing_files: Mapping[str, tuple[str, ...]]
    """The files that each shim needs and the payload does not have, by shim name."""
    bytes_to_place: int
    """The number of bytes that the artifacts stage would write."""
    conflicts: tuple[str, ...]
    """Foreign files at paths that the artifacts stage would write, relative to the install dir."""
    untrusted: Untrusted | None = None
    """The first path of the installation that another user can write."""
    snapshotters: SnapshotterFacts | None = None
    """``None`` if the runtime is not known."""
    access: Mapping[str, WriteAccess | KataNodeError] = field(default_factory=dict)
    """What the file systems say about each path that a stage may write."""
    missing_imports: frozenset[str] = frozenset()
    """The files that ``containerd.userDropIn`` imports and that do not exist."""
    kata_configurations: Mapping[str, Table] = field(default_factory=dict)
    """The effective Kata configuration by handler name, as far as a check needs it."""
    unread: UnreadConfig | None = None
    """What the running runtime has not read of its configuration, if that can be told."""
    request_timeout: RequestTimeout | None = None
    """The kubelet's timeout, if a check needs it and it can be told."""


def gather_facts(context: StageContext) -> HostCheckFacts:
    """Return all facts. An error while gathering one part does not keep the others from being gathered."""
    runtime = _runtime(context)
    artifacts = _result_or_error(lambda: artifact_facts.gather_facts(context))
    difference = _difference(artifacts, context.receipt)
    machine = gather_hardware_facts(context)
    return HostCheckFacts(
        context.options.offline,
        context.options.expected_machine_id,
        machine,
        None if context.options.offline else _error_of(context.clients.systemd),
        runtime,
        artifacts,
        _missing_files(context, artifacts),
        sum(desired.size for desired in difference.missing) if difference else 0,
        difference.conflicts if difference else (),
        _untrusted(context, artifacts),
        snapshotter_facts.gather_facts(context, runtime.distribution_runtime.units)
        if isinstance(runtime, RuntimeFacts)
        else None,
        _access(context, runtime),
        _missing_imports(context, runtime),
        kata_configurations(context, artifacts) if _are_configurations_needed(machine) else {},
        unread_config(context, runtime) if isinstance(runtime, RuntimeFacts) else None,
        request_timeout(context, runtime.distribution_runtime)
        if isinstance(runtime, RuntimeFacts) and slow_handlers(context.settings)
        else None,
    )


def _are_configurations_needed(machine: HardwareFacts) -> bool:
    """Return whether a finding depends on the Kata configurations. To parse all of them takes time."""
    return machine.devices[VHOST_NET] != "there" or 0 < machine.memory < DEFAULT_GUEST_MEMORY


def _untrusted(context: StageContext, artifacts: ArtifactFacts | KataNodeError) -> Untrusted | None:
    root, install_dir = context.clients.root, context.settings.install_dir
    if found := receipts.untrusted(root, install_dir):
        return found
    if isinstance(artifacts, ArtifactFacts):
        return artifacts.untrusted
    placed = context.receipt.artifacts
    return find_untrusted(root, install_dir, placed.files if placed else {}, ())


def _access(
    context: StageContext, runtime: RuntimeFacts | KataNodeError
) -> dict[str, WriteAccess | KataNodeError]:
    root, install_dir = context.clients.root, context.settings.install_dir
    files: list[str] = []
    if isinstance(runtime, RuntimeFacts):
        files += [*own_paths(runtime.config), *runtime.config.shared_paths()]
        if runtime.nydus is not None and mapping.is_managed(context.settings, NYDUS):
            own_nydus = NydusInstance.for_settings(context.settings)
            files += [own_nydus.unit_path, *nydus.wants_links(own_nydus, runtime.nydus.cri_units)]
    directories = (install_dir, receipts.directory(install_dir), receipts.backups(install_dir))
    return {
        path: _result_or_error(partial(write_access, root, path, is_directory=path in directories))
        for path in (*directories, *files)
    }


def _missing_imports(context: StageContext, runtime: RuntimeFacts | KataNodeError) -> frozenset[str]:
    text = context.settings.user_drop_in.encode()
    if isinstance(runtime, KataNodeError) or runtime.runtime.name != "containerd" or not text.strip():
        return frozenset()
    drop_ins = (path for location in runtime.config.drop_in_locations() for path in location.extra_drop_ins)
    imported = {
        target for _, target in resolved_imports(dict.fromkeys(drop_ins, text)) if not is_glob(target)
    }
    return frozenset(target for target in imported if not context.clients.root.exists(target))


def _runtime(context: StageContext) -> RuntimeFacts | KataNodeError:
    """Return the facts of the runtime. Try again for a while if the runtime may be restarting.

    host-check does not hold the node's lock, so another run or a person may restart the runtime meanwhile.
    """
    deadline = time.monotonic() + RESTART_GRACE_PERIOD
    while True:
        found = _result_or_error(lambda: runtime_facts.gather_facts(context))
        if not _may_be_restarting(found) or time.monotonic() >= deadline:
            return found
        time.sleep(RESTART_POLL)


def _may_be_restarting(found: object) -> bool:
    if not isinstance(found, CriError):
        return False
    from kata_node.host.cri import CriCallError, Reason

    call = found if isinstance(found, CriCallError) else found.__cause__
    restart_reasons = (Reason.REFUSED, Reason.BROKEN, Reason.MISSING)
    return isinstance(call, CriCallError) and call.reason in restart_reasons


def _difference(artifacts: ArtifactFacts | KataNodeError, receipt: Receipt) -> layout.Difference | None:
    if isinstance(artifacts, KataNodeError) or artifacts.desired_files is None:
        return None
    placed = receipt.artifacts.files if receipt.artifacts else {}
    return layout.compare(artifacts.desired_files, artifacts.observed_files, placed, artifacts.digests)


def _missing_files(
    context: StageContext, artifacts: ArtifactFacts | KataNodeError
) -> dict[str, tuple[str, ...]]:
    if isinstance(artifacts, KataNodeError) or artifacts.desired_files is None or artifacts.by_record:
        return {}
    from kata_node.payload.selection import missing_paths

    settings = artifacts.settings or context.settings
    shims = {handler.shim.name: handler.shim for handler in handlers(settings)}
    missing = ((name, tuple(missing_paths(artifacts.entries, shim))) for name, shim in shims.items())
    return {name: paths for name, paths in missing if paths}


def _result_or_error(gather: Callable[[], T]) -> T | KataNodeError:
    try:
        return gather()
    except KataNodeError as error:
        return error
    except OSError as error:
        return host_error(str(error.filename), error)


def _error_of(gather: Callable[[], object]) -> KataNodeError | None:
    found = _result_or_error(gather)
    return found if isinstance(found, KataNodeError) else None
