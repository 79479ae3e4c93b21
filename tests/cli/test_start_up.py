"""What a stage loads when it has nothing to do: its start takes most of its time."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.cli_runner import CliRunner, open_cli_runner
from kata_node.cli.options import StageName

MODULES = {
    "host-check": 144,
    "claim": 69,
    "artifacts": 86,
    "cri": 123,
    "label": 68,
    "unlabel": 69,
    "revert-cri": 110,
    "remove-artifacts": 87,
    "unclaim": 68,
    "check-pods": 111,
}
"""The most modules of ours that each stage loads. Before you raise a number, look whether an import can wait
until a run has something to do."""
MOST_ANNOTATIONS = 8
"""The most annotations that a stage may compile. msgspec compiles those of records that it decodes, unless
their module has the annotations as objects: without ``from __future__ import annotations``."""
NEVER = {
    *("typer", "rich", "yaml", "lightkube", "httpx2", "ssl", "psutil", "jeepney", "h2", "tomlkit"),
    *("dataclasses", "inspect", "typing_extensions"),
    *("subprocess", "shutil", "tempfile", "difflib", "backports.zstd", "compression.zstd"),
    *("kata_node.cli.commands", "kata_node.daemon", "kata_node.dispatcher", "kata_node.status"),
    *("kata_node.release", "kata_node.values", "kata_node.plan.dry_run", "kata_node.plan.preview"),
}
NOT_OF = {
    "tomli_w": ("claim", "artifacts", "label", "unlabel", "remove-artifacts", "unclaim"),
    "kata_node.checks": ("claim", "artifacts", "label", "unlabel", "remove-artifacts", "unclaim"),
    "kata_node.payload": ("claim", "label", "unlabel", "unclaim", "check-pods"),
    "kata_node.runtime": ("claim", "label", "unlabel", "unclaim", "artifacts"),
    "kata_node.cluster": ("host-check", "artifacts", "cri", "revert-cri", "remove-artifacts", "check-pods"),
}


@pytest.fixture
def cli_runner(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[CliRunner]:
    with open_cli_runner(tmp_path, capsys) as cli_runner:
        yield cli_runner


RUN = """
import atexit, gc, sys
from kata_node.__main__ import main


annotations = []


def count(event, details):
    if event == "compile" and details[1] == "<string>" and b"lambda" not in details[0]:  # not a named tuple
        annotations.append(details[0])


def report():
    print(*sys.modules, sep="\\n", file=sys.stderr)
    print("compiled", len(annotations), file=sys.stderr)
    # Until the stage begins, nothing looks for garbage. After that, something does.
    print("gc", gc.isenabled(), gc.get_freeze_count() > 1000, file=sys.stderr)


sys.addaudithook(count)
atexit.register(report)
main()
"""


@pytest.mark.commands
def test_a_stage_with_nothing_to_do_loads_few_modules(cli_runner: CliRunner) -> None:
    options = {
        "KATA_NODE_OFFLINE": "1",
        "KATA_NODE_HOST_ROOT": str(cli_runner.host),
        "KATA_NODE_PAYLOAD": str(cli_runner.payload),
        "KATA_NODE_RUNTIME": "containerd://2.1.9",
    }
    found, wrong = {}, []
    for name in StageName:
        if name == StageName.HOST_CHECK:
            assert cli_runner.offline("install").code == 0
        if name == StageName.UNLABEL:
            assert cli_runner.offline("revert").code == 0
        done = subprocess.run(
            [sys.executable, "-c", RUN, "stage", name],
            env={**os.environ, **options},
            capture_output=True,
            text=True,
            cwd="/",
        )
        assert done.returncode == 0, done.stderr
        loaded = set(done.stderr.splitlines())
        assert "gc True True" in loaded
        (compiled,) = (int(line.split()[1]) for line in loaded if line.startswith("compiled "))
        assert compiled <= MOST_ANNOTATIONS, name
        found[str(name)] = sum(each.partition(".")[0] in ("kata_node", "stages") for each in loaded)
        forbidden = NEVER | {each for each, stages in NOT_OF.items() if name in stages}
        wrong += [f"{name}: {each}" for each in sorted(loaded & forbidden)]
    assert " ".join(wrong) == ""
    assert {name: count for name, count in found.items() if count > MODULES[name]} == {}
