"""The settings from the values file, options and variables."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kata_node.assets import asset
from kata_node.errors import SettingsError, UnfitNodeError
from kata_node.settings import handlers
from kata_node.settings import load as module
from kata_node.settings.model import Settings
from kata_node.settings.runtime import ContainerdSettings, SnapshotterSettings
from kata_node.settings.selection import CustomRuntime, ShimSettings
from kata_node.settings.shims import MACHINES, table
from kata_node.settings.unsupported import unsupported


def load(
    values: str | bytes | None = None, arch: str = "x86_64", *, tmp_path: Path, **overrides: str
) -> Settings:
    """Return the settings of a file with ``values``; without a file if they are ``None``."""
    if values is None:
        return module.load(None, overrides=overrides, arch=arch)
    path = tmp_path / "values.yaml"
    path.write_bytes(values if isinstance(values, bytes) else values.encode())
    return module.load(str(path), overrides=overrides, arch=arch)


MINE = "{baseConfig: qemu, runtimeClass: 'handler: kata-mine'}"
ROOTLESS = (
    "clh-runtime-rs",
    "qemu-runtime-rs",
    "qemu-coco-dev-runtime-rs",
    "qemu-nvidia-cpu-runtime-rs",
    "qemu-nvidia-gpu-runtime-rs",
    "qemu-nvidia-gpu-snp-runtime-rs",
    "qemu-nvidia-gpu-tdx-runtime-rs",
    "qemu-se-runtime-rs",
    "qemu-snp-runtime-rs",
    "qemu-tdx-runtime-rs",
)
"""The shims with a hypervisor that can run rootless: those for which the public chart allows it."""
NO_RUNTIME_CLASS = (
    "is not a RuntimeClass manifest with a handler of lower-case letters, digits and inner hyphens"
)


def custom(*, enabled: bool = True, **runtimes: str) -> str:
    """Return ``customRuntimes`` of a values file. ``runtimes`` has the YAML of each runtime by its name."""
    inside = ", ".join(f"{name}: {runtime}" for name, runtime in runtimes.items())
    return f"customRuntimes: {{enabled: {str(enabled).lower()}, runtimes: {{{inside}}}}}\n"


def problems(values: str | bytes, arch: str = "x86_64", *, tmp_path: Path, **overrides: str) -> list[str]:
    """Return the problems that the error about ``values`` lists."""
    with pytest.raises(SettingsError) as caught:
        load(values, arch, tmp_path=tmp_path, **overrides)
    assert caught.value.where == str(tmp_path / "values.yaml")
    assert caught.value.hint
    assert caught.value.exit_code == 2
    first, *rest = caught.value.what.split("\n")
    assert first == f"{len(rest)} problems" if rest else first
    return [line.strip() for line in rest] or [first]


def handler_names(settings: Settings) -> str:
    return " ".join(shim.name for shim in settings.shims)


# --- the selection of shims


@pytest.mark.parametrize(
    ("values", "arch", "expected"),
    [
        pytest.param(None, "x86_64", "qemu", id="no-file"),
        pytest.param(None, "ppc64le", "qemu", id="no-file-other-arch"),
        pytest.param("", "x86_64", "qemu", id="empty-file"),
        pytest.param("debug: false", "x86_64", "qemu", id="file-without-shims"),
        pytest.param("shims: {}", "x86_64", "qemu", id="empty-shims"),
        pytest.param("shims: {disableAll: false}", "x86_64", "qemu", id="shims-names-none"),
        pytest.param("defaultShim: {amd64: clh}", "x86_64", "clh", id="the-default-shim-stands-in"),
        pytest.param("defaultShim: {amd64: clh}", "s390x", "qemu", id="default-shim-of-another-arch"),
        pytest.param("shims: {clh: {enabled: true}}", "x86_64", "clh", id="named-and-on"),
        pytest.param("shims: {clh: {}}", "x86_64", "clh", id="named-without-a-word"),
        pytest.param("shims: {clh: {enabled: ~}}", "x86_64", "clh", id="null-is-on"),
        pytest.param(
            "shims: {disableAll: true, clh: {enabled: ~}, fc: {enabled: true}}", "x86_64", "fc", id="null-off"
        ),
        pytest.param("shims: {clh: {enabled: false}, qemu: {}}", "x86_64", "qemu", id="off"),
        pytest.param(
            "shims: {remote: {enabled: true}, qemu: {}, clh: {}}",
            "x86_64",
            "clh qemu remote",
            id="in-the-tables-order",
        ),
        pytest.param("shims: {fc: {enabled: ~}, clh: {}}", "x86_64", "clh", id="null-of-a-shim-that-is-off"),
        pytest.param("shims: {fc: {}, stratovirt: {}, clh: {}}", "x86_64", "clh", id="absent-too"),
        pytest.param(
            "shims: {clh: {supportedArches: [amd64, s390x]}}", "x86_64", "clh", id="an-arch-of-other-nodes"
        ),
        pytest.param(
            "shims: {qemu: {}, qemu-nvidia-gpu-runtime-rs: {supportedArches: [amd64, arm64]}}",
            "aarch64",
            "qemu qemu-nvidia-gpu-runtime-rs",
            id="gpu-on-arm64",
        ),
        pytest.param(
            "{shims: {qemu: {}}, defaultShim: {s390x: clh}}",
            "s390x",
            "qemu",
            id="an-unused-default",
        ),
        pytest.param("shims: {qemu-se: {}, qemu: {}}", "x86_64", "qemu", id="shim-of-another-arch-skipped"),
        pytest.param("shims: {qemu-se: {}, qemu: {}}", "s390x", "qemu qemu-se", id="and-there-it-is-on"),
        pytest.param(
            "shims: {qemu: {}, clh: {supportedArches: [arm64]}}", "x86_64", "qemu", id="arches-narrowed"
        ),
        pytest.param(
            "shims: {qemu: {}, clh: {supportedArches: [arm64]}}", "aarch64", "clh qemu", id="arches-kept"
        ),
        pytest.param(
            "shims: {qemu: {}, clh: {supportedArches: []}}", "x86_64", "qemu", id="no-arches-is-nowhere"
        ),
    ],
)
def test_the_values_select_the_shims_of_a_node(
    values: str | None, arch: str, expected: str, tmp_path: Path
) -> None:
    assert handler_names(load(values, arch, tmp_path=tmp_path)) == expected


def test_the_shims_override_replaces_the_selection_and_keeps_the_settings_of_shims(tmp_path: Path) -> None:
    values = (
        "shims: {disableAll: true, fc: {enabled: true}, clh: {dropIn: 'x = 1'}}\ndefaultShim: {amd64: fc}"
    )
    settings = load(values, tmp_path=tmp_path, shims="qemu, clh")
    assert handler_names(settings) == "clh qemu"
    assert settings.shim_settings == {"clh": ShimSettings(drop_in="x = 1"), "qemu": ShimSettings()}
    assert settings.default_shim == ""


def test_a_skipped_shim_is_listed_with_the_reason(tmp_path: Path) -> None:
    settings = load("shims: {qemu: {}, qemu-se: {}, clh: {supportedArches: [arm64]}}", tmp_path=tmp_path)
    assert settings.skipped == (
        ("clh", "runs only on arm64 according to its supportedArches"),
        ("qemu-se", "runs only on s390x"),
    )


def test_an_architecture_that_a_shim_does_not_have_is_skipped_with_the_reason(tmp_path: Path) -> None:
    values = "{shims: {qemu: {}, qemu-se: {supportedArches: [s390x, arm64]}}, defaultShim: {arm64: qemu-se}}"
    assert load(values, "aarch64", tmp_path=tmp_path).skipped == (
        ("qemu-se", "runs only on s390x"),
        ("defaultShim qemu-se", "runs only on s390x"),
    )


@pytest.mark.parametrize(
    ("values", "override", "expected"),
    [
        pytest.param("shims: {clh: {}, qemu: {enabled: true}}", "", {"qemu"}, id="enabled-true"),
        pytest.param("shims: {clh: {}, qemu: {enabled: true}}", "clh,qemu", {"clh", "qemu"}, id="--shims"),
        pytest.param(None, "", {"qemu"}, id="the-fallback"),
        pytest.param("defaultShim: {amd64: clh}", "", {"clh"}, id="the-default-shim"),
    ],
)
def test_the_settings_say_which_shims_somebody_asked_for_by_name(
    values: str | None, override: str, expected: set[str], tmp_path: Path
) -> None:
    assert load(values, tmp_path=tmp_path, shims=override).named == expected


@pytest.mark.parametrize(
    ("values", "arch", "expected"),
    [
        pytest.param(
            "shims: {qemu: {enabled: false}}",
            "x86_64",
            "shims: no shim is enabled; enable a shim that runs on amd64",
            id="all-off",
        ),
        pytest.param(
            "shims: {disableAll: true}",
            "x86_64",
            "shims: no shim is enabled; enable a shim that runs on amd64",
            id="all-disabled",
        ),
        pytest.param(
            "shims: {qmeu: {enabled: true}}",
            "x86_64",
            "shims.qmeu: is not a shim; did you mean qemu?",
            id="unknown",
        ),
        pytest.param(
            "shims: {clh: }",
            "x86_64",
            "shims.clh: is empty; write `enabled: true` or `enabled: false` below it",
            id="null-could-mean-both",
        ),
        pytest.param(
            "shims: {clh: {supportedArches: [x86_64]}}",
            "x86_64",
            "shims.clh.supportedArches: x86_64 is not one of amd64, arm64, s390x, ppc64le; did you mean "
            "amd64?",
            id="machine-name-for-an-arch",
        ),
        pytest.param(
            "defaultShim: {s390x: clh}",
            "s390x",
            "defaultShim.s390x: clh runs only on amd64, arm64",
            id="default-impossible",
        ),
        pytest.param(
            "defaultShim: {amd64: kvm-qemu}",
            "x86_64",
            "defaultShim.amd64: kvm-qemu is not a shim; did you mean qemu?",
            id="default-unknown",
        ),
    ],
)
def test_an_impossible_selection_of_shims_is_refused(
    values: str, arch: str, expected: str, tmp_path: Path
) -> None:
    assert problems(values, arch, tmp_path=tmp_path) == [expected]


@pytest.mark.parametrize(
    ("shims", "expected"),
    [
        pytest.param(
            "qemu,qemu-se", "qemu-se cannot run on this amd64 node: it runs only on s390x", id="arch"
        ),
        pytest.param("qemu,clhh", "clhh is not a shim; did you mean clh?", id="unknown"),
        pytest.param(" , ", "names no shim", id="none"),
    ],
)
def test_shims_of_the_override_must_run_on_this_node(shims: str, expected: str, tmp_path: Path) -> None:
    assert problems("", tmp_path=tmp_path, shims=shims) == [f"--shims: {expected}"]


def test_a_default_shim_that_is_not_enabled_is_ignored(tmp_path: Path) -> None:
    """The public chart sets one for every architecture, even if users disable that shim."""
    values = "shims: {disableAll: true, fc: {enabled: true}}\ndefaultShim: {amd64: qemu-runtime-rs}"
    found = load(values, tmp_path=tmp_path)
    assert [shim.name for shim in found.shims] == ["fc"]
    assert found.default_shim == ""


def test_a_default_shim_of_another_architecture_is_ignored(tmp_path: Path) -> None:
    values = (
        "shims: {disableAll: true, fc: {enabled: true}}\ndefaultShim: {amd64: fc, s390x: qemu-runtime-rs}"
    )
    assert load(values, tmp_path=tmp_path).default_shim == "fc"


def test_custom_runtimes_can_be_installed_without_shims(tmp_path: Path) -> None:
    settings = load("shims: {disableAll: true}\n" + custom(mine=MINE), tmp_path=tmp_path)
    assert settings.shims == ()
    assert [(runtime.name, runtime.base_config) for runtime in settings.custom_runtimes] == [("mine", "qemu")]
    assert handler_names(settings) == ""
    assert handlers.handler_names(settings) == ("kata-mine",)


# --- custom runtimes


def test_the_handler_of_a_custom_runtime_does_not_get_the_suffix(tmp_path: Path) -> None:
    values = "shims: {clh: {}}\nenv: {multiInstallSuffix: blue}\n" + custom(mine=MINE)
    assert handlers.handler_names(load(values, tmp_path=tmp_path)) == ("kata-clh-blue", "kata-mine")


def test_a_custom_runtime_that_is_null_is_none(tmp_path: Path) -> None:
    settings = load("shims: {qemu: {}}\n" + custom(mine=MINE, other="~"), tmp_path=tmp_path)
    assert [runtime.name for runtime in settings.custom_runtimes] == ["mine"]


def test_a_custom_runtime_that_cannot_run_on_this_node_is_skipped_with_the_reason(tmp_path: Path) -> None:
    values = "shims: {qemu: {}}\n" + custom(
        here=MINE, elsewhere="{baseConfig: qemu-se, runtimeClass: 'handler: kata-se'}"
    )
    settings = load(values, tmp_path=tmp_path)
    assert handlers.handler_names(settings) == ("kata-qemu", "kata-mine")
    assert settings.skipped == (("customRuntimes.runtimes.elsewhere", "runs only on s390x"),)
    assert handlers.handler_names(load(values, "s390x", tmp_path=tmp_path)) == (
        "kata-qemu",
        "kata-mine",
        "kata-se",
    )


@pytest.mark.parametrize(
    ("values", "arch", "expected"),
    [
        pytest.param(
            "shims: {qemu-se: {enabled: true}, clh: {supportedArches: [arm64]}}",
            "x86_64",
            "no enabled shim runs on amd64: clh runs only on arm64 according to its supportedArches; qemu-se "
            "runs only on s390x",
            id="none-for-this-arch",
        ),
        pytest.param(
            "",
            "riscv64",
            "no enabled shim runs on riscv64: qemu runs only on amd64, arm64, s390x, ppc64le",
            id="a-machine-kata-does-not-know",
        ),
        pytest.param(
            "shims: {disableAll: true}\n" + custom(mine="{baseConfig: qemu-se, runtimeClass: 'handler: a'}"),
            "x86_64",
            "no enabled shim runs on amd64: customRuntimes.runtimes.mine runs only on s390x",
            id="a-custom-runtime",
        ),
    ],
)
def test_a_node_on_which_no_shim_and_no_custom_runtime_runs_is_unfit(
    values: str, arch: str, expected: str, tmp_path: Path
) -> None:
    settings = load(values, arch, tmp_path=tmp_path)
    assert settings.nothing_runs == expected
    with pytest.raises(UnfitNodeError, match=re.escape(expected)) as caught:
        module.require_handlers(settings)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("runtimes", "expected"),
    [
        pytest.param(
            {"mine": "{baseConfig: qemu, runtimeClass: 'handler: kata-clh'}"},
            "customRuntimes.runtimes.mine.runtimeClass: kata-clh is also the handler of shims.clh; "
            "choose another handler",
            id="a-shims-handler",
        ),
        pytest.param(
            {"mine": "{baseConfig: qemu, runtimeClass: 'handler: kata-clh-debug'}"},
            "customRuntimes.runtimes.mine.runtimeClass: kata-clh-debug is also the handler of "
            "shims.clh; choose another handler",
            id="a-debug-handler",
        ),
        pytest.param(
            {"mine": MINE, "yours": MINE},
            "customRuntimes.runtimes.yours.runtimeClass: kata-mine is also the handler of "
            "customRuntimes.runtimes.mine; choose another handler",
            id="another-custom-one",
        ),
        pytest.param(
            {"mine": "{runtimeClass: 'handler: a'}"},
            "customRuntimes.runtimes.mine.baseConfig: is missing; set it to the name of the shim that this "
            "runtime is based on",
            id="no-base",
        ),
        pytest.param(
            {"mine": "{baseConfig: '', runtimeClass: 'handler: a'}"},
            "customRuntimes.runtimes.mine.baseConfig: is missing; set it to the name of the shim that this "
            "runtime is based on",
            id="empty-base",
        ),
        pytest.param(
            {"mine": "{baseConfig: qemu-tdxx, runtimeClass: 'handler: a'}"},
            "customRuntimes.runtimes.mine.baseConfig: qemu-tdxx is not a shim; did you mean qemu-tdx?",
            id="unknown-base",
        ),
        pytest.param(
            {"mine": "{baseConfig: qemu}"},
            f"customRuntimes.runtimes.mine.runtimeClass: {NO_RUNTIME_CLASS}",
            id="no-runtime-class",
        ),
        pytest.param(
            {"mine": "{baseConfig: qemu, runtimeClass: 'kind: RuntimeClass'}"},
            f"customRuntimes.runtimes.mine.runtimeClass: {NO_RUNTIME_CLASS}",
            id="no-handler",
        ),
        pytest.param(
            {"mine": "{baseConfig: qemu, runtimeClass: 'handler: ../mine'}"},
            f"customRuntimes.runtimes.mine.runtimeClass: {NO_RUNTIME_CLASS}",
            id="handler-that-is-a-path",
        ),
        pytest.param(
            {"mine": "{baseConfig: qemu, runtimeClass: 'handler: a', dropIn: 'a = '}"},
            "customRuntimes.runtimes.mine.dropIn: is not valid TOML: Invalid value (at end of document)",
            id="drop-in-no-toml",
        ),
        pytest.param(
            {"mine": "{baseConfig: qemu, runtimeClass: 'handler: a', crio: {pullType: host}}"},
            'customRuntimes.runtimes.mine.crio.pullType: the string "host" is not one of default, guest-pull',
            id="pull-type",
        ),
    ],
)
@pytest.mark.parametrize("enabled", [True, False])
def test_an_invalid_custom_runtime_is_refused(
    runtimes: dict[str, str], expected: str, enabled: bool, tmp_path: Path
) -> None:
    values = "shims: {clh: {}}\ndebug: true\n" + custom(enabled=enabled, **runtimes)
    if enabled or "is also the handler of" not in expected:  # disabled custom runtimes do not conflict
        assert problems(values, tmp_path=tmp_path) == [expected]
    else:
        assert load(values, tmp_path=tmp_path).custom_runtimes == ()


def test_a_runtime_class_that_is_not_yaml_is_refused_with_the_line(tmp_path: Path) -> None:
    (problem,) = problems(custom(mine=MINE.replace("handler: ", r"handler: [")), tmp_path=tmp_path)
    assert re.match(
        r"customRuntimes\.runtimes\.mine\.runtimeClass: line \d, column \d+: not valid YAML: ", problem
    )


# --- values of all types


def test_every_node_side_key_of_the_chart_is_read(tmp_path: Path) -> None:
    settings = load(
        """
