from __future__ import annotations

import platform

import pytest

from kata_node.host import kernel


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Fake files of /proc and /sys by their paths."""
    there: dict[str, str] = {}
    monkeypatch.setattr(kernel, "read", lambda path: there.get(path, ""))
    return there


def test_a_missing_file_reads_as_an_empty_string() -> None:
    assert kernel.read("/proc/self/not-there") == ""
    assert kernel.read("/proc") == ""
    assert kernel.read("/proc/self/comm") != ""
    assert not kernel.read("/proc/self/comm").endswith("\n")


def test_the_architecture_is_that_of_uname() -> None:
    assert kernel.arch() == platform.machine()


def test_the_boot_id_does_not_change() -> None:
    assert kernel.boot_id() == kernel.boot_id()


@pytest.mark.parametrize(
    ("cpuinfo", "flags"),
    [
        pytest.param(
            "processor\t: 0\nflags\t\t: fpu vmx\n\nprocessor\t: 1\nflags\t\t: fpu\n",
            {"fpu", "vmx"},
            id="x86_64",
        ),
        pytest.param("processor\t: 0\nFeatures\t: fp asimd\n", {"fp", "asimd"}, id="aarch64"),
        pytest.param("vendor_id : IBM/S390\nfeatures\t: esan3 sie\n", {"esan3", "sie"}, id="s390x"),
        pytest.param("processor\t: 0\ncpu\t\t: POWER9\n", set(), id="ppc64le"),
        pytest.param("", set(), id="hidden"),
    ],
)
def test_the_flags_of_the_first_cpu_are_read(files: dict[str, str], cpuinfo: str, flags: set[str]) -> None:
    files["/proc/cpuinfo"] = cpuinfo
    assert kernel.cpu_flags() == flags


@pytest.mark.parametrize(
    ("kind", "path", "value", "able"),
    [
        pytest.param("snp", "/sys/module/kvm_amd/parameters/sev_snp", "Y", True, id="snp"),
        pytest.param("snp", "/sys/module/kvm_amd/parameters/sev_snp", "N", False, id="snp switched off"),
        pytest.param(
            "snp", "/sys/module/kvm_intel/parameters/tdx", "Y", False, id="snp on the other maker's CPU"
        ),
        pytest.param("tdx", "/sys/module/kvm_intel/parameters/tdx", "Y", True, id="tdx"),
        pytest.param("se", "/sys/firmware/uv/prot_virt_host", "1", True, id="se"),
        pytest.param("se", "/sys/firmware/uv/prot_virt_host", "0", False, id="se switched off"),
    ],
)
def test_support_for_confidential_guests_comes_from_a_kernel_parameter(
    files: dict[str, str], kind: str, path: str, value: str, able: bool
) -> None:
    files[path] = value
    assert kernel.tee(kind) is able


@pytest.mark.parametrize(("value", "mode"), [("1", "enforcing"), ("0", "permissive"), ("", "disabled")])
def test_the_selinux_mode_comes_from_its_file_system(files: dict[str, str], value: str, mode: str) -> None:
    files["/sys/fs/selinux/enforce"] = value
    assert kernel.selinux() == mode


def test_a_loaded_module_is_found() -> None:
    assert kernel.has_module("kernel")
    assert not kernel.has_module("not_a_module_of_any_kernel")
