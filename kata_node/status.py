"""Every installation on this node, as its receipt tells and the host confirms, and the Node's labels.

Changes nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kata_node.cluster.labels import INSTALLATION_LABEL_PREFIX, SHARED_LABEL
from kata_node.errors import HostError, KataNodeError
from kata_node.host import kernel
from kata_node.host.files import Root, host_error
from kata_node.kube import credentials
from kata_node.payload.facts import observe_files
from kata_node.plan import receipt as receipts
from kata_node.plan.actions import Clients
from kata_node.plan.context import Options, StageContext
from kata_node.plan.receipt import Receipt
from kata_node.runtime.config_selection import config_for, recorded_config
from kata_node.runtime.facts import find_distribution_runtime, find_unit
from kata_node.runtime.model.config import is_drop_in
from kata_node.runtime.transaction import is_restart_owed
from kata_node.settings.model import DEFAULT_INSTALL_DIR, Settings
from kata_node.text import pluralize
from kata_node.versions import ASSUMED_RUNTIME, Runtime

CRI_TIMEOUT = 5.0  # seconds
CLUSTER_TIMEOUT = 3.0  # seconds; the labels are told by the way

STATE_TEXTS = {
    "placing": "half placed",
    "removing": "half removed",
    "writing": "half written",
    "restarting": "written",
    "reverting": "half put back",
    "unloading": "put back",
}
"""The states of the record that do not explain themselves."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class InstallationStatus:
    """One installation. ``served`` is ``None`` when the CRI was not asked, or gave no answer."""

    instance: str
    install_dir: str
    program: str
    release: str
    artifacts: str
    files: int
    cri: str
    runtime: str
    unit: str
    handlers: tuple[str, ...]
    served: tuple[str, ...] | None
    restart_owed: bool
    drift: tuple[str, ...]
    error: str = ""


@dataclass(frozen=True)
class NodeLabels:
    """Those of the Node ``name`` that speak of Kata, or in ``error`` why they are not known."""

    name: str
    labels: Mapping[str, str]
    error: str = ""


def gather(settings: Settings, options: Options, clients: Clients, *, deep: bool) -> list[InstallationStatus]:
    """Look at every receipt there is. ``deep`` compares content by digest.

    Installations lie beside that of these settings, beside the default one, or where the runtime's
    configuration names programs of theirs.
    """
    context = StageContext(settings, Receipt(settings.instance, settings.install_dir, ""), clients, options)
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
            if receipt := receipts.load(clients.root, install_dir):
                found.append(_status(clients.root, receipt, served, invocation, deep=deep))
        except KataNodeError as error:
            found.append(_unreadable(install_dir, error))
        except OSError as error:
            found.append(_unreadable(install_dir, host_error(str(error.filename), error)))
    for install_dir in sorted(configured_install_dirs.difference(status.install_dir for status in found)):
        what = "the runtime's configuration names it, and there is no record of it"
        hint = "run kata-node revert with its env.installationPrefix and env.multiInstallSuffix"
        found.append(_unreadable(install_dir, KataNodeError(what, hint=hint)))
    return found


def read_node_labels(options: Options, clients: Clients) -> NodeLabels | None:
    """Its labels; ``None`` where nothing tells which Node this is, or there is nobody to be asked."""
    name = options.node_name
    if options.offline or not name or credentials.find_credentials() is None:
        return None
    try:
        kube = clients.kube()
        found = kube.node(name, kube.deadline_after(CLUSTER_TIMEOUT)).labels
    except KataNodeError as error:
        place = f" ({error.where})" if error.where else ""
        return NodeLabels(name, {}, f"{error.what}{place}")
    ours = {
        key: found[key]
        for key in sorted(found)
        if key == SHARED_LABEL or key.startswith(INSTALLATION_LABEL_PREFIX)
    }
    return NodeLabels(name, ours)


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
    )


def _artifact_drift(root: Root, receipt: Receipt, *, deep: bool) -> list[str]:
    if receipt.artifacts is None:
        return []
    files = receipt.artifacts.files
    found = observe_files(root, receipt.install_dir, files)
    drift = []
    for path, placed in files.items():
        there = found.get(path)
        same = there is not None and there.matches(placed)
        if same and deep and placed.kind == "file":
            with root.resolve(f"{receipt.install_dir}/{path}").open("rb") as file:
                same = hashlib.file_digest(file, "sha256").hexdigest() == placed.sha256
        if not same:
            drift.append(f"{receipt.install_dir}/{path}: {'changed' if there else 'missing'}")
    return drift


def _cri_drift(root: Root, receipt: Receipt) -> list[str]:
    if receipt.cri is None:
        return []
    drift = []
    for file in receipt.cri.files:
        content = root.read(file.path)
        digest = "" if content is None else hashlib.sha256(content).hexdigest()
        # An empty digest is that of a file that is to be gone.
        if digest != file.after and not (content and _has_entry(receipt, file.path, content)):
            drift.append(f"{file.path}: {'changed' if digest else 'missing'}")
    return drift


def _has_entry(receipt: Receipt, path: str, content: bytes) -> bool:
    """Whether a file that others write as well still has what this instance put into it."""
    cri = receipt.cri
    if cri is None or not cri.unit or is_drop_in(path):
        return False
    try:
        return recorded_config(receipt, cri, path).without_entry(path, content) != content
    except HostError:
        return False


def _runtime_state(context: StageContext) -> tuple[tuple[str, ...] | None, str, frozenset[str]]:
    """What the CRI serves, the unit's invocation, and the install dirs that the configuration names."""
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
        log.warning("what is served is not known: %s", str(error).replace("\n", ";"))
    return served, unit.invocation_id if unit else "", configured_install_dirs


_SHIM_PATH = re.compile(rb'"((?:/[^"/]+)*/opt/kata(?:-[^"/]+)?)/(?:runtime-rs/)?bin/containerd-shim-kata-v2"')
_IMPORT_PATH = re.compile(rb'["\']((?:/[^"\'/]+)*/opt/kata(?:-[^"\'/]+)?)/containerd/config\.d/\*\.toml["\']')


def _install_dirs(content: bytes) -> set[str]:
    """The install dirs that a configuration file speaks of, whether they are there or not."""
    return {
        found.decode(errors="replace")
        for each in (_SHIM_PATH, _IMPORT_PATH)
        for found in each.findall(content)
    }


def to_json(statuses: Sequence[InstallationStatus], node: NodeLabels | None) -> dict[str, Any]:
    """One JSON document."""
    document = {"outcome": "ok", "installations": [dataclasses.asdict(status) for status in statuses]}
    return document | ({"node": dataclasses.asdict(node)} if node else {})


def to_text(statuses: Sequence[InstallationStatus], node: NodeLabels | None) -> str:
    """A paragraph per installation, and one for the Node."""
    paragraphs = [_installation_lines(status) for status in statuses] or [["no installation on this node"]]
    return "\n\n".join("\n".join(lines) for lines in (*paragraphs, *([_node_lines(node)] if node else [])))


def _node_lines(node: NodeLabels) -> list[str]:
    labels = [f"  label      {key}={value}" for key, value in node.labels.items()]
    none = f"not known: {node.error}" if node.error else "none of Kata"
    return [f"Node {node.name}", *(labels or [f"  labels     {none}"])]


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
    return lines


def _serving_text(status: InstallationStatus, handler: str) -> str:
    if status.served is None:
        return "configured, not seen served"
    return "served" if handler in status.served else "NOT served"