k8sDistribution: rke2
debug: true
startupTaints: ["example.com/kata", "example.com/kata:NoSchedule"]
env: {installationPrefix: /srv//kata/, multiInstallSuffix: blue, hostOS: cbl-mariner}
containerd:
  userDropIn: "[debug]\\n"
  configDir: /etc/mine
  configFileName: mine.toml
  runtimeSocket: unix:///run/mine/c.sock
  extraPodAnnotations: [a.example.com/*]
snapshotter: {setup: [nydus], erofsMergeMode: merged, erofsSnapshotterMode: disk, erofsDmverity: true}
shims:
  qemu-nvidia-gpu-runtime-rs:
    enabled: true
    supportedArches: [amd64]
    dropIn: "[runtime]"
    allowedHypervisorAnnotations: [default_vcpus]
    hypervisor: {rootless: true}
    containerd: {snapshotter: nydus, forceGuestPull: true, extraPodAnnotations: [b]}
    crio: {guestPull: true}
    agent: {httpsProxy: "https://proxy", noProxy: "localhost"}
    nvrc: {enableDCGM: true}
    runtimeClass: {nodeSelector: {a: b}, overhead: {memory: 1Mi}, overheadEnabled: true}
customRuntimes:
  enabled: true
  runtimes:
    mine:
      baseConfig: clh
      dropIn: "x = 1"
      runtimeClass: "kind: RuntimeClass\\nhandler: mine"
      inheritBaseOverhead: false
      containerd: {snapshotter: erofs}
      crio: {pullType: guest-pull}
defaultShim: {amd64: qemu-nvidia-gpu-runtime-rs}
""",
        tmp_path=tmp_path,
    )
    assert settings.install_dir == "/srv/kata/opt/kata-blue"
    assert (settings.instance, settings.suffix, settings.host_os) == ("blue", "blue", "cbl-mariner")
    assert (settings.distribution, settings.debug) == ("rke2", True)
    assert settings.default_shim == "qemu-nvidia-gpu-runtime-rs"
    assert settings.user_drop_in == "[debug]\n"
    assert settings.startup_taints == ("example.com/kata", "example.com/kata:NoSchedule")
    assert settings.containerd == ContainerdSettings(
        "/etc/mine", "mine.toml", "/run/mine/c.sock", ("a.example.com/*",)
    )
    assert settings.snapshotter == SnapshotterSettings(("nydus",), "merged", "disk", True)
    assert settings.shim_settings["qemu-nvidia-gpu-runtime-rs"] == ShimSettings(
        drop_in="[runtime]",
        allowed_hypervisor_annotations=("default_vcpus",),
        snapshotter="nydus",
        force_guest_pull=True,
        extra_pod_annotations=("b",),
        crio_guest_pull=True,
        https_proxy="https://proxy",
        no_proxy="localhost",
        rootless=True,
        enable_dcgm=True,
    )
    assert settings.custom_runtimes == (CustomRuntime("mine", "clh", "mine", "x = 1", "erofs", "guest-pull"),)


def test_keys_that_only_the_chart_uses_are_ignored(tmp_path: Path) -> None:
    values = "".join(f"{key}: {{anything: [1, {{no: yes}}]}}\n" for key in module.CHART_ONLY_KEYS)
    assert load(values, tmp_path=tmp_path) == load(None, tmp_path=tmp_path)


def test_null_counts_as_not_set(tmp_path: Path) -> None:
    values = "env: ~\nsnapshotter: {setup: ~}\ncontainerd: {userDropIn: ~}\ndebug: ~\nshims: ~\n"
    values += "defaultShim: {amd64: ~}"
    assert load(values, tmp_path=tmp_path) == load(None, tmp_path=tmp_path)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param(
            "shims: {qemu: {enabled: 'yes'}}",
            'shims.qemu.enabled: expected true, false or nothing, got the string "yes"',
            id="switch",
        ),
        pytest.param(
            "shims: {disableAll: 1}", "shims.disableAll: expected true or false, got the number 1", id="flag"
        ),
        pytest.param("shims: [qemu]", "shims: expected a mapping, got a list", id="section"),
        pytest.param("shims: {qemu: true}", "shims.qemu: expected a mapping, got true", id="shim"),
        pytest.param(
            "env: {multiInstallSuffix: 1}",
            "env.multiInstallSuffix: expected a string, got the number 1; put it in quotes",
            id="number-for-a-string",
        ),
        pytest.param(
            "containerd: {userDropIn: {a: b}}",
            "containerd.userDropIn: expected a string, got a mapping",
            id="mapping-for-a-string",
        ),
        pytest.param(
            "snapshotter: {setup: nydus}",
            'snapshotter.setup: expected a list of strings, got the string "nydus"',
            id="string-for-a-list",
        ),
        pytest.param(
            "shims: {qemu: {allowedHypervisorAnnotations: [a, 2]}}",
            "shims.qemu.allowedHypervisorAnnotations[1]: expected a string, got the number 2",
            id="number-in-a-list",
        ),
        pytest.param(
            "k8sDistribution: k33s",
            'k8sDistribution: the string "k33s" is not one of k8s, k3s, rke2, k0s, microk8s, kubeadm, '
            "vanilla",
            id="choice",
        ),
        pytest.param(
            "debugg: true", "debugg: is not a known key; did you mean debug?", id="unknown-at-the-top"
        ),
        pytest.param(
            "shims: {qemu: {enable: true}}",
            "shims.qemu.enable: is not a known key; did you mean enabled?",
            id="unknown-inside",
        ),
        pytest.param(
            "defaultShim: {riscv64: qemu}",
            "defaultShim.riscv64: is not a known key; expected one of amd64, arm64, ppc64le, s390x",
            id="unknown-with-nothing-near",
        ),
        pytest.param(
            "env: {on: x}",
            "env.True: expected a string as the key, got true; expected one of hostOS, installationPrefix, "
            "multiInstallSuffix",
            id="key-that-yaml-takes-for-a-boolean",
        ),
        pytest.param(
            "startupTaints: ['a:Never']",
            'startupTaints: the string "a:Never" is neither `key` nor `key:effect` with an effect of '
            "NoSchedule, PreferNoSchedule, NoExecute",
            id="taint-effect",
        ),
        pytest.param(
            "startupTaints: ['example.com/kata=soon:NoSchedule']",
            'startupTaints: the string "example.com/kata=soon:NoSchedule" has a value, but '
            "startupTaints match a taint with any value; write example.com/kata:NoSchedule",
            id="taint-with-a-value",
        ),
        pytest.param(
            "startupTaints: ['example.com/kata=']",
            'startupTaints: the string "example.com/kata=" has a value, but startupTaints match a taint '
            "with any value; write example.com/kata",
            id="taint-with-an-empty-value",
        ),
        *(
            pytest.param(
                f"startupTaints: ['{taint}']",
                f'startupTaints: the string "{taint}" has no valid taint key; write it as `kubectl '
                "describe node` shows it, for example example.com/not-yet:NoSchedule",
                id=name,
            )
            for name, taint in {
                "taint-to-be-removed": "example.com/kata-",
                "taint-with-a-blank": "a b:NoSchedule",
                "taint-with-two-slashes": "a/b/c",
                "taint-of-a-domain-in-capitals": "Example.com/kata",
                "taint-without-a-name": "example.com/:NoExecute",
            }.items()
        ),
        pytest.param(
            "shims: {qemu: {dropIn: '[runtime'}}",
            "shims.qemu.dropIn: is not valid TOML: Expected ']' at the end of a table declaration (at end of "
            "document)",
            id="drop-in-no-toml",
        ),
        pytest.param(
            "containerd: {userDropIn: 'a = 1\n\n  a = 2'}",
            "containerd.userDropIn: is not valid TOML: Cannot overwrite a value (at end of document)",
            id="user-drop-in-no-toml",
        ),
        *(
            pytest.param(
                json.dumps({"containerd": {"userDropIn": drop_in}}),
                f"containerd.userDropIn: {problem}; containerd does not start with that",
                id=f"user-drop-in-{name}",
            )
            for name, drop_in, problem in (
                ("version", "version = 'x'", 'version is the string "x", not a whole number'),
                ("version-true", "Version = true", "Version is true, not a whole number"),
                ("plugins", "plugins = 5", "plugins is the number 5, not a table"),
                (
                    "plugin",
                    "[plugins]\n'io.containerd.cri.v1.runtime' = []",
                    "plugins.io.containerd.cri.v1.runtime is a list, not a table",
                ),
                ("imports", "imports = 'x'", 'imports is the string "x", not an array of strings'),
                ("disabled", "disabled_plugins = [1]", "disabled_plugins is a list, not an array of strings"),
                ("debug", "debug = true", "debug is true, not a table"),
                (
                    "runtime",
                    "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes]\nmine = 'runc'",
                    "plugins.io.containerd.cri.v1.runtime.containerd.runtimes.mine is the string "
                    '"runc", not a table',
                ),
                (
                    "default",
                    "[plugins.'io.containerd.grpc.v1.cri'.containerd]\ndefault_runtime_name = 1",
                    "plugins.io.containerd.grpc.v1.cri.containerd.default_runtime_name is the number 1, "
                    "not a string",
                ),
            )
        ),
        pytest.param(
            "shims: {qemu: {agent: {noProxy: 'a, b'}}}",
            'shims.qemu.agent.noProxy: the string "a, b" has blanks, quotes or other characters that a '
            "kernel parameter cannot have",
            id="a-blank-in-a-kernel-parameter",
        ),
        pytest.param(
            "shims: {qemu: {agent: {httpsProxy: 'http://x\\\"'}}}".replace("'", '"'),
            'shims.qemu.agent.httpsProxy: the string "http://x"" has blanks, quotes or other characters '
            "that a kernel parameter cannot have",
            id="a-quote-in-a-kernel-parameter",
        ),
        pytest.param(
            "shims: {qemu: {hypervisor: {rootless: true}}}",
            "shims.qemu.hypervisor.rootless: qemu cannot run its hypervisor rootless; use one of "
            + ", ".join(ROOTLESS),
            id="rootless-where-it-cannot-be",
        ),
        pytest.param(
            "shims: {qemu-nvidia-cpu: {nvrc: {enableDCGM: true}}}",
            "shims.qemu-nvidia-cpu.nvrc.enableDCGM: qemu-nvidia-cpu does not pass NVIDIA GPUs to its guests",
            id="dcgm-without-a-gpu",
        ),
        pytest.param(
            "env: {debug: 'true'}",
            "env.debug: is a key of an older chart; write debug",
            id="a-key-of-an-older-chart",
        ),
        pytest.param(
            "customRuntimes: {enabled: true, runtimes: {x: {baseConfig: qemu, "
            "runtimeClass: 'handler: runc'}}}",
            "customRuntimes.runtimes.x.runtimeClass: the handler runc runs ordinary containers; "
            "choose another handler",
            id="a-custom-runtime-that-would-run-every-pod",
        ),
        pytest.param(
            "snapshotter: {setup: [nidus]}",
            'snapshotter.setup: the string "nidus" is not a snapshotter that kata-node sets up; '
            "did you mean nydus?",
            id="a-snapshotter-nobody-can-set-up",
        ),
        pytest.param(
            "containerd: {runtimeSocket: run/mine.sock}",
            'containerd.runtimeSocket: the string "run/mine.sock" is not the absolute path of a socket',
            id="a-socket-without-a-root",
        ),
        pytest.param(
            "containerd: {configDir: etc/mine}",
            'containerd.configDir: the string "etc/mine" is not an absolute path',
            id="a-directory-without-a-root",
        ),
        pytest.param(
            "containerd: {configFileName: mine/config.toml}",
            'containerd.configFileName: the string "mine/config.toml" is not a file name',
            id="a-file-name-with-a-directory",
        ),
    ],
)
def test_a_wrong_value_is_refused_with_the_path_of_its_key(
    values: str, expected: str, tmp_path: Path
) -> None:
    assert problems(values, tmp_path=tmp_path) == [expected]


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    values = "debugg: 1\nenv: {multiInstallSuffix: Q}\nshims: {qmeu: {}, qemu: {enabled: 2}}"
    found = problems(values, tmp_path=tmp_path, debug="maybe", shims="foo")
    assert [problem.partition(":")[0] for problem in found] == [
        "env.multiInstallSuffix",
        "shims.qmeu",
        "shims.qemu.enabled",
        "--shims",
        "--debug",
        "debugg",
    ]


# --- the install dir and the name of the installation


@pytest.mark.parametrize(
    ("prefix", "suffix", "install_dir"),
    [
        pytest.param("", "", "/opt/kata", id="neither"),
        pytest.param("", "blue-2", "/opt/kata-blue-2", id="suffix"),
        pytest.param("//var//lib/./k_8+s/", "", "/var/lib/k_8+s/opt/kata", id="prefix-normalised"),
        pytest.param("/srv", "x", "/srv/opt/kata-x", id="both"),
    ],
)
def test_the_install_dir_comes_from_prefix_and_suffix(
    prefix: str, suffix: str, install_dir: str, tmp_path: Path
) -> None:
    values = f'env: {{installationPrefix: "{prefix}", multiInstallSuffix: "{suffix}"}}'
    from_file = load(values, tmp_path=tmp_path)
    overridden = load(
        "env: {installationPrefix: /else, multiInstallSuffix: other}" if prefix and suffix else None,
        tmp_path=tmp_path,
        installation_prefix=prefix,
        multi_install_suffix=suffix,
    )
    assert from_file.install_dir == overridden.install_dir == install_dir
    assert from_file.instance == (suffix or "default")


@pytest.mark.parametrize("prefix", ["opt", "/a/../b", "/a b", '/a"b', "/a\\b", "/a*", "/a\n", "/é"])
def test_a_prefix_that_would_need_quoting_is_refused(prefix: str, tmp_path: Path) -> None:
    (problem,) = problems("", tmp_path=tmp_path, installation_prefix=prefix)
    assert problem.startswith("--installation-prefix: the string ")


@pytest.mark.parametrize(
    "prefix",
    [
        *("/", "//", "/etc", "/etc/", "//etc//kata", "/./usr/", "/var", "/var/lib", "/var/lib/kubelet/x"),
        *("/run/kata", "/var/run/kata", "/boot", "/proc/1", "/sys", "/dev/shm", "/root/kata", "/home"),
        *("/tmp/kata", "/lib"),
    ],
)
def test_a_directory_of_the_system_is_refused_as_prefix(prefix: str, tmp_path: Path) -> None:
    (problem,) = problems(f"env: {{installationPrefix: '{prefix}'}}", tmp_path=tmp_path)
    assert problem.startswith(f"env.installationPrefix: {prefix} would give the pods /")
    (problem,) = problems("", tmp_path=tmp_path, installation_prefix=prefix)
    assert problem.startswith("--installation-prefix: ")


@pytest.mark.parametrize(
    "directory", ["/", "//etc", "/etc/", "/run/.", "/x/../usr", "/opt", "/dev/x", "/var/run"]
)
def test_a_directory_of_the_system_is_refused_for_the_runtimes_files(directory: str, tmp_path: Path) -> None:
    for key, path in (("configDir", directory), ("runtimeSocket", f"unix://{directory}/c.sock")):
        (problem,) = problems(f"containerd: {{{key}: '{path}'}}", tmp_path=tmp_path)
        assert problem.startswith(f"containerd.{key}: /")
        assert "a directory of the system" in problem


@pytest.mark.parametrize("suffix", ["A", "-a", "a-", "a.b", "a_b", "a/b", "a b", "ä", "default"])
def test_a_suffix_that_is_not_valid_in_a_label_is_refused(suffix: str, tmp_path: Path) -> None:
    (problem,) = problems(f"env: {{multiInstallSuffix: '{suffix}'}}", tmp_path=tmp_path)
    assert problem.startswith("env.multiInstallSuffix: ")


def test_a_suffix_may_be_as_long_as_the_longest_handler_allows(tmp_path: Path) -> None:
    values = "shims: {qemu: {}, qemu-snp-runtime-rs: {}}\nenv: {multiInstallSuffix: %s}"
    fits = 63 - len("kata-qemu-snp-runtime-rs-")
    assert load(values % ("a" * fits), tmp_path=tmp_path).suffix == "a" * fits
    suffix = "a" * (fits + 1)
    assert problems(values % suffix, tmp_path=tmp_path) == [
        f"env.multiInstallSuffix: the name kata-qemu-snp-runtime-rs-{suffix} has 64 characters and "
        "Kubernetes allows 63; choose a shorter suffix"
    ]


@pytest.mark.parametrize(
    ("file", "override", "expected"),
    [("true", "false", False), ("false", "true", True), ("true", "", True)],
)
def test_overrides_take_precedence_over_the_file(
    file: str, override: str, expected: bool, tmp_path: Path
) -> None:
    assert load(f"debug: {file}", tmp_path=tmp_path, debug=override).debug is expected


def test_an_unknown_override_is_an_error_of_the_caller(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="color"):
        load(None, tmp_path=tmp_path, color="red")


# --- the file itself


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param("a: [1,\n  b: {", "line 3, column 1: not valid YAML", id="broken"),
        pytest.param("env:\n\thostOS: x", "line 2, column 1: not valid YAML", id="tab"),
        pytest.param("a: 1\n---\nb: 2", "line 2, column 1: not valid YAML", id="two-documents"),
        pytest.param("env: &x {hostOS: *y}", "line 1, column 18: not valid YAML", id="unknown-anchor"),
        pytest.param("a: \x00", "not valid YAML", id="nul"),
        pytest.param(
            "shims:\n  qemu: {}\n  'qemu': {}",
            "line 3, column 3: not valid YAML: the key 'qemu' occurs twice",
            id="twice",
        ),
        pytest.param("job:\n- {a: 1, a: 2}", "line 2, column 10: not valid YAML", id="twice-deep-inside"),
        pytest.param("? [a]\n: 1", "line 1, column 3: not valid YAML", id="key-that-is-a-list"),
        pytest.param("- shims", "expected a mapping of keys to values, got a list", id="a-list"),
        pytest.param("shims", 'expected a mapping of keys to values, got the string "shims"', id="a-string"),
        pytest.param(b"debug: true\nenv: {hostOS: \xff}", "line 2 is not UTF-8 text", id="not-utf-8"),
    ],
)
def test_a_file_that_is_not_a_values_file_is_refused(
    content: str | bytes, expected: str, tmp_path: Path
) -> None:
    (problem,) = problems(content, tmp_path=tmp_path)
    assert problem.startswith(expected)


def test_anchors_and_merged_keys_are_not_duplicates(tmp_path: Path) -> None:
    values = """
job: {deep: {deeper: {base: &base {<<: {dropIn: 'a = 1'}, enabled: true}}}}
shims: {qemu: {<<: *base, enabled: true, dropIn: 'b = 2'}, clh: *base}
"""
    settings = load(values, tmp_path=tmp_path)
    assert {name: shim.drop_in for name, shim in settings.shim_settings.items()} == {
        "clh": "a = 1",
        "qemu": "b = 2",
    }


def test_a_byte_order_mark_is_ignored(tmp_path: Path) -> None:
    assert load(b"\xef\xbb\xbfdebug: true", tmp_path=tmp_path).debug


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        pytest.param(lambda path: None, "No such file or directory", id="missing"),
        pytest.param(Path.mkdir, "Is a directory", id="directory"),
        pytest.param(lambda path: path.symlink_to(path), "Too many levels of symbolic links", id="loop"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(make: object, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "values.yaml"
    assert callable(make)
    make(path)
    with pytest.raises(SettingsError, match=expected) as caught:
        module.load(str(path), overrides={}, arch="x86_64")
    assert caught.value.where == str(path)


@pytest.mark.parametrize("path", sorted(asset("values").iterdir()), ids=lambda path: path.name)
def test_the_example_values_work_on_every_architecture(path: Path) -> None:
    for machine in MACHINES.values():
        settings = module.load(str(path), overrides={}, arch=machine)
        assert settings.shims
        assert unsupported(settings) == []


# --- the digest


def test_the_digest_changes_only_with_settings_that_decide_what_is_written(tmp_path: Path) -> None:
    def digest(values: str) -> str:
        return load(values, tmp_path=tmp_path).digest()

    decisive = [
        "",
        "shims: {clh: {}}",
        "shims: {qemu: {dropIn: x = 1}}",
        "shims: {qemu: {containerd: {snapshotter: x}}}",
        "env: {multiInstallSuffix: b}",
        "env: {installationPrefix: /b}",
        "containerd: {userDropIn: b = 1}",
        custom(mine=MINE),
        custom(mine=MINE.replace("kata-mine", "kata-yours")),
        custom(mine=MINE.replace("}", ", dropIn: a = 1}")),
        "debug: true",
        "snapshotter: {setup: [nydus]}",
        "k8sDistribution: k3s",
    ]
    digests = [digest(values) for values in decisive]
    assert all(one != other for one, other in itertools.combinations(digests, 2))
    for same in (
        "shims: {qemu: {enabled: true}}",
        "shims: {qemu: {}, qemu-se: {}}",
        "defaultShim: {amd64: qemu}",
        "startupTaints: [a]",
        "job: {parallelism: 3}",
        "shims: {qemu: {runtimeClass: {overheadEnabled: false}}}",
    ):
        assert digest(same) == digests[0]


@pytest.mark.commands
def test_the_digest_is_the_same_in_every_process(tmp_path: Path) -> None:
    values = "containerd: {userDropIn: x = 1}\nshims: {qemu: {dropIn: a = 1}, clh: {}}"
    reordered = "shims: {clh: {}, qemu: {dropIn: a = 1}}\ncontainerd: {userDropIn: x = 1}"
    (tmp_path / "reordered.yaml").write_text(reordered)
    program = (
        "import sys; from kata_node.settings.load import load\n"
        "print(load(sys.argv[1], overrides={}, arch='x86_64').digest())"
    )
    elsewhere = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "reordered.yaml")],
        env=os.environ | {"PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert elsewhere.stdout.strip() == load(values, tmp_path=tmp_path).digest()


# --- settings that this release does not support


@pytest.mark.parametrize(
    ("values", "keys"),
    [
        pytest.param("env: {hostOS: cbl-mariner}", "env.hostOS", id="host-os"),
        pytest.param(
            "shims: {qemu: {enabled: true, kernelModulesImages: [{path: /a}]}}",
            "shims.qemu.kernelModulesImages",
            id="kernel-modules",
        ),
    ],
)
def test_an_unsupported_setting_is_named(values: str, keys: str, tmp_path: Path) -> None:
    found = unsupported(load(values, tmp_path=tmp_path))
    assert [key for key, _ in found] == keys.split()
    assert all(sentence for _, sentence in found)


@pytest.mark.parametrize(
    "values",
    [
        pytest.param("", id="nothing"),
        pytest.param("containerd: {userDropIn: '[a]'}", id="what-is-supported"),
        pytest.param(
            "shims: {qemu: {}, clh: {enabled: false, containerd: {snapshotter: x}}}", id="a-shim-that-is-off"
        ),
        pytest.param(
            "shims: {qemu: {}, qemu-se: {containerd: {snapshotter: x}}}", id="a-shim-of-another-architecture"
        ),
        pytest.param("shims: {qemu: {crio: {guestPull: true}}}", id="a-key-for-cri-o"),
        pytest.param(custom(enabled=False, mine=MINE), id="custom-runtimes-that-are-off"),
        pytest.param(
            "shims: {qemu: {dropIn: '', allowedHypervisorAnnotations: [], agent: {noProxy: ''}, "
            "containerd: {snapshotter: '', forceGuestPull: false}}}",
            id="empty-values",
        ),
    ],
)
def test_supported_empty_and_unused_settings_are_accepted(values: str, tmp_path: Path) -> None:
    assert unsupported(load(values, tmp_path=tmp_path)) == []


def test_every_shim_of_the_table_can_be_enabled(tmp_path: Path) -> None:
    values = "shims: {" + ", ".join(f"{name}: {{enabled: true}}" for name in table()) + "}"
    everywhere = {
        shim.name for arch in MACHINES.values() for shim in load(values, arch, tmp_path=tmp_path).shims
    }
    assert everywhere == set(table())
