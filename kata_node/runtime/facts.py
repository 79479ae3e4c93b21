"""Which CRI runtime the node has, how it is configured, and what it serves."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from kata_node.errors import CriError, KataNodeError, UnfitNodeError
from kata_node.host import kernel
from kata_node.host.files import FileState, missing_dirs
from kata_node.plan import receipt as receipts
from kata_node.plan.context import Look
from kata_node.plan.receipt import Receipt, dirs_of_others
from kata_node.runtime.config_selection import as_managed, configuration, located
from kata_node.runtime.containerd.config import config_path
from kata_node.runtime.model import distributions
from kata_node.runtime.model.config import CriConfig, own_paths
from kata_node.runtime.model.distributions import HOMES, Home, other_distribution
from kata_node.settings.handlers import names
from kata_node.snapshotters.facts import look_at_nydus
from kata_node.snapshotters.nydus import NydusFacts
from kata_node.versions import UNKNOWN, Runtime, evidence, parse_version, runtime_version

if TYPE_CHECKING:
    from kata_node.host.cri_sandboxes import Pod
    from kata_node.host.systemd import Unit

CALL_TIMEOUT = 10.0  # seconds for one question to a runtime that is up
LIST_TIMEOUT = 30.0  # seconds to hear of all pods of a node, hundreds at most


@dataclass(frozen=True)
class RuntimeFacts:
    """The CRI runtime as it is. Of an offline root, only what its files tell."""

    runtime: Runtime
    told_by: str
    """Who says so: ``the CRI socket``, ``--runtime``, …"""
    home: Home
    """The distribution's way to keep it, at the places where it is here."""
    config: CriConfig
    """How this instance configures it."""
    files: Mapping[str, FileState] = field(repr=False)
    """Every configuration file that the runtime reads, and every one this instance could have."""
    backups: Mapping[str, bytes] = field(repr=False)
    """The content of the receipt's backups, by digest; without those that are lost or damaged."""
    missing_dirs: tuple[str, ...]
    """Directories a configuration file of ours would need that are not there."""
    others_dirs: frozenset[str] = frozenset()
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
    told_config: str = ""
    """The main file by the unit's command line; empty where that tells none."""
    pods: tuple[Pod, ...] | None = ()
    """Those that run on handlers of ours which may be taken away; ``None`` when nobody could tell."""
    nydus: NydusFacts | None = None
    """The nydus-snapshotter of this instance; ``None`` where the runtime has no snapshotters."""
    others_wrote: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """By a file's path and the digest of what another instance wrote there last: which one."""

    @property
    def contents(self) -> dict[str, bytes]:
        """What the files hold, by path."""
        return {path: state.content for path, state in self.files.items()}

    @property
    def config_path(self) -> str:
        """The runtime's main configuration file."""
        return self.config.main_path


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
    unit = None if options.offline else find_unit(look, for_revert=for_revert)
    home = find_home(look, unit, for_revert=for_revert)
    try:
        runtime, told_by = _recorded_or_any(look, home) if for_revert else identify(look, home)
    except CriError as error:
        # A container that was made for another distribution does not see the socket of this one.
        if other := other_distribution(look.settings, home, unit.name if unit else ""):
            raise other from error
        raise
    if runtime.name != home.runtime:
        # What answers is not what the unit found runs: no restart of that one is of use.
        unit, socket = None, options.cri_socket
        home = distributions.home(home.distribution, runtime.name)
        home = replace(home, socket=socket) if socket else home
    if home.distribution == "k0s":
        home = as_managed(home, root.read(home.config))
    config = configuration(receipt, look.settings.suffix, runtime, home)
    own = own_paths(config)
    paths = {
        *config.closure(root.read, root.glob),
        *own,
        *config.shared_paths(),
        *(receipt.cri.paths() if receipt.cri else ()),
    }
    states = {path: root.read_state(path) for path in sorted(paths)}
    served, silence = (None, None) if options.offline else _handlers(look, home, may_be_down=for_revert)
    up = unit is not None and unit.active_state == "active"
    present = {path: state for path, state in states.items() if state is not None}
    ours = _may_go(look, config, own, present, served, for_revert=for_revert)
    return RuntimeFacts(
        runtime,
        told_by,
        home,
        config,
        present,
        _backups(look, receipt),
        tuple(dict.fromkeys(d for path in own for d in missing_dirs(root, path.rpartition("/")[0]))),
        dirs_of_others(root, receipt.install_dir),
        unit.name if unit else "",
        unit.invocation_id if unit else "",
        unit.active_state if unit else "",
        kernel.boot_id(),
        served,
        options.restart_timeout,
        options.offline,
        _told_config(unit),
        () if options.offline else _pods(look, home, ours, served, silence if up else None),
        look_at_nydus(look, home.units) if runtime.name == "containerd" else None,
        {
            (file.path, file.after): other.instance
            for other in receipts.others(root, receipt.install_dir)
            for file in (other.cri.files if other.cri else ())
        },
    )


