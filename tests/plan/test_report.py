"""The report of a stage as text, as JSON and as a termination message."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from kata_node.errors import HostError, IneligibleNodeError, LockedError
from kata_node.plan import report as reports
from kata_node.plan.report import (
    Finding,
    Problem,
    StageReport,
    to_json,
    to_text,
    write_termination_message,
)
from kata_node.text import TERMINATION_MESSAGE_LIMIT

ERROR = Problem.from_error(
    HostError("No space left on device", where="/opt/kata/bin/qemu", hint="free some space")
)
DONE = StageReport(
    "artifacts",
    "done",
    "3 files placed (1.5 GiB)",
    changes=("place 3 files", "remove 1 file"),
    notes=("changed on the host: bin/qemu",),
    seconds=1.23456,
)
CHECKS = StageReport(
    "host-check",
    "failed",
    "1 passed, 1 warnings, 2 failed",
    checks=(
        Finding("kvm", "fail", "/dev/kvm is missing", "enable virtualization"),
        Finding("space", "fail", "1.0 GiB free", "free 2 GiB", permanent=False),
        Finding("vhost", "warn", "the module is not loaded", "modprobe vhost_vsock"),
        Finding("arch", "pass", "x86_64", "of no use here"),
        Finding("systemd", "skip", "offline"),
    ),
    error=Problem.from_error(
        IneligibleNodeError("kvm: /dev/kvm is missing; space: 1.0 GiB free", hint="enable it")
    ),
)


# --- text -------------------------------------------------------------------------------------------


def test_the_text_of_a_stage_is_a_summary_line_and_details() -> None:
    assert to_text(DONE).splitlines() == [
        "artifacts        done     3 files placed (1.5 GiB)",
        "  - place 3 files",
        "  - remove 1 file",
        "  note: changed on the host: bin/qemu",
    ]


def test_the_text_of_an_error_has_its_place_and_its_hint() -> None:
    failed = StageReport("artifacts", "failed", ERROR.what, error=ERROR)
    assert to_text(failed).splitlines() == [
        "artifacts        failed   No space left on device",
        "  at: /opt/kata/bin/qemu",
        "  hint: free some space",
    ]
    bare = StageReport("cri", "failed", "why", error=Problem.from_error(HostError("why")))
    assert to_text(bare) == "cri              failed   why"


def test_the_text_of_a_check_has_a_remedy_only_if_it_warns_or_fails() -> None:
    assert to_text(CHECKS).splitlines() == [
        "host-check       failed   1 passed, 1 warnings, 2 failed",
        "  fail  kvm            /dev/kvm is missing",
        "                       -> enable virtualization",
        "  fail  space          1.0 GiB free",
        "                       -> free 2 GiB",
        "  warn  vhost          the module is not loaded",
        "                       -> modprobe vhost_vsock",
        "  pass  arch           x86_64",
        "  skip  systemd        offline",
    ]


def test_a_file_name_that_is_not_utf8_can_be_printed() -> None:
    """Names of foreign files are decoded with surrogates."""
    name = os.fsdecode(b"/opt/kata/caf\xe9")
    text = to_text(StageReport("remove-artifacts", "done", "removed", notes=(f"left: {name}",)))
    assert text.splitlines()[-1].encode() == rb"  note: left: /opt/kata/caf\udce9"


# --- JSON -------------------------------------------------------------------------------------------


def test_the_json_document_has_all_stages_without_empty_fields() -> None:
    assert json.loads(json.dumps(to_json([DONE, StageReport("cri", "skipped", "served")]))) == {
        "outcome": "ok",
        "stages": [
            {
                "stage": "artifacts",
                "outcome": "done",
                "summary": "3 files placed (1.5 GiB)",
                "changes": ["place 3 files", "remove 1 file"],
                "notes": ["changed on the host: bin/qemu"],
                "seconds": 1.235,
            },
            {"stage": "cri", "outcome": "skipped", "summary": "served", "seconds": 0.0},
        ],
    }


def test_the_json_document_of_a_failure_has_the_error_and_the_checks() -> None:
    document = json.loads(json.dumps(to_json([DONE, CHECKS])))
    assert document["outcome"] == "failed"
    stage = document["stages"][1]
    assert stage["error"] == {
        "what": "kvm: /dev/kvm is missing; space: 1.0 GiB free",
        "where": "",
        "hint": "enable it",
        "exit_code": 3,
    }
    assert [check["permanent"] for check in stage["checks"]] == [True, False, True, True, True]


@pytest.mark.parametrize(
    ("report", "code"),
    [
        pytest.param(DONE, 0, id="done"),
        pytest.param(CHECKS, 3, id="unfit"),
        pytest.param(
            StageReport("cri", "failed", "", error=Problem.from_error(LockedError("held"))), 5, id="locked"
        ),
    ],
)
def test_the_exit_code_is_the_exit_code_of_the_error(report: StageReport, code: int) -> None:
    assert report.exit_code == code


# --- the termination message ------------------------------------------------------------------------


def message(path: Path, report: StageReport) -> object:
    path.write_text("")
    write_termination_message(path, report)
    raw = path.read_bytes()
    assert len(raw) <= TERMINATION_MESSAGE_LIMIT
    return json.loads(raw)


def test_the_termination_message_has_the_outcome(tmp_path: Path) -> None:
    assert message(tmp_path / "log", DONE) == {
        "stage": "artifacts",
        "outcome": "done",
        "summary": "3 files placed (1.5 GiB)",
        "notes": ["changed on the host: bin/qemu"],
    }


def test_the_termination_message_has_the_error_and_the_failed_checks(tmp_path: Path) -> None:
    assert message(tmp_path / "log", CHECKS) == {
        "stage": "host-check",
        "outcome": "failed",
        "summary": "1 passed, 1 warnings, 2 failed",
        "error": {
            "what": "kvm: /dev/kvm is missing; space: 1.0 GiB free",
            "where": "",
            "hint": "enable it",
            "exit_code": 3,
        },
        "failed": ["kvm: /dev/kvm is missing", "space: 1.0 GiB free"],
    }


@pytest.mark.parametrize("length", [1, 500, 999, 1000, 1001, 4096, 100_000])
@pytest.mark.parametrize(
    "character",
    [
        pytest.param("x", id="ascii"),
        pytest.param("é", id="two bytes"),
        pytest.param("雪", id="three bytes"),
        pytest.param("🦀", id="four bytes"),
        pytest.param("\0", id="six in JSON"),
        pytest.param('"', id="quoted"),
        pytest.param("\udce9", id="no utf-8"),
        pytest.param("e\u0301", id="combined"),
    ],
)
def test_a_message_with_long_texts_is_valid_json_and_fits(
    tmp_path: Path, character: str, length: int
) -> None:
    text = character * length
    error = Problem(text, text, text, 4)
    checks = tuple(Finding(text, "fail", text, text) for _ in range(30))
    found = message(tmp_path / "log", StageReport("host-check", "failed", text, checks=checks, error=error))
    assert isinstance(found, dict)
    assert (found["stage"], found["outcome"], found["error"]["exit_code"]) == ("host-check", "failed", 4)
    for shown in (found["summary"], *(found["error"][key] for key in ("what", "where", "hint"))):
        assert shown == text or (shown.endswith("…") and text.startswith(shown[:-1]))
        assert len(shown) >= min(len(text), 60), "the text is cut more than necessary"


def test_a_long_text_does_not_shorten_the_short_texts(tmp_path: Path) -> None:
    error = Problem("it broke: " + "x" * 100_000, "/etc/containerd/config.toml", "correct the file", 1)
    found = message(tmp_path / "log", StageReport("cri", "failed", "it broke", error=error))
    assert isinstance(found, dict)
    assert found["error"]["where"] == "/etc/containerd/config.toml"
    assert found["error"]["hint"] == "correct the file"
    assert found["error"]["what"].startswith("it broke: xxx")
    assert len(found["error"]["what"]) > TERMINATION_MESSAGE_LIMIT // 4


def test_failed_checks_are_listed_if_they_fit(tmp_path: Path) -> None:
    checks = tuple(Finding(f"check-{number}", "fail", "why " * 20) for number in range(20))
    found = message(tmp_path / "log", StageReport("host-check", "failed", "20 failed", checks=checks))
    assert isinstance(found, dict)
    assert len(found["failed"]) == 20


def test_no_message_is_written_if_the_kubelet_did_not_create_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warnings: list[str]
) -> None:
    write_termination_message(tmp_path / "log", DONE)
    write_termination_message(tmp_path, DONE)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "foreign").touch()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    write_termination_message(tmp_path / "foreign", DONE)
    assert (tmp_path / "foreign").read_bytes() == b""
    assert warnings == []


def test_the_message_is_written_in_place_because_the_file_is_a_mount(tmp_path: Path) -> None:
    path, mounted = tmp_path / "log", tmp_path / "on the node"
    mounted.write_text("something longer " * 1000)
    path.hardlink_to(mounted)
    write_termination_message(path, DONE)
    assert json.loads(mounted.read_bytes())["stage"] == "artifacts"


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(reports.log, "warning", lambda text, *args: found.append(text % args))
    return found


def test_a_message_that_cannot_be_written_does_not_fail_the_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warnings: list[str]
) -> None:
    def full(self: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "log"
    path.touch()
    monkeypatch.setattr(Path, "write_bytes", full)
    write_termination_message(path, DONE)
    assert warnings == [f"cannot write the termination message to {path}: No space left on device"]
