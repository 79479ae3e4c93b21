"""What the running kernel tells of the machine, the same in every container of it.

Read from this process's own /proc and /sys, not from below the host root: a pod sees the same
kernel, and an image being baked is not the machine that bakes it.
"""

from __future__ import annotations

import platform
from pathlib import Path


def arch() -> str:
    """The machine name: x86_64, aarch64, s390x or ppc64le."""
    return platform.machine()


def boot_id() -> str:
    """The id of this boot; ``""`` where the kernel shows none."""
    return read("/proc/sys/kernel/random/boot_id")


def read(path: str) -> str:
    """A small file of /proc or /sys without its line end; ``""`` when it is not there."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def cpu_flags() -> frozenset[str]:
    """The feature flags of the first CPU."""
    for line in read("/proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features", "features"):
            return frozenset(value.split())
    return frozenset()


def has_module(name: str) -> bool:
    """Whether a kernel module is loaded or built in (a built-in one without parameters hides itself)."""
    return Path("/sys/module", name).exists()


def tee(kind: str) -> bool:
    """Whether this kernel can start confidential guests of ``kind`` (snp, tdx or se)."""
    parameter_paths = {
        "snp": "/sys/module/kvm_amd/parameters/sev_snp",
        "tdx": "/sys/module/kvm_intel/parameters/tdx",
        "se": "/sys/firmware/uv/prot_virt_host",
    }[kind]
    return read(parameter_paths) in ("Y", "1")


def selinux() -> str:
    """``enforcing``, ``permissive`` or ``disabled``."""
    return {"1": "enforcing", "0": "permissive"}.get(read("/sys/fs/selinux/enforce"), "disabled")
