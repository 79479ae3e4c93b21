"""Everything host-check decides by, gathered to the end even when parts of it fail."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from kata_node.checks.hardware import HardwareFacts, gather_hardware_facts
from kata_node.errors import CriError, KataNodeError
from kata_node.host.files import host_error
from kata_node.payload import facts as artifact_facts
from kata_node.payload import layout
from kata_node.payload.facts import ArtifactFacts
from kata_node.plan.context import StageContext
from kata_node.plan.receipt import Receipt
from kata_node.runtime import facts as runtime_facts
from kata_node.runtime.facts import RuntimeFacts
from kata_node.settings.handlers import handlers
from kata_node.snapshotters import facts as snapshotter_facts
from kata_node.snapshotters.facts import SnapshotterFacts

T = TypeVar("T")

RESTART_GRACE_PERIOD = 3.0
"""Seconds that a runtime may be away without being called down; a restart takes well under one."""

RESTART_POLL = 0.2


@dataclass(frozen=True)
class HostCheckFacts:
    """Each part is what was found, or the error met in its place."""

    offline: bool
    expected_machine_id: str
    machine: HardwareFacts
    systemd: KataNodeError | None
    runtime: RuntimeFacts | KataNodeError
    artifacts: ArtifactFacts | KataNodeError
    missing_files: Mapping[str, tuple[str, ...]]
    """Per shim, the files it needs that the payload lacks."""
    bytes_to_place: int
    """Bytes the artifacts stage would write."""
    conflicts: tuple[str, ...]
    """Paths where foreign files stand in the way."""
    snapshotters: SnapshotterFacts | None = None
    """``None`` when there is no runtime that could have any."""


def look(look: StageContext) -> HostCheckFacts:
    """Gather all; an error in one part is a fact like any other."""
    runtime = _runtime(look)
    artifacts = _result_or_error(lambda: artifact_facts.look(look))
    etc = runtime.config_path if isinstance(runtime, RuntimeFacts) else "/etc/containerd/config.toml"
    difference = _difference(artifacts, look.receipt)
    return HostCheckFacts(
        look.options.offline,
        look.options.expected_machine_id,
        gather_hardware_facts(look, (look.settings.install_dir, etc.rpartition("/")[0])),
        None if look.options.offline else _error_of(look.clients.systemd),
        runtime,
        artifacts,
        _missing_files(look, artifacts),
        sum(desired.size for desired in difference.missing) if difference else 0,
        difference.conflicts if difference else (),
        snapshotter_facts.look(look, runtime.distribution_runtime.units)
        if isinstance(runtime, RuntimeFacts)
        else None,
    )


def _runtime(look: StageContext) -> RuntimeFacts | KataNodeError:
    """The lock is not held here, so another run, or a person, may be restarting the runtime just now."""
    deadline = time.monotonic() + RESTART_GRACE_PERIOD
    while True:
        found = _result_or_error(lambda: runtime_facts.look(look))
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
    look: StageContext, artifacts: ArtifactFacts | KataNodeError
) -> dict[str, tuple[str, ...]]:
    if isinstance(artifacts, KataNodeError) or artifacts.desired_files is None:
        return {}
    from kata_node.payload.manifest import missing_paths

    shims = {handler.shim.name: handler.shim for handler in handlers(look.settings)}
    lacking = ((name, tuple(missing_paths(artifacts.entries, shim))) for name, shim in shims.items())
    return {name: paths for name, paths in lacking if paths}


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
