"""Files of the host, below a root, written so that a power cut leaves the old or the new one.

Host paths are absolute strings as the host sees them (``/etc/containerd/config.toml``). A
:class:`Root` finds them below the directory the host is mounted at, and follows symlinks the
way the host itself would: an absolute link target starts at the root, ``..`` stops there.

Whatever the operating system refuses is a :class:`~kata_node.errors.HostError` that names the host
path; only that nothing is there is an answer like any other.
"""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kata_node.errors import HostError
from kata_node.host import go_glob
from kata_node.host.atomic_replace import finish, fsync_dir, replacing, temp_sibling

__all__ = ["MAX_SYMLINKS", "FileState", "Root", "finish", "fsync_dir", "host_error", "temp_sibling"]

MAX_SYMLINKS = 40  # as the kernel's path walk

_NOT_PERMITTED = (
    "run as root, or with --offline --host-root DIR on a directory of your own; "
    "what is refused to root too has an immutable attribute (lsattr) or is guarded by a security module"
)
_HINTS = {
    errno.EROFS: "the file system is read-only; mount it writable, or choose another env.installationPrefix",
    errno.ENOSPC: "free some space on this file system, then run again",
    errno.EDQUOT: "raise the quota or free some space, then run again",
    errno.EACCES: _NOT_PERMITTED,
    errno.EPERM: _NOT_PERMITTED,
    errno.ENOTDIR: "move away the file that stands where a directory is needed",
    errno.EISDIR: "move away the directory that stands where a file is needed",
    errno.ELOOP: "remove the symlink that leads back to itself",
    errno.EIO: "the disk reports errors; look at the kernel log of the node",
}


def host_error(path: str, error: OSError) -> HostError:
    """Say what the operating system said of the host path ``path``, and what to do about it."""
    return HostError(error.strerror or str(error), where=path, hint=_HINTS.get(error.errno or 0, ""))


@dataclass(frozen=True)
class FileState:
    """A small file as it is: enough to put it back byte for byte."""

    content: bytes
    mode: int
    uid: int
    gid: int


