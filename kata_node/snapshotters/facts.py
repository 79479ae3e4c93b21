"""Facts about snapshotters on the node: this installation's nydus-snapshotter, and the needs of erofs."""

from __future__ import annotations

import os

from msgspec import Struct

from kata_node.host import kernel
from kata_node.host.files import Root
from kata_node.plan.context import StageContext
from kata_node.snapshotters import mapping, nydus
from kata_node.snapshotters.mapping import NYDUS, UNIT_DIR, NydusInstance
from kata_node.snapshotters.nydus import NydusFacts

PROGRAM_DIRS = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
"""The directories in which systemd looks for the programs of a unit, in this order."""

MKFS_EROFS = "mkfs.erofs"
MKFS_FLAGS = ("--tar=", "--mkfs-time", "--sort=")
"""The options in :data:`~kata_node.snapshotters.mapping.MKFS_OPTIONS` and containerd's own ``--tar``.

They are spelled as in the help text of ``mkfs.erofs``.
"""


def gather_nydus_facts(context: StageContext, units: tuple[str, ...]) -> NydusFacts:
    """Return the facts about this installation's nydus-snapshotter.

    ``units`` are all units that can run containerd in the node's distribution. An image is baked before
    it is known which of them runs on the node, so the nydus unit refers to all of them.
    """
    root, own_nydus = context.clients.root, NydusInstance.for_settings(context.settings)
    content = root.read(own_nydus.unit_path)
    paths = (*nydus.wants_links(own_nydus, units), *root.glob(f"{UNIT_DIR}/*.wants/{own_nydus.unit}"))
    wants_links = {path: root.read_link(path) for path in paths}
    directories = {path.rpartition("/")[0] for path in (*paths, own_nydus.unit_path, own_nydus.config)}
    # Without its file, the unit can still run.
    is_relevant = (
        content is not None or any(wants_links.values()) or mapping.is_managed(context.settings, NYDUS)
    )
    state = None
    if is_relevant and not context.options.offline:
        state = context.clients.systemd().unit(own_nydus.unit)
    artifacts = context.receipt.artifacts
    placed = artifacts.files.get(nydus.PROGRAM_PATH) if artifacts else None
    return NydusFacts(
        unit=content,
        config=root.read(own_nydus.config),
        wants_links={path: target for path, target in wants_links.items() if target is not None},
        directories=frozenset(path for path in directories if root.is_dir(path)),
        program=placed.sha256 if placed else "",
        cri_units=units,
        loaded=state is not None,
        active=state is not None and state.active_state == "active",
        needs_daemon_reload=state is not None and state.need_daemon_reload,
        offline=context.options.offline,
    )


class MkfsErofs(Struct, frozen=True):
    """The ``mkfs.erofs`` that a unit would run."""

    path: str
    missing_options: tuple[str, ...]
    """The options in :data:`MKFS_FLAGS` that it does not know."""


class SnapshotterFacts(Struct, frozen=True):
    """Facts about snapshotters for host-check."""

    nydus: NydusFacts
    programs_visible: bool
    """Whether the node's program directories are visible. A pod mounts only some directories of the node."""
    mkfs: MkfsErofs | None
    erofs: bool
    """Whether the running kernel has the file system erofs, built in or as a loaded module."""
    erofs_module: bool
    """Whether the running kernel has an erofs module that can be loaded. False if this is not visible."""
    dm_verity: bool
    """Whether the running kernel has dm-verity."""
    offline: bool = False


def gather_facts(context: StageContext, units: tuple[str, ...]) -> SnapshotterFacts:
    """Return the facts about snapshotters; ``units`` as in :func:`gather_nydus_facts`."""
    root = context.clients.root
    lines = kernel.read("/proc/filesystems").splitlines()
    return SnapshotterFacts(
        nydus=gather_nydus_facts(context, units),
        programs_visible=any(root.is_dir(path) for path in PROGRAM_DIRS),
        mkfs=_mkfs(root),
        erofs=any(line.split()[-1:] == ["erofs"] for line in lines),
        erofs_module=_has_erofs_module(root),
        dm_verity=kernel.has_module("dm_verity"),
        offline=context.options.offline,
    )


def _mkfs(root: Root) -> MkfsErofs | None:
    """Return the first ``mkfs.erofs`` and the options it lacks.

    The program is not run. Its file contains the help text, which lists every option.
    """
    for directory in PROGRAM_DIRS:
        path = f"{directory}/{MKFS_EROFS}"
        program = root.read(path) if root.exists(path) else None
        if program is not None:
            return MkfsErofs(path, tuple(flag for flag in MKFS_FLAGS if flag.encode() not in program))
    return None


def _has_erofs_module(root: Root) -> bool:
    directory = f"/lib/modules/{os.uname().release}/kernel/fs/erofs"
    return any(name.startswith("erofs.ko") for name in root.list_dir(directory))
