"""Values that exclude each other in a merged Kata configuration. Pure.

Facts from the source of Kata's loaders, see :mod:`kata_node.kata.user_drop_in`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from kata_node.kata.merge import Table, section

if TYPE_CHECKING:
    from kata_node.settings.shims import Shim

_NO_PORT = ("", "no-port")
_PATHS = ("path", "kernel", "image", "initrd", "firmware", "firmware_volume")
"""The keys of paths that both runtimes resolve when they load the configuration."""
_NEEDS_ROOTFS = {"go": ("clh", "stratovirt"), "runtime-rs": ("clh", "dragonball", "qemu")}
_MIN_MEMORY_MIB = 64
"""The smallest guest of runtime-rs. 0 stands for the default."""


def conflicts(shim: Shim, config: Table) -> Iterator[str]:
    """Yield a sentence for each reason why Kata refuses ``config``, though each value has the right type."""
    hypervisor, runtime = section(config, "hypervisor", shim.hypervisor), section(config, "runtime")
    name = f"hypervisor.{shim.hypervisor}"
    yield from _sector_sizes(name, hypervisor)
    for key in _PATHS:
        if not str(hypervisor.get(key, "") or "/").startswith("/"):
            yield f"{name}.{key} is not an absolute path"
    if (
        shim.hypervisor in _NEEDS_ROOTFS[shim.runtime]
        and shim.tee != "se"  # its kernel contains everything
        and not (hypervisor.get("image") or hypervisor.get("initrd"))
    ):
        yield f"{name} sets neither image nor initrd"
    if shim.runtime == "go":
        if runtime.get("disable_new_netns") and runtime.get("internetworking_model") != "none":
            yield 'runtime.disable_new_netns needs runtime.internetworking_model = "none"'
        ports = [
            key for key in ("cold_plug_vfio", "hot_plug_vfio") if hypervisor.get(key, "") not in _NO_PORT
        ]
        if section(config, "factory").get("vm_cache_number") and shim.hypervisor != "qemu":
            yield "factory.vm_cache_number must be 0, because only QEMU supports it"
        if len(ports) == 2 and shim.hypervisor in ("qemu", "clh"):
            yield f'{name} sets both {" and ".join(ports)}; one of them must be "no-port"'
        return
    if 0 < _number(hypervisor, "default_memory") < _MIN_MEMORY_MIB:
        yield f"{name}.default_memory is less than {_MIN_MEMORY_MIB}"
    if hypervisor.get("pcie_root_port") and hypervisor.get("pcie_switch_port"):
        yield f"{name} sets both pcie_root_port and pcie_switch_port; one of them must be 0"
    for agent in section(config, "agent"):
        keys = {"dial_timeout_ms": 10, "reconnect_timeout_ms": 3000} | section(config, "agent", agent)
        dial, reconnect = _number(keys, "dial_timeout_ms"), _number(keys, "reconnect_timeout_ms")
        if not 0 < dial <= reconnect:
            yield (
                f"agent.{agent}.dial_timeout_ms must not be 0, and not more than "
                f"agent.{agent}.reconnect_timeout_ms"
            )


def _sector_sizes(name: str, hypervisor: dict[str, Any]) -> Iterator[str]:
    keys = ("block_device_logical_sector_size", "block_device_physical_sector_size")
    logical, physical = sizes = [_number(hypervisor, key) for key in keys]
    for key, size in zip(keys, sizes, strict=True):
        if size and (not 512 <= size <= 65536 or size & (size - 1)):
            yield f"{name}.{key} must be 0, or a power of 2 from 512 to 65536"
    if logical and physical and logical > physical:
        yield f"{name}.{keys[0]} must not be larger than {name}.{keys[1]}"


def _number(keys: Table, key: str) -> int:
    """Return the whole number of ``key``; 0 if it is not set."""
    value = keys.get(key)
    return value if isinstance(value, int) else 0