class Root:
    """The host's file system as seen from ``base`` (``/``, or ``/host`` in a pod)."""

    def __init__(self, base: Path) -> None:
        # Not resolved: that would turn /proc/PID/root, which is another machine's root, into our own.
        self.base = Path(os.path.abspath(base))

    def __repr__(self) -> str:
        return f"Root({str(self.base)!r})"

    def resolve(self, path: str, *, follow_last: bool = True) -> Path:
        """The real path, on this process's file system, that the host means by ``path``.

        Every symlink on the way is followed inside the root; with ``follow_last=False`` the last
        component is taken as it is. Components that do not exist are kept as written.
        Raises :class:`HostError` on a loop of symlinks.
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
                with _host_errors(path):
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
        """The host path that ``path`` means once every symlink is followed."""
        return self._host_path(self.resolve(path))

    def _host_path(self, real: Path) -> str:
        return "/" + "/".join(real.relative_to(self.base).parts)

    def lstat(self, path: str) -> os.stat_result | None:
        """What is at ``path`` itself, or ``None``."""
        real = self.resolve(path, follow_last=False)
        with _host_errors(path):
            return _stat(real)

    def exists(self, path: str) -> bool:
        """Whether ``path`` leads to something, its last symlink followed."""
        real = self.resolve(path)
        with _host_errors(path):
            return _stat(real) is not None

    def is_dir(self, path: str) -> bool:
        """Whether ``path`` leads to a directory."""
        real = self.resolve(path)
        with _host_errors(path):
            return _is_dir(real)

    def read_link(self, path: str) -> str | None:
        """The target of the symlink at ``path``; ``None`` when there is none."""
        real = self.resolve(path, follow_last=False)
        with _host_errors(path):
            return _link_target(real)

    def read(self, path: str) -> bytes | None:
        """The content of the file at ``path``; ``None`` when there is none."""
        state = self.read_state(path)
        return None if state is None else state.content

    def read_state(self, path: str) -> FileState | None:
        """Content, mode and owner of the file at ``path``; ``None`` when there is none.

        A directory in its place is an error, and so is a file in the place of one above it.
        """
        real = self.resolve(path)
        with _host_errors(path):
            try:
                file = real.open("rb")
            except FileNotFoundError:
                return None
            with file:
                info = os.fstat(file.fileno())
                return FileState(file.read(), stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid)

    def glob(self, pattern: str) -> list[str]:
        """The host paths that match ``pattern``, as Go's ``filepath.Glob`` finds and orders them.

        Any component may have wildcards, which match hidden names as well (:mod:`kata_node.host.go_glob`).
        The order is by components: ``a/x`` comes before ``a-b/x``. Raises :class:`HostError` when
        the pattern is malformed.
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
                    f"this is not a valid pattern: {error}",
                    where=pattern,
                    hint="correct it in the configuration that has it",
                ) from error
            found = [
                posixpath.join(path, name)
                for path in found
                for name in self.list_dir(path)
                if expression.fullmatch(name)
            ]
        return [path for path in found if self.lstat(path) is not None]

    def list_dir(self, path: str) -> list[str]:
        """The names in the directory at ``path``, sorted by their bytes; none when it is not there."""
        real = self.resolve(path)
        with _host_errors(path):
            try:
                return sorted(os.listdir(real), key=os.fsencode)
            except (FileNotFoundError, NotADirectoryError):
                return []

    def make_dirs(self, path: str, mode: int = 0o755) -> list[str]:
        """Make the directory ``path`` and what is missing above it; return what was made, outermost first.

        ``mode`` is that of the directory itself, those above get 0755. A directory that is there
        already stays as it is. When one cannot be made, those made before it are removed again.
        What is returned are real paths, so that removing them needs no symlink that led there.
        """
        missing: list[Path] = []
        real = self.resolve(path)
        with _host_errors(path):
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
                raise host_error(self._host_path(directory), error) from error
        return [self._host_path(directory) for directory in made]

    def write(
        self,
        path: str,
        content: bytes,
        *,
        mode: int = 0o644,
        owner: tuple[int, int] | None = None,
        mtime: int | None = None,
    ) -> None:
        """Replace or create the file at ``path``; after this it survives a power cut.

        A symlink at ``path`` is kept and the file it leads to is replaced. ``owner`` is
        ``(uid, gid)`` and only set when it differs from what a new file gets; ``mtime`` is in
        seconds. The directory must exist.
        """
        real = self.resolve(path)
        with _host_errors(path), replacing(real) as temp:
            fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                with open(fd, "wb", closefd=False) as file:
                    file.write(content)
                finish(fd, mode, owner=owner, mtime=mtime)
            finally:
                os.close(fd)

    def symlink(self, path: str, target: str) -> None:
        """Make ``path`` a symlink to ``target``, replacing a file or link that is there."""
        real = self.resolve(path, follow_last=False)
        with _host_errors(path), replacing(real) as temp:
            temp.symlink_to(target)

    def remove(self, path: str, *, follow_last: bool = False) -> bool:
        """Remove the file or symlink at ``path``; say whether there was one.

        What an interrupted write of it left beside it goes too. With ``follow_last`` a symlink is
        kept and the file it leads to is removed, as :meth:`write` would have made it.
        """
        real = self.resolve(path, follow_last=follow_last)
        removed = False
        with _host_errors(path):
            for candidate in (temp_sibling(real), real):
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    candidate.unlink()
                    removed = candidate == real
            if removed:
                fsync_dir(real.parent)
        return removed

    def sweep(self, path: str) -> None:
        """Remove what an interrupted :meth:`write` of ``path`` left beside it, and nothing else."""
        with _host_errors(path), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            temp_sibling(self.resolve(path)).unlink()

    def remove_dir(self, path: str) -> bool:
        """Remove the directory at ``path`` if it is empty; say whether nothing is there any more.

        A symlink or file at ``path``, or a mount point, is left like a directory in use.
        """
        real = self.resolve(path, follow_last=False)
        with _host_errors(path):
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
def _host_errors(path: str) -> Iterator[None]:
    """Tell any refusal of the operating system as one of the host path ``path``."""
    try:
        yield
    except OSError as error:
        raise host_error(path, error) from error


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
    """Make one directory; ``False`` when another process was faster."""
    try:
        real.mkdir(mode)
    except FileExistsError:
        info = os.lstat(real)  # not there any more: an error like that of a missing parent
        if stat.S_ISDIR(info.st_mode):
            return False
        raise NotADirectoryError(errno.ENOTDIR, "a file stands where a directory is needed") from None
    try:
        real.chmod(mode)  # mkdir's own mode is cut by the umask
        fsync_dir(real.parent)
    except OSError:
        with contextlib.suppress(OSError):
            real.rmdir()
        raise
    return True


def missing_dirs(root: Root, path: str) -> tuple[str, ...]:
    """The directories down to ``path`` that are not there, outermost first."""
    missing: list[str] = []
    while path != "/" and not root.is_dir(path):
        missing.insert(0, path)
        path = posixpath.dirname(path)
    return tuple(missing)
