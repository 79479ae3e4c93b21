"""The paths, modes and digests that kata-node writes into a receipt. Pure."""

from __future__ import annotations

import re

_DIGEST = re.compile("[0-9a-f]{64}")
_MAX_ID = 2**32 - 2  # the largest uid and gid


def is_absolute_path(path: str) -> bool:
    """Return whether ``path`` is absolute and normal: without ``.``, ``..`` and empty names."""
    return path.startswith("/") and is_relative_path(path[1:])


def is_relative_path(path: str) -> bool:
    """Return whether ``path`` is relative and normal: without ``.``, ``..`` and empty names."""
    return "\0" not in path and all(part not in ("", ".", "..") for part in path.split("/"))


def is_permission_mode(mode: int) -> bool:
    """Return whether ``mode`` has only permission bits: no setuid, setgid or sticky bit."""
    return 0 <= mode <= 0o777


def is_owner(uid: int, gid: int) -> bool:
    """Return whether a file can have this owner. A call of chown with -1 would keep the present one."""
    return 0 <= uid <= _MAX_ID and 0 <= gid <= _MAX_ID


def is_digest(text: str) -> bool:
    """Return whether ``text`` is a sha256 in hex. It becomes the name of a backup."""
    return _DIGEST.fullmatch(text) is not None
