"""What the node has of snapshotters: the nydus-snapshotter of this instance, and what erofs needs."""

from __future__ import annotations

import platform
from dataclasses import dataclass, field

from kata_node.host import kernel
from kata_node.host.files import Root
from kata_node.plan.context import StageContext
from kata_node.snapshotters import mapping, nydus
from kata_node.snapshotters.mapping import NYDUS, UNIT_DIR, NydusInstance
from kata_node.snapshotters.nydus import NydusFacts

PROGRAM_DIRS = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
"""Where systemd has the programs of a unit looked for, in this order."""

MKFS_EROFS = "mkfs.erofs"
MKFS_FLAGS = ("--tar=", "--mkfs-time", "--sort=")
"""How the options containerd is told to use are called in the help text of ``mkfs.erofs``."""


def gather_nydus_facts(look: StageContext, units: tuple[str, ...]) -> NydusFacts:
    """Gather them. ``units`` are those that can run containerd in this node's distribution.

    One of them does, and it is the same for an image of which it is not known yet which one.
    """
    root, own_nydus = look.clients.root, NydusInstance.for_settings(look.settings)
    content = root.read(own_nydus.unit_path)
    paths = (*nydus.wants_links(own_nydus, units), *root.glob(f"{UNIT_DIR}/*.wants/{own_nydus.unit}"))
    wants_links = {path: root.read_link(path) for path in paths}
    directories = {path.rpartition("/")[0] for path in (*paths, own_nydus.unit_path, own_nydus.config)}
    # It can run on though its file is gone.
    is_relevant = content is not None or any(wants_links.values()) or mapping.is_managed(look.settings, NYDUS)
    state = None
    if is_relevant and not look.options.offline:
        state = look.clients.systemd().unit(own_nydus.unit)
    placed = look.receipt.artifacts.files.get(nydus.PROGRAM_PATH) if look.receipt.artifacts else None
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
        offline=look.options.offline,
    )


@dataclass(frozen=True)
class MkfsErofs:
    """The ``mkfs.erofs`` that a unit would run."""

    path: str
    missing_options: tuple[str, ...]
    """Of :data:`MKFS_FLAGS`, those it does not know."""


@dataclass(frozen=True)
class SnapshotterFacts:
    """For host-check."""

    nydus: NydusFacts
    programs_visible: bool
    """Whether the host's programs can be seen: a pod has only some directories of it."""
    mkfs: MkfsErofs | None
    erofs: bool
    """Whether the running kernel has the file system erofs, loaded or built in."""
    erofs_module: bool
    """Whether there is a module of it to be loaded, as far as this can be seen."""
    dm_verity: bool
    offline: bool = field(default=False)


def look(look: StageContext, units: tuple[str, ...]) -> SnapshotterFacts:
    """Gather them; ``units`` as for :func:`look_at_nydus`."""
    root = look.clients.root
    lines = kernel.read("/proc/filesystems").splitlines()
    return SnapshotterFacts(
        nydus=gather_nydus_facts(look, units),
        programs_visible=any(root.is_dir(path) for path in PROGRAM_DIRS),
        mkfs=_mkfs(root),
        erofs=any(line.split()[-1:] == ["erofs"] for line in lines),
        erofs_module=_has_erofs_module(root),
        dm_verity=kernel.has_module("dm_verity"),
        offline=look.options.offline,
    )


def _mkfs(root: Root) -> MkfsErofs | None:
    """Nothing is run: the program has its help text in it, and that names every option it knows."""
    for directory in PROGRAM_DIRS:
        path = f"{directory}/{MKFS_EROFS}"
        program = root.read(path) if root.exists(path) else None
        if program is not None:
            return MkfsErofs(path, tuple(flag for flag in MKFS_FLAGS if flag.encode() not in program))
    return None


def _has_erofs_module(root: Root) -> bool:
    below = f"/lib/modules/{platform.release()}/kernel/fs/erofs"
    return any(name.startswith("erofs.ko") for name in root.list_dir(below))
