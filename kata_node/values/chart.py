"""The chart's own files, and what a values file becomes when helm merges it with the defaults."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any, cast

from kata_node.assets import asset
from kata_node.settings.values import parse_yaml

Values = Mapping[str, Any]

NODE_KEYS = (
    *("containerd", "customRuntimes", "debug", "defaultShim", "devkit", "env", "snapshotter"),
    "startupTaints",
)
"""The top-level keys that the chart passes to the nodes unchanged, see ``_node.tpl``."""


@functools.cache
def defaults() -> Values:
    """Return the default values of the chart."""
    return cast("Values", parse_yaml(_read("values.yaml")))


@functools.cache
def schema() -> Mapping[str, Any]:
    """Return the schema of the values."""
    return cast("Mapping[str, Any]", json.loads(_read("values.schema.json")))


@functools.cache
def gone() -> Mapping[str, str]:
    """Return the keys of other charts that this chart refuses, each with the remedy."""
    return cast("Mapping[str, str]", json.loads(_read("files/gone.json")))


def merged(given: Mapping[Any, Any], below: Values | None = None) -> dict[str, Any]:
    """Return values as helm merges them with the chart's defaults. A null removes the default of its key."""
    result = dict(defaults() if below is None else below)
    for key, value in given.items():
        old = result.get(key)
        if value is None and key in result:
            del result[key]
        elif isinstance(value, dict) and isinstance(old, dict):
            result[key] = merged(value, old)
        else:
            result[key] = value
    return result


def node_values(values: Values) -> dict[str, Any]:
    """Return what the chart renders of merged ``values`` for the nodes."""
    result = {key: values[key] for key in NODE_KEYS if values.get(key) is not None}
    if isinstance(containerd := result.get("containerd"), dict):
        digest = at(containerd, "userDropInSecret.digest") if at(containerd, "userDropInSecret.name") else ""
        own = {key: value for key, value in containerd.items() if key != "userDropInSecret"}
        result["containerd"] = {**own, "userDropInSecret": {"digest": digest}} if digest else own
    result["k8sDistribution"] = values.get("k8sDistribution") or "k8s"
    given = values.get("shims")
    shims = given if isinstance(given, dict) else {}
    result["shims"] = {
        "disableAll": shims.get("disableAll") or False,
        **{
            name: {key: value for key, value in shim.items() if key != "runtimeClass"}
            for name, shim in shims.items()
            if isinstance(shim, dict)
        },
    }
    if len(result["shims"]) == 1:
        # A node that finds no shim in its values installs the default shim.
        result["shims"]["disableAll"] = True
    return result


def at(values: object, path: str) -> Any:
    """Return the value at a path of keys; ``None`` if there is none."""
    for key in path.split("."):
        values = values.get(key) if isinstance(values, dict) else None
    return values


def _read(name: str) -> str:
    return asset(f"chart/kata-deploy/{name}").read_text(encoding="utf-8")
