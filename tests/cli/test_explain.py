"""``kata-node explain``: the troubleshooting guide on the command line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.cli_runner import CliRunner, open_cli_runner
from kata_node import errors
from kata_node.cli import explain

CHECKOUT = Path(__file__).resolve().parents[2]
SOURCES = [path.read_text() for path in (CHECKOUT / "kata_node").rglob("*.py")]
CHECKS = sorted(
    {name for text in SOURCES for name in re.findall(r'\bFinding\(\s*f?"([\w.-]+(?:\{[^}]+\})?)"', text)}
)
"""The names of all checks in the code. One that is put together has a part in braces."""


def exit_codes() -> set[int]:
    kinds = [errors.KataNodeError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    named = {int(code) for text in SOURCES for code in re.findall(r"(?m)^EXIT_[A-Z_]+ = (\d+)$", text)}
    return {0} | {kind.exit_code for kind in kinds} | named


@pytest.fixture
def cli_runner(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[CliRunner]:
    with open_cli_runner(tmp_path, capsys) as cli_runner:
        yield cli_runner


@pytest.mark.parametrize("name", CHECKS)
def test_every_check_is_explained(cli_runner: CliRunner, name: str) -> None:
    name = re.sub(r"\{.*\}", "x", name)
    result = cli_runner.run("explain", name)
    assert result.code == 0, f"docs/troubleshooting.md has no row for the check `{name}`: add one"
    assert "a check of host-check" in result.out
    assert re.search(r"\n(A failure or warning means): \w.*\n", result.out)
    assert re.search(r"\nWhat to do: \w", result.out), (
        f"the row of the check `{name}` does not say what to do"
    )


@pytest.mark.parametrize("code", sorted(exit_codes()))
def test_every_exit_code_is_explained(cli_runner: CliRunner, code: int) -> None:
    result = cli_runner.run("explain", str(code))
    assert result.code == 0, f"docs/reference/exit-codes.md has no row for the exit code {code}: add one"
    assert re.match(rf"exit code {code}: \S", result.out)
    assert re.search(r"\nWhat to do: \S", result.out)
    if 0 < code < 10:
        more = re.search(r"\nSee also: |\n-{3,}\n", result.out)
        assert more, f'"Start from the exit code" of docs/troubleshooting.md has no row for {code}: add one'


def test_the_tests_know_the_checks_and_codes() -> None:
    assert len(CHECKS) > 25
    assert exit_codes() >= {0, 1, 2, 3, 4, 5, 10}


@pytest.mark.parametrize("name", explain.read_guide().names)
def test_everything_fits_the_terminal_and_has_no_markup(
    cli_runner: CliRunner, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = cli_runner.run("explain", name)
    assert (result.code, result.err) == (0, "")
    assert max(map(len, result.out.splitlines())) <= 80
    prose = re.sub(r"`[^`]*`|^See also:(.+\n)+", "", result.out, flags=re.MULTILINE)
    assert not re.search(r"\]\(|\*\*|\||<!--|^#", prose, flags=re.MULTILINE), result.out


def test_a_name_leads_to_further_ones_that_exist() -> None:
    guide = explain.read_guide()
    for name in guide.names:
        for part in guide.find(name):
            assert set(part.see) <= set(guide.topics), name


def test_without_a_name_it_lists_all(cli_runner: CliRunner) -> None:
    out = cli_runner.run("explain").out
    for each in ("kvm", "erofs", "   4  Failed and rolled back.", "  the-lock  ", "Topics:"):
        assert each in out
    document = cli_runner.run("explain", "--output", "json").json
    assert document["outcome"] == "ok"
    assert document["exit_codes"]["5"].startswith("exit code 5: Another run")
    assert {"kvm", "tee-…"} <= set(document["checks"])


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("kvn", "did you mean kvm?"),
        ("snapshoter", "did you mean snapshotter"),
        ("lock", "the-lock"),
        ("receipt", "the-receipt"),
        ("77", "run kata-node explain to list all names"),
    ],
)
def test_an_unknown_name_suggests_near_ones(cli_runner: CliRunner, name: str, says: str) -> None:
    result = cli_runner.run("explain", name)
    assert (result.code, result.out) == (2, "")
    assert f"neither a check nor an exit code nor a topic: {name}" in result.err
    assert says in result.err


def test_a_check_and_a_topic_of_the_same_name_are_both_explained(cli_runner: CliRunner) -> None:
    parts = cli_runner.run("explain", "payload", "--output=json").json["explanations"]
    assert [each["title"] for each in parts] == ["payload: a check of host-check", "Payload"]


def test_an_exit_code_with_one_section_has_it_below(cli_runner: CliRunner) -> None:
    out = cli_runner.run("explain", "5").out
    assert "\nThe lock\n--------\n" in out
    assert "--lock-timeout" in out
    assert "See also: kata-node explain rolled-back | payload" in cli_runner.run("explain", "4").out


@pytest.mark.commands
def test_it_works_without_the_checkout_as_in_the_image(tmp_path: Path) -> None:
    """An installed package has the pages inside; nothing is read from elsewhere."""
    import shutil

    installed = tmp_path / "kata_node"
    shutil.copytree(CHECKOUT / "kata_node", installed, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (explain.TROUBLESHOOTING, explain.EXIT_CODES):
        target = installed / "docs" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(CHECKOUT / "docs" / name, target)
    done = subprocess.run(
        [sys.executable, "-P", "-m", "kata_node", "explain", "kvm"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.startswith("kvm: a check of host-check"), done.stderr
