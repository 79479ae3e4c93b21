"""Handlers of ours in files of other programs: every runtime and distribution, every form of a table."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from fakes import MAIN, FakeNode
from kata_node.host.cri_sandboxes import Pod
from kata_node.runtime import restart
from kata_node.status.text import to_text
from pipeline.harness import INSTALL, REVERT, errors, exit_code, node_status, run, small_payload, snapshot
from pipeline.node_variants import CRI_2, CRI_3, NODE_VARIANTS, RANCHER, RUNC, make_node
from stages import revert_cri

TEMPLATE = f"{RANCHER}/config-v3.toml.tmpl"
CONF_D = 'imports = ["/etc/containerd/conf.d/*.toml"]\n'
COPY = "/etc/containerd/conf.d/99-copy.toml"
PROGRAM = "/opt/kata/bin/containerd-shim-kata-v2"
RUNC_TABLE = f"[{CRI_3}.containerd.runtimes.runc]\n{RUNC}"

FORMS = [
    pytest.param(
        f"[{CRI_3}.containerd.runtimes.kata-qemu]\nruntime_path = '{PROGRAM}'\n[{CRI_3}.containerd.runtimes."
        "kata-qemu.options]\nx = 1\n",
        id="tables",
    ),
    pytest.param(f'{CRI_3}.containerd.runtimes.kata-qemu.runtime_path = "{PROGRAM}"\n', id="dotted"),
    pytest.param(
        f"[{CRI_3}.containerd]\nruntimes.'kata-qemu' = {{ options = {{ ConfigPath = '/opt/kata/x' }} }}\n",
        id="inline-with-its-configuration-only",
    ),
    pytest.param(
        f'[{CRI_2}.containerd.runtimes."kata-qemu".options]\nBinaryName = "/opt/kata/bin/x"\n',
        id="of-the-other-schema",
    ),
    pytest.param(
        f'[{CRI_3}.containerd.runtimes.of-an-admin]\nruntime_path = "{PROGRAM}"\n', id="under-another-name"
    ),
    pytest.param(
        f"[{CRI_3}.containerd.runtimes.x]\nruntime_type = '{PROGRAM}'\n", id="program-in-the-runtime-type"
    ),
    pytest.param(
        f"[{CRI_3}.containerd.runtimes.x]\nruntime_path = '/opt//./kata/bin/x'\n", id="unclean-path"
    ),
    pytest.param(
        f'[{CRI_3}.containerd.runtimes.x]\nruntime_path = "\\u002fopt/k\\u0061ta/bin/x"\n', id="escaped-path"
    ),
    pytest.param(
        "[Plugins.'io.containerd.cri.v1.runtime'.Containerd.Runtimes.x]\n"
        "Runtime_Path = '/opt/kata/x'\n"
        "[Plugins.'io.containerd.cri.v1.runtime'.Containerd.Runtimes.y.options]\n"
        "configpath = '/opt/kata/x'\n",
        id="keys-in-another-case",
    ),
    pytest.param(
        f"[{CRI_2}.containerd.default_runtime]\nruntime_path = '{PROGRAM}'\n", id="default-runtime-of-1"
    ),
]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    for name in ("POLL", "PATIENCE", "SETTLE_TIME", "WATCH_TIMEOUT"):
        monkeypatch.setattr(restart, name, 0.001)


@pytest.fixture(scope="module")
def payload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_payload(tmp_path_factory.mktemp("payload"))


def containerd_2(tmp_path: Path, main: str = f"version = 3\n{CONF_D}") -> FakeNode:
    kind = replace(NODE_VARIANTS["containerd 1.7"], make=FakeNode, files={MAIN: main})
    return make_node(kind, tmp_path / "host")


def write(node: FakeNode, path: str, text: str) -> None:
    node.root.make_dirs(path.rpartition("/")[0])
    node.root.write(path, text.encode())


def read(node: FakeNode, path: str) -> str:
    return (node.root.read(path) or b"").decode()


@pytest.mark.parametrize("table", FORMS)
@pytest.mark.parametrize("path", [COPY, MAIN])
def test_a_revert_takes_a_table_that_uses_our_files_out_of_any_file(
    path: str, table: str, tmp_path: Path, payload: Path
) -> None:
    node = containerd_2(tmp_path)
    assert errors(run(node, INSTALL, payload)) == []
    kept = read(node, MAIN) if path == MAIN else "# a copy\nversion = 3\ndebug.level = 'info'\n"
    write(node, path, kept + table)
    node.restart(node.unit_name, 1)
    reports = run(node, REVERT, payload)
    assert errors(reports) == []
    assert node.handlers == ("runc",)
    assert "/opt/kata" not in read(node, path)
    assert read(node, path) == (f"version = 3\n{CONF_D}" if path == MAIN else kept)
    assert any(path in note for report in reports for note in report.notes)


def test_a_table_of_another_installation_stays(tmp_path: Path, payload: Path) -> None:
    node = containerd_2(tmp_path)
    assert errors(run(node, INSTALL, payload)) == []
    paths = ("/opt/kata-dev/bin/x", "/opt/kata/nested/opt/kata/bin/x", "/usr/opt/kata/bin/x")
    text = "".join(
        f"[{CRI_3}.containerd.runtimes.other-{n}]\nruntime_path = '{path}'\n" for n, path in enumerate(paths)
    )
    write(node, COPY, f"version = 3\n{text}")
    node.restart(node.unit_name, 1)
    assert errors(run(node, REVERT, payload)) == []
    assert node.handlers == ("other-0", "other-1", "other-2", "runc")
    assert read(node, COPY) == f"version = 3\n{text}"


def test_a_pod_on_a_handler_that_only_the_copy_defines_blocks_the_revert(
    tmp_path: Path, payload: Path
) -> None:
    node = containerd_2(tmp_path)
    assert errors(run(node, INSTALL, payload)) == []
    write(node, COPY, f"version = 3\n[{CRI_3}.containerd.runtimes.mine]\nruntime_path = '{PROGRAM}'\n")
    node.restart(node.unit_name, 1)
    node.pods = (Pod("shop", "web", "mine"),)
    before = snapshot(node, "etc")
    reports = run(node, REVERT, payload)
    assert exit_code(reports) == 1
    assert "shop/web (mine)" in str(reports[-1].error)
    assert snapshot(node, "etc") == before
    node.pods = ()
    assert errors(run(node, REVERT, payload)) == []


def test_a_revert_with_a_lost_receipt_ends_a_handler_that_the_runtime_still_serves(
    tmp_path: Path, payload: Path
) -> None:
    node = containerd_2(tmp_path)
    assert errors(run(node, INSTALL, payload)) == []
    for path in ("opt/kata/.kata-node/receipt.json", "opt/kata/containerd/config.d/99-kata-deploy.toml"):
        (node.root.base / path).unlink()
    node.root.write(MAIN, f"version = 3\n{CONF_D}".encode())
    assert node.handlers == ("kata-qemu", "runc")
    restarts = node.restarts
    assert errors(run(node, (revert_cri,), payload)) == []
    assert (node.handlers, node.restarts) == (("runc",), restarts + 1)


def test_a_handler_that_stays_served_with_our_programs_keeps_them(tmp_path: Path, payload: Path) -> None:
    node = containerd_2(tmp_path)
    assert errors(run(node, INSTALL, payload)) == []

    def from_elsewhere() -> None:
        node.handlers = ("kata-qemu", "runc")
        node.tables = {"kata-qemu": {"runtimePath": PROGRAM}}

    node.on_restart = from_elsewhere
    reports = run(node, REVERT, payload)
    assert exit_code(reports) in (1, 4)
    assert "still serves kata-qemu" in str(reports[-1].error)
    assert node.root.exists(PROGRAM)


@pytest.mark.parametrize(
    ("link", "target", "path"),
    [
        pytest.param("opt/kata", "/data/kata", "/data/kata/bin/containerd-shim-kata-v2", id="install-dir"),
        pytest.param("usr/local/bin/containerd-shim-x-v2", PROGRAM, "", id="program"),
    ],
)
def test_a_handler_that_reaches_our_programs_by_a_link_keeps_them(
    link: str, target: str, path: str, tmp_path: Path, payload: Path
) -> None:
    node = containerd_2(tmp_path)
    node.root.make_dirs("/data/kata")
    node.root.make_dirs("/usr/local/bin")
    (node.root.base / link).symlink_to(target)
    assert errors(run(node, INSTALL, payload)) == []
    write(
        node,
        COPY,
        f"version = 3\n[{CRI_3}.containerd.runtimes.mine]\nruntime_path = '{path or '/' + link}'\n",
    )
    node.restart(node.unit_name, 1)
    node.pods = (Pod("shop", "web", "mine"),)
    reports = run(node, REVERT, payload)
    assert exit_code(reports) == 1
    assert "shop/web (mine)" in str(reports[-1].error)
    node.pods = ()
    reports = run(node, REVERT, payload)
    assert "still serves mine" in str(reports[-1].error)
    assert node.root.exists(PROGRAM)
    node.root.remove(COPY)
    assert errors(run(node, REVERT, payload)) == []


def test_what_is_served_after_a_revert_is_what_the_runtime_lists(tmp_path: Path, payload: Path) -> None:
    node = containerd_2(tmp_path)
    assert errors(run(node, INSTALL, payload)) == []
    write(node, COPY, f"version = 3\n[{CRI_3}.containerd.runtimes.kata-qemu]\nruntime_path = '/usr/x'\n")
    node.restart(node.unit_name, 1)
    (report,) = run(node, (revert_cri,), payload)
    assert report.summary == "containerd.service serves kata-qemu, runc, none of this installation"


@pytest.mark.parametrize(
    "name", ["k3s that imports no drop-ins", "k3s with drop-ins"], ids=["block", "drop-in"]
)
def test_a_template_that_is_a_copy_of_the_rendered_file_loses_tables_of_an_older_installer(
    name: str, tmp_path: Path, payload: Path
) -> None:
    kind = NODE_VARIANTS[name]
    imports = f'imports = ["{RANCHER}/config-v3.toml.d/*.toml"]\n' if "with" in name else ""
    kept = f"version = 3\n{imports}\n{RUNC_TABLE}"
    old = f"\n[{CRI_3}.containerd.runtimes.kata-qemu]\nruntime_path = '{PROGRAM}'\nsnapshotter = 'nydus'\n"
    node = make_node(replace(kind, files={TEMPLATE: kept + old}), tmp_path / "host")
    assert node.handlers == ("kata-qemu", "runc")
    reports = run(node, INSTALL, payload, k8s_distribution="k3s")
    assert errors(reports) == []
    assert node.handlers == ("kata-qemu", "runc")
    assert "nydus" not in read(node, node.main)
    assert errors(run(node, REVERT, payload, k8s_distribution="k3s")) == []
    assert (node.handlers, read(node, TEMPLATE)) == (("runc",), kept)


def test_a_template_whose_tables_cannot_be_told_apart_is_named(tmp_path: Path, payload: Path) -> None:
    kind = NODE_VARIANTS["k3s that imports no drop-ins"]
    action = "{{ range .Runtimes }}[x.{{ .Name }}]\n{{ end }}"
    old = f"{action}\n[{CRI_3}.containerd.runtimes.kata-qemu]\nruntime_path = '{PROGRAM}'\n"
    node = make_node(kind, tmp_path / "host")
    node.root.write(TEMPLATE, old.encode())
    reports = run(node, INSTALL, payload, k8s_distribution="k3s")
    error = reports[-1].error
    assert error is not None
    assert TEMPLATE in str(error)
    assert read(node, TEMPLATE) == old


@pytest.mark.parametrize("name", ["10-copy.conf", "99-zz-copy.conf"])
def test_crio_loses_a_copy_in_another_file_with_the_revert(name: str, tmp_path: Path, payload: Path) -> None:
    node = make_node(NODE_VARIANTS["CRI-O"], tmp_path / "host")
    assert errors(run(node, INSTALL, payload)) == []
    drop_in = read(node, "/etc/crio/crio.conf.d/99-kata-deploy")
    path = f"/etc/crio/crio.conf.d/{name}"
    kept = '[crio.runtime.runtimes.mine]\nruntime_path = "/usr/bin/crun"\n'
    node.root.make_dirs("/usr/bin")
    node.root.write("/usr/bin/crun", b"")
    write(node, path, kept + drop_in[drop_in.index("[crio.runtime") :])
    node.restart(node.unit_name, 1)
    assert errors(run(node, INSTALL, payload)) == []
    assert errors(run(node, REVERT, payload)) == []
    assert (node.handlers, read(node, path)) == (("crun", "mine"), kept)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        pytest.param("99-kata-deploy", "[crio.runtime]\nlog_level = 'info'\n", id="other-settings"),
        pytest.param(
            "99-kata-deploy",
            f'[crio.runtime.runtimes.kata-qemu]\nruntime_path = "{PROGRAM}"\n',
            id="handlers-of-another-installer",
        ),
        pytest.param("99-kata-deploy.debug", "[crio.runtime]\nlog_level = 'info'\n", id="the-debug-file"),
    ],
)
def test_a_foreign_drop_in_of_crio_with_our_name_is_refused(
    path: str, text: str, tmp_path: Path, payload: Path
) -> None:
    node = make_node(NODE_VARIANTS["CRI-O"], tmp_path / "host")
    write(node, f"/etc/crio/crio.conf.d/{path}", text)
    reports = run(node, INSTALL, payload)
    assert exit_code(reports) == 3
    assert f"/etc/crio/crio.conf.d/{path}" in str(reports[-1].error)
    assert read(node, f"/etc/crio/crio.conf.d/{path}") == text


def test_an_install_on_k0s_1_35_names_the_steps_of_its_upgrade(tmp_path: Path, payload: Path) -> None:
    node = make_node(NODE_VARIANTS["k0s"], tmp_path / "host")
    reports = run(node, INSTALL, payload, k8s_distribution="k0s")
    assert errors(reports) == []
    step = "run `kata-node revert` before you upgrade k0s to 1.36 or later"
    assert [note for report in reports for note in report.notes if step in note] != []
    assert step in to_text(node_status(node, payload))


@pytest.mark.parametrize("plugins", ["plugins = []", f"{CRI_2} = []", f"{CRI_2}.containerd.runtimes = 3"])
def test_a_plugin_table_of_another_type_is_a_clear_error_on_containerd_1(
    plugins: str, tmp_path: Path, payload: Path
) -> None:
    kind = replace(NODE_VARIANTS["containerd 1.7"], files={MAIN: f"version = 2\n{plugins}\n"})
    host = tmp_path / "host"
    node = make_node(replace(kind, make=lambda root: StoppedLoad(root, version="1.7.24")), host)
    reports = run(node, INSTALL, payload)
    assert exit_code(reports) == 3
    assert "is not a table" in str(reports[-1].error)
    assert read(node, MAIN) == f"version = 2\n{plugins}\n"


class StoppedLoad(FakeNode):
    """A containerd that runs with an older configuration than that on the disk."""

    def load(self) -> tuple[str, ...] | None:
        """Return the built-in handler."""
        return ("runc",)
