"""Every installation on this node, as its receipt tells and the host confirms. Changes nothing."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kata_node import receipt as receipts
from kata_node.actions import Tools
from kata_node.errors import KataNodeError
from kata_node.facts import Options
from kata_node.facts.artifacts import find
from kata_node.host import kernel
from kata_node.host.files import Root
from kata_node.receipt import Receipt
from kata_node.settings import Settings
from kata_node.transaction import is_owed

CALL_TIMEOUT = 5.0  # seconds


@dataclass(frozen=True)
class Status:
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


def gather(settings: Settings, options: Options, tools: Tools, *, deep: bool) -> list[Status]:
    """Look at every receipt beside the one of these settings. ``deep`` compares content by digest."""
    parent = settings.install_dir.rpartition("/")[0]
    pattern = f"{parent}/kata*/{receipts.STATE_DIR}/receipt.json"
    dirs = (path.removesuffix(f"/{receipts.STATE_DIR}/receipt.json") for path in tools.root.glob(pattern))
    served, invocation = _runtime(options, tools)
    return [_status(tools.root, install_dir, served, invocation, deep=deep) for install_dir in dirs]


def _status(
    root: Root, install_dir: str, served: tuple[str, ...] | None, invocation: str, *, deep: bool
) -> Status:
    try:
        receipt = receipts.load(root, install_dir)
        assert receipt is not None
    except KataNodeError as error:
        return Status(
            "", install_dir, "", "", "unreadable", 0, "unreadable", "", "", (), None, False, (), str(error)
        )
    artifacts, cri = receipt.artifacts, receipt.cri
    return Status(
        instance=receipt.instance,
        install_dir=install_dir,
        program=receipt.program,
        release=artifacts.release if artifacts else "",
        artifacts=artifacts.state if artifacts else "absent",
        files=len(artifacts.files) if artifacts else 0,
        cri=cri.state if cri else "absent",
        runtime=f"{cri.runtime}://{cri.version}" if cri else "",
        unit=cri.unit if cri else "",
        handlers=cri.handlers if cri else (),
        served=served,
        restart_owed=cri is not None
        and cri.state != "serving"
        and is_owed(cri, kernel.boot_id(), invocation),
        drift=(*_artifact_drift(root, receipt, deep=deep), *_cri_drift(root, receipt)),
    )


def _artifact_drift(root: Root, receipt: Receipt, *, deep: bool) -> list[str]:
    if receipt.artifacts is None:
        return []
    files = receipt.artifacts.files
    found = find(root, receipt.install_dir, files)
    drift = []
    for path, placed in files.items():
        there = found.get(path)
        same = there is not None and there.is_as(placed)
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
        if content is None:
            drift.append(f"{file.path}: missing")
        elif hashlib.sha256(content).hexdigest() != file.after:
            drift.append(f"{file.path}: changed")
    return drift


def _runtime(options: Options, tools: Tools) -> tuple[tuple[str, ...] | None, str]:
    """What the CRI serves, and the unit's invocation."""
    if options.offline:
        return None, ""
    try:
        served: tuple[str, ...] | None = tools.cri().status(CALL_TIMEOUT).handlers
    except KataNodeError:
        served = None
    try:
        unit = tools.systemd().unit("containerd.service")
    except KataNodeError:
        unit = None
    return served, unit.invocation_id if unit else ""


def to_json(statuses: Sequence[Status]) -> dict[str, Any]:
    """One JSON document."""
    return {"installations": [dataclasses.asdict(status) for status in statuses]}


def to_text(statuses: Sequence[Status]) -> str:
    """A paragraph per installation."""
    if not statuses:
        return "no installation on this node"
    return "\n\n".join("\n".join(_lines(status)) for status in statuses)


def _lines(status: Status) -> list[str]:
    if status.error:
        return [f"{status.install_dir}", f"  error: {status.error}"]
    lines = [
        f"{status.instance}: {status.install_dir}, release {status.release or 'unknown'}, "
        f"by kata-node {status.program}",
        f"  artifacts  {status.artifacts}, {status.files} files",
        f"  cri        {status.cri}"
        + (f", {status.runtime} {status.unit}".rstrip() if status.runtime else ""),
    ]
    lines += [f"  handler    {name}: {_serving(status, name)}" for name in status.handlers]
    if status.restart_owed:
        lines.append("  restart    owed: the runtime has not read this configuration yet")
    lines += [f"  drift      {path}" for path in status.drift] or ["  drift      none"]
    return lines


def _serving(status: Status, handler: str) -> str:
    if status.served is None:
        return "configured (the CRI was not asked)"
    return "served" if handler in status.served else "NOT served"
