"""Drop-ins of users: what Kata would refuse is refused, and what Kata would ignore is a warning.

The expected verdicts are those of the loaders of Kata 4.1.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from typing import Any

import pytest

from kata.test_drop_ins import CONFIGURATIONS
from kata_node.errors import SettingsError
from kata_node.kata.drop_ins import drop_in_warnings, drop_ins
from kata_node.kata.merge import render
from kata_node.settings.handlers import handlers
from kata_node.settings.model import Settings
from kata_node.settings.selection import CustomRuntime, ShimSettings
from kata_node.settings.shims import table

GO_QEMU = """\
[hypervisor.qemu]
path = "/opt/kata/bin/qemu"
kernel = "/opt/kata/vmlinux"
image = "/opt/kata/kata.img"
enable_annotations = ["enable_iommu"]
default_vcpus = 1
default_memory = 2048
# memory_offset = 0
# rootless = false
# shared_fs = "virtio-fs"
#   - virtio-new (since the next release)
# cold_plug_vfio = "no-port"
# hot_plug_vfio = "no-port"
# virtio_fs_extra_args = ["--one"]
# block_device_logical_sector_size = 0
# block_device_physical_sector_size = 0
# kernel_params = ""
enable_debug = false
[factory]
# vm_cache_number = 0
[agent.kata]
enable_debug = false
# dial_timeout = 45
[runtime]
# disable_new_netns = false
internetworking_model = "tcfilter"
experimental = []
sandbox_bind_mounts = []
# experimental_force_guest_pull = false
"""
GO_CLH = """\
[hypervisor.clh]
image = "/opt/kata/kata.img"
# hypervisor_loglevel = 1
[agent.kata]
# tracing = true
"""
RS_QEMU = """\
[hypervisor.qemu]
path = "/opt/kata/bin/qemu"
image = "/opt/kata/kata.img"
default_vcpus = 1.0
# overhead_vcpus = 0.2
# default_memory = 2048
# enable_guest_swap = false
# pcie_root_port = 0
enable_debug = false
[hypervisor.qemu.factory]
# enable_template = false
[agent.kata]
# dial_timeout_ms = 10
# reconnect_timeout_ms = 3000
[agent.kata.mem_agent]
# memcg_swappiness_max = 50
[runtime]
name = "virt_container"
hypervisor_name = "qemu"
agent_name = "kata"
experimental = ["else"]
# vfio_mode = "guest-kernel"
"""
RS_DRAGONBALL = """\
[hypervisor.dragonball]
image = "/opt/kata/kata.img"
# default_bridges = 0
[agent.kata]
[runtime]
hypervisor_name = "dragonball"
"""
TEXTS = {
    "qemu": (GO_QEMU, GO_CLH),
    "clh": (GO_CLH, GO_QEMU),
    "qemu-runtime-rs": (RS_QEMU, RS_DRAGONBALL),
    "dragonball": (RS_DRAGONBALL, RS_QEMU),
}


def settings(shim: str, drop_in: str, **values: Any) -> Settings:
    shim_settings = ShimSettings(drop_in=drop_in, **values)
    return Settings(shims=(table()[shim],), arch="x86_64", shim_settings={shim: shim_settings})


def check(shim: str, drop_in: str) -> None:
    """Raise what kata-node raises for ``drop_in``."""
    wanted, texts = settings(shim, drop_in), TEXTS[shim]
    drop_ins(handlers(wanted)[0], wanted, tomllib.loads(texts[0]), texts)


def warnings(shim: str, drop_in: str, **values: Any) -> list[str]:
    wanted, texts = settings(shim, drop_in, **values), TEXTS[shim]
    one = handlers(wanted)[0]
    drop_ins(one, wanted, tomllib.loads(texts[0]), texts)
    return list(drop_in_warnings(one, wanted, {}, tomllib.loads(texts[0]), texts))


# --- refused -----------------------------------------------------------------------------------------

GO, RS = "qemu", "qemu-runtime-rs"
Q, A, R = "[hypervisor.qemu]\n", "[agent.kata]\n", "[runtime]\n"


@pytest.mark.parametrize(
    ("shim", "text", "what"),
    [
        # Keys that Kata does not know.
        pytest.param(
            GO,
            Q + "default_vcpu = 2",
            "hypervisor.qemu.default_vcpu is not a key of the shim qemu, and Kata's Go runtime refuses "
            "unknown keys there; did you mean default_vcpus?",
            id="misspelt",
        ),
        pytest.param(GO, Q + "Default_vcpus = 2", "did you mean default_vcpus?", id="other case"),
        pytest.param(GO, Q + "sandbox_bind_mounts = []", "it belongs in [runtime]", id="key of runtime"),
        pytest.param(GO, A + "default_memory = 1", "it belongs in [hypervisor.qemu]", id="key of hypervisor"),
        pytest.param(GO, A + "dial_timeout_ms = 1", "did you mean dial_timeout?", id="agent of runtime-rs"),
        pytest.param(RS, A + "dial_timeout = 1", "did you mean dial_timeout_ms?", id="agent of Go"),
        pytest.param(RS, A + "nonsense = 1", "agent.kata.nonsense is not a key", id="agent of runtime-rs"),
        pytest.param(
            RS, "[agent.kata.mem_agent]\nx = 1", "mem_agent.x is not a key", id="table of the agent"
        ),
        pytest.param(
            RS, "[hypervisor.qemu.factory]\nx = 1", "factory.x is not a key", id="table in hypervisor"
        ),
        pytest.param(GO, "[hypervisor.qemu.x]\ny = 1", "qemu.x is not a section", id="unknown table"),
        # Sections of something else.
        pytest.param(
            GO,
            "[hypervisor.clh]\ndefault_vcpus = 2",
            "hypervisor.clh is not the section of the shim qemu, and Kata's Go runtime refuses a second "
            "hypervisor; write the keys in [hypervisor.qemu]",
            id="other hypervisor",
        ),
        pytest.param(RS, "[hypervisor.clh]", "runtime-rs refuses a second hypervisor", id="empty section"),
        pytest.param(
            GO, "[hypervisor]\ndefault_vcpus = 2", "did you mean [hypervisor.qemu]?", id="no section"
        ),
        pytest.param(GO, "[agent.foo]\nenable_debug = true", "uses one of several agents", id="second agent"),
        pytest.param(RS, "[agent.foo]\nx = true", "agent.foo.x is not a key", id="key of a second agent"),
        pytest.param(RS, R + 'hypervisor_name = "clh"', 'needs "qemu"', id="name of another hypervisor"),
        pytest.param(RS, R + 'agent_name = ""', 'needs "kata"', id="name of another agent"),
        # Tables that are none, and the reverse.
        pytest.param(GO, "runtime = 'x'", "it is a mapping in the shim's configuration", id="runtime"),
        pytest.param(GO, "agent = 1", "agent is the number 1", id="agent"),
        pytest.param(GO, "hypervisor = []", "hypervisor is a list", id="hypervisor"),
        pytest.param(GO, "[[hypervisor.qemu]]\nx = 1", "hypervisor.qemu is a list", id="list of tables"),
        pytest.param(RS, "agent.kata = 'x'", 'agent.kata is the string "x"', id="one agent"),
        pytest.param(RS, A + "mem_agent = true", "agent.kata.mem_agent is true", id="table of the agent"),
        pytest.param(GO, Q + "kernel = { path = 'x' }", "hypervisor.qemu.kernel is a mapping", id="table"),
        # Values of another type. Commented keys have types too.
        pytest.param(GO, Q + "default_memory = '2048'", 'the string "2048"', id="string for number"),
        pytest.param(GO, Q + "default_memory = true", "default_memory is true", id="boolean for number"),
        pytest.param(GO, Q + "memory_offset = '0'", "but Kata wants a number", id="commented number"),
        pytest.param(GO, Q + "rootless = 'true'", "but Kata wants true or false", id="string for boolean"),
        pytest.param(GO, Q + "rootless = 1", "but Kata wants true or false", id="number for boolean"),
        pytest.param(GO, Q + "kernel = ['x']", "hypervisor.qemu.kernel is a list", id="list for string"),
        pytest.param(GO, Q + "kernel = 1979-05-27", "(a date)", id="date for string"),
        pytest.param(GO, R + "sandbox_bind_mounts = '/x'", "it is a list in", id="string for list"),
        pytest.param(GO, R + "sandbox_bind_mounts = [1]", "item 1 of runtime.sandbox", id="number in list"),
        pytest.param(GO, Q + "virtio_fs_extra_args = ['a', ['b']]", "item 2 of", id="list in list"),
        pytest.param(
            GO, Q + "enable_annotations = 'x'", "enable_annotations is the string", id="annotations"
        ),
        pytest.param(GO, "[Runtime]\nSANDBOX_BIND_MOUNTS = 1", "is the number 1", id="type in any case"),
        pytest.param(GO, "[factory]\nenable_template = 1", "Kata wants true or false", id="factory"),
        pytest.param(RS, R + "vfio_mode = true", "but Kata wants a string", id="runtime of runtime-rs"),
        pytest.param(RS, Q + "default_vcpus = '2'", "it is the number 1.0 in", id="fraction"),
        # Numbers that do not fit.
        pytest.param(GO, Q + "default_memory = 2048.5", "Kata wants a whole number", id="fraction Go"),
        pytest.param(GO, Q + "default_memory = 2048.0", "Kata wants a whole number", id="whole fraction"),
        pytest.param(RS, Q + "default_memory = 1.5", "Kata wants a whole number", id="fraction runtime-rs"),
        pytest.param(GO, Q + "default_memory = -1", "from 0 to 4294967295", id="negative"),
        pytest.param(GO, Q + "default_memory = 8589934592", "from 0 to 4294967295", id="bytes for MiB"),
        pytest.param(RS, "[agent.kata.mem_agent]\nmemcg_swappiness_max = 300", "from 0 to 255", id="percent"),
        # Values that Kata does not know.
        pytest.param(
            GO,
            R + 'experimental = ["x"]',
            "runtime.experimental is not empty, but Kata's Go runtime",
            id="feature",
        ),
        pytest.param(
            GO,
            R + 'experimental = ["force_guest_pull"]',
            "set experimental_force_guest_pull = true instead",
            id="feature of runtime-rs",
        ),
        pytest.param(
            GO,
            R + 'internetworking_model = "bridge"',
            'one of "default", "macvtap", "none", "tcfilter"',
            id="model",
        ),
        pytest.param(
            GO, Q + 'shared_fs = "nfs"', 'is the string "nfs", but Kata wants one of', id="file system"
        ),
        pytest.param(RS, Q + "enable_guest_swap = true", "does not support it with qemu", id="unsupported"),
        pytest.param(
            "dragonball", "[hypervisor.dragonball]\ndefault_bridges = 1", "not support", id="bridges"
        ),
        pytest.param(
            RS,
            Q + "[[hypervisor.qemu.guest_extension_images]]\npath = '/x'",
            "has an image without a name",
            id="image without name",
        ),
        # Values that exclude each other.
        pytest.param(GO, Q + "initrd = '/i'", "both image and initrd", id="initrd too"),
        pytest.param(RS, Q + "image = ''", "sets neither image nor initrd", id="no image"),
        pytest.param(GO, Q + "kernel = 'vmlinux'", "qemu.kernel is not an absolute path", id="relative path"),
        pytest.param(GO, R + "disable_new_netns = true", 'internetworking_model = "none"', id="network"),
        pytest.param(
            GO,
            Q + "cold_plug_vfio = 'root-port'\nhot_plug_vfio = 'root-port'",
            "sets both cold_plug_vfio and hot_plug_vfio",
            id="ports",
        ),
        pytest.param(GO, Q + "block_device_logical_sector_size = 1000", "a power of 2", id="sector size"),
        pytest.param(
            GO,
            Q + "block_device_logical_sector_size = 4096\nblock_device_physical_sector_size = 512",
            "must not be larger",
            id="sector sizes",
        ),
        pytest.param(RS, Q + "default_memory = 32", "is less than 64", id="memory"),
        pytest.param(RS, A + "dial_timeout_ms = 5000", "not more than agent.kata.reconnect", id="timeouts"),
        pytest.param(
            RS,
            Q + "pcie_root_port = 1\npcie_switch_port = 1",
            "both pcie_root_port and pcie_switch",
            id="PCIe",
        ),
        pytest.param("clh", "[factory]\nvm_cache_number = 1", "only QEMU supports it", id="cache"),
    ],
)
def test_a_drop_in_that_kata_refuses_is_refused(shim: str, text: str, what: str) -> None:
    with pytest.raises(SettingsError) as caught:
        check(shim, text)
    assert what in caught.value.what
    assert caught.value.where == f"shims.{shim}.dropIn"
    assert caught.value.hint


def test_all_reasons_are_told_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        check(GO, Q + "default_vcpu = 2\nrootless = 'x'\n" + A + "enable_debug = 1")
    for name in ("hypervisor.qemu.default_vcpu", "hypervisor.qemu.rootless", "agent.kata.enable_debug"):
        assert f"{name} is " in caught.value.what


def test_the_drop_in_of_a_custom_runtime_is_checked_against_its_shim() -> None:
    own = CustomRuntime("mine", "qemu", "kata-mine", drop_in=Q + "default_vcpu = 2")
    wanted = Settings((), "x86_64", custom_runtimes=(own,))
    with pytest.raises(SettingsError, match="not a key of the shim qemu") as caught:
        drop_ins(handlers(wanted)[0], wanted, tomllib.loads(GO_QEMU), TEXTS["qemu"])
    assert caught.value.where == "customRuntimes.runtimes.mine.dropIn"


# --- accepted ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shim", "text"),
    [
        pytest.param(GO, Q + "default_vcpus = 2.5", id="fraction of default_vcpus"),
        pytest.param(GO, Q + "default_vcpus = -1", id="all cores"),
        pytest.param(RS, Q + "default_vcpus = 2\noverhead_vcpus = 1", id="whole numbers for fractions"),
        pytest.param(GO, Q + "memory_offset = 8589934592\nrootless = true", id="commented keys"),
        pytest.param(GO, Q + "initrd = '/i'\nimage = ''", id="key that no file documents"),
        pytest.param(GO, "[factory]\nenable_template = true", id="factory"),
        pytest.param(GO, A + "tracing = true", id="agent's key of another file"),
        pytest.param(GO, Q + "shared_fs = 'virtio-new'", id="value that the payload's files mention"),
        pytest.param(GO, Q + "virtio_fs_extra_args = ['a', 'b']\n" + R + "experimental = []", id="lists"),
        pytest.param(GO, R + "experimental_force_guest_pull = true", id="guest pull Go"),
        pytest.param(RS, R + 'experimental = ["else", "force_guest_pull"]', id="guest pull runtime-rs"),
        pytest.param(GO, R + "Experimental_Force_Guest_Pull = true", id="other case in runtime"),
        pytest.param(RS, R + 'hypervisor_name = "qemu"', id="its own hypervisor"),
        pytest.param(RS, "[hypervisor.qemu.factory]\nenable_template = true", id="table in hypervisor"),
        pytest.param(RS, "[agent.kata.mem_agent]\ncompact_order = 9", id="table of the agent"),
        pytest.param(
            RS, "[[hypervisor.qemu.guest_extension_images]]\nname = 'x'\npath = '/x'", id="list of tables"
        ),
    ],
)
def test_a_drop_in_that_kata_accepts_is_accepted(shim: str, text: str) -> None:
    check(shim, text)
    assert warnings(shim, text) == []


@pytest.mark.parametrize(
    ("shim", "text", "warning"),
    [
        pytest.param(
            GO,
            R + "enable_pproff = true",
            "runtime.enable_pproff is not a key of the shim qemu, and Kata's Go runtime ignores the key",
            id="runtime",
        ),
        pytest.param(GO, R + "default_vcpus = 1", "it belongs in [hypervisor.qemu]", id="wrong section"),
        pytest.param(
            RS, Q + "default_vcpu = 1", "ignores the key; did you mean default_vcpus?", id="runtime-rs"
        ),
        pytest.param(RS, "[factory]\nx = 1", "factory is not a section", id="factory of runtime-rs"),
        pytest.param(GO, "[runtimes]\nx = 1", "ignores the section; did you mean runtime?", id="section"),
        pytest.param(GO, "default_vcpus = 1", "it belongs in [hypervisor.qemu]", id="outside of sections"),
        pytest.param(GO, "[hypervisor.clh]", "is not the section of the shim qemu", id="empty section"),
        pytest.param(RS, "[agent.foo]\ndial_timeout_ms = 1", "ignores a second agent", id="second agent"),
        pytest.param(
            GO, Q + "hypervisor_loglevel = 2", "only in configurations of other", id="other hypervisor"
        ),
        pytest.param(RS, R + 'experimental = ["x"]', 'has "x", but runtime-rs knows only', id="feature"),
        pytest.param(
            GO,
            Q + 'enable_annotations = ["default_vcpus", "default_max.*", "kernel_parms"]',
            'hypervisor.qemu.enable_annotations has "kernel_parms", which allows no annotation that Kata '
            "has; did you mean kernel_params?",
            id="annotation",
        ),
        pytest.param(GO, Q + 'enable_annotations = ["[a"]', "not a valid regular expression", id="pattern"),
    ],
)
def test_a_setting_that_kata_ignores_is_a_warning(shim: str, text: str, warning: str) -> None:
    (found,) = warnings(shim, text)
    assert found.startswith(f"shims.{shim}.dropIn: ")
    assert warning in found


def test_an_allowed_annotation_that_does_not_exist_is_a_warning() -> None:
    found = warnings(GO, "", allowed_hypervisor_annotations=("default_maxvcpus", "enable_iommu", "^kernel"))
    assert found == [
        'shims.qemu.allowedHypervisorAnnotations has "default_maxvcpus", which allows no annotation that '
        "Kata has; did you mean default_max_vcpus?"
    ]


def test_an_empty_list_in_the_configuration_does_not_hide_what_its_items_are() -> None:
    text = "[hypervisor.qemu]\nimage = '/i'\nguest_extension_images = []\n"
    wanted = settings(RS, "[[hypervisor.qemu.guest_extension_images]]\nname = 'x'\npath = '/x'")
    assert drop_ins(handlers(wanted)[0], wanted, tomllib.loads(text), [text])


@pytest.mark.parametrize("value", ["1", "[1]", "[[1]]", "{ x = 1 }"])
@pytest.mark.parametrize(
    "key", ["hypervisor.qemu.enable_annotations", "runtime.experimental", "hypervisor.qemu.shared_fs"]
)
def test_a_configuration_with_values_of_odd_types_is_no_defect(key: str, value: str) -> None:
    base = tomllib.loads(f"{key} = {value}")
    wanted = settings(GO, f"{key} = {value}", allowed_hypervisor_annotations=("enable_iommu",))
    list(drop_in_warnings(handlers(wanted)[0], wanted, {}, base, []))


# --- every configuration -----------------------------------------------------------------------------


def leaves(value: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, item in value.items():
        if isinstance(item, dict):
            yield from leaves(item, (*path, key))
        else:
            yield (*path, key), item


@pytest.mark.parametrize("which", CONFIGURATIONS)
def test_a_drop_in_can_have_every_key_and_value_of_the_configuration(which: str) -> None:
    text, name = CONFIGURATIONS[which], which.removeprefix("sample-")
    base = tomllib.loads(text)
    wanted = settings(name, render(base, "All of it.").decode())
    one = handlers(wanted)[0]
    assert drop_ins(one, wanted, base, [text])
    assert list(drop_in_warnings(one, wanted, {}, base, [text])) == list(drop_in_warnings(one, wanted, {}))


@pytest.mark.parametrize("which", CONFIGURATIONS)
def test_no_key_of_a_configuration_can_have_a_value_of_another_type(which: str) -> None:
    text, name = CONFIGURATIONS[which], which.removeprefix("sample-")
    base = tomllib.loads(text)
    accepted = []
    for path, value in leaves(base):
        other: Any = [["x"]] if isinstance(value, (bool, str)) else "x"
        content: Any = other
        for key in reversed(path):
            content = {key: content}
        wanted = settings(name, render(content, "One key.").decode())
        try:
            drop_ins(handlers(wanted)[0], wanted, base, [text])
        except SettingsError:
            continue
        accepted.append(".".join(path))
    assert accepted == []
