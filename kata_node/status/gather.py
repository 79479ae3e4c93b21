"""Gather the status of all installations: receipts, files, the runtime, the run in progress, the labels."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TypeVar

from msgspec.structs import replace

from kata_node.bounded_read import file_digest
from kata_node.cluster.labels import INSTALLATION_LABEL_PREFIX
from kata_node.errors import HostError, KataNodeError
from kata_node.host import go_glob, kernel, lock
from kata_node.host.files import Root, host_error
from kata_node.host.follow import real_path
from kata_node.host.lock import Holder
from kata_node.kube import credentials
from kata_node.kube.node import SHARED_LABEL
from kata_node.payload.facts import observe_files
from kata_node.payload.ownership import find_changed_made_dirs
from kata_node.plan import last_run
from kata_node.plan import receipt as receipts
from kata_node.plan.actions import Clients
from kata_node.plan.context import Options, StageContext
from kata_node.plan.receipt import STATE_DIR, CriRecord, Receipt
from kata_node.runtime.compatibility import upgrade_notes
from kata_node.runtime.config_selection import recorded_config
from kata_node.runtime.model.config import DROP_IN_NAME, is_drop_in
from kata_node.runtime.transaction import is_restart_owed
from kata_node.settings.model import DEFAULT_INSTALL_DIR, Settings
from kata_node.status import runtime as runtimes
from kata_node.status.model import InstallationStatus, NodeLabels, NodeStatus, RecordedState, RuntimeStatus
from kata_node.status.runtime import NodeRuntime
from kata_node.status.verdict import STATE_TEXTS, Caller, judge
from kata_node.text import utc
from kata_node.versions import Runtime, parse_version

T = TypeVar("T")

CLUSTER_TIMEOUT = 3.0  # seconds; short, because a status without labels is useful too


def gather(
    settings: Settings, options: Options, clients: Clients, *, deep: bool, caller: Caller | None = None
) -> NodeStatus:
    """Return the status of this node. ``deep`` compares the content of files by digest.

    Installations are found in the directory of the install dir of ``settings``, in ``/opt``, and in the
    install dirs that the runtime's configuration names.
    """
    root = clients.root
    caller = replace(caller or Caller(), install_dir=settings.install_dir)
    running = lock.find_holder(root)
    parents = {posixpath.dirname(each) for each in (settings.install_dir, DEFAULT_INSTALL_DIR)}
    found = {each: _load(root, each) for each in _installations_in(root, parents)}
    receipt = _receipt_to_ask_with(settings, found)
    if not (options.cri_socket or settings.containerd.runtime_socket):
        options = replace(options, cri_socket=receipt.socket)  # the install may have had --cri-socket
    runtime = runtimes.ask(StageContext(settings, receipt, clients, options))
    more = {posixpath.dirname(each) for each in runtime.install_dirs if _can_exist(root, each)}
    found |= {each: _load(root, each) for each in _installations_in(root, more - parents)}
    ours = (each for each, is_ours in runtime.install_dirs.items() if is_ours and each not in found)
    found |= {each: _gone(root, each) for each in ours}
    foreign = tuple(sorted(each for each in runtime.install_dirs if each not in found))
    statuses = [
        _readable(install_dir, partial(_status, root, each, runtime, running, deep=deep))
        if isinstance(each, Receipt)
        else each
        for install_dir, each in sorted(found.items())
    ]
    if settings.install_dir not in found:
        last = last_run.load(root, settings.install_dir)
        if last or settings.install_dir != DEFAULT_INSTALL_DIR:
            statuses.append(InstallationStatus(settings.instance, settings.install_dir, last_run=last))
    judged = tuple(judge(each, runtime.status, running, caller) for each in statuses)
    return NodeStatus(judged, runtime.status, running, foreign, read_node_labels(options, clients))


def _installations_in(root: Root, parents: Iterable[str]) -> list[str]:
    """Return the install dirs in ``parents`` that have a receipt, or else something of ours."""
    traces = (
        f"{STATE_DIR}/receipt.json",
        f"{STATE_DIR}/{last_run.NAME}",
        f"{STATE_DIR}/backups/{'[0-9a-f]' * 64}",
        f"containerd/config.d/{DROP_IN_NAME}*.toml",
    )
    found = {
        "/".join(path.split("/")[: parent.count("/") + 2])
        for parent in parents
        for trace in traces
        for path in root.glob(f"{parent}/kata*/{trace}")
    }
    return sorted(found)


def _can_exist(root: Root, install_dir: str) -> bool:
    """Return whether a path from the runtime's configuration can be one of a directory."""
    return not go_glob.is_pattern(install_dir) and real_path(root, install_dir) is not None


