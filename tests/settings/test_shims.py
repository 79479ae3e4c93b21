"""The shim table, and the paths of each shim's files."""

from __future__ import annotations

import re

import pytest

from kata_node.settings.shims import MACHINES, Overhead, table

# The shims of the public kata-deploy chart. The table must have exactly these.
CHART = [
    "clh",
    "clh-runtime-rs",
    "clh-azure",
    "clh-azure-runtime-rs",
    "dragonball",
    "fc",
    "openvmm-azure-runtime-rs",
    "qemu",
    "qemu-runtime-rs",
    "qemu-coco-dev",
    "qemu-coco-dev-runtime-rs",
    "qemu-nvidia-cpu",
    "qemu-nvidia-cpu-runtime-rs",
    "qemu-nvidia-gpu",
    "qemu-nvidia-gpu-runtime-rs",
    "qemu-nvidia-gpu-snp",
    "qemu-nvidia-gpu-snp-runtime-rs",
    "qemu-nvidia-gpu-tdx",
    "qemu-nvidia-gpu-tdx-runtime-rs",
    "qemu-se",
    "qemu-se-runtime-rs",
    "qemu-snp",
    "qemu-snp-runtime-rs",
    "qemu-tdx",
    "qemu-tdx-runtime-rs",
    "remote",
    "stratovirt",
]


def test_the_table_has_every_shim_of_the_chart_in_a_fixed_order() -> None:
    assert list(table()) == CHART


def test_the_table_is_read_once() -> None:
    assert table() is table()


@pytest.mark.parametrize("name", CHART)
def test_every_entry_is_consistent_with_its_name(name: str) -> None:
    shim = table()[name]
    assert shim.name == name
    assert shim.runtime == ("runtime-rs" if name.endswith("-runtime-rs") or name == "dragonball" else "go")
    assert shim.tee == next((tee for tee in ("snp", "tdx", "se") if tee in name.split("-")), "")
    assert shim.gpu == ("nvidia-gpu" in name)
    assert shim.arches
    assert set(shim.arches) <= set(MACHINES.values())
    assert re.fullmatch(r"[0-9]+Mi", shim.overhead.memory)
    assert re.fullmatch(r"[0-9]+m|[0-9.]+", shim.overhead.cpu)


@pytest.mark.parametrize(
    ("name", "hypervisor", "arches", "overhead"),
    [
        pytest.param("clh-runtime-rs", "clh", "x86_64 aarch64", ("130Mi", "250m"), id="clh-runtime-rs"),
        pytest.param("clh-azure", "clh", "x86_64", ("130Mi", "250m"), id="clh-azure"),
        pytest.param("fc", "firecracker", "x86_64 aarch64", ("130Mi", "250m"), id="fc"),
        pytest.param("dragonball", "dragonball", "x86_64 aarch64", ("130Mi", "250m"), id="dragonball"),
        pytest.param("openvmm-azure-runtime-rs", "openvmm", "x86_64", ("130Mi", "250m"), id="openvmm"),
        pytest.param("qemu", "qemu", "x86_64 aarch64 s390x ppc64le", ("320Mi", "250m"), id="qemu"),
        pytest.param("qemu-coco-dev", "qemu", "x86_64 s390x", ("160Mi", "250m"), id="coco-dev"),
        pytest.param(
            "qemu-coco-dev-runtime-rs", "qemu", "x86_64 aarch64 s390x", ("320Mi", "250m"), id="coco-dev-rs"
        ),
        pytest.param("qemu-se", "qemu", "s390x", ("1024Mi", "1.0"), id="se"),
        pytest.param("qemu-snp-runtime-rs", "qemu", "x86_64", ("2048Mi", "1.0"), id="snp-rs"),
        pytest.param("qemu-nvidia-cpu", "qemu", "x86_64 aarch64", ("320Mi", "250m"), id="nvidia-cpu"),
        pytest.param("qemu-nvidia-gpu-tdx", "qemu", "x86_64", ("10240Mi", "1.0"), id="nvidia-gpu-tdx"),
        pytest.param("remote", "remote", "x86_64 ppc64le s390x", ("120Mi", "250m"), id="remote"),
        pytest.param("stratovirt", "stratovirt", "x86_64 aarch64", ("130Mi", "250m"), id="stratovirt"),
    ],
)
def test_an_entry_has_the_hypervisor_architectures_and_overhead_of_the_shim(
    name: str, hypervisor: str, arches: str, overhead: tuple[str, str]
) -> None:
    shim = table()[name]
    assert shim.hypervisor == hypervisor
    assert set(shim.arches) == set(arches.split())
    assert shim.overhead == Overhead(*overhead)


def test_the_files_of_a_go_shim_are_in_the_directories_of_the_go_runtime() -> None:
    shim = table()["qemu-snp"]
    assert shim.shim_binary == "bin/containerd-shim-kata-v2"
    assert shim.base_config == "share/defaults/kata-containers/configuration-qemu-snp.toml"
    assert shim.own_dir == "share/defaults/kata-containers/runtimes/qemu-snp"
    assert shim.own_config == "share/defaults/kata-containers/runtimes/qemu-snp/configuration-qemu-snp.toml"


def test_the_files_of_a_runtime_rs_shim_are_in_the_directories_of_runtime_rs() -> None:
    shim = table()["dragonball"]
    directory = "share/defaults/kata-containers/runtime-rs"
    assert shim.shim_binary == "runtime-rs/bin/containerd-shim-kata-v2"
    assert shim.base_config == f"{directory}/configuration-dragonball.toml"
    assert shim.own_config == f"{directory}/runtimes/dragonball/configuration-dragonball.toml"


def test_a_handler_has_the_suffix_of_its_installation() -> None:
    assert table()["qemu"].handler("") == "kata-qemu"
    assert table()["qemu"].handler("blue") == "kata-qemu-blue"


def test_only_the_remote_shim_needs_no_hypervisor_on_the_node() -> None:
    assert [name for name, shim in table().items() if not shim.local_hypervisor] == ["remote"]
