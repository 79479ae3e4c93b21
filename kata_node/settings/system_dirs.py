"""Directories of the system, which kata-node and its pods must not have for their own files. Pure.

The chart reads the same list: it mounts these directories into pods that work as root.
"""

from __future__ import annotations

import functools
import json
import posixpath
import re
from collections.abc import Mapping

from kata_node.assets import asset

PREFIX_REMEDY = "leave it empty for /opt/kata, or use a directory of your own, for example /srv/kata"
RUNTIME_REMEDY = "use a directory that has only the files of the container runtime"


def prefix_problem(prefix: str) -> str:
    """Return why ``prefix`` cannot be the installation prefix, as the end of a sentence; empty if it can."""
    return _problem(prefix, PREFIX_REMEDY, is_prefix=True)


def runtime_dir_problem(directory: str) -> str:
    """Return why ``directory`` cannot have the runtime's configuration or socket; empty if it can."""
    return _problem(directory, RUNTIME_REMEDY, is_prefix=False)


def is_system_dir(path: str, *, is_prefix: bool) -> bool:
    """Return whether ``path`` is a directory of the system, for a prefix or for another value."""
    lists = _lists()
    path = _normal(path)
    trees = (*lists["trees"], *(lists["prefixTrees"] if is_prefix else ()))
    alone = (*lists["directories"], *(() if is_prefix else lists["sharedDirectories"]))
    return path in alone or any(f"{path}/".startswith(f"{tree}/") for tree in trees)


def _problem(path: str, remedy: str, *, is_prefix: bool) -> str:
    if not path.startswith("/") or not is_system_dir(path, is_prefix=is_prefix):
        return ""
    return f"would give the pods {_normal(path)}, a directory of the system; {remedy}"


def _normal(path: str) -> str:
    """Return the path without ``..``, double and trailing slashes, and with /run for /var/run."""
    return re.sub(r"^/var/run(?=/|$)", "/run", posixpath.normpath(f"/{path.lstrip('/')}"))


@functools.cache
def _lists() -> Mapping[str, list[str]]:
    lists: Mapping[str, list[str]] = json.loads(asset("chart/kata-deploy/files/system-dirs.json").read_text())
    return lists
