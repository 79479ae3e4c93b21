"""The status of all installations on this node, from receipts and files, and the Node's labels.

Changes nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kata_node.bounded_read import file_digest
from kata_node.cluster.labels import INSTALLATION_LABEL_PREFIX, SHARED_LABEL
from kata_node.errors import HostError, KataNodeError
from kata_node.host import kernel
from kata_node.host.files import Root, host_error
from kata_node.kube import credentials
from kata_node.payload.facts import observe_files
from kata_node.payload.ownership import find_changed_made_dirs
from kata_node.plan import receipt as receipts
from kata_node.plan.actions import Clients
from kata_node.plan.context import Options, StageContext
from kata_node.plan.receipt import Receipt
from kata_node.runtime.compatibility import upgrade_notes
from kata_node.runtime.config_selection import config_for, recorded_config
from kata_node.runtime.identify import find_distribution_runtime, find_unit
from kata_node.runtime.model.config import is_drop_in
from kata_node.runtime.transaction import is_restart_owed
from kata_node.settings.model import DEFAULT_INSTALL_DIR, Settings
from kata_node.text import pluralize
from kata_node.versions import ASSUMED_RUNTIME, Runtime, parse_version

CRI_TIMEOUT = 5.0  # seconds
CLUSTER_TIMEOUT = 3.0  # seconds; short, because a status without labels is useful too

STATE_TEXTS = {
    "placing": "partly placed",
    "removing": "partly removed",
    "writing": "partly written",
    "restarting": "written, not yet proven to serve",
    "reverting": "partly reverted",
    "unloading": "reverted, not yet unloaded",
}
"""Texts for the states of a receipt that are not clear by themselves."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class InstallationStatus:
    """The status of one installation."""

    instance: str
    install_dir: str
    program: str
    """The version of kata-node that wrote the receipt."""
    release: str
    """The release of the payload."""
    artifacts: str
    """The state of the artifacts in the receipt, ``absent``, or ``unreadable``."""
    files: int
    cri: str
    """The state of the runtime's configuration in the receipt, ``absent``, or ``unreadable``."""
    runtime: str
    unit: str
    handlers: tuple[str, ...]
    served: tuple[str, ...] | None
    """All handlers that the runtime serves; ``None`` if it was not asked or did not answer."""
    restart_owed: bool
    drift: tuple[str, ...]
    """Paths that differ from the receipt, each with ``: changed`` or ``: missing``."""
    error: str = ""
    """Why the receipt cannot be read; of the other fields, only ``install_dir`` has a meaning then."""
    notes: tuple[str, ...] = ()
    """What to do before an upgrade of the distribution."""


@dataclass(frozen=True)
class NodeLabels:
    """The Kata labels of the Node ``name``. ``error`` says why they are not known."""

    name: str
    labels: Mapping[str, str]
    error: str = ""


def gather(settings: Settings, options: Options, clients: Clients, *, deep: bool) -> list[InstallationStatus]:
    """Return the status of every installation on this node. ``deep`` compares the content of files by digest.

    Installations are found in the directory of the install dir of ``settings``, in ``/opt``, and in the
    install dirs that the runtime's configuration names.
    """
    receipt = _recorded(settings, clients) or Receipt(settings.instance, settings.install_dir, "")
    if not (options.cri_socket or settings.containerd.runtime_socket):
        options = replace(options, cri_socket=receipt.socket)  # the install may have had --cri-socket
    context = StageContext(settings, receipt, clients, options)
    served, invocation, configured_install_dirs = _runtime_state(context)
    parents = {
        path.rpartition("/")[0]
        for path in (settings.install_dir, DEFAULT_INSTALL_DIR, *configured_install_dirs)
    }
    file = f"{receipts.STATE_DIR}/receipt.json"
    found_at = {path for parent in parents for path in clients.root.glob(f"{parent}/kata*/{file}")}
    found: list[InstallationStatus] = []
    for install_dir in sorted(path.removesuffix(f"/{file}") for path in found_at):
        try:
            if untrusted := receipts.untrusted(clients.root, install_dir):
                raise untrusted.error()
            if placed := receipts.load(clients.root, install_dir):
                found.append(_status(clients.root, placed, served, invocation, deep=deep))
        except KataNodeError as error:
            found.append(_unreadable(install_dir, error))
        except OSError as error:
            found.append(_unreadable(install_dir, host_error(str(error.filename), error)))
    for install_dir in sorted(configured_install_dirs.difference(status.install_dir for status in found)):
        what = "the runtime's configuration names this install dir, but it has no receipt"
        hint = "run `kata-node revert` with the env.installationPrefix and env.multiInstallSuffix of it"
        found.append(_unreadable(install_dir, KataNodeError(what, hint=hint)))
    return found


def _recorded(settings: Settings, clients: Clients) -> Receipt | None:
    """Return the receipt of the installation in the settings; ``None`` if it cannot be read."""
    try:
        return receipts.load(clients.root, settings.install_dir)
    except KataNodeError:
        return None


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


def _unreadable(install_dir: str, error: KataNodeError) -> InstallationStatus:
    return InstallationStatus(
        "", install_dir, "", "", "unreadable", 0, "unreadable", "", "", (), None, False, (), str(error)
    )


