"""What the values file says of containerd and of its snapshotters."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kata_node.settings.selection import read_toml
from kata_node.settings.values import Reader, describe, nearest

SETUPS = ("nydus", "erofs")
"""The snapshotters that ``snapshotter.setup`` can list; any other is only named by a shim."""

_WHOLE_NUMBER, _TEXT, _TEXTS = "a whole number", "a string", "an array of strings"
_ANY = "*"
_OF_CRI = {"containerd": {"default_runtime_name": _TEXT, "runtimes": {_ANY: {}}}}
_SHAPE: Mapping[str, Any] = {
    "version": _WHOLE_NUMBER,
    **dict.fromkeys(("imports", "disabled_plugins", "required_plugins"), _TEXTS),
    **{table: {} for table in ("grpc", "ttrpc", "debug", "metrics", "cgroup")},
    "plugins": dict.fromkeys(("io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime"), _OF_CRI),
}
"""What keys of containerd's configuration hold in each of its versions; a mapping is for a table."""


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


def read_user_drop_in(values: Reader) -> str:
    """``containerd.userDropIn``, checked to be TOML without values that keep any containerd from starting."""
    before = len(values.problems)
    text = read_toml(values, "userDropIn")
    if text.strip() and len(values.problems) == before:
        import tomllib

        for wrong in _of_wrong_type(tomllib.loads(text), _SHAPE, ""):
            values.problem("userDropIn", f"{wrong}; containerd does not start with that")
    return text


def read_snapshotter(values: Reader) -> SnapshotterSettings:
    """Read ``snapshotter``."""
    return SnapshotterSettings(
        setup=_setup(values),
        erofs_merge_mode=values.choice("erofsMergeMode", ("", "merged", "unmerged")),
        erofs_snapshotter_mode=values.choice("erofsSnapshotterMode", ("", "disk", "memory")),
        erofs_dmverity=values.flag("erofsDmverity"),
    )


def _of_wrong_type(value: object, shape: Mapping[str, Any] | str, path: str) -> Iterator[str]:
    """What in ``value``, which is at ``path``, is not as ``shape`` has it, a sentence each."""
    if isinstance(shape, Mapping) and isinstance(value, dict):
        for key, item in value.items():
            # At the top level containerd matches keys in any case.
            inner = shape.get(key if path else key.lower(), shape.get(_ANY))
            if inner is not None:
                yield from _of_wrong_type(item, inner, f"{path}.{key}" if path else key)
    elif isinstance(shape, Mapping) or not _is_a(shape, value):
        kind = "a table" if isinstance(shape, Mapping) else shape
        yield f"{path} is {describe(value)}, not {kind}"


def _is_a(kind: str, value: object) -> bool:
    if kind == _TEXTS:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    if kind == _WHOLE_NUMBER:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, str)


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
