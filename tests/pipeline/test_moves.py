"""Changes of the node between runs: another runtime, another release of it, edited files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fakes import MAIN, FakeNode
from pipeline.harness import (
    INSTALL,
    REVERT,
    Killed,
    errors,
    exit_code,
    killed_after,
    outcomes,
    run,
    snapshot,
)
from pipeline.node_variants import (
    CRI_2,
    CRI_3,
    NODE_VARIANTS,
    RANCHER,
    Containerd1,
    Crio,
    NodeVariant,
    make_node,
)
from stages import artifacts, cri, revert_cri

REVERT_CRI = (revert_cri,)


pytestmark = pytest.mark.usefixtures("no_waits")


def node_of(name: str, tmp_path: Path, **files: str) -> FakeNode:
    kind = NODE_VARIANTS[name]
    return make_node(replace(kind, files={**kind.files, **files}), tmp_path / "host")


def served(node: FakeNode) -> list[str]:
    return list(node.handlers or ())


def read(node: FakeNode, path: str = MAIN) -> bytes:
    return node.root.read(path) or b""


def edit(node: FakeNode, text: bytes, path: str = MAIN) -> None:
    node.root.write(path, read(node, path) + text)
    node.restart(node.unit_name, 1)


def become(node: FakeNode, kind: NodeVariant, **changes: Any) -> FakeNode:
    """Return a node with the same files and another runtime, which is started."""
    other = kind.make(node.root)
    for name, value in changes.items():
        setattr(other, name, value)
    node.root.make_dirs(other.main.rpartition("/")[0])
    other.invocation = node.invocation + 100
    other.restart(other.unit_name, 1)
    return other


PLAIN = NodeVariant(lambda root: FakeNode(root), {}, ())


# The default handler


@pytest.mark.parametrize(
    ("kind", "path", "text"),
    [
        pytest.param(
            "containerd 1.7",
            MAIN,
            f'\n[{CRI_2}.containerd]\ndefault_runtime_name = "kata-qemu"\n',
            id="containerd-1",
        ),
        pytest.param(
            "k3s with drop-ins",
            f"{RANCHER}/config-v3.toml.d/10-mine.toml",
            f'[{CRI_3}.containerd]\ndefault_runtime_name = "kata-qemu"\n',
            id="containerd-2",
        ),
        pytest.param(
            "k0s",
            "/etc/k0s/containerd.d/10-mine.toml",
            f'version = 2\n[{CRI_2}.containerd]\ndefault_runtime_name = "kata-qemu"\n',
            id="k0s",
        ),
        pytest.param(
            "CRI-O",
            "/etc/crio/crio.conf.d/10-mine.conf",
            '[crio.runtime]\ndefault_runtime = "kata-qemu"\n',
            id="cri-o",
        ),
    ],
)
def test_a_handler_that_is_the_default_of_the_runtime_is_not_removed(
    kind: str, path: str, text: str, tmp_path: Path, payload: Path
) -> None:
    node = node_of(kind, tmp_path)
    distribution = NODE_VARIANTS[kind].distribution
    assert errors(run(node, INSTALL, payload, k8s_distribution=distribution)) == []
    edit(node, text.encode(), path)
    before, restarts = (snapshot(node, "etc"), snapshot(node, "var")), node.restarts
    reports = run(node, REVERT_CRI, payload, k8s_distribution=distribution)
    assert exit_code(reports) == 3
    assert "kata-qemu" in str(reports[-1].error)
    assert ((snapshot(node, "etc"), snapshot(node, "var")), node.restarts) == (before, restarts)
    assert "kata-qemu" in (node.handlers or ())


# Another runtime, or another release of it


def test_the_entry_of_a_containerd_that_was_replaced_by_crio_is_removed(
    tmp_path: Path, payload: Path
) -> None:
    node = node_of("containerd 1.7", tmp_path)
    before = read(node)
    assert errors(run(node, INSTALL, payload)) == []
    node.root.write(MAIN, b"# mine too\n" + read(node))
    crio = become(node, NODE_VARIANTS["CRI-O"])
    assert errors(run(crio, INSTALL, payload)) == []
    assert "kata-qemu" in (crio.handlers or ())
    assert read(node) == b"# mine too\n" + before
    assert errors(run(crio, REVERT, payload)) == []
    assert read(node) == b"# mine too\n" + before


def test_a_revert_removes_the_entry_of_a_containerd_without_a_unit(tmp_path: Path, payload: Path) -> None:
    node = node_of("containerd 1.7", tmp_path)
    before = snapshot(node)
    assert errors(run(node, INSTALL, payload)) == []
    crio = become(node, NODE_VARIANTS["CRI-O"])
    restarts = crio.restarts
    before |= snapshot(node, "etc/crio")
    assert errors(run(crio, REVERT, payload)) == []
    assert crio.restarts == restarts
    assert read(node) == NODE_VARIANTS["containerd 1.7"].files[MAIN].encode()


def test_a_revert_removes_the_managed_block_from_a_migrated_main_file(tmp_path: Path, payload: Path) -> None:
    node = node_of("containerd 1.7", tmp_path, **{MAIN: f"version = 2\n[{CRI_2}]\nsandbox_image = 'a'\n"})
    assert errors(run(node, INSTALL, payload)) == []
    migrated = read(node).replace(b"version = 2", b"version = 3").replace(CRI_2.encode(), CRI_3.encode())
    node.root.write(MAIN, migrated)
    newer = become(node, PLAIN, version="2.1.9")
    assert served(newer) == ["kata-qemu", "runc"]
    assert errors(run(newer, REVERT, payload)) == []
    assert served(newer) == ["runc"]
    assert read(node) == f"version = 3\n[{CRI_3}]\nsandbox_image = 'a'\n".encode()


@pytest.mark.parametrize("cut", [*range(0, 12, 2), None])
def test_after_an_upgrade_of_containerd_the_tables_move_to_drop_ins(
    tmp_path: Path, payload: Path, cut: int | None
) -> None:
    node = node_of("containerd 1.7", tmp_path, **{MAIN: f"version = 2\n[{CRI_2}]\nsandbox_image = 'a'\n"})
    before = read(node)
    assert errors(run(node, INSTALL, payload)) == []
    newer = become(node, PLAIN, version="2.1.9")
    try:
        with killed_after(1 << 30 if cut is None else cut):
            run(newer, (cri,), payload)
    except Killed:
        assert "runc" in (newer.load() or ())
    assert errors(run(newer, (cri,), payload)) == []
    assert b"runtime_path" not in read(node)
    assert errors(run(newer, REVERT, payload)) == []
    assert read(node) == before
    assert snapshot(node, "opt") == {}


def test_k0s_with_an_admins_main_file_has_no_drop_in_left(tmp_path: Path, payload: Path) -> None:
    node = node_of("k0s", tmp_path)
    assert errors(run(node, INSTALL, payload, k8s_distribution="k0s")) == []
    node.root.write("/etc/k0s/containerd.toml", b"version = 3\n")
    taken = NodeVariant(lambda root: FakeNode(root, main="/etc/k0s/containerd.toml"), {}, ())
    other = become(node, taken, unit_name="k0sworker.service")
    assert errors(run(other, INSTALL, payload, k8s_distribution="k0s")) == []
    assert served(other) == ["kata-qemu", "runc"]
    assert snapshot(node, "etc/k0s/containerd.d") == {}
    assert errors(run(other, REVERT, payload, k8s_distribution="k0s")) == []
    assert read(node, "/etc/k0s/containerd.toml") == b"version = 3\n"
    assert sorted(snapshot(node, "etc/k0s")) == ["etc/k0s/containerd.toml"]


def test_a_k3s_that_now_imports_drop_ins_has_no_template_left(tmp_path: Path, payload: Path) -> None:
    node = node_of("k3s that imports no drop-ins", tmp_path)
    before = sorted(snapshot(node, "var"))
    assert errors(run(node, INSTALL, payload, k8s_distribution="k3s")) == []
    newer = become(node, NODE_VARIANTS["k3s with drop-ins"])
    assert errors(run(newer, INSTALL, payload, k8s_distribution="k3s")) == []
    assert served(newer) == ["kata-qemu", "runc"]
    assert not node.root.exists(f"{RANCHER}/config-v3.toml.tmpl")
    assert errors(run(newer, REVERT, payload, k8s_distribution="k3s")) == []
    assert sorted(snapshot(node, "var")) == before


# containerd 1.x: one file for all installations


NVIDIA = f'\n[{CRI_2}.containerd.runtimes.nvidia]\nruntime_type = "io.containerd.runc.v2"\n'.encode()


def test_runc_that_kata_node_added_stays_for_foreign_handlers_that_were_added_later(
    tmp_path: Path, payload: Path
) -> None:
    node = node_of("containerd 1.7", tmp_path)
    before = read(node)
    assert errors(run(node, INSTALL, payload)) == []
    edit(node, NVIDIA)
    assert errors(run(node, INSTALL, payload, shims="qemu,clh")) == []
    assert served(node) == ["kata-clh", "kata-qemu", "nvidia", "runc"]
    assert outcomes(run(node, INSTALL, payload, shims="qemu,clh"))[3] == "cri skipped"
    assert errors(run(node, REVERT, payload)) == []
    assert served(node) == ["nvidia", "runc"]
    assert before in read(node)
    assert NVIDIA in read(node)


def test_handlers_are_removed_from_a_file_that_another_tool_rewrote(tmp_path: Path, payload: Path) -> None:
    import tomllib

    import tomlkit

    node = node_of("containerd 1.7", tmp_path)
    assert errors(run(node, INSTALL, payload)) == []
    edit(node, NVIDIA)
    node.root.write(MAIN, tomlkit.dumps(tomllib.loads(read(node).decode()), sort_keys=True).encode())
    assert errors(run(node, INSTALL, payload, shims="clh")) == []
    assert served(node) == ["kata-clh", "nvidia", "runc"]
    node.root.write(MAIN, tomlkit.dumps(tomllib.loads(read(node).decode()), sort_keys=True).encode())
    assert errors(run(node, REVERT, payload)) == []
    assert served(node) == ["nvidia", "runc"]


@pytest.mark.parametrize("kind", ["containerd 1.7", "k3s that imports no drop-ins"])
def test_the_tables_of_an_installation_with_another_prefix_are_not_changed(
    kind: str, tmp_path: Path, payload: Path
) -> None:
    node = node_of(kind, tmp_path)
    distribution = NODE_VARIANTS[kind].distribution
    assert errors(run(node, INSTALL, payload, k8s_distribution=distribution)) == []
    before = snapshot(node, "etc"), snapshot(node, "var")
    elsewhere: dict[str, Any] = {"installation_prefix": "/srv", "k8s_distribution": distribution}
    reports = run(node, INSTALL, payload, **elsewhere)
    assert (reports[-1].stage, exit_code(reports)) == ("host-check", 3)
    assert "belongs to an installation in another install dir" in str(reports[-1].error)
    assert errors(run(node, REVERT, payload, **elsewhere)) == []
    assert (snapshot(node, "etc"), snapshot(node, "var")) == before
    assert errors(run(node, REVERT, payload, k8s_distribution=distribution)) == []


# CRI-O


def test_crio_is_restarted_if_it_has_not_read_the_drop_in_of_a_killed_run(
    tmp_path: Path, payload: Path
) -> None:
    """The storage option is on the disk, but CRI-O only reads it at its start."""
    node = written_only(tmp_path, payload)
    assert errors(run(node, INSTALL, payload, multi_install_suffix="blue")) == []
    assert (node.restarts, node.reloads) == (1, 0)


def test_handlers_that_a_foreign_reload_signal_loaded_are_unloaded(tmp_path: Path, payload: Path) -> None:
    node = written_only(tmp_path, payload)
    node.reload(node.unit_name, 1)
    assert "kata-qemu" in served(node)
    assert errors(run(node, REVERT, payload)) == []
    assert "kata-qemu" not in served(node)


def written_only(tmp_path: Path, payload: Path) -> Crio:
    """Return a CRI-O node on which a run was killed right after it wrote the drop-in."""
    node = node_of("CRI-O", tmp_path)
    assert isinstance(node, Crio)
    assert errors(run(node, (artifacts,), payload)) == []
    for changes in range(60):
        try:
            with killed_after(changes):
                run(node, (cri,), payload)
        except Killed:
            if node.root.exists("/etc/crio/crio.conf.d/99-kata-deploy"):
                break
    assert node.restarts == 0
    return node


def test_a_refused_change_does_not_restart_a_crio_that_never_read_it(tmp_path: Path, payload: Path) -> None:
    node = node_of("CRI-O", tmp_path)
    assert isinstance(node, Crio)
    assert errors(run(node, INSTALL, payload)) == []
    edit(node, b"[crio.runtime.runtimes.kata-clh]\n", "/etc/crio/crio.conf.d/10-mine.conf")
    restarts = node.restarts
    assert exit_code(run(node, (cri,), payload, shims="qemu,clh")) == 4
    assert node.restarts == restarts


def test_crio_beside_dockers_containerd_is_found_by_the_kubelets_socket(
    tmp_path: Path, payload: Path
) -> None:
    node = node_of("CRI-O", tmp_path)
    node.others = ("containerd.service",)
    assert exit_code(run(node, INSTALL, payload)) == 3
    assert errors(run(node, INSTALL, payload, cri_socket="/var/run/crio/crio.sock")) == []
    assert "restart crio.service" in node.asked


def test_the_fake_containerd_1_replaces_the_built_in_handlers(tmp_path: Path) -> None:
    node = node_of("containerd 1.7", tmp_path)
    assert isinstance(node, Containerd1)
    node.root.write(MAIN, f"version = 2\n[{CRI_2}.containerd.runtimes.mine]\n".encode())
    assert node.load() is None, "runc is gone"
