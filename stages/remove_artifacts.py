"""remove-artifacts: take away what the artifacts stage placed, and the record of it."""

from __future__ import annotations

from dataclasses import replace

from kata_node.errors import KataNodeError
from kata_node.payload.facts import RemovalFacts
from kata_node.payload.facts import gather_removal_facts as look
from kata_node.plan.actions import Action, Plan, RemoveDirs, RemoveFiles, RemoveReceipt, WriteReceipt
from kata_node.plan.receipt import Receipt
from kata_node.runtime.model.config import is_drop_in
from kata_node.settings.model import Settings
from kata_node.text import pluralize

__all__ = ["NAME", "look", "plan"]

NAME = "remove-artifacts"


def plan(settings: Settings, facts: RemovalFacts, receipt: Receipt) -> Plan:
    """Remove what the receipt names; leave and name what it does not."""
    install_dir = receipt.install_dir
    if receipt.cri is not None:
        raise KataNodeError(
            "the CRI runtime is still configured to use the files below this directory",
            where=install_dir,
            hint="run the stage revert-cri first",
        )
    before = receipt.artifacts
    files = before.files if before else {}
    # A drop-in is there only in a dry run, in which revert-cri did not remove it.
    foreign = [f"{install_dir}/{path}" for path in facts.found if path not in files]
    left = tuple(f"left, not placed by kata-node: {path}" for path in foreign if not is_drop_in(path))
    if before is None and not facts.is_removable:
        return Plan("nothing of this instance is on the node", notes=left)
    actions: list[Action] = []
    if before is not None:
        paths = tuple(path for path, placed in files.items() if placed.kind != "dir")
        dirs = tuple(f"{install_dir}/{path}" for path in sorted(files, reverse=True) if path not in paths)
        actions = [
            WriteReceipt(replace(receipt, artifacts=replace(before, state="removing"))),
            RemoveFiles(install_dir, paths),
            RemoveDirs(dirs),
        ]
    actions.append(RemoveReceipt(install_dir))
    # Empty, it is of no use to anybody, even when a run was killed after it forgot that it made it.
    made_dirs = reversed(before.made_dirs) if before else ()
    actions.append(RemoveDirs(tuple(dict.fromkeys((install_dir, *made_dirs)))))
    return Plan(f"{pluralize(before.count if before else 0, 'file')} removed", tuple(actions), notes=left)