def _load(root: Root, install_dir: str) -> Receipt | InstallationStatus:
    """Return the receipt of an installation, or the status of one without a usable receipt."""

    def load() -> Receipt | InstallationStatus:
        if untrusted := receipts.untrusted(root, install_dir):
            raise untrusted.error()
        return receipts.load(root, install_dir) or _gone(root, install_dir)

    return _readable(install_dir, load)


def _readable(install_dir: str, read: Callable[[], T]) -> T | InstallationStatus:
    """Return the result of ``read``, or the status of an installation that cannot be read.

    Raises :class:`HostError` if this user may not read it. That says nothing of the installation.
    """
    try:
        return read()
    except KataNodeError as error:
        if isinstance(error.__cause__, PermissionError):
            raise
        return _unreadable(install_dir, error)
    except OSError as error:
        found = host_error(str(error.filename), error)
        if isinstance(error, PermissionError):
            raise found from error
        return _unreadable(install_dir, found)


def _unreadable(install_dir: str, error: KataNodeError) -> InstallationStatus:
    where = error.where or receipts.path(install_dir)
    remedy = error.hint if error.where else "restore the receipt from a copy, or move its directory away"
    return InstallationStatus(
        "", install_dir, artifacts="unknown", cri="unknown", error=f"{where}: {error.what}", remedy=remedy
    )


def _gone(root: Root, install_dir: str) -> InstallationStatus:
    """Return the status of an installation whose receipt is gone, while something of it is there."""
    error = KataNodeError("the receipt is gone", where=receipts.path(install_dir))
    return replace(
        _unreadable(install_dir, error),
        artifacts="unknown" if _can_exist(root, install_dir) and root.is_dir(install_dir) else "missing",
        last_run=last_run.load(root, install_dir),
    )


def _receipt_to_ask_with(settings: Settings, found: Mapping[str, Receipt | InstallationStatus]) -> Receipt:
    """Return the receipt of the installation in the settings; else that of another one, or an empty one.

    It knows the socket, and the unit of an interrupted run.
    """
    usable = [each for each in found.values() if isinstance(each, Receipt)]
    usable.sort(key=lambda each: (each.install_dir != settings.install_dir, each.cri is None))
    return usable[0] if usable else Receipt(settings.instance, settings.install_dir, "")


def read_node_labels(options: Options, clients: Clients) -> NodeLabels | None:
    """Return the Node's labels; ``None`` if offline, or without the Node's name or credentials."""
    name = options.node_name
    if options.offline or not name or credentials.find_credentials() is None:
        return None
    try:
        kube = clients.kube()
        found = kube.node(name, kube.deadline_after(CLUSTER_TIMEOUT)).labels
    except KataNodeError as error:
        place = f" ({error.where})" if error.where else ""
        return NodeLabels(name, {}, f"{error.what}{place}")
    kata_labels = {
        key: found[key]
        for key in sorted(found)
        if key == SHARED_LABEL or key.startswith(INSTALLATION_LABEL_PREFIX)
    }
    return NodeLabels(name, kata_labels)


def _status(
    root: Root, receipt: Receipt, runtime: NodeRuntime, running: Holder | None, *, deep: bool
) -> InstallationStatus:
    artifacts, cri = receipt.artifacts, receipt.cri
    recorded = RecordedState(
        artifacts.state if artifacts else "",
        cri.state if cri else "",
        f"{cri.runtime}://{cri.version}" if cri else "",
        cri.unit if cri else "",
    )
    differing = _differing_files(root, receipt, deep=deep)
    count = artifacts.count if artifacts else 0
    files = artifacts.files if artifacts else {}
    intact = count - sum(path in files and files[path].kind != "dir" for path in differing)
    drift = [f"{path}: changed" for path in find_changed_made_dirs(root, receipt.install_dir, artifacts)]
    drift += [f"{receipt.install_dir}/{path}: {word}" for path, word in differing.items()]
    status = InstallationStatus(
        instance=receipt.instance,
        install_dir=receipt.install_dir,
        program=receipt.program,
        release=artifacts.release if artifacts else "",
        artifacts=_artifacts_word(count, intact, differing) if artifacts else "absent",
        files=count,
        intact=intact,
        cri=_cri_word(cri, runtime.status),
        handlers=cri.handlers if cri else (),
        restart_owed=cri is not None
        and cri.state != "serving"
        and is_restart_owed(cri, kernel.boot_id(), runtime.invocation),
        drift=(*drift, *_cri_drift(root, receipt)),
        missing_dirs=_missing_dirs(receipt, differing),
        notes=upgrade_notes(cri.unit, Runtime(cri.runtime, parse_version(cri.version))) if cri else (),
        recorded=recorded,
        last_run=last_run.load(root, receipt.install_dir),
    )
    return replace(status, interrupted="" if running else _interrupted(root, status))