def _told_config(unit: Unit | None) -> str:
    home = distributions.by_unit(unit.name) if unit else None
    if unit is None or home is None or not home.config_from_argv:
        return ""
    return config_path(unit.argv, home.config)


def find_unit(look: Look, *, for_revert: bool) -> Unit | None:
    """The unit that runs the CRI: the one that is up, or that the record of an unfinished run names.

    Raises :class:`UnfitNodeError` when several are up and nothing tells which one the kubelet uses.
    """
    systemd, recorded = look.tools.systemd(), look.receipt.cri
    known = (systemd.unit(name) for home in HOMES for name in home.units)
    units = {unit.name: unit for unit in known if unit is not None}
    if recorded is not None and recorded.unit in units and (for_revert or recorded.state != "serving"):
        return units[recorded.unit]
    if recorded is not None and for_revert:
        # Another runtime never read what is to be taken back, and has no part in it.
        units = {name: unit for name, unit in units.items() if _runs(unit, recorded.runtime)}
    own = {name: unit for name, unit in units.items() if not _is_elsewhere(unit)}
    found = {name for name, unit in own.items() if unit.active_state not in ("inactive", "failed")}
    homes = distributions.among(found or own)
    socket = _as_run(look.options.cri_socket or look.settings.containerd.runtime_socket)
    homes = tuple(home for home in homes if home.socket == socket) or homes
    names = [name for home in homes for name in home.units if name in (found or own)]
    if found and len(homes) > 1:
        raise UnfitNodeError(
            "several container runtimes are up: " + ", ".join(names),
            hint="tell which one the kubelet uses with --cri-socket, or stop the other",
        )
    return units[names[0]] if names else None


def _as_run(socket: str) -> str:
    """The path with ``/run`` where it is written as ``/var/run``, which everywhere leads there."""
    return socket.removeprefix("/var") if socket.startswith("/var/run/") else socket


def _runs(unit: Unit, runtime: str) -> bool:
    home = distributions.by_unit(unit.name)
    return home is not None and home.runtime == runtime


def _is_elsewhere(unit: Unit) -> bool:
    home = distributions.by_unit(unit.name)
    return home is not None and distributions.runs_elsewhere(home, unit.argv) != ""


def find_home(look: Look, unit: Unit | None, *, for_revert: bool) -> Home:
    """Where the runtime of ``unit`` keeps its things; without one, as the settings and the record have it."""
    options, containerd = look.options, look.settings.containerd
    home = distributions.by_unit(unit.name) if unit is not None else None
    if home is not None and unit is not None:
        home = located(home, containerd, unit.argv)
    else:
        recorded = look.receipt.cri
        name = runtime_version(options.runtime).name if options.runtime else "containerd"
        if recorded is not None and (for_revert or not options.runtime):
            name = recorded.runtime
        home = located(distributions.home(look.settings.distribution, name), containerd, ())
    return replace(home, socket=options.cri_socket) if options.cri_socket else home


