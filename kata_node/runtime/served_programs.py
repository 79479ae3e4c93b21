"""Find the handlers that need the files of an installation, also through links and the PATH of containerd."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kata_node.host.follow import real_path
from kata_node.runtime.model.programs import is_below, program_in_path, programs

if TYPE_CHECKING:
    from kata_node.host.files import Root

SEARCH_PATH = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
"""The PATH that systemd gives to a service that sets none."""


def handlers_below(
    root: Root,
    tables: Mapping[str, Mapping[str, Any]],
    install_dir: str,
    search_path: Sequence[str] = SEARCH_PATH,
) -> frozenset[str]:
    """Return those handlers of ``tables``, as the CRI lists them, with files in the install dir."""
    return frozenset(
        name
        for name, table in tables.items()
        if any(is_below(path, install_dir) for path in programs(table))
        or link_below(root, table, install_dir, search_path)
    )


def link_below(
    root: Root, table: Mapping[str, Any], install_dir: str, search_path: Sequence[str] = SEARCH_PATH
) -> str:
    """Return a path in the table of a handler that leads to the install dir by a link; ``""`` without one.

    The install dir can be a link too, so the real paths count.
    """
    real_dir = real_path(root, install_dir) or install_dir
    return next(
        (
            path
            for path in (*programs(table), *_found_in_path(root, table, search_path))
            if not is_below(path, install_dir) and is_below(real_path(root, path), real_dir)
        ),
        "",
    )


def _found_in_path(root: Root, table: Mapping[str, Any], search_path: Sequence[str]) -> Iterator[str]:
    """Yield the program that containerd runs for a handler without path: the first one in its PATH."""
    name = program_in_path(table)
    candidates = (posixpath.join(directory, name) for directory in search_path if name)
    found = next((path for path in candidates if real_path(root, path) and root.exists(path)), None)
    if found is not None:
        yield found
