"""The handlers that the files of a runtime's configuration define, and whose programs they run."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kata_node.errors import HostError
from kata_node.runtime.containerd import own_tables
from kata_node.runtime.containerd.config import ContainerdConfig
from kata_node.runtime.containerd.k0s import K0sConfig
from kata_node.runtime.model.config import CriConfig
from kata_node.runtime.served_programs import link_below

if TYPE_CHECKING:
    from kata_node.host.files import FileState, Root


def own_handlers(config: CriConfig, files: Mapping[str, bytes]) -> frozenset[str]:
    """Return the handlers of the installation in all files. Broken files define none."""
    found: set[str] = set()
    for path, content in files.items():
        with contextlib.suppress(HostError):
            found |= config.own_handlers(path, content)
    return frozenset(found)


def handler_tables(config: CriConfig, path: str, content: bytes) -> Mapping[str, Mapping[str, Any]]:
    """Return every handler that one file defines, with its table."""
    if isinstance(config, ContainerdConfig | K0sConfig):
        return own_tables.handler_tables(content, path)
    from kata_node.runtime.crio_read import handlers_in

    return handlers_in(path, content)


def linked_handlers(
    root: Root,
    install_dir: str,
    config: CriConfig,
    files: Mapping[str, FileState],
    search_path: Sequence[str],
) -> dict[str, dict[str, str]]:
    """Return, by file, the handlers that reach the install dir by a symlink, each with the first such path.

    A main file that the distribution renders does not count.
    """
    found: dict[str, dict[str, str]] = {}
    for path, state in files.items():
        if path == config.main_path and config.shared_paths() and path not in config.shared_paths():
            continue
        own = own_handlers(config, {path: state.content})
        links = {
            name: link_below(root, table, install_dir, search_path)
            for name, table in handler_tables(config, path, state.content).items()
            if name not in own
        }
        if named := {name: link for name, link in links.items() if link}:
            found[path] = named
    return found
