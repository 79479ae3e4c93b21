"""The table of shims: their hypervisors and architectures, and the paths of their files."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from msgspec import Struct

MACHINES: Mapping[str, str] = MappingProxyType(
    {"amd64": "x86_64", "arm64": "aarch64", "s390x": "s390x", "ppc64le": "ppc64le"}
)
"""The machine types of ``uname -m``, by the architecture names of Kubernetes and the values file."""

GO_CONFIG_DIR = "share/defaults/kata-containers"
"""The directory of the Go runtime's base configurations, relative to the install dir."""

Variant = Literal["", "debug", "devkit"]
"""A handler of a shim: the plain one, the one that logs more, or that one with the devkit in its guests."""

DEVKIT_ARCHES = ("x86_64", "aarch64")
"""The machine types that Kata builds the devkit image for."""

BUILTIN_PREFIX = "/opt/kata"
"""The install dir that Kata is built for. Paths in its archives and configuration files begin with it."""


class Overhead(Struct, frozen=True):
    """The pod overhead of a RuntimeClass, as Kubernetes quantities."""

    memory: str
    cpu: str


class Shim(Struct, frozen=True):
    """One Kata shim. All paths are relative to the install dir."""

    name: str
    """``qemu-snp-runtime-rs``"""
    runtime: str
    """``go`` or ``runtime-rs``"""
    hypervisor: str
    """The section of its Kata configuration: ``qemu``, ``clh``, ``firecracker``, ``remote``, …"""
    tee: str
    """``snp``, ``tdx``, ``se``, or empty."""
    arches: tuple[str, ...]
    """Machine types: ``x86_64``, ``aarch64``, ``s390x``, ``ppc64le``."""
    overhead: Overhead
    gpu: bool
    """Whether it passes NVIDIA GPUs to the guest."""
    off: bool = False
    """Whether only ``enabled: true`` enables it."""
    withdrawn: str = ""
    """The first release of Kata without this shim; empty if the newest release has it."""

    def handler(self, suffix: str, variant: Variant = "") -> str:
        """Return the name of the shim's handler: ``kata-qemu``, or ``kata-qemu-<suffix>``.

        A variant is ``kata-qemu-debug``, or ``kata-qemu-debug-<suffix>``.
        """
        return "-".join(part for part in ("kata", self.name, variant, suffix) if part)

    @property
    def devkit_arches(self) -> tuple[str, ...]:
        """The machine types on which the shim can attach the devkit image to its guests.

        Kata builds the image for two architectures. Confidential guests must not trust an image of the node.
        The Go runtime attaches images with QEMU only.
        """
        attaches = self.hypervisor == "qemu" or (self.runtime == "runtime-rs" and self.local_hypervisor)
        return tuple(arch for arch in self.arches if arch in DEVKIT_ARCHES and attaches and not self.tee)

    @property
    def local_hypervisor(self) -> bool:
        """Whether the VMs run on the node, which then needs ``/dev/kvm``."""
        return self.hypervisor != "remote"

    @property
    def shim_binary(self) -> str:
        """The path of the program that the container runtime starts."""
        name = "bin/containerd-shim-kata-v2"
        return f"runtime-rs/{name}" if self.runtime == "runtime-rs" else name

    @property
    def config_dir(self) -> str:
        """The directory of the shim's base configuration."""
        return f"{GO_CONFIG_DIR}/runtime-rs" if self.runtime == "runtime-rs" else GO_CONFIG_DIR

    @property
    def base_config(self) -> str:
        """The path of the shim's base configuration, which is in the payload."""
        return f"{self.config_dir}/configuration-{self.name}.toml"

    @property
    def own_dir(self) -> str:
        """The configuration directory of the shim's handler. Kata reads ``config.d`` in it."""
        return f"{self.config_dir}/runtimes/{self.name}"

    @property
    def own_config(self) -> str:
        """The path of the configuration of the shim's handler."""
        return f"{self.own_dir}/configuration-{self.name}.toml"


@functools.cache
def table() -> Mapping[str, Shim]:
    """Return all shims by their names, in the order of ``assets/shims.toml``."""
    import tomllib

    from kata_node.assets import asset

    data = tomllib.loads(asset("shims.toml").read_text(encoding="utf-8"))
    return MappingProxyType({name: _parse_shim(name, fields) for name, fields in data.items()})


def _parse_shim(name: str, fields: Mapping[str, object]) -> Shim:
    match fields:
        case {
            "runtime": str(runtime),
            "hypervisor": str(hypervisor),
            "arches": list(arches),
            "overhead": {"memory": str(memory), "cpu": str(cpu)},
        }:
            return Shim(
                name=name,
                runtime=runtime,
                hypervisor=hypervisor,
                tee=str(fields.get("tee", "")),
                arches=tuple(map(str, arches)),
                overhead=Overhead(memory, cpu),
                gpu=fields.get("gpu") is True,
                off=fields.get("off") is True,
                withdrawn=str(fields.get("withdrawn", "")),
            )
        case _:
            raise ValueError(f"assets/shims.toml: [{name}] has a missing key or a value of a wrong type")
