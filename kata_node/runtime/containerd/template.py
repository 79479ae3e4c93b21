"""New main files, and main files that a start renders from a template. Pure."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

from kata_node.errors import HostError
from kata_node.runtime.containerd import own_tables
from kata_node.runtime.containerd.managed_block import ContainerdEntry
from kata_node.toml import tables as toml_tables

_INITIAL_COMMENT = (
    "# Made by kata-node, as there was no configuration file. It goes with the last installation of Kata."
)

INITIAL_MAIN_FILES = {
    1: f"{_INITIAL_COMMENT}\nversion = 2\n".encode(),
    2: f"{_INITIAL_COMMENT}\nversion = 3\n".encode(),
}
"""Major version of containerd -> the main file that kata-node creates for it, before our entry is added."""


def with_rendered_tables(
    files: Mapping[str, bytes], entry: ContainerdEntry, main_path: str, templates: Sequence[str]
) -> Mapping[str, bytes]:
    """Return the files with our tables in the main file as its Go ``templates`` have them now."""
    rendered = files.get(main_path)
    existing = [path for path in templates if path in files]
    blocks = (toml_tables.block_content(files[path], entry.name, where=path) for path in existing)
    block = next(filter(None, blocks), b"")
    if rendered is None and not block:
        return files
    main = toml_tables.remove(rendered or b"", entry.name, where=main_path, template=True)
    if not any(entry.handlers(path, entry.without_block(path, files[path])) for path in existing):
        with contextlib.suppress(HostError):
            main = own_tables.without(main, entry.install_dir, main_path)
    if block:
        main = toml_tables.add(main, block, entry.name, where=main_path, template=True)
    return {**files, main_path: main}
