"""Commands without options, as pods run them: they run without typer, and do the same as with it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import FieldInfo, fields

from cli.cli_runner import CliRunner, open_cli_runner
from kata_node.cli import commands, main
from kata_node.cli.options import COMMAND_OPTIONS, Common, StageName, env_variable
from kata_node.cli.variables import common_of_variables


@pytest.fixture
def cli_runner(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[CliRunner]:
    with open_cli_runner(tmp_path, capsys) as cli_runner:
        yield cli_runner


VALUES = {
    Path: "relative/path",
    bool: "1",
    str: " a b ",
    float: "3.5",
}
"""A value that is not the default, by the type of the option."""


def value_for(field: FieldInfo) -> str:
    if field.name in ("output", "log_level"):
        return {"output": "json", "log_level": "debug"}[field.name]
    checked = {"runtime": "containerd://2.0.1", "cri_socket": "/run/x.sock", "helm_release": "a-b/c"}
    if field.name in checked:
        return checked[field.name]
    return next(text for kind, text in VALUES.items() if kind.__name__ in str(field.type).partition(",")[0])


def by_typer(monkeypatch: pytest.MonkeyPatch, command: list[str]) -> Common:
    """Return the options that typer reads from the variables."""
    seen: list[Common] = []

    def run_stages(common: Common, names: object) -> int:
        seen.append(common)
        return 0

    monkeypatch.setattr(commands, "run_stages", run_stages)
    assert commands.run(command) == 0
    (common,) = seen
    return common


@pytest.mark.parametrize("command", [["stage", "cri"], ["install"], ["revert"]], ids=" ".join)
@pytest.mark.usefixtures("cli_runner")
def test_variables_mean_the_same_without_typer(monkeypatch: pytest.MonkeyPatch, command: list[str]) -> None:
    assert common_of_variables(command[0]) == by_typer(monkeypatch, command) == Common()
    monkeypatch.setenv("NODE_NAME", "one")
    assert common_of_variables(command[0]) == by_typer(monkeypatch, command) == Common(node_name="one")
    for field in fields(Common):
        monkeypatch.setenv(env_variable(field.name), value_for(field))
    found = common_of_variables(command[0])
    assert found == by_typer(monkeypatch, command)
    changed = {each.name for each in fields(Common) if getattr(found, each.name) != each.default}
    assert changed == set(COMMAND_OPTIONS[command[0]])


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        *((f"KATA_NODE_{name}", "5m") for name in ("OFFLINE", "WAIT_FOR_PODS", "OUTPUT", "LOG_LEVEL")),
        ("KATA_NODE_LOCK_TIMEOUT", "-1"),
        ("KATA_NODE_RESTART_TIMEOUT", "0"),
        ("KATA_NODE_CRI_SOCKET", "run/crio.sock"),
        ("KATA_NODE_RUNTIME", "docker"),
        ("KATA_NODE_HOST_ROOT", "/nowhere"),
        ("KATA_NODE_HOSTROOT", "/nowhere"),
        ("KATA_NODE_OFFLINE", "yes"),
        ("KATA_NODE_OFFLINE", "off"),
        ("KATA_NODE_QUIET", "1"),
    ],
)
def test_every_value_leads_to_the_same_result_without_typer(
    cli_runner: CliRunner, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    message = cli_runner.host / "message"
    message.touch()
    monkeypatch.setenv("KATA_NODE_OFFLINE", "1")
    monkeypatch.setenv("KATA_NODE_HOST_ROOT", str(cli_runner.host))
    monkeypatch.setenv("KATA_NODE_TERMINATION_LOG", str(message))
    monkeypatch.setenv(variable, value)
    found = []
    for arguments in (("stage", "label"), ("stage", "label", "--ignore-pods")):  # the second one with typer
        result = cli_runner.run(*arguments)
        without_time = re.sub(r"(?m)^\S+Z ", "", result.err)
        found.append((result.code, result.out, without_time, message.read_text()))
    assert found[0] == found[1]


def test_a_completion_script_gets_completions(cli_runner: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main, "run_stages", lambda common, names: pytest.fail("it ran"))
    monkeypatch.setenv("_KATA_NODE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "kata-node stage cla")
    monkeypatch.setenv("COMP_CWORD", "2")
    with pytest.raises(SystemExit):
        cli_runner.run("stage", "claim")


@pytest.mark.parametrize("arguments", [["stage"], ["stage", "crio"], ["install", "now"]], ids=" ".join)
def test_a_wrong_command_line_is_left_to_typer(cli_runner: CliRunner, arguments: list[str]) -> None:
    result = cli_runner.run(*arguments)
    assert (result.code, result.out) == (2, "")
    assert "--help" in result.err


def test_every_stage_runs_without_options(cli_runner: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[StageName, ...]] = []

    def run_stages(common: Common, names: tuple[StageName, ...]) -> int:
        ran.append(names)
        return 3

    monkeypatch.setattr(main, "run_stages", run_stages)
    assert {cli_runner.run("stage", name).code for name in StageName} == {3}
    assert ran == [(name,) for name in StageName]
