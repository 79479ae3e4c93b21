"""Turn errors of the operating system into errors that name the host path and the next step."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

from kata_node.bounded_read import NotPlainFileError
from kata_node.errors import HostError, NoSpaceError, UnusablePathError

_NO_SPACE_ERRNOS = (errno.ENOSPC, errno.EDQUOT)

_NOT_PERMITTED = (
    "run as root, or use --offline --host-root DIR with a directory that you own; if root gets this error "
    "too, look for an immutable attribute (lsattr) or a rule of a security module"
)
_HINTS = {
    errno.EROFS: "the file system is read-only; mount it writable, or choose another env.installationPrefix",
    errno.ENOSPC: "free some space on this file system, then run again",
    errno.EDQUOT: "raise the quota or free some space, then run again",
    errno.EACCES: _NOT_PERMITTED,
    errno.EPERM: _NOT_PERMITTED,
    errno.ENOTDIR: "move the file away that is in the place of a directory of this path",
    errno.EISDIR: "move the directory away; a file is needed in its place",
    errno.ELOOP: "remove the symlink that leads back to itself",
    errno.EIO: "look at the kernel log of the node; the disk reports errors",
}


_PERMANENT_ERRNOS = (errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)
"""Errors about what is where on the node. A retry does not help."""


def host_error(path: str, error: OSError) -> HostError:
    """Return the error for an :class:`OSError` about the host path ``path``, with a hint."""
    if isinstance(error, NotPlainFileError):
        return UnusablePathError(error.strerror or str(error), where=path, hint=error.hint)
    kind = HostError
    if error.errno in _PERMANENT_ERRNOS:
        kind = UnusablePathError
    elif error.errno in _NO_SPACE_ERRNOS:
        kind = NoSpaceError
    return kind(error.strerror or str(error), where=path, hint=_HINTS.get(error.errno or 0, ""))


@contextlib.contextmanager
def host_errors(path: str) -> Iterator[None]:
    """Turn an :class:`OSError` into :class:`HostError` for the host path ``path``."""
    try:
        yield
    except OSError as error:
        raise host_error(path, error) from error
