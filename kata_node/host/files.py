"""Files of the node below a root, written so that a power cut leaves the previous or the new file.

A host path is an absolute string as the node sees it (``/etc/containerd/config.toml``). A
:class:`Root` finds it below the directory where the node's file system is mounted. It follows
symlinks like the node does: an absolute target starts at the root, and ``..`` does not leave it.

Functions turn an error of the operating system into :class:`~kata_node.errors.HostError`, which names
the host path. A missing file is not an error unless a function says so.
"""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from kata_node.errors import HostError, NoSpaceError, UnusablePathError
from kata_node.host import go_glob
from kata_node.host.atomic_replace import extended_attributes, finish, fsync_dir, replacing, temp_sibling

__all__ = ["MAX_SYMLINKS", "FileState", "Root", "finish", "fsync_dir", "host_error", "temp_sibling"]

MAX_SYMLINKS = 40  # the same limit as in the kernel

NO_SPACE_ERRNOS = (errno.ENOSPC, errno.EDQUOT)

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
    kind = HostError
    if error.errno in _PERMANENT_ERRNOS:
        kind = UnusablePathError
    elif error.errno in NO_SPACE_ERRNOS:
        kind = NoSpaceError
    return kind(error.strerror or str(error), where=path, hint=_HINTS.get(error.errno or 0, ""))


@dataclass(frozen=True)
class FileState:
    """The content, mode and owner of a small file, enough to restore it."""

    content: bytes
    mode: int
    uid: int
    gid: int


