"""The rules for names and links in a payload, and the errors of a payload that breaks them."""

from __future__ import annotations

import contextlib
import posixpath
from collections.abc import Iterator, Mapping
from pathlib import Path

from kata_node.errors import PULL_IMAGE_HINT, PayloadError, UnusablePayloadError
from kata_node.settings.shims import BUILTIN_PREFIX

VERSION_FILE = "VERSION"
"""The file with the release of a payload."""
RESERVED_NAME = ".kata-node"
"""kata-node's own directory in the install dir; its temporary files end with ``.kata-node-tmp``."""
RESERVED_DIRS = (RESERVED_NAME, "containerd")
"""Directories in the install dir with files that only kata-node writes."""
MAX_LINKS = 40  # the kernel's limit for one path
MAX_NAME = 255  # bytes, in all usual file systems
MAX_PATH = 1024  # bytes; a payload of Kata needs about 100
MAX_DEPTH = 32  # names in one path; a payload of Kata needs about 8
MAX_FILE_SIZE = 8 << 30
"""Bytes, holes included: a file can be small in the image and take minutes to hash. Guest images for GPUs
have some GiB."""
MAX_TOTAL_SIZE = 24 << 30
"""Bytes of all files of a tree, or of one archive."""
MAX_ENTRIES = 200_000
"""Paths of a tree, or of one archive; a payload of Kata has about 1,000."""


def untrusted_payload(path: str, reason: str, where: str = "") -> UnusablePayloadError:
    """Return the error for a payload that no correct build makes.

    ``reason`` is a clause about ``path``. ``where`` is the file that has the path, if there is one.
    """
    return UnusablePayloadError(
        f"the payload cannot be trusted: {reason}",
        where=f"{where}: {path!r}" if where else repr(path),
        hint="do not use this image; pull it again from its publisher",
    )


@contextlib.contextmanager
def wrap_read_errors(path: Path) -> Iterator[None]:
    """Raise each :class:`OSError` of the block as a :class:`PayloadError` about ``path``."""
    try:
        yield
    except OSError as error:
        raise PayloadError(
            f"the payload cannot be read: {error.strerror or error}", where=str(path), hint=PULL_IMAGE_HINT
        ) from error


def check_path(path: str, where: str = "") -> None:
    """Raise :class:`PayloadError` unless ``path`` is a normalized relative path that kata-node can place."""
    if not path.isprintable():
        raise untrusted_payload(path, "this path contains unprintable characters", where)
    parts = path.split("/")
    if len(path.encode()) > MAX_PATH or len(parts) > MAX_DEPTH:
        raise untrusted_payload(
            f"{path[:100]}…", f"this path has more than {MAX_PATH} bytes or {MAX_DEPTH} names", where
        )
    if any(len(part.encode()) > MAX_NAME for part in parts):
        raise untrusted_payload(path, f"a name in this path has more than {MAX_NAME} bytes", where)
    if path.startswith("/"):
        raise untrusted_payload(path, "this path is absolute", where)
    if ".." in parts:
        raise untrusted_payload(path, "this path contains `..`", where)
    if "" in parts or "." in parts:
        raise untrusted_payload(path, "this path contains an empty name or `.`", where)
    if parts[0] in RESERVED_DIRS or parts[-1].endswith(f"{RESERVED_NAME}-tmp"):
        raise untrusted_payload(path, "this name is reserved for kata-node", where)


class PayloadLimits:
    """Counts paths and bytes of a payload, before any content is read."""

    def __init__(self) -> None:
        self.count = 0
        self.total = 0

    def add(self, path: str, size: int) -> None:
        """Count ``path`` with a content of ``size`` bytes.

        Raises :class:`PayloadError` if it is not a valid path, or if it, or all paths together, are larger
        than any payload is.
        """
        check_path(path)
        self.count += 1
        self.total += size
        if self.count > MAX_ENTRIES:
            raise untrusted_payload(path, f"the payload has more than {MAX_ENTRIES} paths")
        if size > MAX_FILE_SIZE:
            raise untrusted_payload(path, f"this file has {size} bytes, more than {MAX_FILE_SIZE}")
        if self.total > MAX_TOTAL_SIZE:
            raise untrusted_payload(path, f"the files up to this one have more than {MAX_TOTAL_SIZE} bytes")


def member_path(name: str) -> str:
    """Return the path of an archive member relative to the install dir.

    Archives have their files below ``./opt/kata/``. Returns ``""`` for that directory and its parents.
    Raises :class:`PayloadError` for other paths.
    """
    path = name.removeprefix("./").rstrip("/")
    prefix = BUILTIN_PREFIX.removeprefix("/")
    if path.startswith(f"{prefix}/"):
        return path.removeprefix(f"{prefix}/")
    if f"{prefix}/".startswith(f"{path}/") or path in ("", "."):
        return ""
    raise untrusted_payload(name, f"this path is not below .{BUILTIN_PREFIX}")


class PayloadSymlinks:
    """The symlinks of a payload, resolved inside the install dir."""

    def __init__(self, targets: Mapping[str, str]) -> None:
        """``targets`` maps the path of each link to its relative target."""
        self.targets = targets

    @staticmethod
    def relative_target(path: str, target: str) -> str:
        """Return the target of the link at ``path``, relative if it is below ``/opt/kata``.

        A relative target is also correct in another install dir. Raises :class:`PayloadError` for other
        absolute targets.
        """
        if not target or not target.isprintable():
            raise untrusted_payload(path, f"this link points to {target!r}")
        if not target.startswith("/"):
            return target
        inside = f"{target}/".removeprefix(f"{BUILTIN_PREFIX}/")
        if inside.startswith("/") or ".." in inside.split("/"):
            raise untrusted_payload(path, f"this link points to {target}, outside the install dir")
        return posixpath.relpath(f"/{inside}", posixpath.dirname(f"/{path}"))

    def resolve(self, path: str) -> str:
        """Return ``path`` after every link is followed; the result need not exist.

        Links are followed before the next ``..`` is applied, as the kernel does. Normalizing the text
        first would give another path. Raises :class:`PayloadError` if the path leads out of the install
        dir or into a loop.
        """
        done: list[str] = []
        todo = path.split("/")[::-1]
        followed = 0
        while todo:
            part = todo.pop()
            if part in ("", "."):
                continue
            if part == "..":
                if not done:
                    raise untrusted_payload(
                        path, f"this link points to {self.targets.get(path, '')}, outside the install dir"
                    )
                done.pop()
                continue
            done.append(part)
            target = self.targets.get("/".join(done))
            if target is not None:
                followed += 1
                if followed > MAX_LINKS:
                    raise untrusted_payload(path, "this link is part of a loop")
                done.pop()
                todo += target.split("/")[::-1]
        return "/".join(done)
