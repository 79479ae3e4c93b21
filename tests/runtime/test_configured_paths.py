"""The configuration files that a runtime reads, by its unit and by its processes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from fakes import MAIN, FakeNode
from kata_node.errors import IneligibleNodeError
from kata_node.host import processes
from kata_node.host.files import Root
from kata_node.host.systemd import ExecEnvironment, UnitProcess
from kata_node.plan.context import Options, StageContext
from kata_node.plan.receipt import CriRecord, Receipt
from kata_node.runtime import compatibility
from kata_node.runtime.facts import RuntimeFacts, gather_facts, gather_facts_for_revert
from kata_node.settings import load as settings
from kata_node.settings.runtime import ContainerdSettings

FLATCAR = ("/usr/bin/env", "PATH=/usr/local/bin:/usr/bin", "containerd", "--config", "${CONTAINERD_CONFIG}")
SHELL = ("/bin/sh", "-c", "exec containerd --config /srv/c.toml")
CRIO_UNIT = ("/usr/bin/crio", "$CRIO_CONFIG_OPTIONS", "$CRIO_RUNTIME_OPTIONS")


def context_of(
    root: Path,
    argv: Sequence[str],
    environment: ExecEnvironment | None = None,
    running: Sequence[str] = (),
    *,
    values: ContainerdSettings | None = None,
    cri: CriRecord | None = None,
    crio: bool = False,
    socket: str = "",
    recorded_socket: str = "",
    **node: Any,
) -> StageContext:
    if crio:
        node |= {"unit_name": "crio.service", "runtime_name": "cri-o", "version": "1.36.3"}
    fake = FakeNode(
        Root(root),
        argv=tuple(argv),
        exec_environment=environment or ExecEnvironment(),
        running=tuple(UnitProcess(100 + at, line) for at, line in enumerate(running)),
        **node,
    )
    loaded = settings.load(None, overrides={"shims": "qemu"}, arch="x86_64")
    loaded = replace(loaded, containerd=values or loaded.containerd)
    receipt = Receipt("default", "/opt/kata", "1", cri=cri, socket=recorded_socket)
    return StageContext(loaded, receipt, fake.clients(), Options(Path(), cri_socket=socket))


def main_of(root: Path, argv: Sequence[str], *args: Any, **more: Any) -> str:
    return gather_facts(context_of(root, argv, *args, **more)).config_path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return the root of a node of which every file is visible."""
    (tmp_path / "usr").mkdir()
    (tmp_path / "etc/default").mkdir(parents=True)
    (tmp_path / "etc/default/containerd").write_text('ARGS="--config /file.toml -l debug"\n')
    return tmp_path


@pytest.mark.parametrize(
    ("argv", "environment", "main"),
    [
        pytest.param(
            FLATCAR, ExecEnvironment(("CONTAINERD_CONFIG=/run/c/c.toml",)), "/run/c/c.toml", id="flatcar"
        ),
        pytest.param(("containerd", "--config", "/config.toml"), None, "/config.toml", id="in-the-root"),
        pytest.param(
            ("containerd", "$ARGS"),
            ExecEnvironment(("ARGS=--config /unit.toml",), (("/etc/default/containerd", False),)),
            "/file.toml",
            id="the-file-comes-after-the-unit",
        ),
        pytest.param(
            ("containerd", "$ARGS"),
            ExecEnvironment(files=(("/etc/default/cont*", False),)),
            "/file.toml",
            id="a-glob",
        ),
        pytest.param(
            ("containerd", "$ARGS"),
            ExecEnvironment(files=(("/etc/none", True),)),
            MAIN,
            id="no-optional-file",
        ),
        pytest.param(
            ("containerd", "$ARGS"),
            ExecEnvironment(("ARGS=-c /x.toml",), unset=("ARGS",)),
            MAIN,
            id="an-unset-variable",
        ),
        pytest.param(
            ("containerd", "-c", "$ARGS"),
            ExecEnvironment(("ARGS=/x.toml",), expands=False),
            "/$ARGS",
            id="a-command-that-is-not-expanded",
        ),
        pytest.param(
            ("/usr/bin/env", "-C", "/srv", "containerd", "-c", "c.toml"),
            None,
            "/srv/c.toml",
            id="relative-to-the-directory-of-env",
        ),
        pytest.param(
            ("containerd", "-c", "c.toml"),
            ExecEnvironment(working_directory="/srv"),
            "/srv/c.toml",
            id="relative-to-the-working-directory",
        ),
    ],
)
def test_the_main_file_is_found_in_the_unit(
    argv: Sequence[str], environment: ExecEnvironment | None, main: str, root: Path
) -> None:
    assert main_of(root, argv, environment) == main


