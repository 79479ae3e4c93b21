"""Where the install dir really is: a symlink on the node must not lead to a directory of the system."""

from __future__ import annotations

import posixpath

from kata_node.errors import IneligibleNodeError
from kata_node.host.files import Root
from kata_node.host.mounts import mounted_directory


def require_own_directory(root: Root, install_dir: str) -> None:
    """Raise :class:`IneligibleNodeError` if ``install_dir`` leads to a directory of the system.

    A container sees a symlink only if the directory that has it is mounted. Where the install dir itself is
    mounted, the kernel names the directory behind it.
    """
    real = root.real_path(install_dir)
    found = [real] if real != install_dir else []
    if not root.is_whole():
        mounted = mounted_directory(root.resolve(install_dir))
        if mounted not in ("", "/") and posixpath.basename(mounted) != posixpath.basename(install_dir):
            # The path begins with the subvolume if there is one: with btrfs, Fedora names that of / `root`.
            found.append(mounted.removeprefix("/root") or "/root")
    if not found:
        return
    from kata_node.settings.system_dirs import is_system_dir

    for path in found:
        if is_system_dir(path, is_prefix=True) or is_system_dir(path, is_prefix=False):
            raise IneligibleNodeError(
                f"the install dir leads to {path}, a directory of the system",
                where=install_dir,
                hint=f"remove the symlink at {install_dir} or above it, or set env.installationPrefix to "
                "another directory",
            )
