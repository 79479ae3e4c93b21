"""Mounts between a node and the machine, as the kubelet makes them for a container.

A mount of another mount namespace cannot be bound directly. It can be cloned there and attached
here: ``open_tree(OPEN_TREE_CLONE)`` inside, ``move_mount`` outside (Linux 5.2 and later, 5.12 for a
read-only one). Run as a program, because changing the mount namespace is only allowed to a process
with a single thread::

    mounts.py attach NODE-FD SOURCE TARGET          SOURCE of this machine, at TARGET in the node
    mounts.py attach-read-only NODE-FD SOURCE TARGET                  the same, for reading only
    mounts.py pod NODE-FD HOST PATH... -- COMMAND   COMMAND in a container, the node's PATHs below HOST

NODE-FD is an inherited descriptor of the node's mount namespace. Imports only the standard library.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
import sys
from collections.abc import Sequence
from pathlib import Path

_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442  # the same numbers on every architecture
_OPEN_TREE_CLONE, _AT_RECURSIVE, _AT_FDCWD, _MOVE_MOUNT_F_EMPTY_PATH = 1, 0x8000, -100, 4
_AT_EMPTY_PATH, _MOUNT_ATTR_RDONLY = 0x1000, 1
_CLONE_NEWNS = 0x20000
_PR_CAPBSET_DROP = 24

CONTAINER_CAPABILITIES = frozenset({0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31})
"""What containerd leaves to root in a container that is not privileged, by number (CAP_CHOWN is 0)."""

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{os.strerror(error)} ({what})")
    return result


def _enter(namespace: int) -> None:
    _checked(_libc.setns(namespace, _CLONE_NEWNS), "entering a mount namespace")


def _clone(path: str) -> int:
    flags = _OPEN_TREE_CLONE | _AT_RECURSIVE | os.O_CLOEXEC
    return _checked(
        _libc.syscall(_OPEN_TREE, _AT_FDCWD, path.encode(), flags), f"cloning the mount at {path}"
    )


def _attach(tree: int, target: str) -> None:
    arguments = (tree, b"", _AT_FDCWD, target.encode(), _MOVE_MOUNT_F_EMPTY_PATH)
    _checked(_libc.syscall(_MOVE_MOUNT, *arguments), f"mounting at {target}")
    os.close(tree)


def _place(target: Path, *, directory: bool) -> None:
    """Make what a mount can cover, when nothing is there."""
    if not target.exists():
        (target if directory else target.parent).mkdir(parents=True, exist_ok=True)
        if not directory:
            target.touch()


def attach(node: int, source: str, target: str, *, read_only: bool = False) -> None:
    """Mount the machine's ``source`` in the node at ``target``, for as long as the node runs."""
    tree = _clone(source)
    if read_only:
        attributes = struct.pack("=4Q", _MOUNT_ATTR_RDONLY, 0, 0, 0)  # to set, to clear, and two not used
        changed = _libc.syscall(
            *(_MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH | _AT_RECURSIVE, attributes, len(attributes))
        )
        _checked(changed, f"making the mount of {source} read-only")
    directory = Path(source).is_dir()
    _enter(node)
    _place(Path(target), directory=directory)
    _attach(tree, target)


def pod(node: int, host: str, paths: Sequence[str], command: Sequence[str]) -> None:
    """Become ``command`` in a container that has the node's ``paths`` below ``host``; does not return.

    A path the node does not have is made there as a directory first, as a hostPath volume of type
    DirectoryOrCreate does. The capabilities are those of a container that is not privileged.
    """
    machine = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    _checked(_libc.mount(b"tmpfs", host.encode(), b"tmpfs", 0, b"mode=755"), f"mounting a tmpfs at {host}")
    for path in paths:
        _enter(node)
        if not os.path.lexists(path):
            Path(path).mkdir(parents=True)
        directory = stat.S_ISDIR(os.stat(path).st_mode)
        tree = _clone(path)
        _enter(machine)
        target = host + path
        _place(Path(target), directory=directory)
        _attach(tree, target)
    os.close(node)
    for capability in range(64):
        if capability not in CONTAINER_CAPABILITIES:
            _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)  # numbers the kernel does not know are refused
    os.execvp(command[0], list(command))


def main(arguments: Sequence[str]) -> None:
    act, node, *rest = arguments
    if act in ("attach", "attach-read-only"):
        attach(int(node), *rest, read_only=act == "attach-read-only")
    else:
        host, *rest = rest
        end = rest.index("--")
        pod(int(node), host, rest[:end], rest[end + 1 :])


if __name__ == "__main__":
    main(sys.argv[1:])
