"""The drop-ins of each handler's Kata configuration, and the configuration that Kata merges from them.

If ``KATA_CONFIG_DIR`` is a directory with Kata's ``configuration-<shim>.toml`` files (at any depth), the
tests of every configuration also use those files.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from kata_node.errors import PayloadError, SettingsError
from kata_node.kata.drop_ins import USER_DROP_IN, digest_inputs, drop_in_warnings, drop_ins, parse
from kata_node.kata.merge import all_strings, merge, relocated_paths, render
from kata_node.settings.handlers import Handler, handlers
from kata_node.settings.model import Settings
from kata_node.settings.selection import CustomRuntime, ShimSettings
from kata_node.settings.shims import table
from payloads import CONFIGS

ELSEWHERE = "/srv/opt/kata-blue"
TDX, SNP = "qemu-nvidia-gpu-tdx", "qemu-snp-runtime-rs"
NOTHING = ShimSettings()
ALL = ShimSettings(
    https_proxy="http://proxy:3128",
    no_proxy="10.0.0.0/8,.svc",
    allowed_hypervisor_annotations=("default_vcpus", "enable_iommu"),
)


def settings(shim: str, values: ShimSettings = NOTHING, **fields: Any) -> Settings:
    return Settings(shims=(table()[shim],), arch="x86_64", shim_settings={shim: values}, **fields)


def handler(wanted: Settings, name: str = "") -> Handler:
    """Return the handler ``name``; the only handler if ``name`` is empty."""
    found = [each for each in handlers(wanted) if name in ("", each.name)]
    assert len(found) == 1
    return found[0]


def parsed_drop_ins(wanted: Settings, name: str = "") -> dict[str, Any]:
    """Return the drop-ins of a handler as parsed TOML. The base is the sample configuration of its shim."""
    return {name: tomllib.loads(text.decode()) for name, text in rendered_drop_ins(wanted, name).items()}


def rendered_drop_ins(wanted: Settings, name: str = "") -> dict[str, bytes]:
    one = handler(wanted, name)
    return drop_ins(one, wanted, tomllib.loads(CONFIGS[one.shim.name]))


def merged(wanted: Settings, name: str = "") -> dict[str, Any]:
    """Return the merged configuration that Kata reads for a handler."""
    base = tomllib.loads(CONFIGS[handler(wanted, name).shim.name])
    return merge(base, rendered_drop_ins(wanted, name))


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if not isinstance(value, dict):
        yield path, value
        return
    for key, item in value.items():
        yield from leaves(item, (*path, key))


# --- every configuration -----------------------------------------------------------------------------


def configurations() -> Mapping[str, str]:
    """Return the texts of the samples, as ``sample-<shim>``, and of ``KATA_CONFIG_DIR``, by shim name."""
    directory = os.environ.get("KATA_CONFIG_DIR")
    real = sorted(Path(directory).rglob("configuration-*.toml")) if directory else []
    assert real or not directory, f"no configurations in {directory}"
    own = {f"sample-{shim}": text for shim, text in CONFIGS.items()}
    return own | {path.stem.removeprefix("configuration-"): path.read_text() for path in real}


CONFIGURATIONS = configurations()


@pytest.mark.parametrize("which", CONFIGURATIONS)
def test_default_settings_make_no_drop_ins(which: str) -> None:
    wanted = settings(which.removeprefix("sample-"))
    assert drop_ins(handler(wanted), wanted, tomllib.loads(CONFIGURATIONS[which])) == {}


@pytest.mark.parametrize("which", CONFIGURATIONS)
def test_in_another_install_dir_only_the_prefix_of_paths_changes(which: str) -> None:
    base = tomllib.loads(CONFIGURATIONS[which])
    wanted = settings(which.removeprefix("sample-"), install_dir=ELSEWHERE)
    found = merge(base, drop_ins(handler(wanted), wanted, base))
    assert found == json.loads(json.dumps(base).replace('"/opt/kata/', f'"{ELSEWHERE}/'))
    assert not [text for text in all_strings(found) if "/opt/kata/" in text.removeprefix("/srv")]


@pytest.mark.parametrize("distribution", ["k8s", "k0s"])
@pytest.mark.parametrize("which", CONFIGURATIONS)
def test_drop_ins_only_have_keys_of_the_base_configuration(which: str, distribution: str) -> None:
    shim = table()[which.removeprefix("sample-")]
    base = tomllib.loads(CONFIGURATIONS[which])
    values = ALL if "kernel_params" in base["hypervisor"][shim.hypervisor] else NOTHING
    wanted = settings(shim.name, values, install_dir=ELSEWHERE, debug=True, distribution=distribution)
    known = {path for path, _ in leaves(base)}
    for each in handlers(wanted):
        for name, text in drop_ins(each, wanted, base).items():
            assert {path for path, _ in leaves(tomllib.loads(text.decode()))} <= known, name


@pytest.mark.parametrize("which", CONFIGURATIONS)
def test_no_handler_has_both_an_image_and_an_initrd(which: str) -> None:
    shim = table()[which.removeprefix("sample-")]
    base = tomllib.loads(CONFIGURATIONS[which])
    wanted = settings(shim.name, install_dir=ELSEWHERE, debug=True)
    for each in handlers(wanted):
        guest = merge(base, drop_ins(each, wanted, base))["hypervisor"][shim.hypervisor]
        assert not (guest.get("image") and guest.get("initrd"))


# --- the install dir ---------------------------------------------------------------------------------


def test_a_list_with_a_path_of_the_payload_is_written_as_a_whole() -> None:
    wanted = settings(SNP, install_dir=ELSEWHERE)
    assert parsed_drop_ins(wanted)["10-install-dir.toml"]["hypervisor"]["qemu"] == {
        "path": f"{ELSEWHERE}/bin/qemu-system-x86_64",
        "kernel": f"{ELSEWHERE}/share/kata-containers/vmlinux.container",
        "image": f"{ELSEWHERE}/share/kata-containers/kata-containers.img",
        "valid_hypervisor_paths": [f"{ELSEWHERE}/bin/qemu-system-x86_64", "/usr/bin/qemu"],
        "guest_extension_images": [
            {"name": "gpu", "path": f"{ELSEWHERE}/share/kata-containers/gpu.img", "verity_params": ""},
            {"name": "mine", "path": "/srv/mine.img", "verity_params": "root=1"},
        ],
    }


def test_a_path_that_only_begins_like_the_prefix_is_not_changed() -> None:
    assert merged(settings("qemu", install_dir=ELSEWHERE))["runtime"]["sandbox_bind_mounts"] == [
        "/opt/katalog"
    ]


@pytest.mark.parametrize(
    ("distribution", "root"),
    [
        pytest.param("k0s", "/var/lib/k0s/kubelet", id="k0s"),
        pytest.param("microk8s", "/var/snap/microk8s/common/var/lib/kubelet", id="microk8s"),
        pytest.param("k3s", "/var/lib/kubelet", id="k3s"),
        pytest.param("rke2", "/var/lib/kubelet", id="rke2"),
    ],
)
def test_all_paths_in_the_kubelet_directory_are_those_of_the_distribution(
    distribution: str, root: str
) -> None:
    runtime = merged(settings(TDX, distribution=distribution))["runtime"]
    assert runtime["kubelet_root_dir"] == root
    assert runtime["pod_resource_api_sock"] == f"{root}/pod-resources/kubelet.sock"
    assert parsed_drop_ins(settings(SNP, distribution=distribution)) == {}, "runtime-rs has no such key"


# --- debug -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shim", "hypervisor", "console"),
    [
        pytest.param("qemu", "qemu", True, id="go"),
        pytest.param("fc", "firecracker", True, id="section named otherwise than the shim"),
        pytest.param("dragonball", "dragonball", True, id="runtime-rs"),
        pytest.param(TDX, "qemu", False, id="confidential"),
        pytest.param(SNP, "qemu", False, id="confidential runtime-rs"),
    ],
)
def test_a_debug_variant_logs_more_and_only_guests_that_are_not_confidential_get_a_console(
    shim: str, hypervisor: str, console: bool
) -> None:
    wanted = settings(shim, debug=True)
    found = merged(wanted, f"kata-{shim}-debug")
    assert found["runtime"]["enable_debug"] is True
    assert found["hypervisor"][hypervisor]["enable_debug"] is True
    assert found["agent"]["kata"]["enable_debug"] is True
    assert found["agent"]["kata"]["debug_console_enabled"] is console
    params = found["hypervisor"][hypervisor]["kernel_params"].split()
    assert params[-1] == "initcall_debug"
    assert "agent.log=debug" not in params, "Kata adds it itself, because enable_debug of the agent is on"
    assert rendered_drop_ins(wanted, f"kata-{shim}") == {}, "the plain handler has no drop-ins"


def test_a_debug_variant_adds_the_log_level_of_an_agent_without_a_key_for_it() -> None:
    wanted = settings("qemu", debug=True)
    base = {"hypervisor": {"qemu": {"kernel_params": "initcall_debug"}}}
    one = handler(wanted, "kata-qemu-debug")
    line = merge(base, drop_ins(one, wanted, base))["hypervisor"]["qemu"]["kernel_params"]
    assert line == "initcall_debug agent.log=debug"


def test_a_debug_variant_raises_the_log_levels_of_the_configuration() -> None:
    found = merged(settings("dragonball", debug=True), "kata-dragonball-debug")
    levels = [value for path, value in leaves(found) if path[-1] == "log_level"]
    assert levels == ["debug"] * 3


def test_a_debug_variant_of_a_remote_hypervisor_has_no_kernel_parameters() -> None:
    found = parsed_drop_ins(settings("remote", debug=True), "kata-remote-debug")
    assert found == {
        "20-debug.toml": {"runtime": {"enable_debug": True}, "agent": {"kata": {"enable_debug": True}}}
    }


# --- what the settings add ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shim", "values", "debug", "line"),
    [
        pytest.param(
            "qemu",
            ShimSettings(https_proxy="http://p", no_proxy="a,b"),
            False,
            "cgroup_no_v1=all agent.https_proxy=http://p agent.no_proxy=a,b",
            id="proxies",
        ),
        pytest.param("fc", ShimSettings(no_proxy="a"), False, "agent.no_proxy=a", id="none before"),
        pytest.param(
            TDX, ShimSettings(enable_dcgm=True), False, "cgroup_no_v1=all nvrc.dcgm=on", id="metrics of GPUs"
        ),
        pytest.param(
            "dragonball",
            ShimSettings(no_proxy="a"),
            True,
            "console=ttyS1 agent.log_vport=1025 agent.no_proxy=a initcall_debug",
            id="all together",
        ),
    ],
)
def test_kernel_parameters_are_added_to_those_of_the_shim(
    shim: str, values: ShimSettings, debug: bool, line: str
) -> None:
    found = merged(settings(shim, values, debug=debug), f"kata-{shim}-debug" if debug else "")
    assert found["hypervisor"][table()[shim].hypervisor]["kernel_params"] == line


def test_allowed_annotations_are_added_to_those_of_the_shim_without_duplicates() -> None:
    found = merged(settings("qemu", ALL))["hypervisor"]["qemu"]["enable_annotations"]
    assert found == ["enable_iommu", "kernel_params", "default_vcpus"]
    there = ShimSettings(allowed_hypervisor_annotations=("enable_iommu",))
    assert parsed_drop_ins(settings("qemu", there)) == {}


@pytest.mark.parametrize(
    ("shim", "key", "value"),
    [
        pytest.param(TDX, "experimental_force_guest_pull", True, id="go"),
        pytest.param(SNP, "experimental", ["else", "force_guest_pull"], id="runtime-rs"),
    ],
)
def test_guest_pull_sets_the_key_of_the_kata_runtime(shim: str, key: str, value: object) -> None:
    found = parsed_drop_ins(settings(shim, ShimSettings(force_guest_pull=True)))
    assert found == {"40-guest-pull.toml": {"runtime": {key: value}}}


def test_rootless_sets_the_key_of_the_hypervisor() -> None:
    found = parsed_drop_ins(settings(SNP, ShimSettings(rootless=True)))
    assert found == {"45-rootless.toml": {"hypervisor": {"qemu": {"rootless": True}}}}


@pytest.mark.parametrize(
    ("shim", "values", "key"),
    [
        pytest.param(
            "qemu",
            ShimSettings(force_guest_pull=True),
            "shims.qemu.containerd.forceGuestPull",
            id="guest pull",
        ),
        pytest.param(
            "remote", ShimSettings(https_proxy="p"), "shims.remote.agent.httpsProxy", id="https proxy"
        ),
        pytest.param("remote", ShimSettings(no_proxy="p"), "shims.remote.agent.noProxy", id="no proxy"),
        pytest.param("fc", ShimSettings(rootless=True), "shims.fc.hypervisor.rootless", id="rootless"),
    ],
)
def test_a_setting_that_the_shims_configuration_has_no_key_for_is_refused(
    shim: str, values: ShimSettings, key: str
) -> None:
    with pytest.raises(SettingsError, match=f"configuration of {shim} has no key ") as caught:
        rendered_drop_ins(settings(shim, values))
    assert caught.value.where == key
    assert "dropIn" in caught.value.hint


# --- the user's drop-in ------------------------------------------------------------------------------


def test_the_users_drop_in_is_written_verbatim_and_read_last() -> None:
    text = "# mine\n[hypervisor.qemu]\nkernel_params='x' # all of it\ndefault_vcpus = 2.5"
    wanted = settings("qemu", ShimSettings(https_proxy="p", drop_in=text), debug=True)
    for name in ("kata-qemu", "kata-qemu-debug"):
        assert rendered_drop_ins(wanted, name)[USER_DROP_IN] == text.encode()
        assert (
            list(rendered_drop_ins(wanted, name))[-1] == USER_DROP_IN == max(rendered_drop_ins(wanted, name))
        )
        guest = merged(wanted, name)["hypervisor"]["qemu"]
        assert (guest["kernel_params"], guest["default_vcpus"]) == ("x", 2.5)


@pytest.mark.parametrize("blank", ["", " \n\t\n"])
def test_an_empty_drop_in_is_not_written(blank: str) -> None:
    assert rendered_drop_ins(settings("qemu", ShimSettings(drop_in=blank))) == {}


@pytest.mark.parametrize(
    ("shim", "text", "what"),
    [
        pytest.param("qemu", "[runtime", "is not valid TOML", id="no TOML"),
        pytest.param("qemu", "[hypervisor.qemu]\ninitrd = '/i'", "both image and initrd", id="initrd too"),
        pytest.param("fc", "[hypervisor.firecracker]\nimage = '/i'", "both image and initrd", id="image too"),
        pytest.param(
            "qemu",
            "[hypervisor.qemu]\nenable_debug = 'yes'\ndefault_vcpus = true",
            'hypervisor.qemu.enable_debug is the string "yes", but it is false in the shim\'s configuration; '
            "hypervisor.qemu.default_vcpus is true, but it is the number 1 in",
            id="wrong types",
        ),
        pytest.param(
            "qemu", "runtime = 'x'", 'runtime is the string "x", but it is a mapping', id="no table"
        ),
    ],
)
@pytest.mark.parametrize("custom", [False, True])
def test_a_drop_in_that_kata_would_refuse_is_refused(shim: str, text: str, what: str, custom: bool) -> None:
    if custom:
        own = CustomRuntime("mine", shim, "kata-mine", drop_in=text)
        wanted, key = Settings((), "x86_64", custom_runtimes=(own,)), "customRuntimes.runtimes.mine.dropIn"
    else:
        wanted, key = settings(shim, ShimSettings(drop_in=text)), f"shims.{shim}.dropIn"
    with pytest.raises(SettingsError) as caught:
        rendered_drop_ins(wanted)
    assert what in caught.value.what
    assert caught.value.where == key
    assert caught.value.hint


def test_a_drop_in_can_replace_the_image_by_an_initrd() -> None:
    text = "[hypervisor.qemu]\ninitrd = '/i'\nimage = ''"
    guest = merged(settings("qemu", ShimSettings(drop_in=text)))["hypervisor"]["qemu"]
    assert (guest["image"], guest["initrd"]) == ("", "/i")


def test_a_base_configuration_with_both_image_and_initrd_is_an_error_of_the_payload() -> None:
    wanted = settings("qemu")
    base = {"hypervisor": {"qemu": {"image": "/a", "initrd": "/b"}}}
    with pytest.raises(PayloadError) as caught:
        drop_ins(handler(wanted), wanted, base)
    assert (caught.value.where, caught.value.exit_code) == (table()["qemu"].base_config, 3)


def test_a_base_configuration_that_is_not_toml_is_an_error_of_the_payload() -> None:
    with pytest.raises(PayloadError) as caught:
        parse("[a", "share/x.toml")
    assert (caught.value.where, caught.value.exit_code) == ("share/x.toml", 3)


@pytest.mark.parametrize(
    ("path", "warning"),
    [
        pytest.param(f"{ELSEWHERE}/bin/x", "", id="there"),
        pytest.param(ELSEWHERE, "", id="the install dir itself"),
        pytest.param("/usr/bin/x", "", id="of the host"),
        pytest.param(f"{ELSEWHERE}/bin/y", "which is not in the payload", id="not there"),
        pytest.param("/opt/kata/bin/x", f"but the install dir is {ELSEWHERE}", id="the usual place"),
    ],
)
def test_a_path_in_the_users_drop_in_that_does_not_exist_is_a_warning(path: str, warning: str) -> None:
    text = f"[hypervisor.qemu]\nvalid_hypervisor_paths = ['{path}']"
    wanted = settings("qemu", ShimSettings(drop_in=text), install_dir=ELSEWHERE)
    found = list(drop_in_warnings(handler(wanted), wanted, {"bin/x"}))
    assert found == ([f"shims.qemu.dropIn names {path}, {warning}"] if warning else [])


# --- custom runtimes ---------------------------------------------------------------------------------


def test_a_custom_runtime_has_the_configuration_of_its_shim_without_annotations_and_guest_pull() -> None:
    own = CustomRuntime("mine", TDX, "kata-mine", drop_in="[runtime]\nenable_debug = true")
    values = ShimSettings(
        drop_in="[runtime]\nx = 1",
        https_proxy="p",
        allowed_hypervisor_annotations=("a",),
        force_guest_pull=True,
    )
    wanted = settings(TDX, values, install_dir=ELSEWHERE, custom_runtimes=(own,), debug=True)
    found = parsed_drop_ins(wanted, "kata-mine")
    assert list(found) == ["10-install-dir.toml", "30-kernel-params.toml", USER_DROP_IN]
    assert found["10-install-dir.toml"] == parsed_drop_ins(wanted, f"kata-{TDX}")["10-install-dir.toml"]
    assert found["30-kernel-params.toml"]["hypervisor"]["qemu"]["kernel_params"].endswith(
        "agent.https_proxy=p"
    )
    assert found[USER_DROP_IN] == {"runtime": {"enable_debug": True}}


# --- the digest --------------------------------------------------------------------------------------


def test_the_digest_inputs_differ_for_all_settings_that_decide_a_configuration() -> None:
    one = ShimSettings
    own = CustomRuntime("mine", "qemu", "kata-mine")
    different = [
        settings("qemu"),
        settings("qemu", install_dir=ELSEWHERE),
        settings("qemu", distribution="k0s"),
        settings("qemu", debug=True),
        settings("qemu", one(drop_in="a = 1")),
        settings("qemu", one(https_proxy="a")),
        settings("qemu", one(no_proxy="a")),
        settings("qemu", one(enable_dcgm=True)),
        settings("qemu", one(rootless=True)),
        settings("qemu", one(force_guest_pull=True)),
        settings("qemu", one(allowed_hypervisor_annotations=("a",))),
        settings("qemu", custom_runtimes=(own,)),
        settings("qemu", custom_runtimes=(CustomRuntime("mine", "clh", "kata-mine"),)),
        settings("qemu", custom_runtimes=(CustomRuntime("mine", "qemu", "kata-mine", drop_in="a = 1"),)),
        settings("clh"),
    ]
    assert len({digest_inputs(each) for each in different}) == len(different)
    for same in (
        settings("qemu", one(snapshotter="nydus", crio_guest_pull=True, extra_pod_annotations=("a",))),
        settings("qemu", user_drop_in="a = 1", distribution="rke2"),
    ):
        assert digest_inputs(same) == digest_inputs(settings("qemu"))


# --- merging and rendering ---------------------------------------------------------------------------


def test_drop_ins_merge_as_kata_merges_them() -> None:
    base = tomllib.loads("a = [1, 2]\nb = 1\n[t]\nx = 1\n[t.u]\ny = [{z = 1, k = 2}]")
    found = merge(
        base,
        {
            "20-b.toml": b"b = 3\n[t.u]\ny = [{z = 2}]",
            "10-a.toml": b"a = [3]\nb = 2\n[t]\nnew = 1\nx = {}\n",
        },
    )
    assert found == {"a": [3], "b": 3, "t": {"x": {}, "new": 1, "u": {"y": [{"z": 2}]}}}
    assert base["t"]["x"] == 1, "the base is not changed"


def test_relocated_paths_has_only_changed_values() -> None:
    table = {
        "a": "/x/y",
        "b": "/xx",
        "c": {"d": [1, "/x"], "e": 1},
        "f": {"g": "h"},
        "i": [{"j": "/x/k", "l": 1}],
    }
    assert relocated_paths(table, "/x", "/z") == {
        "a": "/z/y",
        "c": {"d": [1, "/z"]},
        "i": [{"j": "/z/k", "l": 1}],
    }
    assert relocated_paths(table, "/x", "/x") == {}


@pytest.mark.parametrize(
    "content",
    [
        pytest.param({"t": {"u": {"k": "v"}, "k": 1}, "k": True}, id="keys behind tables"),
        pytest.param({"t": {"l": [{"a": 1, "b": "x"}, {"a": 2}], "k": 1}}, id="tables in a list"),
        pytest.param({"t": {"k": 'a "quoted" \\ \x7f\n\t é'}}, id="what needs quoting"),
        pytest.param({"t": {"k": [], "a b": "c"}}, id="empty list and quoted key"),
    ],
)
def test_rendered_toml_parses_to_the_same_content(content: dict[str, Any]) -> None:
    text = render(content, "About it.").decode()
    assert tomllib.loads(text) == content
    assert text.startswith("# Managed by kata-node, changes here are lost.\n# About it.\n\n")


def test_a_table_with_only_tables_in_it_has_no_header() -> None:
    assert render({"a": {"b": {"c": {"k": 1}}}}, "x").decode().endswith("\n\n[a.b.c]\nk = 1\n")
