"""Tell from the paths in a handler's table which installation it belongs to. Pure."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

_NESTED_INSTALL_DIR = re.compile(r"(.*/)?opt/kata(-[^/]+)?/")
# containerd runs an absolute path in runtime_type too. The case of these keys means nothing to containerd 2.
_KEYS = frozenset(("runtime_path", "runtimepath", "runtime_config_path", "runtime_type", "runtimetype"))
_OPTIONS = frozenset(("configpath", "binaryname"))


def is_below(path: object, install_dir: str) -> bool:
    """Return whether a path is below the install dir, and not below another one that is nested in it."""
    if not isinstance(path, str) or not path.startswith("/"):
        return False
    path = posixpath.normpath(path)
    if not path.startswith(f"{install_dir}/"):
        return False
    return _NESTED_INSTALL_DIR.match(path.removeprefix(f"{install_dir}/")) is None


def programs(handler: object) -> tuple[str, ...]:
    """Return the paths in the table of a handler that its pods need.

    The table is one of a configuration file, or of the configuration that the CRI of containerd reports.
    """
    if not isinstance(handler, Mapping):
        return ()
    options = [value for key, value in handler.items() if key.lower() == "options"]
    found = _values(handler, _KEYS)
    found += [value for each in options if isinstance(each, Mapping) for value in _values(each, _OPTIONS)]
    return tuple(path for path in found if isinstance(path, str) and path)


def _values(table: Mapping[str, Any], keys: Collection[str]) -> list[Any]:
    return [value for key, value in table.items() if key.lower() in keys]


def uses(paths: Iterable[str], install_dir: str) -> bool:
    """Return whether one of the paths is below the install dir."""
    return any(is_below(path, install_dir) for path in paths)
