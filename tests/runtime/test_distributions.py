"""The table of distributions and its functions."""

from __future__ import annotations

from collections import Counter

import pytest

from kata_node.errors import SettingsError
from kata_node.runtime.model.distributions import (
    DISTRIBUTION_RUNTIMES,
    DistributionRuntime,
    distribution_runtime,
    distribution_runtime_of_unit,
    distribution_runtimes_of_units,
    external_runtime_option,
    k0s_manages,
)
from kata_node.settings.model import DISTRIBUTIONS
from kata_node.versions import RUNTIMES

ALL = [pytest.param(each, id=f"{each.distribution}-{each.runtime}") for each in DISTRIBUTION_RUNTIMES]
K3S = distribution_runtime("k3s", "containerd")
RANCHER = "/var/lib/rancher/k3s/agent/etc/containerd"


def test_the_table_has_every_distribution_and_every_runtime_of_the_settings() -> None:
    assert {each.distribution for each in DISTRIBUTION_RUNTIMES} == set(DISTRIBUTIONS)
    assert {each.runtime for each in DISTRIBUTION_RUNTIMES} == set(RUNTIMES)


def test_no_entry_of_the_table_is_repeated() -> None:
    counted = Counter((each.distribution, each.runtime) for each in DISTRIBUTION_RUNTIMES)
    assert set(counted.values()) == {1}


@pytest.mark.parametrize("each", ALL)
def test_every_unit_belongs_to_one_entry(each: DistributionRuntime) -> None:
    assert each.units
    for unit in each.units:
        assert unit.endswith(".service")
        assert distribution_runtime_of_unit(unit) is each
        assert [one for one in DISTRIBUTION_RUNTIMES if unit in one.units] == [each]


@pytest.mark.parametrize("each", ALL)
def test_every_path_is_absolute(each: DistributionRuntime) -> None:
    paths = [
        each.socket,
        each.config,
        each.kubelet_root,
        *each.template.values(),
        *each.drop_in_dirs.values(),
    ]
    for path in paths:
        assert path.startswith("/")
        assert not path.endswith("/")
        assert "//" not in path


@pytest.mark.parametrize("each", ALL)
def test_a_rendered_file_is_not_its_own_template(each: DistributionRuntime) -> None:
    assert each.is_rendered == bool(each.template)
    assert each.config not in each.template.values()


@pytest.mark.parametrize("each", ALL)
def test_only_an_entry_with_a_template_has_its_properties(each: DistributionRuntime) -> None:
    if not each.template:
        assert not each.initial_template
        assert not each.template_is_toml
    if each.variables:
        assert each.template_is_toml
    if each.initial_template:
        assert not each.template_is_toml
        assert each.initial_template.endswith("\n")


def test_an_unknown_unit_belongs_to_no_entry() -> None:
    assert distribution_runtime_of_unit("docker.service") is None


@pytest.mark.parametrize(
    ("active", "found"),
    [
        pytest.param([], [], id="none"),
        pytest.param(["containerd.service"], [("k8s", "containerd")], id="plain"),
        pytest.param(["crio.service"], [("k8s", "cri-o")], id="cri-o"),
        pytest.param(
            ["k3s-agent.service", "containerd.service"], [("k3s", "containerd")], id="k3s-and-docker"
        ),
        pytest.param(
            ["containerd.service", "crio.service"], [("k8s", "cri-o"), ("k8s", "containerd")], id="two-plain"
        ),
        pytest.param(
            ["k0sworker.service", "rke2-server.service"],
            [("rke2", "containerd"), ("k0s", "containerd")],
            id="two-distributions",
        ),
    ],
)
def test_the_active_units_show_the_distribution(active: list[str], found: list[tuple[str, str]]) -> None:
    assert [(each.distribution, each.runtime) for each in distribution_runtimes_of_units(active)] == found


def test_the_error_for_a_runtime_that_a_distribution_does_not_run_names_the_setting() -> None:
    with pytest.raises(SettingsError) as caught:
        distribution_runtime("k3s", "cri-o")
    assert caught.value.where == "k8sDistribution"
    assert "k8s" in caught.value.hint


@pytest.mark.parametrize(
    ("newest", "existing", "schema", "name"),
    [
        pytest.param(3, [], 3, "config-v3.toml.tmpl", id="none-yet"),
        pytest.param(2, [], 2, "config.toml.tmpl", id="none-yet-and-an-old-runtime"),
        pytest.param(3, [2], 2, "config.toml.tmpl", id="an-old-one-is-not-put-out-of-use"),
        pytest.param(3, [2, 3], 3, "config-v3.toml.tmpl", id="the-newer-of-two"),
        pytest.param(2, [2, 3], 2, "config.toml.tmpl", id="an-old-runtime-does-not-read-the-newer"),
        pytest.param(4, [], 3, "config-v3.toml.tmpl", id="a-runtime-newer-than-the-templates"),
    ],
)
def test_the_template_in_use_is_the_newest_existing_one(
    newest: int, existing: list[int], schema: int, name: str
) -> None:
    paths = [K3S.template[each] for each in existing]
    assert K3S.template_in_use(newest, paths.__contains__) == (schema, f"{RANCHER}/{name}")


def test_a_file_that_is_not_rendered_has_no_template() -> None:
    with pytest.raises(KeyError):
        distribution_runtime("k0s", "containerd").template_in_use(3, lambda _: True)


def test_the_variables_of_a_microk8s_template_are_replaced() -> None:
    template = b'default_runtime_name = "${RUNTIME}" # \xc3\xa9\r\nbin = "${SNAP_DATA}/bin:${OTHER}"'
    assert distribution_runtime("microk8s", "containerd").with_variables(template) == (
        b'default_runtime_name = "runc" # \xc3\xa9\r\nbin = "/var/snap/microk8s/current/bin:${OTHER}"'
    )
    assert distribution_runtime("k0s", "containerd").with_variables(template) == template


@pytest.mark.parametrize(
    ("distribution", "argv", "option"),
    [
        pytest.param("k3s", ["/usr/local/bin/k3s", "server"], "", id="its-own"),
        pytest.param("k3s", ["k3s", "agent", "--docker"], "--docker", id="docker"),
        pytest.param(
            "rke2",
            ["rke2", "server", "--container-runtime-endpoint=unix:///run/crio/crio.sock"],
            "--container-runtime-endpoint",
            id="an-endpoint-in-one-word",
        ),
        pytest.param(
            "k0s",
            ["k0s", "worker", "--cri-socket", "remote:unix:///run/crio/crio.sock"],
            "--cri-socket",
            id="an-endpoint-in-two-words",
        ),
    ],
)
def test_the_command_line_shows_whether_a_unit_uses_an_external_runtime(
    distribution: str, argv: list[str], option: str
) -> None:
    assert external_runtime_option(distribution_runtime(distribution, "containerd"), argv) == option


@pytest.mark.parametrize(
    ("config", "managed"),
    [
        pytest.param(None, True, id="yet-to-be-made"),
        pytest.param(b"# k0s_managed=true\n# A placeholder\nversion = 2\n", True, id="k0s-own"),
        pytest.param(b"\n# k0s_managed=true\nversion = 2\n", True, id="k0s-own-before-1.30"),
        pytest.param(b"version = 3\n", False, id="an-admins"),
        pytest.param(b"version = 3\n# k0s_managed=true\n", False, id="the-mark-further-down"),
        pytest.param(b"", False, id="empty"),
    ],
)
def test_k0s_reads_drop_ins_only_if_it_manages_the_main_file(config: bytes | None, managed: bool) -> None:
    assert k0s_manages(config) is managed
