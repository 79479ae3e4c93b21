"""The record of the last run: when it is written, how it is read, and that it never fails a run."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import msgspec.json
import pytest

from fakes import FakeNode
from kata_node import __version__
from kata_node.errors import IneligibleNodeError
from kata_node.host import reserve
from kata_node.host.files import Root
from kata_node.plan import last_run
from kata_node.plan import receipt as receipts
from kata_node.plan.actions import RemoveReceipt
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
        pytest.param(
            ["artifacts done", "cri done", "artifacts skipped", "cri done"], ["cri done"], id="older-files"
        ),
        pytest.param(
            ["artifacts done", "artifacts skipped", "cri done"],
            ["artifacts skipped", "cri done"],
            id="killed-before-the-runtime",
        ),
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


FAILED = StageReport("artifacts", "failed", "summary", error=ERROR)


def test_a_first_install_that_failed_is_recorded_until_a_run_succeeds(tmp_path: Path) -> None:
    root = Root(tmp_path)
    root.make_dirs("/run/kata-node", mode=0o700)
    last_run.record(root, INSTALL_DIR, FAILED, TYPED, STARTED)
    assert recorded(root) == ["artifacts failed"]
    assert last_run.load(root, "/opt/kata-blue") is None
    assert not root.exists("/opt"), "a rollback leaves nothing but what a reboot removes"
    receipts.save(root, Receipt("default", INSTALL_DIR, "1.0"))
    record(root, "artifacts")
    assert recorded(root) == ["artifacts done"]
    assert root.list_dir("/run/kata-node") == []


@pytest.mark.parametrize("stage", ["revert-cri", "remove-artifacts"])
def test_a_revert_that_finds_nothing_forgets_a_failed_install(tmp_path: Path, stage: str) -> None:
    root = Root(tmp_path)
    root.make_dirs("/run/kata-node", mode=0o700)
    last_run.record(root, INSTALL_DIR, FAILED, TYPED, STARTED)
    last_run.record(root, INSTALL_DIR, StageReport(stage, "skipped", "nothing"), TYPED, STARTED)
    assert recorded(root) == []


def test_a_node_image_gets_no_record_of_a_failed_install(tmp_path: Path) -> None:
    root = Root(tmp_path)
    root.make_dirs("/run/kata-node", mode=0o700)
    last_run.record(root, INSTALL_DIR, FAILED, Invocation("install", ("--offline",)), STARTED)
    assert recorded(root) == []


def test_a_command_that_is_too_long_for_the_record_is_marked(root: Root) -> None:
    for options in (("--shims", "x" * 601), ("--x",) * 41, ("--shims", "a\nb")):
        report = StageReport("artifacts", "done", "summary")
        last_run.record(root, INSTALL_DIR, report, Invocation("install", options), STARTED)
        found = last_run.load(root, INSTALL_DIR)
        assert found
        assert found.is_cut
    record(root, "artifacts")
    found = last_run.load(root, INSTALL_DIR)
    assert found
    assert not found.is_cut


def test_the_texts_of_a_foreign_record_are_bounded_and_printable(root: Root) -> None:
    stage = last_run.StageRun("cri\x1b[2J", "done", "\u202e", "now\nlater", error="e" * 5000)
    run = last_run.LastRun("install\a", ("--shims", "\x1b]0;title\a"), "\x9b" + "1" * 5000, (stage,) * 50)
    root.write(last_run.path(INSTALL_DIR), msgspec.json.encode(run), mode=0o600)
    found = last_run.load(root, INSTALL_DIR)
    assert found
    assert len(found.stages) == 4
    assert found.is_cut
    texts = [found.command, *found.options, found.program, found.ended]
    texts += [text for each in found.stages for text in (each.stage, each.started, each.ended, each.error)]
    assert [text for text in texts if not text.isprintable() or len(text) > 600] == []


@pytest.mark.parametrize("what", ["too large", "a symlink", "of another user"])
def test_what_is_not_a_record_of_ours_is_not_read(root: Root, tmp_path: Path, what: str) -> None:
    record(root, "artifacts")
    path = root.base / last_run.path(INSTALL_DIR)[1:]
    content = path.read_bytes()
    if what == "too large":
        path.write_bytes(content.rstrip() + b" " * (1 << 20))
    elif what == "a symlink":
        (tmp_path / "other").write_bytes(content)
        path.unlink()
        path.symlink_to("/other")
    else:
        path.chmod(0o666)
    assert last_run.load(root, INSTALL_DIR) is None


@pytest.mark.parametrize("content", [[], ["mine"]], ids=["empty", "with a file"])
def test_a_directory_in_its_place_holds_no_revert_up(
    root: Root, content: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    directory = root.base / last_run.path(INSTALL_DIR)[1:]
    directory.mkdir()
    for name in content:
        (directory / name).touch()
    RemoveReceipt(INSTALL_DIR).apply(FakeNode(root).clients())
    assert not root.exists(receipts.path(INSTALL_DIR))
    assert directory.exists() == bool(content)
    assert ("last-run.json: kata-node did not make this directory; it stays" in caplog.text) == bool(content)
