"""The record of the last run: when it is written, and that it never fails a run or outlives its receipt."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from kata_node import __version__
from kata_node.errors import IneligibleNodeError
from kata_node.host import reserve
from kata_node.host.files import Root
from kata_node.plan import last_run
from kata_node.plan import receipt as receipts
from kata_node.plan.last_run import Invocation
from kata_node.plan.receipt import Receipt
from kata_node.plan.report import Outcome, Problem, StageReport

INSTALL_DIR = "/opt/kata"
TYPED = Invocation("install", ("--config", "/root/values.yaml"))
STARTED = 1_700_000_000.0
ERROR = Problem.from_error(IneligibleNodeError("it is wrong", where="/etc/x", hint="correct it"))


@pytest.fixture
def root(tmp_path: Path) -> Root:
    """A root with the receipt of an installation."""
    found = Root(tmp_path)
    receipts.save(found, Receipt("default", INSTALL_DIR, "1.0"))
    return found


def record(root: Root, stage: str, outcome: Outcome = "done") -> None:
    report = StageReport(stage, outcome, "summary", error=ERROR if outcome == "failed" else None)
    last_run.record(root, INSTALL_DIR, report, TYPED, STARTED)


def recorded(root: Root) -> list[str]:
    found = last_run.load(root, INSTALL_DIR)
    return [f"{each.stage} {each.outcome}" for each in found.stages] if found else []


def test_the_record_has_the_command_the_version_the_times_and_the_error(root: Root) -> None:
    record(root, "artifacts", "failed")
    found = last_run.load(root, INSTALL_DIR)
    assert found is not None
    assert (found.invocation, found.program) == (TYPED, __version__)
    (stage,) = found.stages
    assert (stage.started, stage.exit_code, stage.error) == ("2023-11-14T22:13:20Z", 3, "/etc/x: it is wrong")
    assert stage.ended > stage.started
    info = root.lstat(last_run.path(INSTALL_DIR))
    assert info is not None
    assert info.st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("ended", "left"),
    [
        pytest.param(["artifacts done", "cri done"], ["artifacts done", "cri done"], id="one-job"),
        pytest.param(
            ["artifacts done", "cri failed", "cri done"], ["artifacts done", "cri done"], id="retry"
        ),
        pytest.param(
            ["artifacts done", "cri failed", "artifacts skipped", "cri done"],
            ["artifacts skipped", "cri done"],
            id="retry-of-all-stages",
        ),
        pytest.param(
            ["artifacts done", "cri done", "artifacts skipped", "cri skipped"],
            ["artifacts done", "cri done"],
            id="nothing-to-do",
        ),
        pytest.param(
            ["artifacts done", "cri done", "artifacts done", "cri skipped"],
            ["artifacts done", "cri skipped"],
            id="new-files-without-a-change-of-the-runtime",
        ),
        pytest.param(["artifacts done", "cri done", "revert-cri failed"], ["revert-cri failed"], id="revert"),
        pytest.param(
            ["revert-cri failed", "revert-cri done", "remove-artifacts failed"],
            ["revert-cri done", "remove-artifacts failed"],
            id="both-stages-of-a-revert",
        ),
        pytest.param(
            ["revert-cri failed", "artifacts skipped"], ["artifacts skipped"], id="install-after-revert"
        ),
        pytest.param(["artifacts skipped", "cri skipped"], [], id="install-of-an-earlier-version"),
        pytest.param(["host-check failed", "label failed"], [], id="stages-that-do-not-write"),
    ],
)
def test_the_stages_of_one_run_are_one_record(root: Root, ended: list[str], left: list[str]) -> None:
    for each in ended:
        stage, outcome = each.split()
        record(root, stage, outcome)  # type: ignore[arg-type]
    assert recorded(root) == left


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_on_a_full_disk_the_reserve_becomes_the_record(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    record(root, "artifacts")
    monkeypatch.setattr(reserve, "write_new", full_disk)
    record(root, "cri", "failed")
    assert recorded(root) == ["artifacts done", "cri failed"]


def test_a_record_that_cannot_be_written_does_not_leave_that_of_an_earlier_run(
    root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(root, "artifacts")
    reserve.forget(root, last_run.path(INSTALL_DIR))
    monkeypatch.setattr(reserve, "write_new", full_disk)
    record(root, "cri", "failed")
    assert recorded(root) == []


def test_there_is_no_record_without_a_receipt(root: Root) -> None:
    record(root, "cri")
    root.remove(receipts.path(INSTALL_DIR))
    record(root, "remove-artifacts")
    assert [name for name in root.list_dir(receipts.directory(INSTALL_DIR)) if last_run.NAME in name] == []


def test_nothing_is_written_where_another_user_can_write(root: Root) -> None:
    (root.base / "opt/kata/.kata-node").chmod(0o777)
    record(root, "cri")
    assert recorded(root) == []


def test_what_is_in_place_of_its_temporary_file_stops_no_run(root: Root) -> None:
    directory = root.base / "opt/kata/.kata-node/.last-run.json.kata-node-tmp"
    directory.mkdir()
    last_run.remove_leftover(root, INSTALL_DIR)
    directory.rmdir()
    directory.touch()
    last_run.remove_leftover(root, INSTALL_DIR)
    assert not directory.exists()
