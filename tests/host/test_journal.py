"""The journal command in hints works in a shell."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from kata_node.host.journal import journal_command

CAUSES = [
    'time="2026-11-23T04:14:11Z" level=error msg="Failure unmarshaling TOML" column=11',
    "containerd: failed to unmarshal TOML at row 1 column 11",
    "containerd.service: Main process exited, code=exited, status=1/FAILURE",
    '{"error":"failed to find snapshotter","level":"warning","msg":"failed to load plugin"}',
]
NOISE = [
    'time="2026-11-23T04:14:12Z" level=info msg="loading plugin" id=io.containerd.content.v1.content',
    'time="2026-11-23T04:14:12Z" level=debug msg="starting"',
    '{"level":"info","msg":"loading plugin"}',
]


@pytest.mark.commands
def test_the_command_shows_only_warnings_and_errors(tmp_path: Path) -> None:
    """The start after a rollback writes hundreds of lines after the cause."""
    lines = "\n".join([*NOISE * 10, *CAUSES, *NOISE * 200])
    program = tmp_path / "journalctl"
    program.write_text(f"#!/bin/sh\n[ \"$*\" = '-u a b.service -n 2000' ] && cat <<'END'\n{lines}\nEND\n")
    program.chmod(0o755)
    shown = subprocess.run(
        ["/bin/sh", "-c", journal_command("a b.service")],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.splitlines() == CAUSES
