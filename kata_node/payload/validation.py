"""What the names and links of a payload may be, and what is said when it cannot be used. Pure."""

from __future__ import annotations

import contextlib
import posixpath
from collections.abc import Iterator, Mapping
from pathlib import Path

from kata_node.errors import PULL_IMAGE_HINT, PayloadError
from kata_node.settings.shims import BUILTIN_PREFIX

VERSION_FILE = "VERSION"
"""The file that names a payload's release."""
RESERVED_NAME = ".kata-node"
"""Names in the install dir that start or end with this belong to this program."""
MAX_LINKS = 40  # as the kernel's path walk


def untrusted_payload(path: str, reason: str, where: str = "") -> PayloadError:
    """The error for something in a payload that no honest build makes."""
    return PayloadError(
        f"the payload cannot be trusted: {reason}",
        where=f"{where}: {path!r}" if where else repr(path),
        hint="do not use this image; pull it again from where it was published",
    )


@contextlib.contextmanager
def wrap_read_errors(path: Path) -> Iterator[None]:
    """Tell what the operating system says of the payload as a :class:`PayloadError`."""
    try:
        yield
    except OSError as error:
        raise PayloadError(
            f"the payload cannot be read: {error.strerror or error}", where=str(path), hint=PULL_IMAGE_HINT
        ) from error


def check_path(path: str, where: str = "") -> None:
    """Refuse a path that is not plainly one below the install dir. Raises :class:`PayloadError`."""
    parts = path.split("/")
    if not path.isprintable():
        raise untrusted_payload(path, "its name has characters that cannot be printed", where)
    if path.startswith("/"):
        raise untrusted_payload(path, "its path is absolute", where)
    if ".." in parts:
        raise untrusted_payload(path, "its path has `..` in it", where)
    if "" in parts or "." in parts:
        raise untrusted_payload(path, "its path has an empty part or `.` in it", where)
    if parts[0] == RESERVED_NAME or parts[-1].endswith(f"{RESERVED_NAME}-tmp"):
        raise untrusted_payload(path, "its name is one that kata-node keeps for itself", where)


def member_path(name: str) -> str:
    """The path below the install dir of an archive's member; nothing for a directory above it.

    Archives have their files below ``./opt/kata/``. Raises :class:`PayloadError` for any elsewhere.
    """
    path = name.removeprefix("./").rstrip("/")
    prefix = BUILTIN_PREFIX.removeprefix("/")
    if path.startswith(f"{prefix}/"):
        return path.removeprefix(f"{prefix}/")
    if f"{prefix}/".startswith(f"{path}/") or path in ("", "."):
        return ""
    raise untrusted_payload(name, f"it does not lie below .{BUILTIN_PREFIX}")


class PayloadSymlinks:
    """The symlinks of a payload: where each leads, without leaving the install dir."""

    def __init__(self, targets: Mapping[str, str]) -> None:
        """``targets`` maps each link's path to its relative target."""
        self.targets = targets

    @staticmethod
    def relative_target(path: str, target: str) -> str:
        """The target of the link at ``path``; one below ``/opt/kata`` made relative.

        So it also holds below another install dir. Raises :class:`PayloadError` when it is absolute
        and leads elsewhere.
        """
        if not target or not target.isprintable():
            raise untrusted_payload(path, f"it links to {target!r}")
        if not target.startswith("/"):
            return target
        inside = f"{target}/".removeprefix(f"{BUILTIN_PREFIX}/")
        if inside.startswith("/") or ".." in inside.split("/"):
            raise untrusted_payload(path, f"it links to {target}, outside the install dir")
        return posixpath.relpath(f"/{inside}", posixpath.dirname(f"/{path}"))

    def resolve(self, path: str) -> str:
        """The path that ``path`` means once every link is followed, whether or not it is there.

        Each link on the way counts as what it leads to before the next ``..`` is taken: that is
        what the kernel does, and what shortening the text would miss. Raises :class:`PayloadError`
        when the way leads out of the install dir, or in a circle.
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
                        path, f"it links to {self.targets.get(path, '')}, outside the install dir"
                    )
                done.pop()
                continue
            done.append(part)
            target = self.targets.get("/".join(done))
            if target is not None:
                followed += 1
                if followed > MAX_LINKS:
                    raise untrusted_payload(path, "it is part of a circle of links")
                done.pop()
                todo += target.split("/")[::-1]
        return "/".join(done)
