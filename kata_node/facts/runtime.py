"""Which CRI runtime the node has, how it is configured, and what it serves."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from kata_node import containerd
from kata_node import receipt as receipts
from kata_node.errors import CriError, KataNodeError, UnfitNodeError
from kata_node.facts import Look
from kata_node.facts.artifacts import missing_dirs
from kata_node.host import kernel
from kata_node.host.files import FileState
from kata_node.receipt import Receipt
from kata_node.versions import OLDEST, Runtime, evidence, parse_version, runtime_version

CALL_TIMEOUT = 10.0  # seconds for one question to a runtime that is up

UNIT = "containerd.service"
OTHER_UNITS: Mapping[str, str] = {
    "k3s.service": "k3s",
    "k3s-agent.service": "k3s",
    "rke2-server.service": "rke2",
    "rke2-agent.service": "rke2",
    "k0scontroller.service": "k0s",
    "k0sworker.service": "k0s",
    "snap.microk8s.daemon-containerd.service": "microk8s",
    "crio.service": "cri-o",
}
"""Units that run a CRI runtime of their own: what tells the distributions apart, for a k3s node
can report ``containerd://2.2.2-bd1.34`` like any other."""


@dataclass(frozen=True)
class RuntimeFacts:
    """The CRI runtime as it is. Of an offline root, only what its files tell."""

    runtime: Runtime
    told_by: str
    """Who says so: ``the CRI socket``, ``--runtime``, …"""
    config_path: str
    files: Mapping[str, FileState] = field(repr=False)
    """Every configuration file that the runtime reads, and every one this instance could have."""
    backups: Mapping[str, bytes] = field(repr=False)
    """The content of the receipt's backups, by digest; without those that are lost or damaged."""
    missing_dirs: tuple[str, ...]
    """Directories a configuration file of ours would need that are not there."""
    unit: str = ""
    """Empty when there is none, and offline, as is ``invocation``."""
    invocation: str = ""
    state: str = ""
    """The unit's ActiveState."""
    boot: str = ""
    handlers: tuple[str, ...] | None = None
    """What the CRI serves; ``None`` when it does not answer, or was not asked."""
    others: tuple[str, ...] = ()
    """Distributions and runtimes of :data:`OTHER_UNITS` whose units are active."""
    timeout: float = 120.0
    offline: bool = False


def look(look: Look) -> RuntimeFacts:
    """Ask the CRI and systemd; offline, ``--runtime`` and the root's own files.

    Raises :class:`UnfitNodeError` or :class:`CriError` when nothing tells which runtime this is, or
    when it does not answer though no unfinished run of ours could have caused that.
    """
    return _look(look, for_revert=False)


def look_for_revert(look: Look) -> RuntimeFacts:
    """The same for the way back, which the record alone must suffice for: the runtime may be down."""
    return _look(look, for_revert=True)


def _look(look: Look, *, for_revert: bool) -> RuntimeFacts:
    options, root, receipt = look.options, look.tools.root, look.receipt
    argv: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    unit, invocation, state = "", "", ""
    if not options.offline:
        found = look.tools.systemd().unit(UNIT)
        if found is not None:
            unit, invocation, argv = found.name, found.invocation_id, found.argv
            state = found.active_state
        others = _others(look)
    runtime, told_by = _recorded_or_any(look) if for_revert else identify(look)
    config_path = containerd.config_path(argv)
    wanted = containerd.own_paths(receipt.install_dir, look.settings.suffix, config_path)
    paths = {
        *containerd.import_closure(config_path, root.read, root.glob),
        *wanted,
        *(receipt.cri.paths() if receipt.cri else ()),
    }
    states = {path: root.read_state(path) for path in sorted(paths)}
    return RuntimeFacts(
        runtime,
        told_by,
        config_path,
        {path: state for path, state in states.items() if state is not None},
        _backups(look, receipt),
        tuple(dict.fromkeys(d for path in wanted for d in missing_dirs(root, path.rpartition("/")[0]))),
        unit,
        invocation,
        state,
        kernel.boot_id(),
        None if options.offline else _handlers(look, may_be_down=for_revert),
        others,
        options.restart_timeout,
        options.offline,
    )


def identify(look: Look) -> tuple[Runtime, str]:
    """The runtime, and who told: flag, running CRI, receipt, files, in this order."""
    options, recorded = look.options, look.receipt.cri
    if options.runtime:
        return runtime_version(options.runtime), "--runtime"
    if options.offline:
        return _by_files(look)
    try:
        answer = look.tools.cri().version(CALL_TIMEOUT)
    except CriError:
        # A run that was killed may have left it down; then this one is here to get it up again.
        told = _recorded(look)
        if told is None or recorded is None or recorded.state == "serving":
            raise
        return told
    version = parse_version(answer.runtime_version, where=options.cri_socket)
    return Runtime(answer.runtime_name, version), "the CRI socket"


def _by_files(look: Look) -> tuple[Runtime, str]:
    root = look.tools.root
    dpkg = root.read("/var/lib/dpkg/status")
    if version := evidence(dpkg, None):
        return Runtime("containerd", version), "its package"
    # Before the configuration, which may be of our own making.
    if told := _recorded(look):
        return told
    if version := evidence(dpkg, root.read(containerd.CONFIG_PATH)):
        return Runtime("containerd", version), "its configuration"
    raise UnfitNodeError(
        "no file here tells which container runtime the node will run",
        where=str(root.base),
        hint="name it: --runtime containerd://2.1.9",
    )


def _others(look: Look) -> tuple[str, ...]:
    systemd = look.tools.systemd()
    units = ((name, systemd.unit(name)) for name in OTHER_UNITS)
    active = (OTHER_UNITS[name] for name, unit in units if unit and unit.active_state == "active")
    return tuple(dict.fromkeys(active))


def _recorded_or_any(look: Look) -> tuple[Runtime, str]:
    """For the way back, which does not hang on a version: what is taken away is known by name."""
    if told := _recorded(look):
        return told
    try:
        return identify(look)
    except KataNodeError:
        return OLDEST, "nobody"


def _recorded(look: Look) -> tuple[Runtime, str] | None:
    cri = look.receipt.cri
    return (Runtime(cri.runtime, parse_version(cri.version)), "the receipt") if cri else None


def _handlers(look: Look, *, may_be_down: bool) -> tuple[str, ...] | None:
    recorded = look.receipt.cri
    try:
        return look.tools.cri().status(CALL_TIMEOUT).handlers
    except CriError:
        if may_be_down or (recorded is not None and recorded.state != "serving"):
            return None
        raise


def _backups(look: Look, receipt: Receipt) -> dict[str, bytes]:
    digests = {backup.sha256 for backup in receipt.cri.backups()} if receipt.cri else set()
    found = {
        digest: look.tools.root.read(receipts.backup_path(receipt.install_dir, digest)) for digest in digests
    }
    return {
        digest: content
        for digest, content in found.items()
        if content is not None and hashlib.sha256(content).hexdigest() == digest
    }
