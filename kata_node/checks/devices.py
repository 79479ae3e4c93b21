"""The checks of host-check about the devices that the handlers' guests need. Pure.

Facts from Kata's source and configuration files:

- In both Kata runtimes, the shims of QEMU and StratoVirt look for ``/dev/vhost-vsock`` before they start the
  guest. So the kernel gets no chance to load the module on demand. The other hypervisors do not need it.
- With ``disable_vhost_net = false``, which is the default, the network of QEMU, StratoVirt and Dragonball
  opens ``/dev/vhost-net``. The configurations of the other hypervisors do not have this key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from kata_node.host.devices import KVM, NUMBERS, VHOST_NET, VHOST_VSOCK
from kata_node.kata.merge import Table, section
from kata_node.plan.report import Finding
from kata_node.settings.handlers import handlers

if TYPE_CHECKING:
    from kata_node.checks.hardware import HardwareFacts
    from kata_node.settings.handlers import Handler
    from kata_node.settings.model import Settings

VSOCK_HYPERVISORS = frozenset({"qemu", "stratovirt"})
VHOST_NET_HYPERVISORS = frozenset({"qemu", "stratovirt", "dragonball"})

MODULES: Mapping[str, str] = {VHOST_VSOCK: "vhost_vsock", VHOST_NET: "vhost_net"}
"""The kernel module that makes each device."""


def checks(
    settings: Settings, machine: HardwareFacts, configurations: Mapping[str, Table]
) -> Iterator[Finding]:
    """Yield the findings. ``configurations`` are those of :mod:`kata_node.checks.kata_configurations`."""
    local = [handler for handler in handlers(settings) if handler.shim.local_hypervisor]
    if not local:
        yield Finding("kvm", "skip", "no enabled shim runs VMs on this node")
        return
    if not machine.dev_visible:
        yield Finding("kvm", "skip", "the node's /dev is not mounted below the host root")
        return
    yield (kvm := _kvm(local, machine))
    if kvm.status == "pass":  # a module is no remedy for a node without KVM
        yield _vhost(local, machine, configurations)


def _kvm(local: Sequence[Handler], machine: HardwareFacts) -> Finding:
    state, shims = machine.devices[KVM], ", ".join(dict.fromkeys(handler.shim.name for handler in local))
    if state == "there":
        return Finding("kvm", "pass", f"{KVM} exists")
    if state == "other":
        return Finding(
            "kvm",
            "fail",
            f"{KVM} is not the device of KVM, and these shims need it: {shims}",
            f"remove {KVM} and restart the node, so that the kernel makes the device",
            unfit=True,
        )
    return Finding(
        "kvm",
        "fail",
        f"{KVM} does not exist, and these shims need it: {shims}",
        "load the kernel module kvm_intel or kvm_amd; if the node is a VM, enable nested virtualization; "
        "in a cluster, leave this node out with job.nodeSelector or nodeSelector; on a node by hand, enable "
        "only the shim remote",
        unfit=True,
    )


def _vhost(local: Sequence[Handler], machine: HardwareFacts, configurations: Mapping[str, Table]) -> Finding:
    users = {
        VHOST_VSOCK: [handler for handler in local if handler.shim.hypervisor in VSOCK_HYPERVISORS],
        VHOST_NET: [handler for handler in local if _uses_vhost_net(handler, configurations)],
    }
    needed = [path for path, using_handlers in users.items() if using_handlers]
    lacking = [path for path in needed if machine.devices[path] != "there"]
    if not lacking:
        reason = " and ".join(needed) + (" exist" if len(needed) > 1 else " exists")
        return Finding("vhost", "pass", reason if needed else "no handler needs a vhost device")
    reasons = []
    for path in lacking:
        problem = "does not exist" if machine.devices[path] == "missing" else "is not this device"
        reasons.append(f"{path} {problem}, and these handlers start no pod without it: {_names(users[path])}")
    # A failure of what the node has, not of what it is: the modules are part of every common kernel.
    return Finding("vhost", "fail", "; ".join(reasons), "; ".join(_remedies(lacking, machine)))


def _remedies(lacking: Sequence[str], machine: HardwareFacts) -> Iterator[str]:
    foreign = [path for path in lacking if machine.devices[path] == "other"]
    if foreign:
        yield f"run `rm {' '.join(foreign)}`"
    for path in lacking:
        if MODULES[path] in machine.modules:  # to load it again would do nothing
            yield f"run `mknod {path} c {' '.join(map(str, NUMBERS[path]))}`"
    if modules := [MODULES[path] for path in lacking if MODULES[path] not in machine.modules]:
        yield (
            f"run `modprobe -a {' '.join(modules)}`, and name these modules in a file in "
            "/etc/modules-load.d, so that they are loaded at every boot"
        )
    if VHOST_NET in lacking:
        yield "or set disable_vhost_net = true in the dropIn of these shims, for slower networking without it"


def _uses_vhost_net(handler: Handler, configurations: Mapping[str, Table]) -> bool:
    hypervisor = handler.shim.hypervisor
    configuration = section(configurations.get(handler.name, {}), "hypervisor", hypervisor)
    return hypervisor in VHOST_NET_HYPERVISORS and configuration.get("disable_vhost_net") is not True


def _names(using_handlers: Sequence[Handler]) -> str:
    return ", ".join(handler.name for handler in using_handlers)
