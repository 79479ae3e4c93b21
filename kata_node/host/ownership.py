"""Who can write a path: root runs what is below an install dir, so only root may write it.

The rule is that of sshd for its key files: each directory from the root of the node down to a path, and the
path itself, belongs to root or to the user of this process, and no other user can write it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable

from msgspec import Struct

from kata_node.errors import IneligibleNodeError
from kata_node.host.files import Root


class Untrusted(Struct, frozen=True):
    """A path that another user can write, or belongs to another user."""

    path: str
    reason: str
    remedy: str

    def error(self) -> IneligibleNodeError:
        """Return the error for this path."""
        return IneligibleNodeError(
            f"{self.reason}, who can replace what root runs",
            where=self.path,
            hint=f"see whether the content is yours, then run `{self.remedy}`",
        )


def untrusted(path: str, info: os.stat_result) -> Untrusted | None:
    """Return why other users can write the host path ``path`` with the status ``info``, or ``None``."""
    if not is_trusted_owner(info.st_uid):
        return Untrusted(path, f"this path belongs to the user {info.st_uid}", f"chown root {path}")
    if is_writable_by_others(info):
        who = "every user" if info.st_mode & stat.S_IWOTH else f"the group {info.st_gid}"
        return Untrusted(path, f"this path can be written by {who}", f"chmod go-w {path}")
    return None


def is_trusted_owner(uid: int) -> bool:
    """Return whether ``uid`` is root or the user of this process."""
    return uid in (0, os.geteuid())


def is_writable_by_others(info: os.stat_result) -> bool:
    """Return whether a user other than the owner and root can write a file or directory.

    An ordinary user's own group may: many systems give each user a group of that name, and a umask that
    lets the group write.
    """
    if stat.S_ISLNK(info.st_mode):
        return False
    own_group = os.geteuid() != 0 and info.st_gid == os.getegid()
    return bool(info.st_mode & stat.S_IWOTH) or (bool(info.st_mode & stat.S_IWGRP) and not own_group)


def first_untrusted(root: Root, paths: Iterable[str]) -> Untrusted | None:
    """Return the first path that other users can write, on the way to one of ``paths``; or ``None``.

    Every directory on the way is checked, also those that symlinks lead through. Missing paths are trusted.
    """
    checked: set[str] = set()
    for path in paths:
        for each in root.trail(path):
            if each in checked:
                continue
            checked.add(each)
            info = root.lstat(each)
            if info is None:
                break
            if found := untrusted(each, info):
                return found
    return None
