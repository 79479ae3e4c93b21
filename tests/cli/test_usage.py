"""Options, environment variables, help, and the output formats, as the user sees them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from msgspec.structs import fields

from cli.cli_runner import MAIN, CliRunner, Result, open_cli_runner
from kata_node import __main__, __version__
from kata_node.cli import commands
from kata_node.cli.options import Common, StageName, env_variable


@pytest.fixture
def cli_runner(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[CliRunner]:
    with open_cli_runner(tmp_path, capsys) as cli_runner:
        yield cli_runner


# --- wrong usage ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param(["instal"], ["no such command 'instal'", "'install'", "kata-node --help"], id="command"),
        pytest.param(["payload"], ["missing command", "kata-node payload --help"], id="half a command"),
        pytest.param(["install", "now"], ["now", "kata-node install --help"], id="too much"),
        pytest.param(
            ["install", "--hostroot", "/"],
            ["--hostroot", "--host-root", "kata-node install --help"],
            id="option",
        ),
        pytest.param(
            ["--offline", "install"],
            ["--offline", "put options after the command"],
            id="option before the command",
        ),
        pytest.param(["stage"], ["STAGE", "missing", "kata-node stage --help"], id="no stage"),
        pytest.param(
            ["stage", "crio"], ["STAGE", "'crio'", "'host-check', 'claim', 'artifacts', 'cri',"], id="stage"
        ),
        pytest.param(["plan", "uninstall"], ["'uninstall'", "'install', 'revert'"], id="direction"),
        pytest.param(["install", "--config"], ["--config", "kata-node install --help"], id="no value"),
        pytest.param(["install", "--offline=yes"], ["--offline", "kata-node install --help"], id="a value"),
        pytest.param(["install", "--host-root", ""], ["--host-root", "expected a path"], id="empty path"),
        pytest.param(["install", "--output", "yaml"], ["--output", "'text', 'json'"], id="output"),
        pytest.param(["install", "--log-level", "loud"], ["--log-level", "'debug', 'info',"], id="log level"),
        pytest.param(["install", "--lock-timeout", "5m"], ["--lock-timeout", "seconds", "got 5m"], id="unit"),
        pytest.param(
            ["install", "--lock-timeout", "-1"], ["--lock-timeout", "0 or more", "-1"], id="negative"
        ),
        pytest.param(["install", "--lock-timeout", "nan"], ["--lock-timeout", "got nan"], id="no number"),
        pytest.param(["install", "--restart-timeout", "inf"], ["--restart-timeout", "got inf"], id="endless"),
    ],
)
def test_an_error_about_wrong_usage_says_what_is_valid(
    cli_runner: CliRunner, arguments: list[str], says: list[str]
) -> None:
    result = cli_runner.run(*arguments)
    assert (result.code, result.out) == (2, "")
    assert re.fullmatch(r"error: .+\n  hint: .+\n", result.err)
    assert [text for text in says if text not in result.err] == [], result.err


def test_an_error_names_the_variable_with_the_wrong_value(
    cli_runner: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KATA_NODE_LABEL_TIMEOUT", "5m")
    result = cli_runner.run("install")
    assert result.code == 2
    assert result.err.startswith("error: KATA_NODE_LABEL_TIMEOUT: expected a number of seconds")
    assert cli_runner.offline("install", "--label-timeout", "5").code == 0


def test_an_option_wins_over_its_variable(
    cli_runner: CliRunner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in (
        ("HOST_ROOT", str(cli_runner.host)),
        ("PAYLOAD", str(cli_runner.payload)),
        ("OFFLINE", "1"),
        ("RUNTIME", "containerd://2.1.9"),
        ("OUTPUT", "json"),
        ("SHIMS", "clh"),
        ("CONFIG", ""),
    ):
        monkeypatch.setenv(f"KATA_NODE_{name}", value)
    assert cli_runner.run("install").json["outcome"] == "ok"
    assert "handler    kata-clh" in cli_runner.run("status", "--output=text").out
    (tmp_path / "other").mkdir()
    assert cli_runner.run("status", "--host-root", tmp_path / "other").json["installations"] == []


def options_of(name: str) -> list[Any]:
    command: Any = typer.main.get_command(commands.app)
    return [each for each in command.commands[name].params if each.param_type_name == "option"]


HARMLESS = ("dry_run", "restart_timeout", "wait_for_pods", "ignore_pods", "label_timeout", "label_stable_for")
PLACING = ("user_drop_in", "payload", "payload_release", "shims", "ignore_unread_config", "retry_refused")


@pytest.mark.parametrize(
    ("command", "lacks"),
    [
        ("plan", (*HARMLESS, "reports", "termination_log")),
        (
            "status",
            (*HARMLESS, "helm_release", "reports", "termination_log", "verbose", *PLACING, "lock_timeout"),
        ),
        ("revert", (*PLACING, "reports")),
        ("install", ("reports",)),
        ("daemon", ("dry_run", "verbose", "reports", "quiet")),
    ],
)
def test_a_command_has_only_options_that_mean_something(command: str, lacks: tuple[str, ...]) -> None:
    names = {each.name for each in options_of(command)}
    assert names & set(lacks) == set()
    assert names >= {each.name for each in fields(Common)} - set(lacks) - {
        *HARMLESS,
        *("expected_machine_id", "lock_timeout"),
    }


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        pytest.param(
            ["status", "--dry-run"],
            "--dry-run is an option of install, revert and stage; run kata-node status --help",
            id="of several commands",
        ),
        pytest.param(
            ["plan", "--deep"], "--deep is an option of status; run kata-node plan --help", id="of one"
        ),
        pytest.param(
            ["values", "check", "--write=x", "f"],
            "--write is an option of values convert; run kata-node values check --help",
            id="of a command with two words",
        ),
        pytest.param(["plan", "--no-such"], "run kata-node plan --help", id="of none"),
    ],
)
def test_an_option_of_other_commands_is_refused_with_their_names(
    cli_runner: CliRunner, arguments: list[str], hint: str
) -> None:
    result = cli_runner.run(*arguments)
    assert (result.code, result.out) == (2, "")
    assert result.err.endswith(f"\n  hint: {hint}\n")


@pytest.mark.parametrize("how", ["option", "variable"])
def test_a_cri_socket_that_is_no_absolute_path_is_refused(
    cli_runner: CliRunner, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    if how == "variable":
        monkeypatch.setenv("KATA_NODE_CRI_SOCKET", "run/crio.sock")
    options = ["--cri-socket", "run/crio.sock"] if how == "option" else []
    result = cli_runner.run("status", "--host-root", cli_runner.host, *options)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: --cri-socket: expected an absolute path, got run/crio.sock\n")


def test_a_variable_of_other_commands_is_ignored(
    cli_runner: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DRY_RUN", "IGNORE_PODS", "WAIT_FOR_PODS", "PAYLOAD", "REPORTS", "LABEL_TIMEOUT"):
        monkeypatch.setenv(f"KATA_NODE_{name}", "5m")
    assert cli_runner.offline("status") == Result(10, "no installation on this node\n", "")


def test_the_termination_message_of_a_pod_is_not_that_of_a_command_that_only_looks(
    cli_runner: CliRunner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    message = tmp_path / "termination-log"
    message.write_text("of the pod")
    monkeypatch.setenv("KATA_NODE_TERMINATION_LOG", str(message))
    assert cli_runner.offline("plan").code == 10
    for command in ("plan", "status"):
        assert cli_runner.run(command, "--host-root", "/nowhere").code == 2
    for arguments in (("payload", "index", "/nowhere"), ("values", "check", "/nowhere"), ("explain", "?")):
        assert cli_runner.run(*arguments).code > 0
    assert message.read_text() == "of the pod"


def test_every_option_has_a_variable() -> None:
    options = {option.name: option for option in options_of("stage")}
    assert [each.name for each in fields(Common)] == list(options)
    for name, option in options.items():
        assert option.opts == [f"--{name.replace('_', '-')}"]
        assert option.envvar[0] == env_variable(name) == f"KATA_NODE_{name.upper()}"


def test_a_misspelled_variable_causes_a_warning_and_those_of_a_service_do_not(
    cli_runner: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("KATA_NODE_HOSTROOT", "KATA_NODE_PORT", "KATA_NODE_SERVICE_HOST", "KATA_NODE_REQUIRE_NODES"):
        monkeypatch.setenv(name, "/mnt")
    (line,) = cli_runner.offline("status").err.splitlines()
    assert line.endswith(
        "the variable KATA_NODE_HOSTROOT is not an option; did you mean KATA_NODE_HOST_ROOT?"
    )


# --- the places of a result ------------------------------------------------------------------------

FAILURES = [
    pytest.param(["install", "--hostroot", "/"], "install", "no such option", id="usage"),
    pytest.param(["stage", "--lock-timeout=5m", "cri"], "cri", "expected a number of seconds", id="option"),
    pytest.param(["install", "--offline", "--shims", "qmeu"], "install", "qmeu is not a shim", id="settings"),
    pytest.param(["revert", "--host-root", "/nowhere"], "revert", "the host root", id="host root"),
    pytest.param(
        ["stage", "artifacts", "--offline", "--host-root=/nowhere"], "artifacts", "the host root", id="stage"
    ),
]


@pytest.mark.parametrize(("arguments", "name", "says"), FAILURES)
@pytest.mark.parametrize("how", ["option", "variable"])
def test_an_error_before_the_first_stage_is_in_the_document_and_in_the_termination_message(
    cli_runner: CliRunner,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    name: str,
    says: str,
    how: str,
) -> None:
    message = tmp_path / "termination-log"
    message.touch()
    if how == "option":
        arguments = [*arguments, "--output", "json", f"--termination-log={message}"]
    else:
        monkeypatch.setenv("KATA_NODE_OUTPUT", "json")
        monkeypatch.setenv("KATA_NODE_TERMINATION_LOG", str(message))
    result = cli_runner.run(*arguments)
    assert result.code == 2
    assert result.json.keys() == {"outcome", "error"}
    error = result.json["error"]
    assert result.json["outcome"] == "failed"
    assert error["exit_code"] == 2
    assert says in error["what"]
    assert error["hint"] != ""
    assert says in result.err
    written = json.loads(message.read_bytes())
    assert (written["stage"], written["outcome"], written["error"]) == (name, "failed", error)


def test_a_failed_stage_is_in_the_document_the_termination_message_and_the_log(
    cli_runner: CliRunner, tmp_path: Path
) -> None:
    message = tmp_path / "termination-log"
    message.touch()
    (cli_runner.host / MAIN).write_text("version = [\n")
    result = cli_runner.offline("install", "--output", "json", "--termination-log", message)
    (stage,) = result.json["stages"]
    assert result.code == 3
    assert result.json["outcome"] == stage["outcome"] == "failed"
    assert result.json["error"] == stage["error"] == json.loads(message.read_bytes())["error"]
    assert "error: host-check: " in result.err
    assert "not valid TOML" in result.err


def test_the_termination_message_of_a_successful_run_is_its_last_stage(
    cli_runner: CliRunner, tmp_path: Path
) -> None:
    message = tmp_path / "termination-log"
    message.write_text("x" * 1000)
    assert cli_runner.offline("install", "--termination-log", message).code == 0
    assert json.loads(message.read_bytes()) == {
        "stage": "label",
        "outcome": "skipped",
        "summary": "nothing to label: offline",
    }


# --- help -------------------------------------------------------------------------------------------

COMMANDS: tuple[list[str], ...] = (
    [],
    ["install"],
    ["revert"],
    ["plan"],
    ["status"],
    ["stage"],
    ["explain"],
    ["completion"],
    ["payload"],
    ["payload", "index"],
)


@pytest.mark.parametrize("command", [pytest.param(each, id=" ".join(each) or "none") for each in COMMANDS])
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_every_command_has_help(cli_runner: CliRunner, command: list[str], flag: str) -> None:
    result = cli_runner.run(*command, flag)
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(f"Usage: {' '.join(['kata-node', *command])} ")
    assert "..." not in re.sub(r"\A.*\n", "", result.out), "a sentence is cut off"
    for line in result.out.splitlines():
        assert len(line) <= 92


def test_the_options_are_in_groups_and_rich_is_not_used(cli_runner: CliRunner) -> None:
    help_text = cli_runner.run("install", "--help").out
    assert re.findall(r"(?m)^(\S.*):$", help_text) == ["What", "Where", "How to wait", "Output"]
    assert "--lock-timeout" in help_text.partition("\nHow to wait:")[2].partition("\nOutput:")[0]
    assert "\x1b" not in help_text


def test_help_fits_a_narrow_terminal(cli_runner: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    assert cli_runner.run("install", "--help").code == 0


def test_help_names_every_stage_and_exit_code(cli_runner: CliRunner) -> None:
    assert [name for name in StageName if name not in cli_runner.run("stage", "--help").out] == []
    assert [code for code in (0, 1, 2, 3, 4, 5, 10) if f" {code} " not in cli_runner.run("--help").out] == []


def test_without_a_command_the_help_goes_to_stderr(cli_runner: CliRunner) -> None:
    result = cli_runner.run()
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("Usage: kata-node ")


def test_version_prints_the_version_and_does_nothing_else(cli_runner: CliRunner) -> None:
    before = cli_runner.files()
    for arguments in (["--version"], ["--version", "install", "--offline", "--host-root", cli_runner.host]):
        assert cli_runner.run(*arguments) == Result(0, f"kata-node {__version__}\n", "")
    assert cli_runner.files() == before


def test_the_program_exits_with_the_exit_code(
    cli_runner: CliRunner, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, code in ((["plan", "--offline", *cli_runner.path_options], 10), (["nonsense"], 2)):
        monkeypatch.setattr("sys.argv", ["kata-node", *map(str, arguments)])
        monkeypatch.setenv("KATA_NODE_RUNTIME", "containerd://2.1.9")
        with pytest.raises(SystemExit) as exit_:
            __main__.main()
        assert exit_.value.code == code
    monkeypatch.setattr("sys.argv", ["kata-node", "--version"])
    capsys.readouterr()
    __main__.main()
    assert capsys.readouterr().out == f"kata-node {__version__}\n"
