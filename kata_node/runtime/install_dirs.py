"""The install dirs that the files of a runtime's configuration name. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

_SHIM_PATH = re.compile(rb'"((?:/[^"/]+)*/opt/kata(?:-[^"/]+)?)/(?:runtime-rs/)?bin/containerd-shim-kata-v2"')
_IMPORT_PATH = re.compile(rb'["\']((?:/[^"\'/]+)*/opt/kata(?:-[^"\'/]+)?)/containerd/config\.d/\*\.toml["\']')
"""Only kata-node imports a directory of the install dir by a glob."""


def named_install_dirs(files: Mapping[str, bytes]) -> dict[str, bool]:
    """Return the install dirs that ``files`` name, each with whether kata-node wrote a file that names it."""
    found: dict[str, bool] = {}
    for content in files.values():
        is_ours = b"kata-node" in content  # in the first line of a drop-in, and in the markers of a block
        shims = dict.fromkeys(_SHIM_PATH.findall(content), is_ours)
        imports = dict.fromkeys(_IMPORT_PATH.findall(content), True)
        for path, ours in (shims | imports).items():
            name = path.decode(errors="replace")
            found[name] = ours or found.get(name, False)
    return found


def other_install_dirs(files: Mapping[str, bytes], install_dir: str = "") -> tuple[str, ...]:
    """Return the install dirs in ``files`` that kata-node does not name, except ``install_dir``, sorted."""
    named = named_install_dirs(files)
    return tuple(sorted(path for path, is_ours in named.items() if not is_ours and path != install_dir))
