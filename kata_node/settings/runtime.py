"""The settings of containerd and its snapshotters."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from typing import Any

from msgspec import Struct

from kata_node.settings.selection import read_toml
from kata_node.settings.values import ValuesReader, describe_value, did_you_mean, path_problem

SETUP_SNAPSHOTTERS = ("nydus", "erofs")
"""The snapshotters that ``snapshotter.setup`` can list. Shims can use others that the node already has."""

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
"""The types of keys that are the same in every version of containerd's configuration. A dict is a table."""


class ContainerdSettings(Struct, frozen=True):
    """The paths of containerd that differ from those of the distribution, and annotations it passes on.

    An empty path means that of the distribution.
    """

    config_dir: str = ""
    config_file_name: str = ""
    runtime_socket: str = ""
    """The path of the CRI socket."""
    extra_pod_annotations: tuple[str, ...] = ()
    """Globs of pod annotations that containerd passes to every shim."""


class SnapshotterSettings(Struct, frozen=True):
    """The snapshotters to set up on the node, and the options of erofs."""

    setup: tuple[str, ...] = ()
    """Members of :data:`SETUP_SNAPSHOTTERS`."""
    erofs_merge_mode: str = ""
    erofs_snapshotter_mode: str = ""
    erofs_dmverity: bool = False


def read_containerd(values: ValuesReader) -> ContainerdSettings:
    """Read ``containerd``, without ``userDropIn``."""
    return ContainerdSettings(
        config_dir=_read_config_dir(values),
        config_file_name=_read_file_name(values),
        runtime_socket=_read_socket(values),
        extra_pod_annotations=values.text_list("extraPodAnnotations") or (),
    )


def read_user_drop_in(values: ValuesReader) -> str:
    """Return ``containerd.userDropIn``.

    Report a problem if it is not valid TOML, or if a value has a type with which no containerd starts.
    """
    problems_before = len(values.problems)
    with values.section("userDropInSecret") as secret:
        secret.skip("key", "digest")
        if secret.text("name"):
            secret.add_problem(
                "name",
                "is a Secret, which only the pods of the chart have; give its content with --user-drop-in",
            )
    text = read_toml(values, "userDropIn")
    if text.strip() and len(values.problems) == problems_before:
        from kata_node.toml.parse import parse

        for problem in _type_problems(parse(text), _CONFIG_SHAPE, ""):
            values.add_problem("userDropIn", f"{problem}; containerd does not start with that")
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
    """Yield a sentence for each key in ``value`` that has another type than in ``shape``.

    ``path`` is the key of ``value``, as a dotted path.
    """
    if isinstance(shape, Mapping) and isinstance(value, dict):
        for key, item in value.items():
            # containerd ignores the case of top-level keys.
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
    elif problem := path_problem(path):
        containerd.add_problem("configDir", f"{describe_value(path)} {problem}")
    elif path and (problem := _system_dir_problem(path)):
        containerd.add_problem("configDir", f"{posixpath.normpath(path)} {problem}")
    return posixpath.normpath(path) if path else ""


def _read_file_name(containerd: ValuesReader) -> str:
    name = containerd.text("configFileName")
    if "/" in name or name in (".", ".."):
        containerd.add_problem("configFileName", f"{describe_value(name)} is not a file name")
    elif problem := path_problem(name):
        containerd.add_problem("configFileName", f"{describe_value(name)} {problem}")
    return name


def _read_socket(containerd: ValuesReader) -> str:
    """Return the path of the CRI socket. The kubelet's form, ``unix:///run/…``, is accepted too."""
    path = containerd.text("runtimeSocket").removeprefix("unix://")
    if path and not path.startswith("/"):
        containerd.add_problem(
            "runtimeSocket", f"{describe_value(path)} is not the absolute path of a socket"
        )
    elif problem := path_problem(path):
        containerd.add_problem("runtimeSocket", f"{describe_value(path)} {problem}")
    elif path and (problem := _system_dir_problem(posixpath.dirname(path))):
        containerd.add_problem("runtimeSocket", f"{path} {problem}")
    return path


def _system_dir_problem(directory: str) -> str:
    from kata_node.settings.system_dirs import runtime_dir_problem

    return runtime_dir_problem(directory)


def _read_setup(snapshotter: ValuesReader) -> tuple[str, ...]:
    names = snapshotter.text_list("setup") or ()
    for name in names:
        if name not in SETUP_SNAPSHOTTERS:
            snapshotter.add_problem(
                "setup",
                f"{describe_value(name)} is not a snapshotter that kata-node sets up"
                f"{did_you_mean(name, SETUP_SNAPSHOTTERS)}",
            )
    return tuple(dict.fromkeys(names))
