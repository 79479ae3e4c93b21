"""Find the tables of an installation in any file of containerd, whoever wrote them. Pure.

NVIDIA's container toolkit (1.18 and later) writes a drop-in with a copy of the whole CRI section of
``containerd config dump``, our handlers in it. An administrator may do the same by hand, and tools that write
a file anew remove the markers of our managed block. So a handler is ours when it runs a program, or reads a
configuration, below the install dir.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection, Mapping
from typing import Any

from kata_node.errors import HostError, UnusableFileError
from kata_node.runtime.containerd.read import (
    CRI_PLUGINS,
    DEFAULT_HANDLER_KEY,
    IMAGES_PLUGIN,
    tables_at,
)
from kata_node.runtime.model.programs import programs, uses
from kata_node.toml import tables as toml_tables
from kata_node.toml.cut import KeyPath, masked_template
from kata_node.toml.edit import load

_PROGRAM_LINE = r"""(?m)^[^#\n]*\b(?:runtime_path|ConfigPath|BinaryName)["']?\s*=\s*["']"""

_DEFAULT_LINE = rf"""(?m)^[^#\n]*\b{DEFAULT_HANDLER_KEY}["']?\s*=\s*["']([^"'\n]+)"""

_TABLES_OF_1 = ("default_runtime", "untrusted_workload_runtime")
"""Tables of containerd 1.x, each with one handler."""


def handlers(content: bytes, install_dir: str, where: str, *, template: bool = False) -> frozenset[str]:
    """Return the handlers of the installation that a file defines.

    Raises :class:`HostError` when the file is not valid TOML, unless the install dir is not in it.
    """
    return frozenset(path[-1] for path in key_paths(content, install_dir, where, template=template))


def without(content: bytes, install_dir: str, where: str, *, template: bool = False) -> bytes:
    """Return the file without the handlers of the installation, and every other byte unchanged.

    Raises :class:`HostError` when the file is broken or not safe to edit.
    """
    found = key_paths(content, install_dir, where, template=template)
    return toml_tables.remove_tables(content, found, where=where, template=template) if found else content


def handler_tables(content: bytes, where: str) -> dict[str, Mapping[str, Any]]:
    """Return every handler of a file or template with its table; none of a file that cannot be parsed."""
    try:
        table = load(_masked(content), where)
    except HostError:
        return {}
    return {
        name: fields
        for plugin in CRI_PLUGINS
        for _, runtimes in tables_at(table, plugin, "containerd", "runtimes")
        for name, fields in runtimes.items()
        if isinstance(fields, dict)
    }


def key_paths(content: bytes, install_dir: str, where: str, *, template: bool = False) -> tuple[KeyPath, ...]:
    """Return the key paths of the tables of the installation's handlers in a file, and of their snapshotters.

    Raises :class:`HostError` when the file is not valid TOML, unless the install dir is not in it.
    """
    # A path can have other spellings: /opt//kata, "\u002fopt/kata".
    if posixpath.basename(install_dir).encode() not in content and b"\\" not in content:
        return ()
    try:
        table = load(_masked(content) if template else content, where)
    except HostError as error:
        if f"{install_dir}/".encode() not in content:
            return ()
        if not template:
            raise
        if re.search(_PROGRAM_LINE + re.escape(f"{install_dir}/"), content.decode(errors="replace")):
            raise UnusableFileError(
                f"the template defines handlers with programs below {install_dir}, and kata-node cannot tell "
                "where their tables end",
                where=where,
                hint="remove these tables from the template by hand, then run again",
            ) from error
        return ()
    found = [
        (*path, name)
        for plugin in CRI_PLUGINS
        for path, runtimes in tables_at(table, plugin, "containerd", "runtimes")
        for name, fields in runtimes.items()
        if uses(programs(fields), install_dir)
    ]
    found += [
        path
        for plugin in CRI_PLUGINS
        for name in _TABLES_OF_1
        for path, fields in tables_at(table, plugin, "containerd", name)
        if uses(programs(fields), install_dir)
    ]
    # containerd serves no CRI when the snapshotter of a handler is away, even if no file defines the handler.
    names = {path[-1] for path in found}
    platforms = tables_at(table, IMAGES_PLUGIN, "runtime_platforms")
    snapshotters = [(path, names.intersection(each)) for path, each in platforms]
    return (*found, *((*path, name) for path, own in snapshotters for name in sorted(own)))


def without_default(content: bytes, names: Collection[str], where: str, *, template: bool = False) -> bytes:
    """Return the file without a default handler that is one of ``names``, and every other byte unchanged.

    Raises :class:`HostError` when the file is broken or not safe to edit.
    """
    try:
        table = load(_masked(content) if template else content, where)
    except HostError as error:
        if not template:
            raise
        line = re.search(_DEFAULT_LINE, content.decode(errors="replace"))
        if line is None or line[1] not in names:
            return content
        raise UnusableFileError(
            f"{DEFAULT_HANDLER_KEY} is {line[1]}, a handler of this installation",
            where=where,
            hint=f"remove the line of {DEFAULT_HANDLER_KEY} from the template by hand, then run again",
        ) from error
    found = [
        (*path, key)
        for plugin in CRI_PLUGINS
        for path, containerd in tables_at(table, plugin, "containerd")
        for key, value in containerd.items()
        if key.lower() == DEFAULT_HANDLER_KEY and value in names
    ]
    return toml_tables.remove_tables(content, found, where=where, template=template) if found else content


def _masked(content: bytes) -> bytes:
    return masked_template(content.decode(errors="surrogateescape")).encode(errors="surrogateescape")
