"""Handlers of ours in files of other programs: every runtime and distribution, every form of a table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fakes import MAIN, FakeNode
from kata_node.host.cri_sandboxes import Pod
from kata_node.status.text import to_text
from pipeline.harness import INSTALL, REVERT, errors, exit_code, node_status, run, snapshot
from pipeline.node_variants import CRI_2, CRI_3, NODE_VARIANTS, RANCHER, RUNC, TemplateNode, make_node
from stages import revert_cri

TEMPLATE = f"{RANCHER}/config-v3.toml.tmpl"
CONF_D = 'imports = ["/etc/containerd/conf.d/*.toml"]\n'
COPY = "/etc/containerd/conf.d/99-copy.toml"
PROGRAM = "/opt/kata/bin/containerd-shim-kata-v2"
DEFAULT = "default_runtime_name = 'kata-qemu'\n"
COPIED = f"[{CRI_3}.containerd.runtimes.kata-qemu]\nruntime_path = '{PROGRAM}'\n"
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


pytestmark = pytest.mark.usefixtures("no_waits")


def containerd_2(tmp_path: Path, main: str = f"version = 3\n{CONF_D}") -> FakeNode:
    kind = replace(NODE_VARIANTS["containerd 1.7"], make=FakeNode, files={MAIN: main})
    return make_node(kind, tmp_path / "host")


def write(node: FakeNode, path: str, text: str) -> None:
    node.root.make_dirs(path.rpartition("/")[0])
    node.root.write(path, text.encode())


def read(node: FakeNode, path: str) -> str:
    return (node.root.read(path) or b"").decode()


def served(node: FakeNode) -> tuple[str, ...] | None:
    return node.handlers


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
    assert (served(node), node.restarts) == (("runc",), restarts + 1)


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
    ("link", "target", "field"),
    [
        pytest.param(
            "opt/kata",
            "/data/kata",
            "runtime_path = '/data/kata/bin/containerd-shim-kata-v2'",
            id="install-dir",
        ),
        pytest.param(
            "usr/local/bin/containerd-shim-x-v2",
            PROGRAM,
            "runtime_path = '/usr/local/bin/containerd-shim-x-v2'",
            id="program",
        ),
        pytest.param(
            "usr/local/bin/containerd-shim-kata-v2",
            PROGRAM,
            "runtime_type = 'io.containerd.kata.v2'",
            id="program-in-the-path",
        ),
        pytest.param(
            "usr/local/bin/containerd-shim-kata-v2",
            "/usr/local/libexec/kata/containerd-shim-kata-v2",
            "Runtime_Type = 'io.containerd.kata.v2'",
            id="two-links",
        ),
        pytest.param(
            "data/conf.toml",
            "/opt/kata/share/defaults/kata-containers/configuration-qemu.toml",
            "options = { ConfigPath = '/data/conf.toml' }",
            id="configuration",
        ),
    ],
)
def test_a_handler_that_reaches_our_files_by_a_link_is_named_before_anything_changes(
    link: str, target: str, field: str, tmp_path: Path, payload: Path
) -> None:
    node = containerd_2(tmp_path)
    for directory in ("/data/kata", "/usr/local/bin", "/usr/local/libexec"):
        node.root.make_dirs(directory)
    (node.root.base / "usr/local/libexec/kata").symlink_to("/opt/kata/bin")
    (node.root.base / link).symlink_to(target)
    assert errors(run(node, INSTALL, payload)) == []
    write(node, COPY, f"version = 3\n[{CRI_3}.containerd.runtimes.mine]\n{field}\n")
    node.restart(node.unit_name, 1)
    restarts, before = node.restarts, snapshot(node, "etc")
    reports = run(node, REVERT, payload)
    error = reports[-1].error
    assert error is not None
    assert f"{COPY}: this file has mine" in str(error)
    assert error.hint.startswith("remove mine from this file")
    assert (exit_code(reports), node.restarts, snapshot(node, "etc")) == (3, restarts, before)

    node.root.remove(COPY)
    node.pods = (Pod("shop", "web", "mine"),)
    reports = run(node, REVERT, payload)
    assert exit_code(reports) == 1
    assert "shop/web (mine)" in str(reports[-1].error)
    assert node.root.exists(PROGRAM)
    node.pods = ()
    assert errors(run(node, REVERT, payload)) == []


@pytest.mark.parametrize(
    ("directories", "path"),
    [
        pytest.param(("usr/local/sbin", "usr/bin"), "", id="another-program-comes-first"),
        pytest.param(("srv/bin", "usr/bin"), "/srv/bin:/usr/bin", id="in-the-path-of-the-unit"),
    ],
)
def test_a_type_whose_first_program_in_the_path_is_not_ours_stays(
    directories: tuple[str, str], path: str, tmp_path: Path, payload: Path
) -> None:
    node = containerd_2(tmp_path)
    first, second = directories
    for directory in directories:
        node.root.make_dirs(f"/{directory}")
    (node.root.base / first / "containerd-shim-kata-v2").touch()
    (node.root.base / second / "containerd-shim-kata-v2").symlink_to(PROGRAM)
    if path:
        node.argv = ("/usr/bin/env", f"PATH={path}", "containerd")
    assert errors(run(node, INSTALL, payload)) == []
    write(
        node,
        COPY,
        f"version = 3\n[{CRI_3}.containerd.runtimes.mine]\nruntime_type = 'io.containerd.kata.v2'\n",
    )
    node.restart(node.unit_name, 1)
    assert errors(run(node, REVERT, payload)) == []
    assert node.handlers == ("mine", "runc")


def test_a_handler_of_crio_that_reaches_our_files_by_a_link_is_named(tmp_path: Path, payload: Path) -> None:
    node = make_node(NODE_VARIANTS["CRI-O"], tmp_path / "host")
    assert errors(run(node, INSTALL, payload)) == []
    node.root.make_dirs("/usr/local/bin")
    (node.root.base / "usr/local/bin/shim").symlink_to(PROGRAM)
    path = "/etc/crio/crio.conf.d/20-mine.conf"
    write(node, path, "[crio.runtime.runtimes.mine]\nruntime_path = '/usr/local/bin/shim'\n")
    node.restart(node.unit_name, 1)
    reports = run(node, REVERT, payload)
    assert exit_code(reports) == 3
    assert f"{path}: this file has mine" in str(reports[-1].error)


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
    assert (served(node), read(node, TEMPLATE)) == (("runc",), kept)


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


def as_crio_config_prints(drop_in: str) -> str:
    """Return the handlers of a drop-in with every key, as ``crio config`` of 1.36 prints them."""
    handlers = drop_in[drop_in.index("[crio.runtime.") :]
    more = (
        'inherit_default_runtime = false\ncontainer_min_memory = "12MiB"\nmonitor_path = "/usr/bin/conmon"\n'
        'monitor_cgroup = "system.slice"\nmonitor_exec_cgroup = ""\nmonitor_env = [\n\t"PATH=/usr/bin",\n]\n'
    )
    return handlers.replace("runtime_type = ", f"{more}runtime_type = ")


@pytest.mark.parametrize("name", ["10-config.conf", "99-nvidia.conf"])
def test_a_copy_of_the_whole_configuration_of_crio_is_treated_as_one(
    name: str, tmp_path: Path, payload: Path
) -> None:
    node = make_node(NODE_VARIANTS["CRI-O"], tmp_path / "host")
    assert errors(run(node, INSTALL, payload)) == []
    path = f"/etc/crio/crio.conf.d/{name}"
    kept = "[crio.runtime]\nlog_level = 'info'\n"
    write(node, path, kept + as_crio_config_prints(read(node, "/etc/crio/crio.conf.d/99-kata-deploy")))
    node.restart(node.unit_name, 1)
    restarts, before = node.restarts, snapshot(node, "etc")

    reports = run(node, INSTALL, payload)
    assert errors(reports) == []
    notes = [note for report in reports for note in report.notes]
    assert [note for note in notes if f"{path} has a copy of kata-qemu, which does no harm" in note]
    assert (node.restarts, snapshot(node, "etc")) == (restarts, before)

    node.pods = (Pod("shop", "web", "kata-qemu"),)
    assert "shop/web (kata-qemu)" in str(run(node, REVERT, payload)[-1].error)
    assert snapshot(node, "etc") == before
    node.pods = ()
    assert errors(run(node, REVERT, payload)) == []
    assert (node.handlers, read(node, path)) == (("crun",), kept)


def test_a_later_copy_of_crio_with_other_settings_is_named_with_its_program(
    tmp_path: Path, payload: Path
) -> None:
    node = make_node(NODE_VARIANTS["CRI-O"], tmp_path / "host")
    assert errors(run(node, INSTALL, payload)) == []
    copy = as_crio_config_prints(read(node, "/etc/crio/crio.conf.d/99-kata-deploy"))
    path = "/etc/crio/crio.conf.d/99-nvidia.conf"
    write(node, path, copy.replace("/run/vc", "/run/other"))
    (report,) = (each for each in run(node, INSTALL, payload) if each.error)
    assert (report.stage, report.exit_code) == ("host-check", 3)
    assert f"{path}: this file has settings of kata-qemu that differ" in str(report.error)
    assert "the NVIDIA container toolkit again" in str(report.error)


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


@pytest.mark.parametrize(
    ("kept", "copy"),
    [
        pytest.param(
            f"version = 3\n[{CRI_3}.containerd]\nx = 1\n", f"{DEFAULT}{COPIED}", id="below-other-keys"
        ),
        pytest.param("version = 3\n", f"[{CRI_3}.containerd]\n{DEFAULT}{COPIED}", id="whole-section"),
        pytest.param(
            "version = 3\n",
            f"[{CRI_3}.containerd]\nDEFAULT_RUNTIME_NAME = 'kata-qemu'\n{COPIED}".replace("plug", "Plug"),
            id="keys-in-another-case",
        ),
    ],
)
def test_a_revert_takes_the_default_handler_out_of_a_copy_with_that_handler(
    kept: str, copy: str, tmp_path: Path, payload: Path
) -> None:
    node = containerd_2(tmp_path)
    assert errors(run(node, INSTALL, payload)) == []
    write(node, COPY, kept + copy)
    node.restart(node.unit_name, 1)
    node.pods = (Pod("shop", "web", ""),)
    reports = run(node, REVERT, payload)
    assert "shop/web (kata-qemu)" in str(reports[-1].error)
    node.pods = ()
    reports = run(node, REVERT, payload)
    assert errors(reports) == []
    assert (node.handlers, read(node, COPY)) == (("runc",), kept)
    assert [note for report in reports for note in report.notes if f"default handler from {COPY}" in note]


def test_pods_without_handler_block_a_revert_only_if_the_default_handler_is_ours(
    tmp_path: Path, payload: Path
) -> None:
    node = containerd_2(tmp_path)
    assert errors(run(node, INSTALL, payload)) == []
    earlier, later = (COPY.replace("99-copy", name) for name in ("10-copy", "zz-mine"))
    write(node, earlier, f"version = 3\n[{CRI_3}.containerd]\n{DEFAULT}{COPIED}")
    write(node, later, f"version = 3\n[{CRI_3}.containerd]\ndefault_runtime_name = 'runc'\n")
    node.restart(node.unit_name, 1)
    node.pods = (Pod("shop", "web", ""),)
    assert errors(run(node, REVERT, payload)) == []
    assert read(node, earlier) == "version = 3\n"


def test_a_default_handler_that_another_file_still_defines_stays(tmp_path: Path, payload: Path) -> None:
    node = containerd_2(tmp_path)
    assert errors(run(node, INSTALL, payload)) == []
    text = f"version = 3\n[{CRI_3}.containerd]\n{DEFAULT}[{CRI_3}.containerd.runtimes.kata-qemu]\n{RUNC}"
    write(node, COPY, f"{text}runtime_path = '/usr/x'\n")
    node.restart(node.unit_name, 1)
    assert errors(run(node, REVERT, payload)) == []
    assert read(node, COPY) == f"{text}runtime_path = '/usr/x'\n"


def test_a_default_handler_that_an_administrator_chose_is_named_with_its_file(
    tmp_path: Path, payload: Path
) -> None:
    node = containerd_2(tmp_path)
    assert errors(run(node, INSTALL, payload)) == []
    text = f"version = 3\n[{CRI_3}.containerd]\n{DEFAULT}"
    write(node, COPY, text)
    node.restart(node.unit_name, 1)
    before = snapshot(node, "etc")
    reports = run(node, REVERT, payload)
    error = reports[-1].error
    assert error is not None
    assert f"remove the setting of the default handler from {COPY}, or name another" in error.hint
    assert "restart containerd.service, end the pods that run on it" in error.hint
    assert (exit_code(reports), snapshot(node, "etc")) == (3, before)
    write(node, COPY, "version = 3\n")
    assert errors(run(node, REVERT, payload)) == []


def test_the_default_handler_of_crio_leaves_a_copy_with_the_revert(tmp_path: Path, payload: Path) -> None:
    node = make_node(NODE_VARIANTS["CRI-O"], tmp_path / "host")
    assert errors(run(node, INSTALL, payload)) == []
    path = "/etc/crio/crio.conf.d/20-copy.conf"
    kept = "[crio.runtime]\nlog_level = 'info'\n"
    table = f"[crio.runtime.runtimes.kata-qemu]\nruntime_path = '{PROGRAM}'\n"
    write(node, path, f"{kept}Default_Runtime = 'kata-qemu'\n{table}")
    assert errors(run(node, REVERT, payload)) == []
    assert read(node, path) == kept


def test_a_revert_of_a_template_that_cannot_be_parsed_is_refused_for_good(
    tmp_path: Path, payload: Path
) -> None:
    kind = NODE_VARIANTS["k3s with drop-ins"]
    node = make_node(kind, tmp_path / "host")
    assert errors(run(node, INSTALL, payload, k8s_distribution="k3s")) == []
    text = f"{{{{ range .X }}}}[x.{{{{ .Y }}}}]\n{{{{ end }}}}\n[{CRI_3}.containerd]\n{DEFAULT}{COPIED}"
    write(node, TEMPLATE, text)
    before = snapshot(node, "etc")
    reports = run(node, REVERT, payload, k8s_distribution="k3s")
    assert exit_code(reports) == 3
    error = reports[-1].error
    assert error is not None
    assert TEMPLATE in str(error)
    assert "remove these tables from the template by hand" in error.hint
    assert (snapshot(node, "etc"), read(node, TEMPLATE)) == (before, text)


def test_a_copy_whose_keys_have_another_case_is_found_by_the_install(tmp_path: Path, payload: Path) -> None:
    node = containerd_2(tmp_path)
    text = (
        "[Plugins.'io.containerd.cri.v1.runtime'.Containerd.Runtimes.kata-qemu]\n"
        f"Runtime_Path = '{PROGRAM}'\nSnapshotter = 'other'\n"
    )
    write(node, COPY.replace("99-copy", "zz-copy"), f"version = 3\n{text}")
    reports = run(node, INSTALL, payload)
    assert exit_code(reports) == 3
    assert "zz-copy.toml" in str(reports[-1].error)
    assert "differ" in str(reports[-1].error)


@pytest.mark.parametrize("key", ["monitor_path", "runtime_config_path", "seccomp_profile"])
def test_any_path_of_a_handler_of_crio_below_our_directory_is_ours(
    key: str, tmp_path: Path, payload: Path
) -> None:
    node = make_node(NODE_VARIANTS["CRI-O"], tmp_path / "host")
    assert errors(run(node, INSTALL, payload)) == []
    path = "/etc/crio/crio.conf.d/20-mine.conf"
    kept = '[crio.runtime]\nlog_level = "info"\n'
    write(node, path, f"{kept}[crio.runtime.runtimes.mine]\n{key} = '{PROGRAM}'\n")
    node.restart(node.unit_name, 1)
    node.pods = (Pod("shop", "web", "mine"),)
    reports = run(node, REVERT, payload)
    assert "shop/web (mine)" in str(reports[-1].error)
    node.pods = ()
    assert errors(run(node, REVERT, payload)) == []
    assert (node.handlers, read(node, path)) == (("crun",), kept)


def test_a_default_handler_that_k3s_itself_sets_is_named_with_its_option(
    tmp_path: Path, payload: Path
) -> None:
    node = make_node(NODE_VARIANTS["k3s with drop-ins"], tmp_path / "host")
    assert isinstance(node, TemplateNode)
    assert errors(run(node, INSTALL, payload, k8s_distribution="k3s")) == []
    node.base += f"[{CRI_3}.containerd]\n{DEFAULT}"
    node.restart(node.unit_name, 1)
    restarts = node.restarts
    reports = run(node, REVERT, payload, k8s_distribution="k3s")
    error = reports[-1].error
    assert error is not None
    assert "default_runtime_name is kata-qemu" in str(error)
    assert "take the default handler out of the options of k3s.service" in error.hint
    assert (exit_code(reports), node.restarts) == (3, restarts)
