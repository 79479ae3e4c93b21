"""The paths, modes and digests that kata-node writes into a receipt. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from kata_node.settings.model import RESERVED_HANDLERS
from kata_node.versions import RUNTIMES, is_version

_DIGEST = re.compile("[0-9a-f]{64}")
_NAME = re.compile("[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_UNIT = re.compile(r"[A-Za-z0-9:_.\\@-]+\.service")
_INVOCATION = re.compile("[0-9a-f]{32}")
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


def naming_problems(instance: str, socket: str) -> Iterator[str]:
    """Yield a clause for a name of an installation, and for a CRI socket, that is none."""
    if not _NAME.fullmatch(instance):
        yield f"{instance!r} is not the name of an installation"
    if socket and (not socket.startswith("/") or "\0" in socket):  # otherwise as the values have it
        yield f"{socket!r} is not the path of a socket"


def runtime_problems(name: str, version: str, unit: str, invocation: str) -> Iterator[str]:
    """Yield a clause for a runtime and for an invocation of its unit that cannot be. Both may be empty."""
    if name not in RUNTIMES or not is_version(version):
        yield f"{name!r} {version!r} is not a container runtime and its version"
    if (unit and not _UNIT.fullmatch(unit)) or (invocation and not _INVOCATION.fullmatch(invocation)):
        yield f"{unit!r} {invocation!r} is not a service and its invocation"


def handler_problems(names: Iterable[str]) -> Iterator[str]:
    """Yield a clause for each handler that no installation has: a revert waits until nothing serves it."""
    for name in names:
        if not _NAME.fullmatch(name) or name in RESERVED_HANDLERS:
            yield f"{name!r} is not a handler of an installation"


def digest_problems(digests: Mapping[str, str]) -> Iterator[str]:
    """Yield a clause for each path whose content has a digest that is none. A removed file has no digest."""
    for path, digest in digests.items():
        if digest and not is_digest(digest):
            yield f"{path!r} has the digest {digest!r}"