class Root:
    """The node's file system, mounted at ``base`` (``/``, or ``/host`` in a pod)."""

    def __init__(self, base: Path) -> None:
        # Not resolved: that would turn /proc/PID/root, the root of another mount namespace, into our own.
        self.base = Path(os.path.abspath(base))

    def __repr__(self) -> str:
        return f"Root({str(self.base)!r})"

    def resolve(self, path: str, *, follow_last: bool = True) -> Path:
        """Return the real path, in this process's file system, of the host path ``path``.

        Every symlink is followed inside the root; with ``follow_last=False`` the last component is not
        followed. Components that do not exist are kept as written. Raises :class:`HostError` on a
        loop of symlinks.
        """
        if not path.startswith("/"):
            raise ValueError(f"a host path must be absolute: {path!r}")
        pending_parts = _parts(path)[::-1]
        resolved_parts: list[str] = []
        links = 0
        while pending_parts:
            part = pending_parts.pop()
            if part == "..":
                del resolved_parts[-1:]
                continue
            target = None
            if pending_parts or follow_last:
                with host_errors(path):
                    target = _link_target(self.base.joinpath(*resolved_parts, part))
            if target is None:
                resolved_parts.append(part)
                continue
            links += 1
            if links > MAX_SYMLINKS:
                raise host_error(path, OSError(errno.ELOOP, os.strerror(errno.ELOOP)))
            if target.startswith("/"):
                resolved_parts.clear()
            pending_parts += _parts(target)[::-1]
        return self.base.joinpath(*resolved_parts)

    def real_path(self, path: str) -> str:
        """Return the host path of ``path`` with every symlink followed."""
        return self.host_path(self.resolve(path))

    def host_path(self, real: Path) -> str:
        """Return the host path of a path that :meth:`resolve` returned."""
        return "/" + "/".join(real.relative_to(self.base).parts)

    def is_whole(self) -> bool:
        """Return whether the whole file system of a node is below the root.

        A container sees only the mounted directories below its host root.
        """
        return self.base == Path("/") or self.is_dir("/usr")

    def lstat(self, path: str) -> os.stat_result | None:
        """Return the status of ``path`` without following a last symlink; ``None`` when it is missing."""
        real = self.resolve(path, follow_last=False)
        with host_errors(path):
            return _stat(real)

    def exists(self, path: str) -> bool:
        """Return whether ``path`` exists, with symlinks followed."""
        real = self.resolve(path)
        with host_errors(path):
            return _stat(real) is not None

    def is_dir(self, path: str) -> bool:
        """Return whether ``path`` is a directory, with symlinks followed."""
        real = self.resolve(path)
        with host_errors(path):
            return _is_dir(real)

    def read_link(self, path: str) -> str | None:
        """Return the target of the symlink at ``path``; ``None`` when it is not a symlink."""
        real = self.resolve(path, follow_last=False)
        with host_errors(path):
            return _link_target(real)

    def read(self, path: str) -> bytes | None:
        """Return the content of the file at ``path``; ``None`` when it is missing."""
        state = self.read_state(path)
        return None if state is None else state.content

    def read_state(self, path: str) -> FileState | None:
        """Return content, mode and owner of the file at ``path``; ``None`` when it is missing.

        Raises :class:`HostError` when ``path`` is a directory, or a parent of it is a file.
        """
        real = self.resolve(path)
        with host_errors(path):
            return read_real(real)

    def glob(self, pattern: str) -> list[str]:
        """Return the host paths that match ``pattern``, in the order of Go's ``filepath.Glob``.

        Any component may have wildcards, which match hidden names as well (:mod:`kata_node.host.go_glob`).
        Paths are sorted by component: ``a/x`` comes before ``a-b/x``. Raises :class:`HostError` when the
        pattern is malformed.
        """
        found = ["/"]
        for part in _parts(pattern):
            if not go_glob.is_pattern(part):
                found = [posixpath.join(path, part) for path in found]
                continue
            try:
                expression = go_glob.compile_name(part)
            except ValueError as error:
                raise HostError(
                    f"the pattern is not valid: {error}",
                    where=pattern,
                    hint="correct it in the runtime's configuration",
                ) from error
            found = [
                posixpath.join(path, name)
                for path in found
                for name in self.list_dir(path)
                if expression.fullmatch(name)
            ]
        return [path for path in found if self.lstat(path) is not None]

    def list_dir(self, path: str) -> list[str]:
        """Return the names in the directory at ``path``, sorted by bytes; none when it is not a directory."""
        real = self.resolve(path)
        with host_errors(path):
            try:
                return sorted(os.listdir(real), key=os.fsencode)
            except (FileNotFoundError, NotADirectoryError):
                return []

    def make_dirs(self, path: str, mode: int = 0o755) -> list[str]:
        """Create the directory ``path`` and missing parents; return the created ones, outermost first.

        ``path`` gets ``mode``, parents get 0755. Existing directories do not change. If one cannot be
        created, the ones created before are removed again. Returned paths have symlinks resolved, so
        that they can be removed even after a symlink in ``path`` is gone.
        """
        missing: list[Path] = []
        real = self.resolve(path)
        with host_errors(path):
            while real != self.base and not _is_dir(real):
                missing.insert(0, real)
                real = real.parent
        made: list[Path] = []
        for directory in missing:
            try:
                if _make_dir(directory, mode if directory == missing[-1] else 0o755):
                    made.append(directory)
            except OSError as error:
                for other in reversed(made):
                    with contextlib.suppress(OSError):
                        other.rmdir()
                raise host_error(self.host_path(directory), error) from error
        return [self.host_path(directory) for directory in made]

    def write(
        self,
        path: str,
        content: bytes,
        *,
        mode: int = 0o644,
        owner: tuple[int, int] | None = None,
        mtime: int | None = None,
    ) -> None:
        """Replace or create the file at ``path`` atomically, so that it survives a power cut.

        If ``path`` is a symlink, its target is replaced. ``owner`` is ``(uid, gid)``, and is set only
        if it differs from the owner of a new file. ``mtime`` is in seconds. The directory must exist.
        The extended attributes of a replaced file are kept.
        """
        real = self.resolve(path)
        with host_errors(path), replacing(real) as temp:
            write_new(temp, content, mode, owner=owner, mtime=mtime, attributes=extended_attributes(real))

    def symlink(self, path: str, target: str) -> None:
        """Make ``path`` a symlink to ``target``. An existing file or symlink is replaced."""
        real = self.resolve(path, follow_last=False)
        with host_errors(path), replacing(real) as temp:
            temp.symlink_to(target)

    def remove(self, path: str, *, follow_last: bool = False) -> bool:
        """Remove the file or symlink at ``path``; return whether it existed.

        The temporary file of an interrupted :meth:`write` is removed as well. With ``follow_last`` the
        target of a symlink is removed and the symlink is kept.
        """
        real = self.resolve(path, follow_last=follow_last)
        removed = False
        with host_errors(path):
            for candidate in (temp_sibling(real), real):
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    candidate.unlink()
                    removed = candidate == real
            if removed:
                fsync_dir(real.parent)
        return removed

    def sweep(self, path: str) -> None:
        """Remove the temporary file of an interrupted :meth:`write` of ``path``."""
        with host_errors(path), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            temp_sibling(self.resolve(path)).unlink()

    def remove_dir(self, path: str) -> bool:
        """Remove the directory at ``path`` if it is empty; return whether ``path`` no longer exists.

        A file, a symlink, a mount point or a directory with content is kept.
        """
        real = self.resolve(path, follow_last=False)
        with host_errors(path):
            try:
                real.rmdir()
                fsync_dir(real.parent)
            except OSError as error:
                if error.errno not in _DIR_IN_USE_ERRNOS:
                    raise
                return _stat(real) is None
        return True


