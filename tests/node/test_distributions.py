"""k3s, rke2, k0s and microk8s, imitated with their files and units on a real systemd and containerd."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from node.commands import CommandResult
from node.conftest import BootNode
from node.distribution_launchers import SNAP_COMMON, filled_in, rancher_config, rancher_dir, text_of
from node.distributions import (
    MICROK8S_ARGS,
    MICROK8S_CURRENT,
    MICROK8S_TEMPLATE,
    Distribution,
    Layout,
    k0s,
    lay_out,
    microk8s,
    rancher,
    rendered_base,
)
from node.installation import PAYLOAD, fake_kvm, outcomes
from node.snapshot import Snapshot, changes

HANDLERS = ("kata-clh", "kata-qemu")
BASE = '{{ template "base" . }}\n'

K3S = rancher("k3s", "k3s.service")
K3S_WITHOUT_IMPORTS = rancher("k3s", "k3s-agent.service", imports=False)
K3S_SCHEMA_2 = rancher("k3s", "k3s.service", schema=2, imports=False, suite="trixie")
RKE2 = rancher("rke2", "rke2-server.service")
RKE2_WITHOUT_IMPORTS = rancher("rke2", "rke2-agent.service", imports=False)
K0S = k0s("k0sworker.service")
K0S_SCHEMA_2 = k0s("k0scontroller.service", schema=2, suite="trixie")
MICROK8S = microk8s()
MICROK8S_1_7 = microk8s(suite="trixie")

LAYOUTS = (
    *(K3S, K3S_WITHOUT_IMPORTS, K3S_SCHEMA_2),
    *(RKE2, RKE2_WITHOUT_IMPORTS),
    *(K0S, K0S_SCHEMA_2),
    *(MICROK8S, MICROK8S_1_7),
)
EACH = [pytest.param(layout, id=layout.id()) for layout in LAYOUTS]
ONE_OF_EACH = [pytest.param(layout, id=layout.name) for layout in (K3S, RKE2, K0S, MICROK8S)]

RUNTIMES = {2: "plugins.'io.containerd.grpc.v1.cri'", 3: "plugins.'io.containerd.cri.v1.runtime'"}
EXTRA = "[{table}.containerd.runtimes.extra]\nruntime_type = 'io.containerd.runc.v2'\n"

LayOut = Callable[..., Distribution]


@pytest.fixture
def laid_out(boot_node: BootNode, payload: Path) -> LayOut:
    """Return a function that boots a node with the payload and turns it into a distribution."""

    def lay(layout: Layout, files: dict[str, str] | None = None, **how: Any) -> Distribution:
        node = fake_kvm(boot_node(layout.suite))
        node.mount(payload, PAYLOAD)
        return lay_out(node, layout, files, **how)

    return lay


def kata_node(on: Distribution, *args: str, **more: Any) -> CommandResult:
    return on.node.kata_node(*args, config=on.values(**more), payload=PAYLOAD)


def succeed(on: Distribution, *args: str, **more: Any) -> CommandResult:
    done = kata_node(on, *args, **more)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{on.journal()}"
    return done


def touched(before: Snapshot, after: Snapshot) -> set[str]:
    """Return the changed paths outside the install dirs."""
    lines = changes(before, after)
    return {path for path in (line[2:].partition(": ")[0] for line in lines) if not path.startswith("/opt/")}


def may_touch(layout: Layout, suffix: str = "") -> set[str]:
    """Return the paths outside the install dir that an install, or the distribution after it, may change."""
    name = f"99-kata-deploy-{suffix}.toml" if suffix else "99-kata-deploy.toml"
    if layout.name == "k0s":
        return {f"/etc/k0s/containerd.d/{name}", "/run/k0s/containerd-cri.toml"}
    if layout.name == "microk8s":
        return {f"{MICROK8S_ARGS}/containerd-template.toml", f"{MICROK8S_ARGS}/containerd.toml"}
    directory, version = rancher_dir(layout.name), "" if layout.schema == 2 else "-v3"
    if layout.imports:
        drop_ins = f"{directory}/config{version}.toml.d"
        return {drop_ins, f"{drop_ins}/{name}"}
    return {f"{directory}/config{version}.toml.tmpl", f"{directory}/config.toml"}


def is_what_it_renders(on: Distribution) -> bool:
    """Return whether the file that containerd reads is what the distribution renders from its sources."""
    layout = on.layout
    if layout.name == "microk8s":
        args = on.path(MICROK8S_ARGS)
        return text_of(args / "containerd.toml") == filled_in(text_of(args / "containerd-template.toml"))
    directory = on.path(str(rancher_dir(layout.name)))
    wanted = rancher_config(layout.name, directory, layout.schema, imports=layout.imports)
    return text_of(directory / "config.toml") == wanted


@pytest.mark.parametrize("layout", EACH)
def test_an_install_changes_only_files_of_the_distribution_and_its_socket_serves_the_handlers(
    laid_out: LayOut, layout: Layout
) -> None:
    on = laid_out(layout)
    before, invocation = on.snapshot(), on.node.unit(layout.unit).invocation
    succeed(on, "install")
    assert on.kata_handlers() == HANDLERS
    assert "runc" in on.handlers()
    assert touched(before, on.snapshot()) <= may_touch(layout)
    assert on.node.activations(layout.unit) == (2 if layout.restarts else 1)
    assert (on.node.unit(layout.unit).invocation != invocation) == layout.restarts
    assert layout.name == "k0s" or is_what_it_renders(on)


@pytest.mark.parametrize("layout", EACH)
def test_a_second_install_does_nothing_and_a_revert_restores_everything(
    laid_out: LayOut, layout: Layout
) -> None:
    on = laid_out(layout)
    before, handlers = on.snapshot(), on.handlers()
    succeed(on, "install")
    installed, pid = on.snapshot(), containerd_pid(on)
    done = succeed(on, "install", "--output", "json")
    assert {outcomes(done)[stage] for stage in ("artifacts", "cri")} == {"skipped"}
    assert changes(installed, on.snapshot(), times=True) == []
    assert containerd_pid(on) == pid
    succeed(on, "revert")
    assert on.handlers() == handlers
    assert changes(before, on.snapshot()) == []
    assert on.node.activations(layout.unit) == (3 if layout.restarts else 1)


def containerd_pid(on: Distribution) -> str:
    return on.node.run(["pgrep", "-x", "containerd"]).stdout


@pytest.mark.parametrize("layout", ONE_OF_EACH)
def test_two_installations_have_separate_files_and_are_reverted_one_by_one(
    laid_out: LayOut, layout: Layout
) -> None:
    on = laid_out(layout)
    before = on.snapshot()
    second = {"env": {"multiInstallSuffix": "dev"}, "debug": True}
    succeed(on, "install")
    with_one = on.snapshot()
    succeed(on, "install", **second)
    served = on.kata_handlers()
    assert {*HANDLERS, "kata-clh-dev", "kata-qemu-dev"} < set(served)
    assert touched(with_one, on.snapshot()) <= may_touch(layout, "dev")
    succeed(on, "revert")
    assert on.kata_handlers() == tuple(name for name in served if name not in HANDLERS)
    succeed(on, "revert", **second)
    assert on.kata_handlers() == ()
    assert changes(before, on.snapshot()) == []


@pytest.mark.parametrize("layout", ONE_OF_EACH)
def test_a_wrong_distribution_in_the_values_is_refused_with_the_value_to_set(
    laid_out: LayOut, layout: Layout
) -> None:
    on = laid_out(layout)
    before = on.snapshot()
    for declared in {"k8s", "k3s", "k0s"} - {layout.name}:
        done = kata_node(on, "install", k8sDistribution=declared)
        assert done.returncode == 3, done.stdout + done.stderr
        assert "k8sDistribution" in done.stdout
        assert layout.name in done.stdout
    assert changes(before, on.snapshot(), times=True) == []
    assert on.node.activations(layout.unit) == 1


def test_a_plain_containerd_beside_k3s_is_not_changed(laid_out: LayOut) -> None:
    """Docker, for example, installs such a containerd."""
    on = laid_out(K3S, plain=True)
    before, invocation = on.snapshot(), on.node.unit("containerd.service").invocation
    succeed(on, "install")
    assert on.kata_handlers() == HANDLERS
    assert on.node.cri_handlers() == ("runc",)
    assert on.node.unit("containerd.service").invocation == invocation
    assert touched(before, on.snapshot()) <= may_touch(K3S)


def test_k3s_with_an_external_runtime_is_installed_like_a_plain_node(laid_out: LayOut) -> None:
    socket = "/run/containerd/containerd.sock"
    start = f"{K3S.start} --container-runtime-endpoint=unix://{socket}"
    on = laid_out(replace(K3S, start=start, socket=socket, notifies=False), plain=True)
    before, invocation = on.snapshot(), on.node.unit(K3S.unit).invocation
    succeed(on, "install", k8sDistribution="k8s")
    assert on.kata_handlers() == HANDLERS
    assert on.node.activations("containerd.service") == 2
    assert on.node.unit(K3S.unit).invocation == invocation
    succeed(on, "revert", k8sDistribution="k8s")
    assert changes(before, on.snapshot()) == []


@pytest.mark.parametrize("layout", ONE_OF_EACH)
def test_a_container_with_the_mounts_of_the_distribution_installs_and_reverts(
    laid_out: LayOut, payload: Path, layout: Layout
) -> None:
    on = laid_out(layout)
    # The distribution's directories of the socket and of the configuration.
    own = {"k0s": ("/etc/k0s", "/run/k0s"), "microk8s": (f"{SNAP_COMMON}/run", MICROK8S_CURRENT)}
    rancher_own = (f"/var/lib/rancher/{layout.name}/agent/etc/containerd", "/run/k3s/containerd")
    common = ("/etc/machine-id", "/opt", "/run/dbus", "/run/kata-node")
    mounts = (*common, *own.get(layout.name, rancher_own))
    before = on.snapshot()
    for stages, served in ((("host-check", "artifacts", "cri"), HANDLERS), (("revert-cri",), ())):
        for stage in stages:
            done = on.node.kata_node_outside(
                "stage", stage, config=on.values(), payload=payload, mounts=mounts
            )
            assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{on.journal()}"
        assert on.kata_handlers() == served
    assert touched(before, on.snapshot()) == set()


# Templates of k3s and rke2


@pytest.mark.parametrize(
    "layout",
    [pytest.param(each, id=each.id()) for each in (K3S_WITHOUT_IMPORTS, RKE2_WITHOUT_IMPORTS, K3S_SCHEMA_2)],
)
def test_a_new_template_extends_the_base_and_is_removed_by_the_revert(
    laid_out: LayOut, layout: Layout
) -> None:
    on = laid_out(layout)
    directory = rancher_dir(layout.name)
    template = on.path(f"{directory}/{'config' if layout.schema == 2 else 'config-v3'}.toml.tmpl")
    succeed(on, "install")
    text = template.read_text()
    assert BASE in text
    assert "/opt/kata/" in text
    # The template must not contain rendered lines, because their paths belong to one release.
    rendered = {line for line in rendered_base(layout).splitlines() if line.strip() and "[" not in line}
    assert rendered.isdisjoint(text.splitlines())
    succeed(on, "revert")
    assert not template.exists()


ADMINS = """\
{{- /* Ours, with all that Go has. */ -}}
{{- template "base" . -}}