@pytest.mark.parametrize(
    ("argv", "running"),
    [
        pytest.param(SHELL, ["containerd --config /srv/c.toml"], id="the-shell-became-it"),
        pytest.param(
            SHELL, ["/bin/sh -c x", '"/usr/bin/containerd" "-c=/srv/c.toml"'], id="a-child-of-the-shell"
        ),
        pytest.param(
            SHELL,
            [
                "containerd -c /srv/c.toml",
                "/usr/bin/containerd-shim-runc-v2 -namespace k8s.io -address /run/c.sock",
                "containerd --address /run/c.sock publish --topic /tasks/exit",
            ],
            id="beside-shims",
        ),
        pytest.param(("/usr/local/bin/start",), ["containerd-2.1 --config /srv/c.toml"], id="a-script"),
    ],
)
def test_the_main_file_is_found_in_the_processes_of_the_unit(
    argv: Sequence[str], running: Sequence[str], root: Path
) -> None:
    assert main_of(root, argv, None, running) == "/srv/c.toml"


def test_the_process_itself_is_read_where_its_pid_is_the_one_of_the_node(
    root: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    process = root / "proc/42"
    process.mkdir(parents=True)
    (process / "cmdline").write_bytes(b"/usr/bin/containerd\0--config\0a b.toml\0")
    (process / "cwd").symlink_to("/srv")
    (process / "cgroup").write_text("0::/system.slice/containerd.service\n")
    assert main_of(root, SHELL) == "/srv/a b.toml"
    (process / "cgroup").write_text("0::/kubepods/pod1/other\n")
    with pytest.raises(IneligibleNodeError):
        main_of(root, SHELL)


@pytest.mark.parametrize(
    ("argv", "environment", "running", "says"),
    [
        pytest.param(SHELL, None, [], "runs /bin/sh", id="a-shell-without-its-processes"),
        pytest.param(SHELL, None, ["containerd -c c.toml"], "relative to a directory", id="relative"),
        pytest.param(
            SHELL, None, ["containerd -c /a", "containerd -c /b"], "different files", id="two-different-ones"
        ),
        pytest.param(
            ("containerd", "$ARGS"),
            ExecEnvironment(files=(("/etc/secret", False),)),
            [],
            "/etc/secret, which is not visible",
            id="variables-from-a-file-that-is-not-visible",
        ),
        pytest.param(
            ("containerd", "$ARGS"),
            ExecEnvironment(passed=("ARGS",)),
            [],
            "the variable ARGS",
            id="variables-of-systemd",
        ),
        pytest.param(
            ("/usr/bin/containerd",),
            None,
            ["containerd -c /b"],
            f"names {MAIN}, but the running process reads /b",
            id="changed-since-the-start",
        ),
        pytest.param(
            ("/usr/bin/containerd",), ExecEnvironment(root="/srv/root"), [], "/srv/root", id="another-root"
        ),
    ],
)
def test_without_values_a_main_file_that_is_not_known_is_an_error_that_names_the_values(
    argv: Sequence[str],
    environment: ExecEnvironment | None,
    running: Sequence[str],
    says: str,
    root: Path,
) -> None:
    with pytest.raises(IneligibleNodeError, match=says) as caught:
        main_of(root, argv, environment, running)
    assert "containerd.configDir" in caught.value.hint
    assert "configFileName" in caught.value.hint
    values = ContainerdSettings(config_dir="/srv/mine", config_file_name="c.toml")
    context = context_of(root, argv, environment, running, values=values)
    facts = gather_facts(context)
    assert facts.config_path == "/srv/mine/c.toml"
    assert compatibility.incompatibility(context.settings, facts, context.receipt) is None


@pytest.mark.parametrize(("first_bytes", "main"), [(b"#!/bin/sh\n", "/b"), (b"\x7fELF", MAIN)])
def test_a_program_that_differs_from_its_process_decides_by_what_it_is(
    first_bytes: bytes, main: str, root: Path
) -> None:
    (root / "usr/bin").mkdir()
    (root / "usr/bin/containerd").write_bytes(first_bytes)
    assert main_of(root, ("/usr/bin/containerd",), None, ["containerd -c /b"]) == main


def test_values_for_the_file_that_the_unit_reads_fit_even_by_another_path(root: Path) -> None:
    (root / "srv").symlink_to("etc")
    values = ContainerdSettings(config_dir="/etc/default", config_file_name="c.toml")
    context = context_of(root, ("containerd", "-c", "/srv/default/c.toml"), values=values)
    facts = gather_facts(context)
    assert compatibility.incompatibility(context.settings, facts, context.receipt) is None
    context = context_of(root, ("containerd", "-c", "/etc/other.toml"), values=values)
    error = compatibility.incompatibility(context.settings, gather_facts(context), context.receipt)
    assert error is not None
    assert "reads /etc/other.toml" in error.what


def record(config: str = "") -> CriRecord:
    served = ("serving", "containerd", "2.1.9", "containerd.service", "1", "boot", ("kata-qemu",), ())
    return CriRecord(*served, config=config)  # type: ignore[arg-type]


def test_a_revert_uses_the_recorded_file_and_socket(root: Path) -> None:
    cri, recorded = record(config="/srv/c.toml"), "/run/mine.sock"
    facts = gather_facts_for_revert(context_of(root, SHELL, cri=cri, recorded_socket=recorded))
    assert (facts.config_path, facts.distribution_runtime.socket) == ("/srv/c.toml", "/run/mine.sock")
    for more in (
        {"socket": "/run/flag.sock"},
        {"values": ContainerdSettings(runtime_socket="/run/flag.sock")},
    ):
        facts = gather_facts_for_revert(context_of(root, SHELL, cri=cri, recorded_socket=recorded, **more))
        assert facts.distribution_runtime.socket == "/run/flag.sock"


def test_a_revert_of_an_earlier_version_uses_the_usual_places(root: Path) -> None:
    facts: RuntimeFacts = gather_facts_for_revert(context_of(root, SHELL, cri=record()))
    assert (facts.config_path, facts.distribution_runtime.socket) == (MAIN, "/run/containerd/containerd.sock")


@pytest.mark.parametrize(
    ("argv", "environment", "running", "main", "drop_ins"),
    [
        pytest.param(CRIO_UNIT, None, [], "/etc/crio/crio.conf", "/etc/crio/crio.conf.d", id="as-packaged"),
        pytest.param(
            CRIO_UNIT,
            ExecEnvironment(("CRIO_CONFIG_OPTIONS=--config /srv/crio.conf",)),
            [],
            "/srv/crio.conf",
            "/etc/crio/crio.conf.d",
            id="main-file",
        ),
        pytest.param(
            ("/usr/bin/crio", "--config-dir=/srv/d", "-c", "/srv/m"), None, [], "/srv/m", "/srv/d", id="both"
        ),
        pytest.param(
            ("/usr/bin/crio",),
            ExecEnvironment(("CONTAINER_CONFIG_DIR=/srv/d",)),
            ["/usr/bin/crio"],
            "/etc/crio/crio.conf",
            "/srv/d",
            id="variable-of-crio",
        ),
        pytest.param(
            ("/usr/bin/env", "CONTAINER_CONFIG_DIR=/srv/d", "crio", "--", "-c", "/not/read"),
            None,
            ["/usr/bin/crio"],
            "/etc/crio/crio.conf",
            "/srv/d",
            id="variable-of-env",
        ),
        pytest.param(
            ("/bin/sh", "-c", "exec crio -d /srv/d"),
            None,
            ["crio -d /srv/d"],
            "/etc/crio/crio.conf",
            "/srv/d",
            id="in-its-process",
        ),
    ],
)
def test_the_files_of_crio_are_found_too(
    argv: Sequence[str],
    environment: ExecEnvironment | None,
    running: Sequence[str],
    main: str,
    drop_ins: str,
    root: Path,
) -> None:
    facts = gather_facts(context_of(root, argv, environment, running, crio=True))
    (location,) = facts.config.drop_in_locations()
    assert (facts.config_path, location.directory) == (main, drop_ins)


def test_a_crio_that_hides_its_files_is_refused(root: Path) -> None:
    with pytest.raises(IneligibleNodeError, match="/bin/sh") as caught:
        gather_facts(context_of(root, ("/bin/sh", "-c", "exec crio"), crio=True))
    assert "--config-dir" in caught.value.hint


@pytest.mark.parametrize(
    ("running", "directory"),
    [
        pytest.param(
            ["k3s server", "containerd -c /data/agent/etc/containerd/config.toml"], "/data", id="moved"
        ),
        pytest.param(["k3s server"], "/var/lib/rancher/k3s", id="not-visible"),
    ],
)
def test_k3s_with_another_data_directory_is_configured_there(
    running: Sequence[str], directory: str, root: Path
) -> None:
    facts = gather_facts(context_of(root, ("k3s", "server"), None, running, unit_name="k3s.service"))
    etc = f"{directory}/agent/etc/containerd"
    assert facts.config_path == f"{etc}/config.toml"
    assert facts.config.shared_paths()[0].startswith(f"{etc}/")
    assert facts.distribution_runtime.drop_in_dirs[3] == f"{etc}/config-v3.toml.d"


def test_a_process_of_another_pid_namespace_is_not_taken_for_the_one_of_the_unit(tmp_path: Path) -> None:
    assert processes.process_of_unit(Root(tmp_path), 1, "containerd.service") is None
    assert processes.process_of_unit(Root(tmp_path), 0, "containerd.service") is None