def identify(look: Look, home: Home) -> tuple[Runtime, str]:
    """The runtime, and who told: flag, running CRI, receipt, files, in this order."""
    options, recorded = look.options, look.receipt.cri
    if options.runtime:
        return runtime_version(options.runtime), "--runtime"
    if options.offline:
        return _by_files(look, home)
    try:
        answer = look.tools.cri(home.socket).version(CALL_TIMEOUT)
    except CriError as error:
        told = _recorded(look)
        if told is None or recorded is None:
            raise
        if recorded.state == "serving":
            raise CriError(
                error.what,
                where=error.where,
                hint=f"{error.hint}; if it is another release since it was configured as {told[0]}, run "
                "kata-node revert, and then install again",
            ) from error
        # A run that was killed may have left it down; then this one is here to get it up again.
        return told
    version = parse_version(answer.runtime_version, where=home.socket)
    return Runtime(answer.runtime_name, version), "the CRI socket"


def _by_files(look: Look, home: Home) -> tuple[Runtime, str]:
    root = look.tools.root
    dpkg = root.read("/var/lib/dpkg/status")
    if version := evidence(dpkg, None):
        return Runtime("containerd", version), "its package"
    # Before the configuration, which may be of our own making.
    if told := _recorded(look):
        return told
    if version := evidence(dpkg, root.read(home.config)):
        return Runtime("containerd", version), "its configuration"
    raise UnfitNodeError(
        "no file here tells which container runtime the node will run",
        where=str(root.base),
        hint="name it: --runtime containerd://2.1.9",
    )


def _recorded_or_any(look: Look, home: Home) -> tuple[Runtime, str]:
    """For the way back: what is taken away is known by name, and the runtime may be down.

    One that is up tells its version, by which the rest of its configuration is judged.
    """
    told = _recorded(look)
    try:
        found = identify(look, home)
    except KataNodeError:
        return told or (UNKNOWN, "nobody")
    return told if told and found[0].name != told[0].name else found


def _recorded(look: Look) -> tuple[Runtime, str] | None:
    cri = look.receipt.cri
    return (Runtime(cri.runtime, parse_version(cri.version)), "the receipt") if cri else None


def _handlers(look: Look, home: Home, *, may_be_down: bool) -> tuple[tuple[str, ...] | None, CriError | None]:
    """What is served; or ``None`` and why that cannot be told, where the runtime may be down."""
    recorded = look.receipt.cri
    try:
        return look.tools.cri(home.socket).status(CALL_TIMEOUT).handlers, None
    except CriError as error:
        if may_be_down or (recorded is not None and recorded.state != "serving"):
            return None, error
        raise


def _may_go(
    look: Look,
    config: CriConfig,
    own: tuple[str, ...],
    files: Mapping[str, FileState],
    served: tuple[str, ...] | None,
    *,
    for_revert: bool,
) -> frozenset[str]:
    """The handlers that this stage may take away, of those that are served."""
    recorded, wanted = look.receipt.cri, set(names(look.settings))
    if recorded is not None:
        loaded = set(recorded.may_be_loaded)
    elif for_revert:  # the record is lost, and the settings need not be those of the install
        loaded = set(served or ())
    else:
        loaded = set(config.defined({path: files[path].content for path in own if path in files}))
    return frozenset((loaded if for_revert else loaded - wanted) & set(served or ()))


def _pods(
    look: Look, home: Home, going: frozenset[str], served: tuple[str, ...] | None, silence: CriError | None
) -> tuple[Pod, ...] | None:
    """The runtime is asked only where a handler is served that this stage may take away.

    ``silence`` is why a runtime that is up does not tell. One without a CRI has no pods that could be
    ended through it; of any other it has to be feared that it has.
    """
    if served is not None and not going:
        return ()
    if served is None and (silence is None or _has_no_cri(silence)):
        return None
    try:
        if silence is not None:
            raise silence
        running = look.tools.cri(home.socket).pods(home.runtime, LIST_TIMEOUT)
    except CriError as error:
        if look.options.ignore_pods:
            return None
        hint = f"{error.hint}; or go on whatever runs with --ignore-pods"
        raise CriError(error.what, where=error.where, hint=hint) from error
    return tuple(pod for pod in running if pod.handler in going)


def _has_no_cri(error: CriError) -> bool:
    from kata_node.host.cri import CriCallError, Reason

    return isinstance(error, CriCallError) and error.reason is Reason.NO_CRI


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
