"""The commands ``values check`` and ``values convert``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.cli_runner import CliRunner, open_cli_runner

OLD = "env:\n  # ours\n  shims: qemu\n"
NEW = "# ours\nshims:\n  disableAll: true\n  qemu:\n    enabled: true\n"


@pytest.fixture
def runner(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[CliRunner]:
    with open_cli_runner(tmp_path, capsys) as cli_runner:
        yield cli_runner


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "values.yaml"
    path.write_text(OLD)
    return path


def test_check_ends_with_2_and_the_errors_on_stdout(runner: CliRunner, file: Path) -> None:
    result = runner.run("values", "check", str(file))
    assert result.code == 2
    assert f"{file}: 1 error\nerror: chart, node: env.shims: is a key of an older chart" in result.out
    assert "hint: run `kata-node values convert`" in result.out
    document = runner.run("values", "check", str(file), "--output", "json").json
    assert document["outcome"] == "failed"
    assert {each["source"] for each in document["findings"]} == {"chart", "node"}


def test_check_of_a_good_file_shows_what_each_architecture_installs(runner: CliRunner, file: Path) -> None:
    file.write_text(NEW)
    result = runner.run("values", "check", str(file))
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines() == [
        f"{file}: no errors",
        *(f"{arch}: installs 1 shim: qemu" for arch in ("amd64", "arm64", "s390x", "ppc64le")),
    ]


def test_convert_shows_a_diff_and_changes_no_file(runner: CliRunner, file: Path) -> None:
    result = runner.run("values", "convert", str(file))
    assert result.code == 0
    assert "-  shims: qemu" in result.out
    assert "+  disableAll: true" in result.out
    assert file.read_text() == OLD
    assert runner.run("values", "convert", str(file), "--output", "json").json["values"] == NEW


def test_convert_writes_a_new_file_or_replaces_its_own(runner: CliRunner, file: Path, tmp_path: Path) -> None:
    new = tmp_path / "new.yaml"
    assert runner.run("values", "convert", str(file), "--write", str(new)).code == 0
    assert (new.read_text(), file.read_text()) == (NEW, OLD)
    file.chmod(0o640)
    link = tmp_path / "link.yaml"
    link.symlink_to(file)
    assert runner.run("values", "convert", str(file), "--write", str(link)).code == 0
    assert file.read_text() == NEW
    assert link.is_symlink()
    assert file.stat().st_mode & 0o777 == 0o640
    assert "no key of an older chart" in runner.run("values", "convert", str(file)).out


def test_convert_does_not_overwrite_another_file(runner: CliRunner, file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text("precious")
    result = runner.run("values", "convert", str(file), "--write", str(other))
    assert result.code == 2
    assert "the file exists and is not the file to convert" in result.err
    assert other.read_text() == "precious"
    assert sorted(each.name for each in tmp_path.iterdir() if each.suffix == ".yaml") == [
        "other.yaml",
        "values.yaml",
    ]


def test_what_a_person_should_look_at_is_on_stderr(runner: CliRunner, file: Path) -> None:
    file.write_text("env:\n  shims: 'qemu qemu-sev'\n")
    assert "does not have the shim qemu-sev any more" in runner.run("values", "convert", str(file)).err


@pytest.mark.parametrize("command", ["check", "convert"])
@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "No such file"), (b"a: [", "not valid YAML"), (b"- a", "a mapping"), (b"\xff", "not UTF-8")],
)
def test_a_file_that_is_no_values_file_ends_with_2(
    runner: CliRunner, file: Path, command: str, content: bytes | None, says: str
) -> None:
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    result = runner.run("values", command, str(file))
    assert (result.code, result.out) == (2, "")
    assert says in result.err
    assert str(file) in result.err
    assert "hint: " in result.err


@pytest.mark.parametrize("command", ["check", "convert"])
def test_a_fifo_in_place_of_the_file_is_refused_at_once(
    runner: CliRunner, tmp_path: Path, command: str
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    result = runner.run("values", command, str(fifo))
    assert result.code == 2
    assert "a FIFO is where a file is needed" in result.err


def test_a_file_that_is_no_yaml_is_refused_without_a_word_of_a_node(runner: CliRunner, file: Path) -> None:
    file.write_text("shims: [\n")
    for command in ("check", "convert"):
        result = runner.run("values", command, str(file))
        assert result.code == 2
        assert "hint: correct the YAML, then run again" in result.out + result.err
        assert "on this node" not in result.out + result.err
