"""The devkit: an image with a shell and tools, which Kata attaches to the guests of a debug variant. Pure.

Kata's agent runs the shell of this image in its debug console, if the image is attached. The guest's own
image does not change. The file beside the image has the parameters with which the guest verifies it. Where
Kata is built without them, the guest attaches the image unverified.
"""

from __future__ import annotations

from typing import Any

from kata_node.kata.merge import Table, relocated_paths, section
from kata_node.settings.handlers import handlers
from kata_node.settings.model import Settings
from kata_node.settings.shims import BUILTIN_PREFIX, Shim

COMPONENT = "rootfs-image-devkit-extension"
"""The payload component with the image."""
IMAGE = "share/kata-containers/kata-containers-devkit-extension.img"
VERITY_PARAMS = "share/kata-containers/root_hash_devkit-extension.txt"
"""The image and its parameters, relative to the install dir."""

NAME = "devkit"
"""The name of the image in Kata's configuration. The agent looks for it."""


def is_wanted(settings: Settings) -> bool:
    """Return whether a handler of the installation needs the image."""
    return any(handler.variant == "devkit" for handler in handlers(settings))


def drop_in(shim: Shim, base: Table, install_dir: str, verity_file: str) -> dict[str, Any]:
    """Return the configuration that attaches the image, after the images of the configuration ``base``.

    ``verity_file`` is the content of :data:`VERITY_PARAMS`; empty if the payload does not have it.
    """
    hypervisor = section(base, "hypervisor", shim.hypervisor)
    images = {**hypervisor, **relocated_paths(hypervisor, BUILTIN_PREFIX, install_dir)}.get(
        "guest_extension_images", []
    )
    image = {"name": NAME, "path": f"{install_dir}/{IMAGE}"}
    if params := verity_file.strip().partition("\n")[0].strip():
        image["verity_params"] = params
    others = [each for each in images if each.get("name") != NAME]
    return {"hypervisor": {shim.hypervisor: {"guest_extension_images": [*others, image]}}}
