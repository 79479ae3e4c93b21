"""The check of host-check about the memory of the node. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from kata_node.kata.merge import Table, section
from kata_node.plan.report import Finding
from kata_node.settings.handlers import handlers
from kata_node.text import human_size

if TYPE_CHECKING:
    from kata_node.settings.handlers import Handler
    from kata_node.settings.model import Settings

DEFAULT_GUEST_MEMORY = 2 << 30  # bytes; the default of one guest in Kata's configurations


def check(settings: Settings, memory: int, configurations: Mapping[str, Table]) -> Finding:
    """Return the finding for a node with ``memory`` bytes.

    ``configurations`` are those of :mod:`kata_node.checks.kata_configurations`. They are needed only if the
    node has less than :data:`DEFAULT_GUEST_MEMORY`.
    """
    sizes = {
        handler.name: _guest_memory(handler, configurations)
        for handler in handlers(settings)
        if handler.shim.local_hypervisor
    }
    if too_large := [name for name, size in sizes.items() if size > memory]:
        size = human_size(max(sizes[name] for name in too_large))
        return Finding(
            "memory",
            "warn",
            f"the node has {human_size(memory)}, and one guest gets {size} with {', '.join(too_large)}",
            "set a lower default_memory (MiB) in the dropIn of these shims",
        )
    return Finding("memory", "pass", human_size(memory))


def _guest_memory(handler: Handler, configurations: Mapping[str, Table]) -> int:
    """Return the bytes that a guest gets; the default if the configuration is not known."""
    table = section(configurations.get(handler.name, {}), "hypervisor", handler.shim.hypervisor)
    found = table.get("default_memory")
    return found << 20 if type(found) is int and found > 0 else DEFAULT_GUEST_MEMORY