_DIR_IN_USE_ERRNOS = (errno.ENOENT, errno.ENOTDIR, errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY)


@contextlib.contextmanager
def host_errors(path: str) -> Iterator[None]:
    """Turn an :class:`OSError` into :class:`HostError` for the host path ``path``."""
    try:
        yield
    except OSError as error:
        raise host_error(path, error) from error


def write_new(
    path: Path,
    content: bytes,
    mode: int,
    *,
    owner: tuple[int, int] | None = None,
    mtime: int | None = None,
    attributes: Mapping[str, bytes] | None = None,
) -> None:
    """Create the real path ``path`` and force it to the disk. Raises :class:`OSError`, also if it exists."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(content)
        finish(fd, mode, owner=owner, mtime=mtime, attributes=attributes)
    finally:
        os.close(fd)


def read_real(path: Path) -> FileState | None:
    """Return the state of the real path ``path``; ``None`` when it is missing. Raises :class:`OSError`."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    with file:
        info = os.fstat(file.fileno())
        return FileState(file.read(), stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid)


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def _stat(real: Path) -> os.stat_result | None:
    try:
        return os.lstat(real)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _is_dir(real: Path) -> bool:
    info = _stat(real)
    return info is not None and stat.S_ISDIR(info.st_mode)


def _link_target(real: Path) -> str | None:
    try:
        return os.readlink(real)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOENT, errno.ENOTDIR):  # EINVAL: not a symlink
            return None
        raise


def _make_dir(real: Path, mode: int) -> bool:
    """Create one directory; return ``False`` when another process has just created it."""
    try:
        real.mkdir(mode)
    except FileExistsError:
        info = os.lstat(real)  # raises if it is already gone, like mkdir without a parent
        if stat.S_ISDIR(info.st_mode):
            return False
        raise NotADirectoryError(errno.ENOTDIR, "a file is where a directory is needed") from None
    try:
        real.chmod(mode)  # the umask limits the mode of mkdir
        fsync_dir(real.parent)
    except OSError:
        with contextlib.suppress(OSError):
            real.rmdir()
        raise
    return True


def missing_dirs(root: Root, path: str) -> tuple[str, ...]:
    """Return the directories that must be created for ``path`` to exist, outermost first."""
    missing: list[str] = []
    while path != "/" and not root.is_dir(path):
        missing.insert(0, path)
        path = posixpath.dirname(path)
    return tuple(missing)
