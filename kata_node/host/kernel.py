"""Facts about the running kernel and the hardware.

They come from this process's own /proc and /sys, not from below the host root: a container sees the
kernel of its node. With ``--offline`` they describe the machine that builds an image, not the image.
"""

from __future__ import annotations

import os
import re
from pathlib import Path


def arch() -> str:
    """Return the architecture as ``uname -m`` names it: x86_64, aarch64, s390x or ppc64le."""
    return os.uname().machine


def boot_id() -> str:
    """Return the id of this boot; ``""`` when the kernel shows none."""
    return read("/proc/sys/kernel/random/boot_id")


def read(path: str) -> str:
    """Return a small file of /proc or /sys without surrounding blanks; ``""`` when it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def cpu_flags() -> frozenset[str]:
    """Return the feature flags of the first CPU."""
    for line in read("/proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features", "features"):
            return frozenset(value.split())
    return frozenset()


def has_module(name: str) -> bool:
    """Return whether a kernel module is loaded or built in.

    A built-in module without parameters is not visible to this check.
    """
    return Path("/sys/module", name).exists()


def tee(kind: str) -> bool:
    """Return whether this kernel can start confidential guests of ``kind`` (snp, tdx or se)."""
    parameter_paths = {
        "snp": "/sys/module/kvm_amd/parameters/sev_snp",
        "tdx": "/sys/module/kvm_intel/parameters/tdx",
        "se": "/sys/firmware/uv/prot_virt_host",
    }[kind]
    return read(parameter_paths) in ("Y", "1")


def selinux() -> str:
    """Return the SELinux mode: ``enforcing``, ``permissive`` or ``disabled``."""
    return {"1": "enforcing", "0": "permissive"}.get(read("/sys/fs/selinux/enforce"), "disabled")


def release() -> tuple[int, int]:
    """Return the first two numbers of the kernel's release, such as ``(6, 1)``; ``(0, 0)`` without them."""
    import platform

    found = re.match(r"(\d+)\.(\d+)", platform.release())
    return (int(found[1]), int(found[2])) if found else (0, 0)


def dirty_memory() -> int | None:
    """Return the bytes that this machine still has to write to its disks; ``None`` if they are not known."""
    sizes = re.findall(r"^(?:Dirty|Writeback): +(\d+) kB$", read("/proc/meminfo"), re.MULTILINE)
    return sum(map(int, sizes)) * 1024 if len(sizes) == 2 else None
