"""revert-cri: give the CRI runtime its old configuration back, as one transaction."""

from __future__ import annotations

from dataclasses import replace

from kata_node import containerd, transaction
from kata_node.actions import Plan
from kata_node.facts.runtime import RuntimeFacts
from kata_node.facts.runtime import look_for_revert as look
from kata_node.receipt import Cri, CriFile, Receipt
from kata_node.restart import CheckConfig
from kata_node.settings import Settings
from kata_node.transaction import Change, sha256

__all__ = ["NAME", "look", "plan"]

NAME = "revert-cri"


def plan(settings: Settings, facts: RuntimeFacts, receipt: Receipt) -> Plan:
    """Old bytes for a file nobody touched since; an edited one loses our entries and keeps the rest."""
    cri = receipt.cri or _unrecorded(settings, facts, receipt)
    if cri is None:
        return Plan("the runtime's configuration has nothing of this instance")
    notes: list[str] = []
    # The file that imports before those that are imported: backwards, as they were written.
    changes = [_back(file, receipt, facts, notes) for file in reversed(cri.files)]
    check = CheckConfig(facts.config_path, (), (), {}, facts.runtime.version)
    plan = transaction.revert(facts, replace(receipt, cri=cri), changes, check)
    return replace(plan, notes=tuple(notes))


def _back(file: CriFile, receipt: Receipt, facts: RuntimeFacts, notes: list[str]) -> Change:
    there = facts.files.get(file.path)
    if there is None:
        if file.before is not None:
            notes.append(f"removed by somebody since, left so: {file.path}")
        return Change(file.path, None)
    digest = sha256(there.content)
    if digest == file.after or (file.before and digest == file.before.sha256):
        return Change(file.path, facts.backups[file.before.sha256] if file.before else None)
    if containerd.is_drop_in(file.path, receipt.install_dir):
        notes.append(f"edited by somebody since, removed all the same for it was ours: {file.path}")
        return Change(file.path, None)
    notes.append(f"edited by somebody since, only our entry taken out: {file.path}")
    return Change(file.path, containerd.without_us(there.content, receipt.install_dir, file.path))


def _unrecorded(settings: Settings, facts: RuntimeFacts, receipt: Receipt) -> Cri | None:
    """What a lost record would have said, so that nothing that names our files stays behind."""
    files = [
        CriFile(path, None, "")
        for path in containerd.own_paths(receipt.install_dir, settings.suffix, facts.config_path)
        if path in facts.files
    ]
    main = facts.files.get(facts.config_path)
    if main and containerd.without_us(main.content, receipt.install_dir, facts.config_path) != main.content:
        files.append(CriFile(facts.config_path, None, ""))
    if not files:
        return None
    return Cri(
        "serving",
        facts.runtime.name,
        str(facts.runtime.version),
        facts.unit,
        facts.invocation,
        facts.boot,
        tuple(shim.handler(settings.suffix) for shim in settings.shims),
        tuple(files),
    )
