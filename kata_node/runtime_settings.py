"""What the values file says of containerd and of its snapshotters."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass

from kata_node.values import Reader, describe, nearest

SETUPS = ("nydus", "erofs")
"""The snapshotters that ``snapshotter.setup`` can list; any other is only named by a shim."""


@dataclass(frozen=True)
class ContainerdSettings:
    """Where containerd is when it is not where the distribution puts it, and what it passes on."""

    config_dir: str = ""
    config_file_name: str = ""
    runtime_socket: str = ""
    """A path."""
    extra_pod_annotations: tuple[str, ...] = ()


@dataclass(frozen=True)
class SnapshotterSettings:
    """The snapshotters to set up on the node."""

    setup: tuple[str, ...] = ()
    erofs_merge_mode: str = ""
    erofs_snapshotter_mode: str = ""
    erofs_dmverity: bool = False


def read_containerd(values: Reader) -> ContainerdSettings:
    """Read ``containerd``, but for its ``userDropIn``."""
    return ContainerdSettings(
        config_dir=_directory(values),
        config_file_name=_file_name(values),
        runtime_socket=_socket(values),
        extra_pod_annotations=values.texts("extraPodAnnotations") or (),
    )


def read_snapshotter(values: Reader) -> SnapshotterSettings:
    """Read ``snapshotter``."""
    return SnapshotterSettings(
        setup=_setup(values),
        erofs_merge_mode=values.choice("erofsMergeMode", ("", "merged", "unmerged")),
        erofs_snapshotter_mode=values.choice("erofsSnapshotterMode", ("", "disk", "memory")),
        erofs_dmverity=values.flag("erofsDmverity"),
    )


def _directory(containerd: Reader) -> str:
    path = containerd.text("configDir")
    if path and not path.startswith("/"):
        containerd.problem("configDir", f"{describe(path)} is not an absolute path")
    return posixpath.normpath(path) if path else ""


def _file_name(containerd: Reader) -> str:
    name = containerd.text("configFileName")
    if "/" in name or name in (".", ".."):
        containerd.problem("configFileName", f"{describe(name)} is not the name of a file")
    return name


def _socket(containerd: Reader) -> str:
    """The path of the CRI socket; it may be written as kubelets have it, ``unix:///run/…``."""
    path = containerd.text("runtimeSocket").removeprefix("unix://")
    if path and not path.startswith("/"):
        containerd.problem("runtimeSocket", f"{describe(path)} is not the absolute path of a socket")
    return path


def _setup(snapshotter: Reader) -> tuple[str, ...]:
    names = snapshotter.texts("setup") or ()
    for name in names:
        if name not in SETUPS:
            snapshotter.problem("setup", f"{describe(name)} cannot be set up{nearest(name, SETUPS)}")
    return tuple(dict.fromkeys(names))
