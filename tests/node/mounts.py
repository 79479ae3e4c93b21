"""Mount paths of the machine in a node, and paths of a node in a container, as the kubelet does.

A mount of another mount namespace cannot be bind-mounted. It can be cloned there with
``open_tree(OPEN_TREE_CLONE)`` and attached here with ``move_mount`` (Linux 5.2; 5.12 for a read-only mount).
This is a program because only a process with a single thread may change its mount namespace::

    mounts.py attach NODE-FD SOURCE TARGET            mount SOURCE of the machine at TARGET in the node
    mounts.py attach-read-only NODE-FD SOURCE TARGET  the same, read-only
    mounts.py pod NODE-FD HOST CAPABILITIES MOUNT... -- COMMAND
                                                      run COMMAND with MOUNTs of the node below HOST

NODE-FD is an inherited file descriptor of the node's mount namespace. A MOUNT is the text of a
:class:`HostPath`. CAPABILITIES are names separated by commas. This imports only the standard library.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442  # the same numbers on every architecture
_OPEN_TREE_CLONE, _AT_RECURSIVE, _AT_FDCWD, _MOVE_MOUNT_F_EMPTY_PATH = 1, 0x8000, -100, 4
_AT_EMPTY_PATH, _MOUNT_ATTR_RDONLY = 0x1000, 1
_MS_RDONLY, _MS_REMOUNT, _MS_BIND = 1, 32, 4096
_CLONE_NEWNS = 0x20000
_PR_CAPBSET_DROP = 24

CONTAINER_CAPABILITIES: Mapping[str, int] = {
    "CHOWN": 0,
    "DAC_OVERRIDE": 1,
    "FOWNER": 3,
    "FSETID": 4,
    "KILL": 5,
    "SETGID": 6,
    "SETUID": 7,
    "SETPCAP": 8,
    "NET_BIND_SERVICE": 10,
    "NET_RAW": 13,
    "SYS_CHROOT": 18,
    "MKNOD": 27,
    "AUDIT_WRITE": 29,
    "SETFCAP": 31,
}
"""The capabilities that containerd gives root in an unprivileged container by default -> their numbers."""


@dataclass(frozen=True)
class HostPath:
    """A path of the node that is mounted in a container, as in a hostPath volume and its mount."""

    path: str
    type: str = ""
    """``Directory``, ``DirectoryOrCreate``, ``File``, or empty: a missing path is created as a directory."""
    read_only: bool = False

    def __str__(self) -> str:
        return f"{self.type}:{'ro' if self.read_only else 'rw'}:{self.path}"

    @classmethod
    def parse(cls, text: str) -> HostPath:
        """Return the mount from its text; the reverse of ``str``."""
        kind, access, path = text.split(":", 2)
        return cls(path, kind, access == "ro")

    def check(self) -> None:
        """Check and create the path as the kubelet does before a mount; exit if the kubelet would refuse."""
        path = Path(self.path)
        if self.type in ("", "DirectoryOrCreate") and not os.path.lexists(path):
            path.mkdir(mode=0o755, parents=True)
        fits = {"": path.exists, "File": path.is_file}.get(self.type, path.is_dir)
        if not fits():
            sys.exit(f"FailedMount: hostPath type check failed: {path} is not a {self.type.lower()}")


_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{os.strerror(error)} ({what})")
    return result


def _enter(namespace: int) -> None:
    _checked(_libc.setns(namespace, _CLONE_NEWNS), "entering a mount namespace")


def _clone(path: str, *, read_only: bool = False) -> int:
    flags = _OPEN_TREE_CLONE | _AT_RECURSIVE | os.O_CLOEXEC
    tree = _checked(
        _libc.syscall(_OPEN_TREE, _AT_FDCWD, path.encode(), flags), f"cloning the mount at {path}"
    )
    if read_only:
        attributes = struct.pack("=4Q", _MOUNT_ATTR_RDONLY, 0, 0, 0)  # set, clear, and two unused fields
        changed = _libc.syscall(
            *(_MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH | _AT_RECURSIVE, attributes, len(attributes))
        )
        _checked(changed, f"making the mount of {path} read-only")
    return tree


def _attach(tree: int, target: str) -> None:
    arguments = (tree, b"", _AT_FDCWD, target.encode(), _MOVE_MOUNT_F_EMPTY_PATH)
    _checked(_libc.syscall(_MOVE_MOUNT, *arguments), f"mounting at {target}")
    os.close(tree)


def _place(target: Path, *, directory: bool) -> None:
    """Create the mount point ``target`` if it does not exist."""
    if not target.exists():
        (target if directory else target.parent).mkdir(parents=True, exist_ok=True)
        if not directory:
            target.touch()


def attach(node: int, source: str, target: str, *, read_only: bool = False) -> None:
    """Mount the machine's ``source`` in the node at ``target`` until the node ends."""
    tree = _clone(source, read_only=read_only)
    directory = Path(source).is_dir()
    _enter(node)
    _place(Path(target), directory=directory)
    _attach(tree, target)


def pod(
    node: int, host: str, capabilities: Sequence[str], mounts: Sequence[HostPath], command: Sequence[str]
) -> None:
    """Become ``command`` in a container with the node's ``mounts`` below ``host``; does not return.

    The command has only these ``capabilities``. Exits with a message if the kubelet would refuse a mount.
    """
    machine = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    _checked(_libc.mount(b"tmpfs", host.encode(), b"tmpfs", 0, b"mode=755"), f"mounting a tmpfs at {host}")
    for mount in mounts:
        _enter(node)
        mount.check()
        directory = stat.S_ISDIR(os.stat(mount.path).st_mode)
        tree = _clone(mount.path, read_only=mount.read_only)
        _enter(machine)
        target = host + mount.path
        _place(Path(target), directory=directory)
        _attach(tree, target)
    os.close(node)
    # A container's root is read-only too, so only the mounts can be written.
    flags = _MS_REMOUNT | _MS_BIND | _MS_RDONLY
    _checked(_libc.mount(None, host.encode(), None, flags, None), f"making {host} read-only")
    kept = {CONTAINER_CAPABILITIES[name] for name in capabilities}
    for capability in range(64):
        if capability not in kept:
            _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)  # fails harmlessly for unknown numbers
    os.execvp(command[0], list(command))


def main(arguments: Sequence[str]) -> None:
    act, node, *rest = arguments
    if act in ("attach", "attach-read-only"):
        attach(int(node), *rest, read_only=act == "attach-read-only")
    else:
        host, capabilities, *rest = rest
        end = rest.index("--")
        mounts = [HostPath.parse(text) for text in rest[:end]]
        pod(int(node), host, list(filter(None, capabilities.split(","))), mounts, rest[end + 1 :])


if __name__ == "__main__":
    main(sys.argv[1:])