def _status(
    root: Root, receipt: Receipt, served: tuple[str, ...] | None, invocation: str, *, deep: bool
) -> InstallationStatus:
    artifacts, cri = receipt.artifacts, receipt.cri
    return InstallationStatus(
        instance=receipt.instance,
        install_dir=receipt.install_dir,
        program=receipt.program,
        release=artifacts.release if artifacts else "",
        artifacts=artifacts.state if artifacts else "absent",
        files=artifacts.count if artifacts else 0,
        cri=cri.state if cri else "absent",
        runtime=f"{cri.runtime}://{cri.version}" if cri else "",
        unit=cri.unit if cri else "",
        handlers=cri.handlers if cri else (),
        served=served,
        restart_owed=cri is not None
        and cri.state != "serving"
        and is_restart_owed(cri, kernel.boot_id(), invocation),
        drift=(*_artifact_drift(root, receipt, deep=deep), *_cri_drift(root, receipt)),
        notes=upgrade_notes(cri.unit, Runtime(cri.runtime, parse_version(cri.version))) if cri else (),
    )


def _artifact_drift(root: Root, receipt: Receipt, *, deep: bool) -> list[str]:
    if receipt.artifacts is None:
        return []
    files = receipt.artifacts.files
    found = observe_files(root, receipt.install_dir, files)
    made_dirs = find_changed_made_dirs(root, receipt.install_dir, receipt.artifacts)
    drift = [f"{path}: changed" for path in made_dirs]
    for path, placed in files.items():
        observed = found.get(path)
        same = observed is not None and observed.matches(placed)
        if same and deep and placed.kind == "file":
            real = root.resolve(f"{receipt.install_dir}/{path}", follow_last=False)
            same = file_digest(real) == placed.sha256
        if not same:
            drift.append(f"{receipt.install_dir}/{path}: {'changed' if observed else 'missing'}")
    return drift


def _cri_drift(root: Root, receipt: Receipt) -> list[str]:
    if receipt.cri is None:
        return []
    drift = []
    for file in receipt.cri.files:
        content = root.read(file.path)
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


def _runtime_state(context: StageContext) -> tuple[tuple[str, ...] | None, str, frozenset[str]]:
    """Return the served handlers, the unit's invocation, and the install dirs that the configuration names.

    The handlers are ``None`` if offline or if the runtime does not answer.
    """
    clients, offline = context.clients, context.options.offline
    unit, served = None, None
    configured_install_dirs: frozenset[str] = frozenset()
    try:
        unit = None if offline else find_unit(context, for_revert=False)
        distribution_runtime = find_distribution_runtime(context, unit, for_revert=False)
        config = config_for(
            context.receipt,
            context.settings.suffix,
            Runtime(distribution_runtime.runtime, ASSUMED_RUNTIME.version),
            distribution_runtime,
        )
        files = config.read_files(clients.root.read, clients.root.glob)
        configured_install_dirs = frozenset(
            found for content in files.values() for found in _install_dirs(content)
        )
        if not offline:
            served = clients.cri(distribution_runtime.socket).status(CRI_TIMEOUT).handlers
    except KataNodeError as error:
        log.warning("cannot tell which handlers the runtime serves: %s", str(error).replace("\n", ";"))
    return served, unit.invocation_id if unit else "", configured_install_dirs


_SHIM_PATH = re.compile(rb'"((?:/[^"/]+)*/opt/kata(?:-[^"/]+)?)/(?:runtime-rs/)?bin/containerd-shim-kata-v2"')
_IMPORT_PATH = re.compile(rb'["\']((?:/[^"\'/]+)*/opt/kata(?:-[^"\'/]+)?)/containerd/config\.d/\*\.toml["\']')


def _install_dirs(content: bytes) -> set[str]:
    """Return the install dirs that a configuration file names. They may not exist."""
    return {
        found.decode(errors="replace")
        for each in (_SHIM_PATH, _IMPORT_PATH)
        for found in each.findall(content)
    }


def to_json(statuses: Sequence[InstallationStatus], node: NodeLabels | None) -> dict[str, Any]:
    """Return the JSON document of the command ``status``."""
    document = {"outcome": "ok", "installations": [dataclasses.asdict(status) for status in statuses]}
    return document | ({"node": dataclasses.asdict(node)} if node else {})


def to_text(statuses: Sequence[InstallationStatus], node: NodeLabels | None) -> str:
    """Return the text of the command ``status``: a paragraph for each installation and one for the Node."""
    paragraphs = [_installation_lines(status) for status in statuses] or [["no installation on this node"]]
    return "\n\n".join("\n".join(lines) for lines in (*paragraphs, *([_node_lines(node)] if node else [])))


def _node_lines(node: NodeLabels) -> list[str]:
    labels = [f"  label      {key}={value}" for key, value in node.labels.items()]
    no_labels = f"not known: {node.error}" if node.error else "no Kata labels"
    return [f"Node {node.name}", *(labels or [f"  labels     {no_labels}"])]


def _installation_lines(status: InstallationStatus) -> list[str]:
    if status.error:
        return [f"{status.install_dir}", f"  error: {status.error}"]
    lines = [
        f"{status.instance}: {status.install_dir}, release {status.release or 'unknown'}, "
        f"by kata-node {status.program}",
        f"  artifacts  {STATE_TEXTS.get(status.artifacts, status.artifacts)}, "
        f"{pluralize(status.files, 'file')}",
        f"  cri        {STATE_TEXTS.get(status.cri, status.cri)}"
        + (f", {status.runtime} {status.unit}".rstrip() if status.runtime else ""),
    ]
    lines += [f"  handler    {name}: {_serving_text(status, name)}" for name in status.handlers]
    if status.restart_owed:
        lines.append("  restart    owed: the runtime has not read this configuration yet")
    lines += [f"  drift      {path}" for path in status.drift] or ["  drift      none"]
    lines += [f"  note       {note}" for note in status.notes]
    return lines


def _serving_text(status: InstallationStatus, handler: str) -> str:
    if status.served is None:
        return "configured, not known whether it is served"
    return "served" if handler in status.served else "NOT served"
