"""The facts about the node's hardware, kernel and file systems that host-check uses."""

from __future__ import annotations

import os
import posixpath
from dataclasses import dataclass

from kata_node.host import kernel
from kata_node.host.files import Root, missing_dirs
from kata_node.host.machine_id import machine_id
from kata_node.plan.context import StageContext

SYSTEMD_SOCKETS = ("/run/systemd/private", "/run/dbus/system_bus_socket")
MODULES = ("vhost", "vhost_net", "vhost_vsock")


@dataclass(frozen=True)
class DiskSpace:
    """The free space of the file system that holds one directory."""

    path: str
    """The directory, or its nearest parent that exists."""
    free: int
    """Bytes that an unprivileged process can use."""
    read_only: bool
    """Whether the file system is mounted read-only."""
    writable: bool
    """Whether this process may create files in ``path``."""


@dataclass(frozen=True)
class HardwareFacts:
    """The facts about hardware, kernel and file systems. host-check uses only some of them offline."""

    root_user: bool
    machine_id: str
    dev_visible: bool
    """Whether the node's ``/dev`` is mounted below the host root."""
    kvm: bool
    """Whether ``/dev/kvm`` exists."""
    virtualization: bool
    """Whether the CPU has virtualization extensions. Only checked on x86_64."""
    modules: frozenset[str]
    """The members of :data:`MODULES` that are loaded or built in."""
    vsock: bool
    """Whether ``/dev/vhost-vsock`` exists."""
    supported_tees: frozenset[str]
    """The TEEs that the kernel can start guests in: ``snp``, ``tdx``, ``se``."""
    memory: int
    """Bytes; 0 offline."""
    selinux: str
    spaces: tuple[DiskSpace, ...]
    """First that of the install dir, then that of the runtime's configuration, unless it is the same."""


def gather_hardware_facts(context: StageContext, paths: tuple[str, ...]) -> HardwareFacts:
    """Return the facts. ``paths`` are the directories that an installation writes to."""
    root = context.clients.root
    flags = kernel.cpu_flags()
    return HardwareFacts(
        root_user=os.geteuid() == 0,
        machine_id=machine_id(root),
        dev_visible=root.lstat("/dev/null") is not None,
        kvm=root.lstat("/dev/kvm") is not None,
        virtualization=bool(flags & {"vmx", "svm"}) or kernel.arch() not in ("x86_64",),
        modules=frozenset(name for name in MODULES if kernel.has_module(name)),
        vsock=root.lstat("/dev/vhost-vsock") is not None,
        supported_tees=frozenset(kind for kind in ("snp", "tdx", "se") if kernel.tee(kind)),
        memory=0 if context.options.offline else _memory(),
        selinux=kernel.selinux(),
        spaces=tuple({space.path: space for space in (_space(root, path) for path in paths)}.values()),
    )


def _memory() -> int:
    import psutil

    return psutil.virtual_memory().total


def _space(root: Root, path: str) -> DiskSpace:
    missing = missing_dirs(root, path)
    existing = posixpath.dirname(missing[0]) if missing else path
    real = root.resolve(existing)
    info = os.statvfs(real)
    return DiskSpace(
        existing,
        info.f_bavail * info.f_frsize,
        bool(info.f_flag & os.ST_RDONLY),
        os.access(real, os.W_OK | os.X_OK),
    )
