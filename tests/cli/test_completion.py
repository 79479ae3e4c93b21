"""Completion in a shell: what typer's scripts get from this program."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.commands

KATA_NODE = [sys.executable, "-P", "-m", "kata_node"]


def completions(words: str, shell: str = "fish") -> list[str]:
    """Return the completions of the last word of a command line, without their texts."""
    variables = {
        "_KATA_NODE_COMPLETE": f"complete_{shell}",
        "_TYPER_COMPLETE_ARGS": f"kata-node {words}",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        "COMP_WORDS": f"kata-node {words}",
        "COMP_CWORD": str(len(f"kata-node {words}.".split()) - 1),
    }
    done = subprocess.run(
        KATA_NODE, env={**os.environ, **variables}, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    return [line.partition("\t")[0] for line in done.stdout.splitlines()]


@pytest.mark.parametrize("shell", ["bash", "fish"])
@pytest.mark.parametrize(
    ("words", "found", "missing"),
    [
        pytest.param("", {"install", "status", "explain", "values"}, {"wanted"}, id="commands"),
        pytest.param("re", {"revert"}, {"install"}, id="a command"),
        pytest.param("values ", {"check", "convert"}, {"install"}, id="commands below a command"),
        pytest.param("stage ", {"host-check", "cri", "remove-artifacts"}, set(), id="stages"),
        pytest.param("plan ", {"install", "revert"}, set(), id="directions"),
        pytest.param("install --", {"--offline", "--quiet", "--dry-run"}, {"--deep"}, id="options"),
        pytest.param("status --", {"--offline", "--deep"}, {"--dry-run"}, id="options of a command"),
        pytest.param("install --shims ", {"qemu", "clh", "qemu-runtime-rs"}, set(), id="shims"),
        pytest.param("install --shims qemu,cl", {"qemu,clh"}, {"clh"}, id="a second shim"),
        pytest.param("install --log-level ", {"debug", "error"}, set(), id="log levels"),
        pytest.param("explain k", {"kvm", "kata-config"}, {"payload"}, id="checks"),
        pytest.param("explain 1", {"1", "10"}, {"kvm"}, id="exit codes"),
        pytest.param("completion ", {"bash", "zsh", "fish"}, set(), id="shells"),
    ],
)
def test_it_completes(words: str, found: set[str], missing: set[str], shell: str) -> None:
    offered = set(completions(words, shell))
    assert found <= offered
    assert missing & offered == set()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell_runs_this_program(shell: str, tmp_path: Path) -> None:
    done = subprocess.run([*KATA_NODE, "completion", shell], capture_output=True, text=True, check=True)
    assert f"_KATA_NODE_COMPLETE=complete_{shell}" in done.stdout
    if program := shutil.which(shell):
        subprocess.run([program, "-n"], input=done.stdout, text=True, check=True)


def test_bash_completes_with_the_script(tmp_path: Path) -> None:
    program = tmp_path / "kata-node"
    program.write_text(f'#!/bin/sh\nexec {" ".join(KATA_NODE)} "$@"\n')
    program.chmod(0o755)
    script = (
        "source <(kata-node completion bash); COMP_WORDS=(kata-node stage re); COMP_CWORD=2; "
        '_kata_node_completion kata-node; echo "${COMPREPLY[@]}"'
    )
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script], env={**os.environ, "PATH": path}, capture_output=True, text=True, check=True
    )
    assert done.stdout == "revert-cri remove-artifacts\n", done.stderr


def test_an_unknown_shell_is_refused() -> None:
    done = subprocess.run([*KATA_NODE, "completion", "csh"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "'bash', 'zsh', 'fish'" in done.stderr
