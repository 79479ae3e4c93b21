"""What the machine offers: for host-check."""

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
    """Room on the file system that holds ``path``, in bytes; ``writable`` by this process."""

    path: str
    free: int
    read_only: bool
    writable: bool


@dataclass(frozen=True)
class HardwareFacts:
    """The kernel's and the hardware's part. Of an offline root, only what its files can tell."""

    root_user: bool
    machine_id: str
    dev_visible: bool
    kvm: bool
    virtualization: bool
    modules: frozenset[str]
    vsock: bool
    supported_tees: frozenset[str]
    memory: int
    """Bytes; not asked for offline."""
    selinux: str
    spaces: tuple[DiskSpace, ...]


def gather_hardware_facts(context: StageContext, paths: tuple[str, ...]) -> HardwareFacts:
    """Gather them; ``paths`` are the directories that will be written to."""
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
    there = posixpath.dirname(missing[0]) if missing else path
    real = root.resolve(there)
    info = os.statvfs(real)
    return DiskSpace(
        there,
        info.f_bavail * info.f_frsize,
        bool(info.f_flag & os.ST_RDONLY),
        os.access(real, os.W_OK | os.X_OK),
    )
