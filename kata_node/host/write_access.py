"""What the file systems of the node say about writing a path, before anything is written."""

from __future__ import annotations

import array
import fcntl
import os
import stat
from pathlib import Path

from msgspec import Struct

from kata_node.bounded_read import NotPlainFileError, require_plain_file
from kata_node.host.files import Root, host_error
from kata_node.host.mounts import mount_id

_GET_FLAGS = 0x40086601 if os.uname().machine.startswith("ppc") else 0x80086601  # FS_IOC_GETFLAGS
_IMMUTABLE, _APPEND_ONLY = 0x10, 0x20


class WriteAccess(Struct, frozen=True):
    """The facts about one host path. Only the real path counts: with every symlink followed."""

    path: str
    real_path: str
    directory: str
    """The nearest existing directory above the real path, or the directory itself that is to be written."""
    free: int = 0
    """Bytes that an unprivileged process can use on its file system."""
    read_only: bool = False
    writable: bool = True
    """Whether this process may create files in ``directory``."""
    executable: bool = True
    """Whether programs on the file system can be run."""
    mount_point: bool = False
    """Whether a file is a mount of its own. Then it cannot be replaced."""
    obstacle: str = ""
    """What is in the place of a directory, and is none."""
    unchangeable: str = ""
    """The file or directory with the attribute ``immutable`` or ``append only``, which stops even root."""
    special: str = ""
    """What is in the place of a file and cannot be replaced by one, as the end of a sentence: a device."""
    missing_directory: str = ""
    """The missing directory of a file to which ``path`` is a symlink."""
    visible: bool = True
    """Whether ``directory`` is one of the node. Otherwise it only leads to what a container has mounted."""


def write_access(root: Root, path: str, *, is_directory: bool = False) -> WriteAccess:
    """Return the facts about writing the file or directory at the host path ``path``.

    Raises :class:`~kata_node.errors.HostError` for a loop of symlinks and for a disk with errors.
    """
    real = root.resolve(path)
    try:
        return _write_access(root, path, real, is_directory=is_directory)
    except OSError as error:
        raise host_error(path, error) from error


def _write_access(root: Root, path: str, real: Path, *, is_directory: bool) -> WriteAccess:
    existing = real if is_directory else real.parent
    obstacle = ""
    while existing != root.base and not existing.is_dir():
        if os.path.lexists(existing):
            obstacle = root.host_path(existing)
        existing = existing.parent
    info = os.statvfs(existing)
    is_link = root.read_link(path) is not None
    missing = not is_directory and is_link and existing != real.parent and not obstacle
    has_file = not is_directory and os.path.lexists(real)
    checked = (existing, real) if has_file else (existing,)
    return WriteAccess(
        path=path,
        real_path=root.host_path(real),
        directory=root.host_path(existing),
        free=info.f_bavail * info.f_frsize,
        read_only=bool(info.f_flag & os.ST_RDONLY),
        writable=os.access(existing, os.W_OK | os.X_OK),
        executable=not info.f_flag & os.ST_NOEXEC,
        mount_point=has_file and mount_id(real) != mount_id(real.parent),
        obstacle=obstacle,
        unchangeable=next((root.host_path(each) for each in checked if _is_unchangeable(each)), ""),
        special="" if is_directory else _special(root, real),
        missing_directory=root.host_path(real.parent) if missing else "",
        visible=root.is_whole() or mount_id(existing) != mount_id(root.base),
    )


def _special(root: Root, path: Path) -> str:
    """Return what a path is if it is neither a file nor missing. A container does not see the node's /dev."""
    try:
        require_plain_file(os.lstat(path))
    except (FileNotFoundError, NotADirectoryError):
        return "a device" if root.host_path(path).startswith("/dev/") else ""
    except IsADirectoryError:
        return "a directory"
    except NotPlainFileError as error:
        return str(error.strerror).partition(" is where")[0]
    return ""


def _is_unchangeable(path: Path) -> bool:
    """Return whether a file or directory has an attribute that forbids to replace it or to add to it."""
    info = os.lstat(path)
    if not (stat.S_ISREG(info.st_mode) or stat.S_ISDIR(info.st_mode)):
        return False
    flags = array.array("l", [0])
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.ioctl(fd, _GET_FLAGS, flags)
    except OSError:
        return False  # most file systems without these attributes
    finally:
        os.close(fd)
    # New files can be created in a directory that is append only, but not renamed.
    return bool(flags[0] & (_IMMUTABLE | _APPEND_ONLY))
