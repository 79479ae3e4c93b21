"""The facts of the runtime: its unit, its paths, and the configuration class that checks it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from fakes import MAIN, FakeNode
from kata_node.errors import IneligibleNodeError, KataNodeError
from kata_node.host.files import Root
from kata_node.host.systemd import Unit
from kata_node.plan.context import Options, StageContext
from kata_node.plan.receipt import CriFile, CriRecord, Receipt
from kata_node.runtime import compatibility, config_selection
from kata_node.runtime.configured_paths import ConfiguredPaths
from kata_node.runtime.containerd.config import ContainerdConfig
from kata_node.runtime.containerd.k0s import K0sConfig
from kata_node.runtime.facts import gather_facts, gather_facts_for_revert
from kata_node.runtime.identify import find_distribution_runtime, find_unit
from kata_node.runtime.model import distributions
from kata_node.runtime.model.distributions import DistributionRuntime, distribution_runtime
from kata_node.settings import load as settings
from kata_node.settings.model import Settings
from kata_node.settings.runtime import ContainerdSettings
from kata_node.versions import parse_version, runtime_version

K3S, CONTAINERD, CRIO = "k3s.service", "containerd.service", "crio.service"
RANCHER = "/var/lib/rancher/k3s/agent/etc/containerd"


@dataclass
class Units(FakeNode):
    """A node with any units in any state, and command lines for some of them."""

    states: Mapping[str, str] = field(default_factory=dict)
    lines: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def unit(self, name: str) -> Unit | None:
        if name not in self.states:
            return None
        argv = self.lines.get(name, ())
        return Unit(name, "loaded", self.states[name], "", "success", "1" * 32, 42, argv, False, 1)


def recorded(
    unit: str = "", *, runtime: str = "containerd", state: str = "serving", path: str = ""
) -> CriRecord:
    files = (CriFile(path, None, "0" * 64),) if path else ()
    return CriRecord(state, runtime, "2.1.9", unit, "1", "boot", ("kata-qemu",), files)  # type: ignore[arg-type]


def context_of(
    states: Mapping[str, str],
    tmp_path: Path,
    *,
    cri: CriRecord | None = None,
    socket: str = "",
    containerd: ContainerdSettings | None = None,
    runtime: str = "",
    lines: Mapping[str, tuple[str, ...]] | None = None,
    **changes: Any,
) -> StageContext:
    node = Units(Root(tmp_path), states=states, lines=lines or {}, **changes)
    loaded: Settings = settings.load(None, overrides={"shims": "qemu"}, arch="x86_64")
    return StageContext(
        replace(loaded, containerd=containerd or loaded.containerd),
        Receipt("default", "/opt/kata", "1", cri=cri),
        node.clients(),
        Options(Path(), cri_socket=socket, runtime=runtime),
    )


@pytest.mark.parametrize(
    ("states", "more", "expected"),
    [
        pytest.param({CONTAINERD: "active"}, {}, CONTAINERD, id="the-one-there-is"),
        pytest.param({}, {}, None, id="none"),
        pytest.param({K3S: "active", CONTAINERD: "active"}, {}, K3S, id="k3s-beside-docker"),
        pytest.param({K3S: "inactive", CONTAINERD: "active"}, {}, CONTAINERD, id="k3s-that-is-down"),
        pytest.param({K3S: "failed", CRIO: "activating"}, {}, CRIO, id="one-that-starts-counts-as-up"),
        pytest.param({CONTAINERD: "inactive"}, {}, CONTAINERD, id="one-that-is-down"),
        pytest.param({K3S: "inactive", CONTAINERD: "failed"}, {}, K3S, id="only-ones-that-are-down"),
        pytest.param(
            {K3S: "active", CONTAINERD: "active"},
            {"lines": {K3S: ("k3s", "server", "--container-runtime-endpoint=/run/x.sock")}},
            CONTAINERD,
            id="k3s-with-a-runtime-of-others",
        ),
        pytest.param(
            {CRIO: "active", CONTAINERD: "active"},
            {"socket": "/run/crio/crio.sock"},
            CRIO,
            id="told-by-the-flag",
        ),
        pytest.param(
            {CRIO: "active", CONTAINERD: "active"},
            {"socket": "/var/run/containerd/containerd.sock"},
            CONTAINERD,
            id="told-as-kubelets-write-it",
        ),
        pytest.param(
            {CRIO: "active", CONTAINERD: "active"},
            {"containerd": ContainerdSettings(runtime_socket="/run/containerd/containerd.sock")},
            CONTAINERD,
            id="told-by-the-values",
        ),
        pytest.param(
            {CRIO: "active", CONTAINERD: "inactive"},
            {"cri": recorded(CONTAINERD, state="writing")},
            CONTAINERD,
            id="of-a-run-that-did-not-finish",
        ),
        pytest.param(
            {CRIO: "active", CONTAINERD: "inactive"},
            {"cri": recorded(CONTAINERD)},
            CRIO,
            id="another-runtime-since",
        ),
    ],
)
def test_the_unit_that_runs_the_cri_is_found(
    states: Mapping[str, str], more: dict[str, Any], expected: str | None, tmp_path: Path
) -> None:
    found = find_unit(context_of(states, tmp_path, **more), for_revert=False)
    assert (found.name if found else None) == expected


def test_two_running_runtimes_are_an_error_without_a_socket(tmp_path: Path) -> None:
    with pytest.raises(IneligibleNodeError, match="several") as caught:
        find_unit(context_of({CRIO: "active", CONTAINERD: "active"}, tmp_path), for_revert=False)
    assert "--cri-socket" in caught.value.hint


@pytest.mark.parametrize(
    ("states", "cri", "expected"),
    [
        pytest.param(
            {CRIO: "active", CONTAINERD: "inactive"}, recorded(CONTAINERD), CONTAINERD, id="the-recorded-one"
        ),
        pytest.param({CRIO: "active"}, recorded(CONTAINERD), None, id="never-another-runtime"),
        pytest.param({K3S: "active"}, recorded(CONTAINERD), K3S, id="the-same-runtime-by-another-name"),
        pytest.param({CONTAINERD: "active"}, recorded(""), CONTAINERD, id="of-an-image-that-was-baked"),
    ],
)
def test_a_revert_uses_the_unit_that_loaded_the_handlers(
    states: Mapping[str, str], cri: CriRecord, expected: str | None, tmp_path: Path
) -> None:
    found = find_unit(context_of(states, tmp_path, cri=cri), for_revert=True)
    assert (found.name if found else None) == expected


def test_the_socket_of_the_flag_overrides_that_of_the_values(tmp_path: Path) -> None:
    values = ContainerdSettings(runtime_socket="/run/values.sock")
    for socket, expected in (("", "/run/values.sock"), ("/run/flag.sock", "/run/flag.sock")):
        context = context_of({CONTAINERD: "active"}, tmp_path, socket=socket, containerd=values)
        assert (
            find_distribution_runtime(context, find_unit(context, for_revert=False), for_revert=False).socket
            == expected
        )


def test_a_unit_is_not_used_if_another_runtime_answers(tmp_path: Path) -> None:
    context = context_of(
        {CONTAINERD: "active"},
        tmp_path,
        socket="/run/mine.sock",
        runtime_name="cri-o",
        version="1.36.3",
    )
    facts = gather_facts(context)
    assert (facts.unit, facts.distribution_runtime.runtime, facts.distribution_runtime.socket) == (
        "",
        "cri-o",
        "/run/mine.sock",
    )


@pytest.mark.parametrize(
    ("version", "name", "expected"),
    [
        pytest.param("2.2.1", "containerd", "containerd://2.2.1", id="upgraded-since"),
        pytest.param("1.36.3", "cri-o", "containerd://2.1.9", id="another-one-answers"),
    ],
)
def test_a_revert_uses_the_release_that_runs_now(
    version: str, name: str, expected: str, tmp_path: Path
) -> None:
    context = context_of(
        {CONTAINERD: "active"}, tmp_path, cri=recorded(CONTAINERD), runtime_name=name, version=version
    )
    assert str(gather_facts_for_revert(context).runtime) == expected


# The configuration class


@pytest.mark.parametrize(
    ("path", "unit", "main"),
    [
        pytest.param(MAIN, CONTAINERD, MAIN, id="plain"),
        pytest.param(MAIN, "", MAIN, id="baked"),
        pytest.param("/etc/other/containerd.toml", CONTAINERD, "/etc/other/containerd.toml", id="moved"),
        pytest.param(f"{RANCHER}/config-v3.toml.tmpl", K3S, f"{RANCHER}/config.toml", id="template"),
        pytest.param(f"{RANCHER}/config-v3.toml.tmpl", "", f"{RANCHER}/config.toml", id="template-baked"),
        pytest.param(
            "/etc/k0s/containerd.toml", "k0sworker.service", "/etc/k0s/containerd.toml", id="k0s-unmanaged"
        ),
    ],
)
def test_a_file_of_an_earlier_runtime_is_edited_with_the_recorded_configuration(
    path: str, unit: str, main: str
) -> None:
    now = config_selection.config_for(
        Receipt("default", "/opt/kata", "1"),
        "",
        runtime_version("cri-o://1.36.3"),
        distribution_runtime("k8s", "cri-o"),
    )
    receipt = Receipt("blue", "/opt/kata-blue", "1", cri=recorded(unit, path=path))
    found = config_selection.config_that_edited(now, path, receipt)
    assert isinstance(found, ContainerdConfig)
    assert (found.main_path, found.suffix, path in found.shared_paths()) == (main, "blue", True)


def test_a_file_of_the_current_runtime_is_edited_with_the_current_configuration() -> None:
    receipt = Receipt("default", "/opt/kata", "1", cri=recorded(CONTAINERD, path=MAIN))
    now = config_selection.config_for(
        receipt, "", runtime_version("containerd://2.2.1"), distribution_runtime("k8s", "containerd")
    )
    assert config_selection.config_that_edited(now, MAIN, receipt) is now


@pytest.mark.parametrize(
    ("where", "values", "config", "drop_in_dirs"),
    [
        pytest.param("k8s", ContainerdSettings(config_dir="/etc/c"), "/etc/c/config.toml", {}, id="moved"),
        pytest.param(
            "k8s", ContainerdSettings(config_file_name="c.toml"), "/etc/containerd/c.toml", {}, id="renamed"
        ),
        pytest.param(
            "k0s",
            ContainerdSettings(config_dir="/srv"),
            "/srv/containerd.toml",
            {2: "/srv/containerd.d", 3: "/srv/containerd.d"},
            id="with-its-drop-ins",
        ),
    ],
)
def test_the_values_can_move_the_files_of_containerd(
    where: str, values: ContainerdSettings, config: str, drop_in_dirs: Mapping[int, str]
) -> None:
    found = config_selection.with_configured_paths(
        distribution_runtime(where, "containerd"), values, ConfiguredPaths()
    )
    assert (found.config, found.drop_in_dirs) == (config, drop_in_dirs)


def test_values_for_containerd_do_not_move_another_runtime() -> None:
    assert config_selection.with_configured_paths(
        distribution_runtime("k8s", "cri-o"),
        ContainerdSettings(runtime_socket="/x", config_dir="/y"),
        ConfiguredPaths(),
    ) == distribution_runtime("k8s", "cri-o")


# Settings that a node can never carry out


@pytest.mark.parametrize(
    ("runtime", "where", "suffix", "refused"),
    [
        pytest.param("containerd://1.7.24", "k8s", "", "", id="1.x"),
        pytest.param("containerd://1.7.24", "k8s", "blue", "env.multiInstallSuffix", id="1.x-and-a-suffix"),
        pytest.param("containerd://2.0.0", "k8s", "blue", "", id="2.x-and-a-suffix"),
        pytest.param("containerd://1.7.27", "k0s", "blue", "", id="k0s-has-a-drop-in-for-each"),
        pytest.param("containerd://2.0.0", "k3s", "", "", id="k3s"),
        pytest.param("cri-o://1.36.3", "k8s", "blue", "", id="cri-o"),
    ],
)
def test_the_error_for_an_impossible_setting_names_the_setting(
    runtime: str, where: str, suffix: str, refused: str, tmp_path: Path
) -> None:
    found = runtime_version(runtime)
    facts = gather_facts(
        context_of(
            {}, tmp_path, runtime=runtime, runtime_name=found.name, version=str(found.version), handlers=()
        )
    )
    facts = replace(facts, distribution_runtime=distribution_runtime(where, found.name))
    overrides = {"shims": "qemu", "multi_install_suffix": suffix, "k8s_distribution": where}
    loaded = settings.load(None, overrides=overrides, arch="x86_64")
    error = compatibility.incompatibility(loaded, facts, Receipt("default", "/opt/kata", ""))
    assert (error.where if error else "") == refused


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        pytest.param({K3S: "active"}, ("k8sDistribution", "set k8sDistribution: k3s"), id="another"),
        pytest.param(
            {CONTAINERD: "active"}, ("the socket", f"{CONTAINERD} runs: name"), id="the-settings-one"
        ),
    ],
)
def test_a_missing_socket_on_another_distribution_is_an_error_about_the_distribution(
    states: Mapping[str, str], expected: tuple[str, str], tmp_path: Path
) -> None:
    with pytest.raises(KataNodeError) as raised:
        gather_facts(context_of(states, tmp_path, state="inactive"))
    assert (raised.value.where, raised.value.hint[: len(expected[1])]) == expected
    assert isinstance(raised.value, IneligibleNodeError) == (K3S in states)


# k0s


def k0s(version: str, suffix: str = "") -> K0sConfig:
    runtime: DistributionRuntime = distributions.distribution_runtime("k0s", "containerd")
    return K0sConfig("/opt/kata", suffix, parse_version(version), runtime.config, runtime.drop_in_dirs[2])


OURS = "/etc/k0s/containerd.d/99-kata-deploy.toml"
USER = "/etc/k0s/containerd.d/zz-kata-deploy-user.toml"
OTHER = "/etc/k0s/containerd.d/10-mine.toml"
TABLE = {"1.7.27": 'plugins."io.containerd.grpc.v1.cri"', "2.1.4": 'plugins."io.containerd.cri.v1.runtime"'}


@pytest.mark.parametrize("version", ["1.7.27", "2.1.4"])
@pytest.mark.parametrize("suffix", ["", "blue"])
def test_the_drop_in_for_k0s_passes_the_check(version: str, suffix: str) -> None:
    overrides = {"shims": "qemu", "multi_install_suffix": suffix, "k8s_distribution": "k0s"}
    loaded = settings.load(None, overrides=overrides, arch="x86_64")
    config = replace(k0s(version, suffix), install_dir=loaded.install_dir)
    desired_config = config.desired_config(loaded, {})
    files = {file.path: file.content for file in desired_config.changes if file.content is not None}
    assert list(files) == [config.drop_in_locations()[0].drop_in]
    assert config.defined_handlers(files) == set(desired_config.handlers)
    assert problems(config, files, desired_config.handlers) == []


@pytest.mark.parametrize(
    ("version", "files", "expected"),
    [
        pytest.param("1.7.27", {OTHER: "[not toml"}, "not valid TOML", id="broken"),
        pytest.param(
            "1.7.27",
            {USER: "version = 3\n"},
            "containerd 1.7.27 cannot read version = 3",
            id="newer-than-containerd",
        ),
        pytest.param(
            "2.1.4",
            {USER: "version = 2\n"},
            "k0s starts only with drop-ins that have version = 3",
            id="older-than-k0s-takes",
        ),
        pytest.param(
            "2.1.4",
            {USER: "[debug]\n"},
            "k0s starts only with drop-ins that have version = 3",
            id="no-version",
        ),
        pytest.param(
            "2.1.4",
            {USER: f"version = 3\n[{TABLE['1.7.27']}]\n"},
            "k0s starts only with drop-ins that have version = 3",
            id="the-old-table",
        ),
        pytest.param(
            "1.7.27",
            {OTHER: f"version = 2\n[{TABLE['1.7.27']}.containerd.runtimes.kata-qemu]\n"},
            "defines the handler kata-qemu",
            id="our-handler",
        ),
        pytest.param(
            "2.1.4",
            {USER: f"version = 3\n[{TABLE['2.1.4']}.containerd]\ndefault_runtime_name = 'nobody'\n"},
            "containerd.userDropIn): its default_runtime_name is nobody",
            id="a-default-handler-of-none",
        ),
        pytest.param(
            "1.7.27",
            {OTHER: f"version = 2\n[{TABLE['1.7.27']}.containerd]\ndefault_runtime_name = 'runc'\n"},
            "",
            id="runc-is-built-in",
        ),
        pytest.param("1.7.27", {"/etc/k0s/containerd.toml": "[not toml"}, "", id="the-main-file-is-its-own"),
    ],
)
def test_a_drop_in_that_keeps_k0s_from_starting_is_a_problem(
    version: str, files: dict[str, str], expected: str
) -> None:
    found = problems(k0s(version), {path: text.encode() for path, text in files.items()}, ("kata-qemu",))
    assert [expected in problem for problem in found] == ([True] if expected else [])


def problems(config: K0sConfig, files: Mapping[str, bytes], handlers: tuple[str, ...]) -> list[str]:
    own = [path for location in config.drop_in_locations() for path in location.paths]
    labels = {config.drop_in_locations()[0].extra_drop_ins[0]: "containerd.userDropIn"}
    return config.check(files, own_paths=own, handlers=handlers, labels=labels, exists=lambda _: True)
