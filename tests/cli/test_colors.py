"""Colors, and ``--quiet``: what people get on a terminal, and programs in a pipe."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.cli_runner import CliRunner, Result, open_cli_runner
from kata_node.cli.colors import paint

ESCAPE = "\x1b["


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def cli_runner(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[CliRunner]:
    with open_cli_runner(tmp_path, capsys) as cli_runner:
        yield cli_runner


def open_terminal(monkeypatch: pytest.MonkeyPatch) -> tuple[Terminal, Terminal]:
    """Make stdout and stderr terminals. Not a fixture: capsys would replace them again before the test."""
    out, err = Terminal(), Terminal()
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("sys.stderr", err)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return out, err


def test_a_person_gets_colors(cli_runner: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = open_terminal(monkeypatch)
    assert cli_runner.offline("plan").code == 10
    assert "\nartifacts        \x1b[33mplanned\x1b[0m  " in out.getvalue()
    assert '\n\x1b[32m+[plugins."io.containerd.cri.v1.runtime"' in out.getvalue()
    assert cli_runner.run("plan", "--deep").code == 2
    assert "\x1b[1;31merror:\x1b[0m no such option" in err.getvalue()


@pytest.mark.parametrize(
    ("variables", "arguments"),
    [
        pytest.param({"NO_COLOR": "1"}, [], id="NO_COLOR"),
        pytest.param({"TERM": "dumb"}, [], id="a dumb terminal"),
        pytest.param({}, ["--output", "json"], id="JSON"),
    ],
)
def test_no_colors_for_who_does_not_want_them(
    cli_runner: CliRunner, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], arguments: list[str]
) -> None:
    out, _ = open_terminal(monkeypatch)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cli_runner.offline("plan", *arguments).code == 10
    assert out.getvalue()
    assert ESCAPE not in out.getvalue()
    if arguments:
        json.loads(out.getvalue())


def test_no_colors_in_a_pipe(cli_runner: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    result = cli_runner.offline("plan")
    assert ESCAPE not in result.out + result.err


def test_colors_change_no_character_of_the_text() -> None:
    import re

    text = "\n".join(
        [
            "cri              failed   the runtime did not start",
            "  fail  kvm            /dev/kvm is missing",
            "  hint: load it",
            "--- /etc/a\n+++ /etc/a\n@@ -1 +1 @@\n-a\n+b\n \nlabel  skipped  x",
            "- not a diff",
            "kata-deploy: drifted",
            "done",
        ]
    )
    painted = paint(text)
    assert re.sub("\x1b\\[[0-9;]*m", "", painted) == text
    assert "\x1b[31mfailed\x1b[0m   the" in painted
    assert "\n\x1b[31m-a\x1b[0m\n" in painted
    assert "\n- not a diff\n" in painted


def test_a_path_cannot_color_or_command_the_terminal(
    cli_runner: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, err = open_terminal(monkeypatch)
    assert cli_runner.offline("install").code == 0
    (cli_runner.host / "opt/kata/x\x1b[2J\u202e").touch()
    assert cli_runner.offline("plan", "revert").code == 10
    assert r"/opt/kata/x\x1b[2J\u202e" in out.getvalue()
    assert "\x1b[2J" not in out.getvalue() + err.getvalue()


# --- --quiet ----------------------------------------------------------------------------------------


def test_quiet_prints_nothing_that_is_well(cli_runner: CliRunner) -> None:
    assert cli_runner.offline("plan", "--quiet") == Result(10, "", "")
    assert cli_runner.offline("install", "--quiet") == Result(0, "", "")
    assert cli_runner.offline("status", "--quiet").out == ""
    assert cli_runner.offline("plan", "--quiet") == Result(0, "", "")
    assert cli_runner.run("payload", "index", cli_runner.payload, "--quiet") == Result(0, "", "")


def test_a_level_on_the_command_line_wins_over_the_variable_of_quiet(
    cli_runner: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KATA_NODE_QUIET", "1")
    assert cli_runner.offline("status").out == ""
    assert "no installation" in cli_runner.offline("status", "--log-level", "info").out
    assert cli_runner.offline("status", "--log-level", "error").out == ""
    monkeypatch.setenv("KATA_NODE_QUIET", "")
    monkeypatch.setenv("KATA_NODE_LOG_LEVEL", "debug")
    assert cli_runner.offline("status", "--quiet") == Result(10, "", "")
    refused = cli_runner.offline("status", "--quiet", "--log-level", "info")
    assert (refused.code, "cannot be combined" in refused.err) == (2, True)


def test_quiet_prints_errors_once_and_warnings(
    cli_runner: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KATA_NODE_HOSTROOT", "/mnt")
    (cli_runner.host / "etc/containerd/config.toml").write_text("version = [\n")
    result = cli_runner.offline("install", "--quiet")
    assert (result.code, result.out) == (3, "")
    assert result.err.count("not valid TOML") == 1
    assert "  hint: " in result.err
    assert "did you mean KATA_NODE_HOST_ROOT?" in result.err


def test_quiet_leaves_the_json_document(cli_runner: CliRunner) -> None:
    result = cli_runner.offline("install", "--quiet", "--output=json")
    assert (result.json["outcome"], result.err) == ("ok", "")


def test_quiet_and_a_louder_log_contradict_each_other(
    cli_runner: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = cli_runner.offline("install", "--quiet", "--log-level", "debug")
    assert result.code == 2
    assert "--quiet: it cannot be combined with --log-level debug" in result.err
    monkeypatch.setenv("KATA_NODE_LOG_LEVEL", "debug")
    assert cli_runner.offline("plan", "--quiet") == Result(10, "", "")