[debug]
  level = "debug"
  address = "{{ .NodeConfig.Containerd.State }}/debug.sock"
"""
WITHOUT_BASE = """\
version = 3
root = "{{ .NodeConfig.Containerd.Root }}"
state = "{{ .NodeConfig.Containerd.State }}"

[grpc]
  address = "{{ .NodeConfig.Containerd.Address }}"

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
"""


@pytest.mark.parametrize("layout", [pytest.param(each, id=each.id()) for each in (K3S, K3S_WITHOUT_IMPORTS)])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        pytest.param("config-v3.toml.tmpl", BASE, id="base-alone"),
        pytest.param("config-v3.toml.tmpl", f"{BASE}\n[debug] # ours\n  level = 'debug'", id="no-line-end"),
        pytest.param("config-v3.toml.tmpl", f"{BASE}\r\n[debug]\r\nlevel = 'debug'\r\n", id="windows"),
        pytest.param("config-v3.toml.tmpl", ADMINS, id="comments-and-trimming"),
        pytest.param("config-v3.toml.tmpl", WITHOUT_BASE, id="without-the-base"),
        pytest.param("config.toml.tmpl", f"{BASE}[debug]\nlevel = 'debug'\n", id="schema-2"),
    ],
)
def test_a_revert_restores_the_administrators_template_byte_for_byte(
    laid_out: LayOut, layout: Layout, name: str, text: str
) -> None:
    template = f"{rancher_dir('k3s')}/{name}"
    on = laid_out(layout, {template: text})
    before, served = on.snapshot(), on.handlers()
    succeed(on, "install")
    assert on.kata_handlers() == HANDLERS
    assert set(served) <= set(on.handlers())
    assert on.path(template).read_bytes().startswith(text.encode())
    # A second template with another schema would override it.
    assert [path.name for path in on.path(template).parent.glob("*.tmpl")] == [name]
    succeed(on, "revert")
    assert changes(before, on.snapshot()) == []
    assert on.handlers() == served


def test_later_edits_of_the_template_survive_the_revert(laid_out: LayOut) -> None:
    on = laid_out(K3S_WITHOUT_IMPORTS)
    succeed(on, "install")
    template = on.path(f"{rancher_dir('k3s')}/config-v3.toml.tmpl")
    template.write_text(template.read_text() + "\n" + EXTRA.format(table=RUNTIMES[3]))
    on.restart()
    assert "extra" in on.handlers()
    succeed(on, "revert")
    assert on.kata_handlers() == ()
    assert "extra" in on.handlers()
    assert "kata" not in template.read_text()


def test_k3s_starts_after_an_upgrade_whose_base_imports_drop_ins(laid_out: LayOut) -> None:
    """A template with its own import would then have two ``imports`` keys, which is invalid TOML."""
    on = laid_out(K3S_WITHOUT_IMPORTS)
    before = on.snapshot()
    succeed(on, "install")
    on.restart(IMPORTS="yes")
    assert on.kata_handlers() == HANDLERS
    succeed(on, "install")
    assert on.kata_handlers() == HANDLERS
    succeed(on, "revert")
    assert on.handlers() == ("runc",)
    on.restart(IMPORTS="no")
    assert touched(before, on.snapshot()) == set()


def test_a_user_drop_in_of_k3s_is_added_and_removed(laid_out: LayOut) -> None:
    on = laid_out(K3S)
    drop_in = "version = 3\n" + EXTRA.format(table=RUNTIMES[3])
    succeed(on, "install", containerd={"userDropIn": drop_in})
    assert "extra" in on.handlers()
    succeed(on, "install")
    assert on.handlers() == (*HANDLERS, "runc")


# k0s


def test_k0s_is_restarted_when_it_does_not_notice_changed_drop_ins(laid_out: LayOut) -> None:
    on = laid_out(k0s("k0sworker.service", watch=False))
    succeed(on, "install")
    assert on.kata_handlers() == HANDLERS
    assert on.node.activations(on.layout.unit) == 2


@pytest.mark.parametrize(
    "drop_in",
    [
        pytest.param(f"[{RUNTIMES[3]}.containerd]\ndefault_runtime_name = 'nobody'\n", id="no-cri"),
        pytest.param(f"version = 2\n{EXTRA.format(table=RUNTIMES[2])}", id="a-schema-it-refuses"),
    ],
)
def test_an_install_rolls_back_a_user_drop_in_that_k0s_does_not_start_with(
    laid_out: LayOut, drop_in: str
) -> None:
    on = laid_out(K0S)
    before = on.snapshot()
    done = kata_node(on, "stage", "artifacts")
    assert done.returncode == 0, done.stdout + done.stderr
    done = kata_node(on, "stage", "cri", containerd={"userDropIn": drop_in})
    assert done.returncode in (3, 4), done.stdout + done.stderr
    on.wait()
    assert on.handlers() == ("runc",)
    assert touched(before, on.snapshot()) == set()
    on.restart()
    assert on.handlers() == ("runc",)


def test_a_main_file_of_k0s_that_the_administrator_manages_is_extended_and_restored(laid_out: LayOut) -> None:
    """k0s does not change such a file, and does not read drop-ins."""
    main = "/etc/k0s/containerd.toml"
    on = laid_out(K0S, {main: "version = 3\n\n[debug] # ours\nlevel = 'info'"})
    before = on.snapshot()
    succeed(on, "install")
    assert on.kata_handlers() == HANDLERS
    assert touched(before, on.snapshot()) <= {main}
    succeed(on, "revert")
    assert on.handlers() == ("runc",)
    assert changes(before, on.snapshot()) == []


# microk8s


@pytest.mark.parametrize(
    "template",
    [
        pytest.param(MICROK8S_TEMPLATE, id="its-own"),
        pytest.param(MICROK8S_TEMPLATE.replace("\n", "\r\n"), id="windows-line-ends"),
        pytest.param(MICROK8S_TEMPLATE.rstrip("\n"), id="no-line-end"),
        pytest.param(
            MICROK8S_TEMPLATE.replace(
                "oom_score = 0", 'imports = [\n  "${SNAP_DATA}/args/own.d/*.toml", # ours\n]\noom_score = 0'
            ),
            id="imports-of-its-own",
        ),
    ],
)
@pytest.mark.parametrize("suite", [pytest.param("forky", id="2.1"), pytest.param("trixie", id="1.7")])
def test_the_template_of_microk8s_keeps_its_variables_and_is_restored_byte_for_byte(
    laid_out: LayOut, suite: str, template: str
) -> None:
    on = laid_out(microk8s(suite=suite, template=template))
    path = on.path(f"{MICROK8S_ARGS}/containerd-template.toml")
    before = path.read_bytes()
    succeed(on, "install")
    assert on.kata_handlers() == HANDLERS
    text = path.read_text()
    assert "${SNAP_DATA}/args/cni-network" in text
    assert tomllib.loads(text)["version"] == 2
    succeed(on, "revert")
    assert path.read_bytes() == before
    assert on.handlers() == ("runc",)