def _differing_files(root: Root, receipt: Receipt, *, deep: bool) -> dict[str, str]:
    """Return the recorded paths below the install dir that differ, each ``changed`` or ``missing``."""
    if receipt.artifacts is None:
        return {}
    files = receipt.artifacts.files
    found = observe_files(root, receipt.install_dir, files)
    differing: dict[str, str] = {}
    for path, placed in files.items():
        observed = found.get(path)
        same = observed is not None and observed.matches(placed)
        if same and deep and placed.kind == "file":
            real = root.resolve(f"{receipt.install_dir}/{path}", follow_last=False)
            same = file_digest(real) == placed.sha256
        if not same:
            differing[path] = "changed" if observed else "missing"
    return differing


def _artifacts_word(count: int, intact: int, differing: Mapping[str, str]) -> str:
    if not differing:
        return "placed"
    return "missing" if intact == 0 and "changed" not in differing.values() and count else "changed"


def _missing_dirs(receipt: Receipt, differing: Mapping[str, str]) -> dict[str, int]:
    """Return the topmost missing directories, with the number of recorded files and links below each."""
    files = receipt.artifacts.files if receipt.artifacts else {}
    found: dict[str, int] = {}
    for path in sorted(path for path, word in differing.items() if word == "missing"):
        parts = path.split("/")
        above = ("/".join(parts[:at]) for at in range(1, len(parts)))
        top = next((each for each in above if each in found), None)
        if top is not None:
            found[top] += files[path].kind != "dir"
        elif files[path].kind == "dir":
            found[path] = 0
    return {f"{receipt.install_dir}/{path}": count for path, count in found.items()}


def _cri_word(cri: CriRecord | None, runtime: RuntimeStatus) -> str:
    if cri is None:
        return "absent"
    if runtime.served is None:
        return "down" if runtime.is_down else "unknown"
    served = [name for name in cri.handlers if name in runtime.served]
    if not served:
        return "not serving"
    return "serving" if len(served) == len(cri.handlers) else "partly serving"


def _interrupted(root: Root, status: InstallationStatus) -> str:
    """Return when a run that did not finish last wrote the receipt, if there was one."""
    unfinished = {status.recorded.artifacts, status.recorded.cri} & set(STATE_TEXTS)
    written = root.lstat(receipts.path(status.install_dir)) if unfinished else None
    if written is None:
        return ""
    ended = root.lstat(last_run.path(status.install_dir)) if status.last_run else None
    is_later = ended is None or written.st_mtime_ns > ended.st_mtime_ns
    return utc(written.st_mtime) if is_later else ""


def _cri_drift(root: Root, receipt: Receipt) -> list[str]:
    if receipt.cri is None:
        return []
    drift = []
    for file in receipt.cri.files:
        try:
            content = root.read(file.path)
        except HostError as error:
            drift.append(f"{file.path}: {error.what}")
            continue
        digest = "" if content is None else hashlib.sha256(content).hexdigest()
        # The digest in the receipt is empty if the file must not exist.
        if digest != file.after and not (content and _has_entry(receipt, file.path, content)):
            drift.append(f"{file.path}: {'changed' if digest else 'missing'}")
    return drift


def _has_entry(receipt: Receipt, path: str, content: bytes) -> bool:
    """Return whether a file that other programs also write still has the entry of this installation."""
    cri = receipt.cri
    if cri is None or not cri.unit or is_drop_in(path):
        return False
    try:
        return recorded_config(receipt, cri, path).without_entry(path, content) != content
    except HostError:
        return False
