"""The install dirs that the files of a runtime's configuration name. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

_SHIM_PATH = re.compile(rb'"((?:/[^"/]+)*/opt/kata(?:-[^"/]+)?)/(?:runtime-rs/)?bin/containerd-shim-kata-v2"')
_IMPORT_PATH = re.compile(rb'["\']((?:/[^"\'/]+)*/opt/kata(?:-[^"\'/]+)?)/containerd/config\.d/\*\.toml["\']')
"""Only kata-node imports a directory of the install dir by a glob."""


def named_install_dirs(content: bytes) -> dict[str, bool]:
    """Return the install dirs that a configuration file names, and whether kata-node wrote that."""
    is_ours = b"kata-node" in content  # in the first line of a drop-in, and in the markers of a block
    shims = dict.fromkeys(_SHIM_PATH.findall(content), is_ours)
    imports = dict.fromkeys(_IMPORT_PATH.findall(content), True)
    return {path.decode(errors="replace"): ours for path, ours in (shims | imports).items()}


def other_install_dirs(files: Mapping[str, bytes], install_dir: str = "") -> tuple[str, ...]:
    """Return the install dirs in ``files`` that kata-node does not name, except ``install_dir``, sorted."""
    found: dict[str, bool] = {install_dir: True}
    for content in files.values():
        for path, is_ours in named_install_dirs(content).items():
            found[path] = is_ours or found.get(path, False)
    return tuple(sorted(path for path, is_ours in found.items() if not is_ours))
