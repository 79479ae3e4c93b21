"""Settings this release understands but does not carry out yet.

They are refused by name rather than ignored. Each entry goes away with the work that makes it true.
"""

from __future__ import annotations

from kata_node.settings.model import Settings


def unsupported(settings: Settings) -> list[tuple[str, str]]:
    """The key of each setting that asks for such a thing, with a sentence about it.

    Only shims of this node count; empty and false values ask for nothing.
    """
    requested: dict[str, tuple[object, str]] = {
        "env.hostOS": (settings.host_os, "enable the shim clh-azure in its place"),
        "devkit": (settings.devkit, "its extension of the guest is not installed"),
    }
    for shim in settings.shims:
        values, key = settings.for_shim(shim), f"shims.{shim.name}"
        requested[f"{key}.hypervisor.rootless"] = (
            values.rootless,
            "the devices it needs are not opened to it yet",
        )
        requested[f"{key}.kernelModulesImages"] = (values.kernel_modules, "no image is placed for it")
    return [
        (key, f"{key} is not in this release" + (f": {remark}" if remark else ""))
        for key, (value, remark) in requested.items()
        if value
    ]
