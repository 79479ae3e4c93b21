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
from pathlib import Path

from msgspec import Struct

from kata_node.bounded_read import read_bounded, require_plain_file
from kata_node.errors import HostError, UnusablePathError
from kata_node.host import go_glob
from kata_node.host.atomic_replace import (
    extended_attributes,
    finish,
    fsync_dir,
    replacing,
    temp_sibling,
    write_new,
)
from kata_node.host.host_errors import host_error, host_errors
from kata_node.host.mounts import is_mount_point
from kata_node.host.real_paths import is_dir, link_target, make_dir, remove_empty_dir, stat_of

__all__ = ["MAX_SYMLINKS", "FileState", "Root", "finish", "fsync_dir", "host_error", "temp_sibling"]

MAX_SYMLINKS = 40  # the same limit as in the kernel


class FileState(Struct, frozen=True):
    """The content, mode and owner of a small file, enough to restore it."""

    content: bytes
    mode: int
    uid: int
    gid: int


def _check_characters(path: str) -> None:
    """Raise :class:`UnusablePathError` for a path that no file can have, for example from a receipt."""
    try:
        is_valid = b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        is_valid = False
    if not is_valid:
        raise UnusablePathError(
            "no file can have this path, because of its characters",
            where=repr(path),
            hint="correct the file or the setting that names this path",
        )


class Root:
    """The node's file system, mounted at ``base`` (``/``, or ``/host`` in a pod)."""

    def __init__(self, base: Path) -> None:
        # Not resolved: that would turn /proc/PID/root, the root of another mount namespace, into our own.
        self.base = Path(os.path.abspath(base))
        self._prefix = str(self.base).rstrip("/")

    def __repr__(self) -> str:
        return f"Root({str(self.base)!r})"

    def resolve(self, path: str, *, follow_last: bool = True) -> Path:
        """Return the real path, in this process's file system, of the host path ``path``.

        Every symlink is followed inside the root; with ``follow_last=False`` the last component is not
        followed. Components that do not exist are kept as written. Raises :class:`HostError` on a
        loop of symlinks, and for a path that no file can have.
        """
        return self._resolve(path, follow_last=follow_last)

    def trail(self, path: str) -> list[str]:
        """Return the host path of each directory that leads to ``path``, and last the real path itself.

        The first is ``/``. A symlink on the way adds the directories that lead to its target.
        """
        visited: list[str] = []
        real = self._resolve(path, visited=visited)
        return [*dict.fromkeys(visited), self.host_path(real)]

    def _resolve(self, path: str, *, follow_last: bool = True, visited: list[str] | None = None) -> Path:
        if not path.startswith("/"):
            raise ValueError(f"a host path must be absolute: {path!r}")
        _check_characters(path)
        pending_parts = _parts(path)[::-1]
        resolved_parts: list[str] = []
        links = 0
        while pending_parts:
            part = pending_parts.pop()
            if visited is not None:
                visited.append("/" + "/".join(resolved_parts))
            if part == "..":
                del resolved_parts[-1:]
                continue
            target = None
            if pending_parts or follow_last:
                with host_errors(path):
                    target = link_target("/".join((self._prefix, *resolved_parts, part)))
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
            return stat_of(real)

    def exists(self, path: str) -> bool:
        """Return whether ``path`` exists, with symlinks followed."""
        real = self.resolve(path)
        with host_errors(path):
            return stat_of(real) is not None

    def is_dir(self, path: str) -> bool:
        """Return whether ``path`` is a directory, with symlinks followed."""
        real = self.resolve(path)
        with host_errors(path):
            return is_dir(real)

    def read_link(self, path: str) -> str | None:
        """Return the target of the symlink at ``path``; ``None`` when it is not a symlink."""
        real = self.resolve(path, follow_last=False)
        with host_errors(path):
            return link_target(real)

    def read(self, path: str) -> bytes | None:
        """Return the content of the file at ``path``; ``None`` when it is missing."""
        state = self.read_state(path)
        return None if state is None else state.content

    def read_state(self, path: str) -> FileState | None:
        """Return content, mode and owner of the file at ``path``; ``None`` when it is missing.

        The mode is without setuid, setgid and sticky bits, so that no backup restores them. Raises
        :class:`HostError` when ``path`` is a directory, a special file or too large, or a parent of it is
        a file.
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
            while real != self.base and not is_dir(real):
                missing.insert(0, real)
                real = real.parent
        made: list[Path] = []
        for directory in missing:
            try:
                if make_dir(directory, mode if directory == missing[-1] else 0o755):
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
        The extended attributes of a replaced file are kept. Raises :class:`HostError`, also for a device or
        another special file.
        """
        real = self.resolve(path)
        with host_errors(path):
            _require_replaceable(real)
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
        target of a symlink is removed and the symlink is kept; a device or another special file is not
        removed then, but a :class:`HostError`.
        """
        real = self.resolve(path, follow_last=follow_last)
        removed = False
        with host_errors(path):
            if follow_last:
                _require_replaceable(real)
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

    def set_dir_mode(self, path: str, mode: int) -> None:
        """Give the directory at ``path`` the permission bits ``mode``, also against a race with a symlink.

        Raises :class:`HostError` when ``path`` is not a directory.
        """
        self._set_mode(path, mode, os.O_DIRECTORY)

    def set_file_mode(self, path: str, mode: int) -> None:
        """Give the file at ``path``, which is no symlink, the permission bits ``mode``."""
        self._set_mode(path, mode, os.O_NONBLOCK)

    def _set_mode(self, path: str, mode: int, flags: int) -> None:
        real = self.resolve(path, follow_last=False)
        with host_errors(path):
            fd = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | flags)
            try:
                os.fchmod(fd, mode)
                os.fsync(fd)
            finally:
                os.close(fd)

    def can_remove_dir(self, path: str) -> bool:
        """Return whether :meth:`remove_dir` removes ``path`` when it is empty.

        It keeps a symlink and a mount point, because an administrator made them.
        """
        real = self.resolve(path, follow_last=False)
        with host_errors(path):
            return is_dir(real) and not is_mount_point(real)

    def remove_dir(self, path: str) -> bool:
        """Remove the directory at ``path`` if it is empty; return whether ``path`` no longer exists.

        A file, a symlink, a mount point or a directory with content is kept.
        """
        real = self.resolve(path, follow_last=False)
        with host_errors(path):
            if remove_empty_dir(real):
                fsync_dir(real.parent)
            return stat_of(real) is None


def read_real(path: Path) -> FileState | None:
    """Return the state of the real path ``path``; ``None`` when it is missing. Raises :class:`OSError`."""
    try:
        content, info = read_bounded(path)
    except FileNotFoundError:
        return None
    return FileState(content, info.st_mode & 0o777, info.st_uid, info.st_gid)


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def _require_replaceable(real: Path) -> None:
    """Raise :class:`OSError` when ``real`` is a special file, for example the target of a masked drop-in."""
    info = stat_of(real)
    if info is not None and not stat.S_ISLNK(info.st_mode):
        require_plain_file(info)


def missing_dirs(root: Root, path: str) -> tuple[str, ...]:
    """Return the directories that must be created for ``path`` to exist, outermost first."""
    missing: list[str] = []
    while path != "/" and not root.is_dir(path):
        missing.insert(0, path)
        path = posixpath.dirname(path)
    return tuple(missing)
