"""The rules for names and links in a payload, and the errors of a payload that breaks them."""

from __future__ import annotations

import contextlib
import posixpath
from collections.abc import Iterator, Mapping
from pathlib import Path

from kata_node.errors import PULL_IMAGE_HINT, PayloadError
from kata_node.settings.shims import BUILTIN_PREFIX

VERSION_FILE = "VERSION"
"""The file with the release of a payload."""
RESERVED_NAME = ".kata-node"
"""kata-node's own directory in the install dir; its temporary files end with ``.kata-node-tmp``."""
MAX_LINKS = 40  # the kernel's limit for one path


def untrusted_payload(path: str, reason: str, where: str = "") -> PayloadError:
    """Return the error for a payload that no correct build makes.

    ``reason`` is a clause about ``path``. ``where`` is the file that has the path, if there is one.
    """
    return PayloadError(
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
    parts = path.split("/")
    if not path.isprintable():
        raise untrusted_payload(path, "this path contains unprintable characters", where)
    if path.startswith("/"):
        raise untrusted_payload(path, "this path is absolute", where)
    if ".." in parts:
        raise untrusted_payload(path, "this path contains `..`", where)
    if "" in parts or "." in parts:
        raise untrusted_payload(path, "this path contains an empty name or `.`", where)
    if parts[0] == RESERVED_NAME or parts[-1].endswith(f"{RESERVED_NAME}-tmp"):
        raise untrusted_payload(path, "this name is reserved for kata-node", where)


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
