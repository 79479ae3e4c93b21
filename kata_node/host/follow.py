"""Follow symlinks on the node where a path that leads nowhere is no error."""

from __future__ import annotations

from kata_node.errors import UnusablePathError
from kata_node.host.files import Root


def real_path(root: Root, path: str) -> str | None:
    """Return the host path of ``path`` with every symlink followed.

    Return ``None`` if no file can be there: symlinks lead back to themselves, or the characters are wrong.
    """
    try:
        return root.real_path(path)
    except UnusablePathError:
        return None
