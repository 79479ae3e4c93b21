"""What the values file says of containerd and of its snapshotters."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kata_node.settings.selection import read_toml
from kata_node.settings.values import ValuesReader, describe_value, did_you_mean

SETUP_SNAPSHOTTERS = ("nydus", "erofs")
"""The snapshotters that ``snapshotter.setup`` can list; any other is only named by a shim."""

_WHOLE_NUMBER, _TEXT, _TEXTS = "a whole number", "a string", "an array of strings"
_ANY = "*"
_CRI_PLUGIN_SHAPE = {"containerd": {"default_runtime_name": _TEXT, "runtimes": {_ANY: {}}}}
_CONFIG_SHAPE: Mapping[str, Any] = {
    "version": _WHOLE_NUMBER,
    **dict.fromkeys(("imports", "disabled_plugins", "required_plugins"), _TEXTS),
    **{table: {} for table in ("grpc", "ttrpc", "debug", "metrics", "cgroup")},
    "plugins": dict.fromkeys(
        ("io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime"), _CRI_PLUGIN_SHAPE
    ),
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


def read_containerd(values: ValuesReader) -> ContainerdSettings:
    """Read ``containerd``, but for its ``userDropIn``."""
    return ContainerdSettings(
        config_dir=_read_config_dir(values),
        config_file_name=_read_file_name(values),
        runtime_socket=_read_socket(values),
        extra_pod_annotations=values.text_list("extraPodAnnotations") or (),
    )


def read_user_drop_in(values: ValuesReader) -> str:
    """``containerd.userDropIn``, checked to be TOML without values that keep any containerd from starting."""
    problems_before = len(values.problems)
    text = read_toml(values, "userDropIn")
    if text.strip() and len(values.problems) == problems_before:
        import tomllib

        for wrong in _type_problems(tomllib.loads(text), _CONFIG_SHAPE, ""):
            values.add_problem("userDropIn", f"{wrong}; containerd does not start with that")
    return text


def read_snapshotter(values: ValuesReader) -> SnapshotterSettings:
    """Read ``snapshotter``."""
    return SnapshotterSettings(
        setup=_read_setup(values),
        erofs_merge_mode=values.choice("erofsMergeMode", ("", "merged", "unmerged")),
        erofs_snapshotter_mode=values.choice("erofsSnapshotterMode", ("", "disk", "memory")),
        erofs_dmverity=values.flag("erofsDmverity"),
    )


def _type_problems(value: object, shape: Mapping[str, Any] | str, path: str) -> Iterator[str]:
    """What in ``value``, which is at ``path``, is not as ``shape`` has it, a sentence each."""
    if isinstance(shape, Mapping) and isinstance(value, dict):
        for key, item in value.items():
            # At the top level containerd matches keys in any case.
            inner = shape.get(key if path else key.lower(), shape.get(_ANY))
            if inner is not None:
                yield from _type_problems(item, inner, f"{path}.{key}" if path else key)
    elif isinstance(shape, Mapping) or not _has_type(shape, value):
        kind = "a table" if isinstance(shape, Mapping) else shape
        yield f"{path} is {describe_value(value)}, not {kind}"


def _has_type(kind: str, value: object) -> bool:
    if kind == _TEXTS:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    if kind == _WHOLE_NUMBER:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, str)


def _read_config_dir(containerd: ValuesReader) -> str:
    path = containerd.text("configDir")
    if path and not path.startswith("/"):
        containerd.add_problem("configDir", f"{describe_value(path)} is not an absolute path")
    return posixpath.normpath(path) if path else ""


def _read_file_name(containerd: ValuesReader) -> str:
    name = containerd.text("configFileName")
    if "/" in name or name in (".", ".."):
        containerd.add_problem("configFileName", f"{describe_value(name)} is not the name of a file")
    return name


def _read_socket(containerd: ValuesReader) -> str:
    """The path of the CRI socket; it may be written as kubelets have it, ``unix:///run/…``."""
    path = containerd.text("runtimeSocket").removeprefix("unix://")
    if path and not path.startswith("/"):
        containerd.add_problem(
            "runtimeSocket", f"{describe_value(path)} is not the absolute path of a socket"
        )
    return path


def _read_setup(snapshotter: ValuesReader) -> tuple[str, ...]:
    names = snapshotter.text_list("setup") or ()
    for name in names:
        if name not in SETUP_SNAPSHOTTERS:
            snapshotter.add_problem(
                "setup", f"{describe_value(name)} cannot be set up{did_you_mean(name, SETUP_SNAPSHOTTERS)}"
            )
    return tuple(dict.fromkeys(names))
