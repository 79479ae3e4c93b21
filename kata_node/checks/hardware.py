"""The facts about the node's hardware and kernel that host-check uses."""

from __future__ import annotations

import os
from collections.abc import Mapping

from msgspec import Struct

from kata_node.host import kernel
from kata_node.host.devices import NUMBERS, DeviceState, device_state
from kata_node.host.machine_id import machine_id
from kata_node.plan.context import StageContext

SYSTEMD_SOCKETS = ("/run/systemd/private", "/run/dbus/system_bus_socket")
MODULES = ("vhost_net", "vhost_vsock")


class HardwareFacts(Struct, frozen=True):
    """The facts about hardware and kernel. host-check uses only some of them offline."""

    root_user: bool
    machine_id: str
    dev_visible: bool
    """Whether the node's ``/dev`` is mounted below the host root."""
    devices: Mapping[str, DeviceState]
    """The state of each device that a guest may need, by its path."""
    virtualization: bool
    """Whether the CPU has virtualization extensions. Only checked on x86_64."""
    modules: frozenset[str]
    """The members of :data:`MODULES` that are loaded or built in."""
    supported_tees: frozenset[str]
    """The TEEs that the kernel can start guests in: ``snp``, ``tdx``, ``se``."""
    memory: int
    """Bytes; 0 offline."""
    selinux: str


def gather_hardware_facts(context: StageContext) -> HardwareFacts:
    """Return the facts."""
    root = context.clients.root
    flags = kernel.cpu_flags()
    return HardwareFacts(
        root_user=os.geteuid() == 0,
        machine_id=machine_id(root),
        dev_visible=root.lstat("/dev/null") is not None,
        devices={path: device_state(root, path) for path in NUMBERS},
        virtualization=bool(flags & {"vmx", "svm"}) or kernel.arch() not in ("x86_64",),
        modules=frozenset(name for name in MODULES if kernel.has_module(name)),
        supported_tees=frozenset(kind for kind in ("snp", "tdx", "se") if kernel.tee(kind)),
        memory=0 if context.options.offline else _memory(),
        selinux=kernel.selinux(),
    )


def _memory() -> int:
    import psutil

    return psutil.virtual_memory().total
