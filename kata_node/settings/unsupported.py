"""The settings that this release knows but does not support.

host-check fails if such a setting is set. The release that supports a setting removes it from this list.
"""

from __future__ import annotations

from kata_node.settings.model import Settings


def unsupported(settings: Settings) -> list[tuple[str, str]]:
    """Return the key of each unsupported setting that is set, with a sentence about it.

    Only settings of shims on this node count. Empty and false values count as not set.
    """
    requested: dict[str, tuple[object, str]] = {
        "env.hostOS": (settings.host_os, "enable the shim clh-azure instead"),
    }
    for shim in settings.shims:
        values, key = settings.for_shim(shim), f"shims.{shim.name}"
        requested[f"{key}.hypervisor.rootless"] = (
            values.rootless,
            "kata-node does not give the hypervisor access to the devices it needs",
        )
        requested[f"{key}.kernelModulesImages"] = (
            values.kernel_modules,
            "Kata 4.1 does not read it; attach a guest extension image with guest_extension_images in dropIn",
        )
    return [
        (key, f"{key} is not supported in this release" + (f": {remark}" if remark else ""))
        for key, (value, remark) in requested.items()
        if value
    ]
