"""remove-artifacts: remove the files that the artifacts stage placed, and the receipt."""

from __future__ import annotations

from msgspec.structs import replace

from kata_node.errors import KataNodeError
from kata_node.payload.actions import SetDirModes
from kata_node.payload.facts import RemovalFacts
from kata_node.payload.facts import gather_removal_facts as gather_facts
from kata_node.plan.actions import Action, Plan, RemoveDirs, RemoveReceipt, WriteReceipt
from kata_node.plan.receipt import Receipt
from kata_node.plan.remove_files import RemoveFiles
from kata_node.runtime.model.config import is_drop_in
from kata_node.settings.model import Settings
from kata_node.text import pluralize

__all__ = ["NAME", "gather_facts", "plan"]

NAME = "remove-artifacts"


def plan(settings: Settings, facts: RemovalFacts, receipt: Receipt) -> Plan:
    """Return the plan that removes the files in the receipt. Other files stay and are named in the notes.

    Raises :class:`KataNodeError` if the runtime's configuration still has this installation.
    """
    install_dir = receipt.install_dir
    if receipt.cri is not None:
        raise KataNodeError(
            "the runtime's configuration still uses the files in this directory",
            where=install_dir,
            hint="run `kata-node stage revert-cri` first, or `kata-node revert` for all stages",
        )
    before = receipt.artifacts
    files = before.files if before else {}
    paths = tuple(path for path, placed in files.items() if placed.kind != "dir")
    own = set(paths)
    foreign = [f"{install_dir}/{path}" for path in facts.found if path not in own]
    # The installation's own drop-in exists only in a dry run, because there revert-cri did not remove it.
    left = tuple(f"left, not placed by kata-node: {path}" for path in foreign if not is_drop_in(path))
    if before is None and not facts.has_leftover:
        summary = "this installation has no files on the node"
        if left:
            summary = (
                f"not ours: no receipt records the files in {install_dir}; if kata-node placed them, run "
                "`kata-node install`, which adopts them, and then `kata-node revert`"
            )
        return Plan(summary, notes=left)
    actions: list[Action] = []
    if before is not None:
        dirs = tuple(path for path in sorted(files, reverse=True) if path not in own)
        actions = [
            # On a full disk the next run removes these files without this record too.
            WriteReceipt(replace(receipt, artifacts=replace(before, state="removing")), optional=True),
            *((SetDirModes(facts.open_dirs),) if facts.open_dirs else ()),
            RemoveFiles(install_dir, paths, {path: files[path].size for path in paths}, dirs),
            RemoveDirs(tuple(f"{install_dir}/{path}" for path in dirs)),
        ]
    actions.append(RemoveReceipt(install_dir))
    # The install dir is removed if it is empty, also if an interrupted run already removed the receipt that
    # says that this installation created it.
    made_dirs = (
        *((install_dir,) if facts.has_removable_dir else ()),
        *(reversed(before.made_dirs) if before else ()),
        *facts.mount_dirs,
    )
    if made_dirs:
        actions.append(RemoveDirs(tuple(dict.fromkeys(made_dirs))))
    return Plan(f"{pluralize(before.count if before else 0, 'file')} removed", tuple(actions), notes=left)
