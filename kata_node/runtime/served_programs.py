"""Find the served handlers that need the files of an installation, also through links."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from kata_node.host.real_paths import real_path
from kata_node.runtime.model.programs import is_below, programs

if TYPE_CHECKING:
    from kata_node.host.files import Root


def handlers_below(root: Root, tables: Mapping[str, Mapping[str, Any]], install_dir: str) -> frozenset[str]:
    """Return those handlers of ``tables``, as the CRI lists them, with files in the install dir.

    A handler can reach them by a link, and the install dir can be a link: so the real paths count too.
    """
    real_dir = real_path(root, install_dir) or install_dir
    return frozenset(
        name
        for name, table in tables.items()
        if any(
            is_below(path, install_dir) or is_below(real_path(root, path), real_dir)
            for path in _absolute(table)
        )
    )


def _absolute(table: Mapping[str, Any]) -> Iterator[str]:
    return (path for path in programs(table) if path.startswith("/"))
