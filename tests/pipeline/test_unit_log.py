"""A failed change shows what the unit of the runtime wrote, as text, in JSON and in the status of the pod."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from fakes import FakeNode
from kata_node.errors import SystemdError
from kata_node.host.host_program import HostProgram, ProgramOutput
from kata_node.plan import report
from kata_node.plan.report import StageReport, termination_message
from kata_node.runtime import restart, unit_log
from kata_node.text import TERMINATION_MESSAGE_LIMIT
from pipeline.harness import INSTALL, exit_code, make_node, run

REFUSED = "containerd: no space left for a pid file"
SAYS = f'containerd.service wrote: "{REFUSED}"'


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    monkeypatch.setattr(restart, "POLL", 0.001)
    monkeypatch.setattr(restart, "PATIENCE", 0.01)


@pytest.fixture
def node(tmp_path: Path) -> FakeNode:
    return make_node(tmp_path / "host")


def failed(node: FakeNode, payload: Path, code: int) -> StageReport:
    reports = run(node, INSTALL, payload)
    assert exit_code(reports) == code, reports
    return reports[-1]


@pytest.mark.parametrize(("refusals", "code"), [(1, 4), (2, 1)], ids=["rolled-back", "rollback-failed"])
def test_a_failed_start_is_reported_with_the_words_of_the_unit(
    node: FakeNode, payload: Path, refusals: int, code: int
) -> None:
    node.refusals = refusals
    found = failed(node, payload, code)
    assert f"  {SAYS}" in report.to_text(found).splitlines()
    assert report.to_json([found])["error"]["unit_log"] == SAYS
    assert json.loads(termination_message(found))["error"]["unit_log"] == SAYS


def test_the_words_are_one_short_line_without_control_characters(node: FakeNode, payload: Path) -> None:
    node.refusals = 1
    node.journal = ["containerd: \x1b[31mred\x1b[0m \u202e" + 'a "quoted" ' + "x" * 5000]
    found = failed(node, payload, 4)
    assert found.error
    words = found.error.unit_log
    assert words.isprintable()
    assert words.count('"') == 2
    assert len(words) < 700
    assert len(termination_message(found)) <= TERMINATION_MESSAGE_LIMIT


@pytest.mark.parametrize("journal", [[], ['time="x" level=info msg="loading plugin"']])
def test_a_unit_that_wrote_no_error_is_not_quoted(node: FakeNode, payload: Path, journal: list[str]) -> None:
    node.refusals = 1
    node.journal = journal
    node.keeps_silent = True
    found = failed(node, payload, 4)
    assert found.error
    assert found.error.unit_log == ""
    assert "unit_log" not in report.to_json([found])["error"]


def test_a_journal_that_cannot_be_read_does_not_hide_the_failure(
    node: FakeNode, payload: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(program: object) -> None:
        raise SystemdError("it is too old")

    monkeypatch.setattr(node, "run_program", refuse)
    node.refusals = 1
    found = failed(node, payload, 4)
    assert found.error
    assert "rolled back" in found.error.what


def test_a_slow_journal_is_waited_for_once_in_all(
    node: FakeNode, payload: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    def answer_late(program: HostProgram) -> ProgramOutput:
        waits.append(program.timeout)
        return ProgramOutput("", ended=False)

    clock = iter((0.0, 0.0, unit_log.TIMEOUT - 1, unit_log.TIMEOUT))
    monkeypatch.setattr(unit_log, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(node, "run_program", answer_late)
    node.refusals = 2
    failed(node, payload, 1)
    assert waits == [unit_log.TIMEOUT, 1.0]
