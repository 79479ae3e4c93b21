"""The table of shims: what each Kata flavour is, where it runs, and where its files lie."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

MACHINES: Mapping[str, str] = MappingProxyType(
    {"amd64": "x86_64", "arm64": "aarch64", "s390x": "s390x", "ppc64le": "ppc64le"}
)
"""Architectures as Kubernetes and the values file name them, to the machine names of ``uname -m``."""

GO_CONFIG_DIR = "share/defaults/kata-containers"
"""Where the Go runtime's base configurations lie, relative to the install dir."""

BUILTIN_PREFIX = "/opt/kata"
"""Where Kata is built to lie: the prefix of the paths in its archives and configuration files."""


@dataclass(frozen=True)
class Overhead:
    """What a RuntimeClass books on top of a pod's own resources, as Kubernetes quantities."""

    memory: str
    cpu: str


@dataclass(frozen=True)
class Shim:
    """One Kata flavour. Paths are relative to the install dir."""

    name: str
    """``qemu-snp-runtime-rs``"""
    runtime: str
    """``go`` or ``runtime-rs``"""
    hypervisor: str
    """The section of its Kata configuration: ``qemu``, ``clh``, ``firecracker``, ``remote``, …"""
    tee: str
    """``snp``, ``tdx``, ``se``, or nothing."""
    arches: tuple[str, ...]
    """Machine names: ``x86_64``, ``aarch64``, ``s390x``, ``ppc64le``."""
    overhead: Overhead
    gpu: bool
    """Whether it hands NVIDIA GPUs to the guest."""

    def handler(self, suffix: str, *, debug: bool = False) -> str:
        """The name the CRI serves it under: ``kata-qemu``, or ``kata-qemu-<suffix>``.

        Its debug variant is ``kata-qemu-debug``, with the suffix behind that.
        """
        name = f"kata-{self.name}-debug" if debug else f"kata-{self.name}"
        return f"{name}-{suffix}" if suffix else name

    @property
    def local_hypervisor(self) -> bool:
        """Whether the VMs run on this node, so that it needs ``/dev/kvm``."""
        return self.hypervisor != "remote"

    @property
    def shim_binary(self) -> str:
        """The program the CRI runtime starts."""
        name = "bin/containerd-shim-kata-v2"
        return f"runtime-rs/{name}" if self.runtime == "runtime-rs" else name

    @property
    def config_dir(self) -> str:
        """The directory of its base configuration."""
        return f"{GO_CONFIG_DIR}/runtime-rs" if self.runtime == "runtime-rs" else GO_CONFIG_DIR

    @property
    def base_config(self) -> str:
        """The configuration the payload brings."""
        return f"{self.config_dir}/configuration-{self.name}.toml"

    @property
    def own_dir(self) -> str:
        """The directory this shim alone reads; Kata looks for ``config.d`` in it."""
        return f"{self.config_dir}/runtimes/{self.name}"

    @property
    def own_config(self) -> str:
        """The configuration the handler points at."""
        return f"{self.own_dir}/configuration-{self.name}.toml"


@functools.cache
def table() -> Mapping[str, Shim]:
    """Every shim by its name, in the order of ``assets/shims.toml``."""
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
            )
        case _:
            raise ValueError(f"assets/shims.toml: [{name}] lacks a key")
