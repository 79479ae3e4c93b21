"""Tell from the paths in a handler's table which installation it belongs to. Pure."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Mapping

_NESTED_INSTALL_DIR = re.compile(r"(.*/)?opt/kata(-[^/]+)?/")
# The case of these keys means nothing to containerd 2. Its CRI reports them without the underscore.
_PROGRAM_KEYS, _TYPE_KEYS = ("runtime_path", "runtimepath"), ("runtime_type", "runtimetype")


def is_below(path: object, install_dir: str) -> bool:
    """Return whether a path is below the install dir, and not below another one that is nested in it."""
    if not isinstance(path, str) or not path.startswith("/"):
        return False
    path = posixpath.normpath(path)
    if not path.startswith(f"{install_dir}/"):
        return False
    return _NESTED_INSTALL_DIR.match(path.removeprefix(f"{install_dir}/")) is None


def programs(handler: object) -> tuple[str, ...]:
    """Return the absolute paths in the table of a handler, whatever their keys are: its pods need them all.

    The table is one of a configuration file, or of the configuration that the CRI of containerd reports.
    containerd runs an absolute path in ``runtime_type`` too. A ``monitor_path`` is one of CRI-O.
    """
    if not isinstance(handler, Mapping):
        return ()
    options = (value for key, value in handler.items() if key.lower() == "options")
    tables = (handler, *(each for each in options if isinstance(each, Mapping)))
    return tuple(
        value
        for table in tables
        for value in table.values()
        if isinstance(value, str) and value.startswith("/")
    )


def program_in_path(handler: Mapping[str, object]) -> str:
    """Return the name of the program that containerd looks for in its PATH to run a handler.

    It is empty if the table of the handler has the path of the program. The type ``io.containerd.kata.v2``
    stands for ``containerd-shim-kata-v2``.
    """
    fields = {key.lower(): value for key, value in handler.items()}
    if any(fields.get(key) for key in _PROGRAM_KEYS):
        return ""
    runtime_type = next((fields[key] for key in _TYPE_KEYS if fields.get(key)), "")
    if not isinstance(runtime_type, str) or "/" in runtime_type:
        return ""
    parts = runtime_type.split(".")
    return f"containerd-shim-{parts[-2]}-{parts[-1]}" if len(parts) > 1 and parts[0] else ""


def uses(paths: Iterable[str], install_dir: str) -> bool:
    """Return whether one of the paths is below the install dir."""
    return any(is_below(path, install_dir) for path in paths)
