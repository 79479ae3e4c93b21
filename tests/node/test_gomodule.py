"""Build programs from Go modules: cached, complete, and with the reason of a failure."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from node import gomodule
from node.cache import CHECKOUT, NodeError, cache_dir
from node.conftest import BootNode
from node.containerd_build import NEWEST, PROGRAM

FAKE_GO = f"""\
#!/bin/sh
here=$(dirname "$0")
case "$*" in
  "env GOVERSION") echo go{gomodule.GO} ;;
  "mod download "*) printf '{{"Dir": "%s"}}' "$here/module" ;;
  "mod edit -json") echo '{{}}' ;;
  build*no-such-package) echo 'no such package' >&2; exit 1 ;;
  build*) while [ "$1" != -o ]; do shift; done; echo program >"$2"; echo "$2" >>"$here/builds" ;;
esac
"""


@pytest.fixture
def fake_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install a fake ``go`` that records its builds, and return the directory of the records."""
    (tmp_path / "go").write_text(FAKE_GO)
    (tmp_path / "go").chmod(0o755)
    (tmp_path / "module").mkdir()
    (tmp_path / "module" / "go.mod").write_text("module example.org/some\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("KATA_NODE_TEST_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_two_concurrent_requests_build_a_program_once_and_cache_it(fake_go: Path) -> None:
    with ThreadPoolExecutor() as pool:
        asked = [pool.submit(gomodule.build, "example.org/some", "v1.0.0", "./cmd/some") for _ in range(4)]
    (program,) = {each.result() for each in asked}
    assert program.read_text() == "program\n"
    assert len((fake_go / "builds").read_text().splitlines()) == 1
    assert [path.name for path in program.parent.iterdir()] == ["some"]


def test_every_build_input_changes_the_path_of_the_program(fake_go: Path) -> None:
    programs = {
        gomodule.build("example.org/some", "v1.0.0", "./cmd/some"),
        gomodule.build("example.org/some", "v1.0.1", "./cmd/some"),
        gomodule.build("example.org/some", "v1.0.0", "./cmd/some", tags="static"),
        gomodule.build("example.org/some", "v1.0.0", "./cmd/some", cgo=True),
        gomodule.build("example.org/some", "v1.0.0", "./cmd/some", ldflags="-s"),
    }
    assert len(programs) == 5


def test_a_failed_build_shows_the_reason_and_leaves_no_program(fake_go: Path) -> None:
    for _ in range(2):
        with pytest.raises(NodeError, match="no such package"):
            gomodule.build("example.org/some", "v1.0.0", "./cmd/no-such-package")
    assert not list((cache_dir() / "go").glob("no-such-package-*"))


def test_without_go_the_error_names_the_package_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("KATA_NODE_TEST_CACHE", str(tmp_path))
    with pytest.raises(NodeError, match="apt-get install golang-go"):
        gomodule.build("example.org/some", "v1.0.0", "./cmd/some")


def test_a_node_runs_a_release_built_from_its_module_and_is_upgraded_to_another(boot_node: BootNode) -> None:
    node = boot_node(containerd=NEWEST)
    assert node.cri().version == f"containerd://v{NEWEST}"
    node.run(["systemctl", "stop", "containerd"])
    assert "Read-only" in node.run(["touch", PROGRAM], check=False).stderr
    assert node.replace_containerd().version.startswith("containerd://2.1.")
    assert node.replace_containerd(NEWEST).version == f"containerd://v{NEWEST}"
    node.run(["systemctl", "stop", "containerd"])
    assert "Read-only" in node.run(["touch", PROGRAM], check=False).stderr


def test_testnode_boots_a_node_with_another_containerd_release(go: None) -> None:
    name = f"release-{os.getpid()}"
    testnode = [sys.executable, str(CHECKOUT / "scripts/testnode")]
    boot = [*testnode, "boot", "--name", name, "--containerd", NEWEST]
    try:
        done = subprocess.run(boot, capture_output=True, text=True, check=False)
        assert f"{name}: containerd://v{NEWEST}, up in" in done.stdout, done.stderr
    finally:
        subprocess.run([*testnode, "stop", "--name", name], check=True)
