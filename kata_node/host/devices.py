"""The device files that a guest needs."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from kata_node.host.files import Root

KVM, VHOST_NET, VHOST_VSOCK = "/dev/kvm", "/dev/vhost-net", "/dev/vhost-vsock"

NUMBERS: Mapping[str, tuple[int, int]] = MappingProxyType(
    {KVM: (10, 232), VHOST_NET: (10, 238), VHOST_VSOCK: (10, 241)}
)
"""The major and minor number of each device; all are fixed in Linux, see ``include/linux/miscdevice.h``."""

DeviceState = Literal["there", "missing", "other"]
"""``other``: something else has the path, for example an ordinary file or another device."""


def device_state(root: Root, path: str) -> DeviceState:
    """Return whether the device of :data:`NUMBERS` at ``path`` exists on the node, with symlinks followed."""
    info = root.lstat(root.real_path(path))
    if info is None:
        return "missing"
    return "there" if _is_character_device(info, NUMBERS[path]) else "other"


def _is_character_device(info: os.stat_result, number: tuple[int, int]) -> bool:
    return stat.S_ISCHR(info.st_mode) and (os.major(info.st_rdev), os.minor(info.st_rdev)) == number
