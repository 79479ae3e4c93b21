"""What a stage says when it is done: for a person, for a program, for the pod's status."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from kata_node.errors import KataNodeError

FindingStatus = Literal["pass", "warn", "fail", "skip"]
Outcome = Literal["done", "skipped", "planned", "failed"]

TERMINATION_MESSAGE_LIMIT = 4096  # bytes; the kubelet cuts what is longer
MIN_TEXT_LIMIT = 128
"""Characters to which every text of a termination message can be cut so that all fit without a list:
none takes more than six bytes of JSON each."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Finding:
    """One named finding of host-check. ``permanent`` tells whether a retry is pointless."""

    name: str
    status: FindingStatus
    reason: str
    remedy: str = ""
    permanent: bool = True


@dataclass(frozen=True)
class Problem:
    """An error as data."""

    what: str
    where: str
    hint: str
    exit_code: int

    @classmethod
    def from_error(cls, error: KataNodeError) -> Problem:
        """The error as data."""
        return cls(error.what, error.where, error.hint, error.exit_code)

    def __str__(self) -> str:
        return str(KataNodeError(self.what, where=self.where, hint=self.hint))


@dataclass(frozen=True)
class StageReport:
    """What one stage did. ``changes`` are sentences; ``diff`` is a unified diff, of plans only."""

    stage: str
    outcome: Outcome
    summary: str
    changes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    checks: tuple[Finding, ...] = ()
    diff: str = ""
    seconds: float = 0.0
    error: Problem | None = None

    @property
    def exit_code(self) -> int:
        """What the process should exit with after this stage."""
        return self.error.exit_code if self.error else 0


def to_json(reports: Sequence[StageReport]) -> dict[str, Any]:
    """One JSON document for any number of stages; the error of the one that failed is also at its top."""
    error = next((report.error for report in reports if report.error), None)
    stages = [_drop_empty_fields(dataclasses.asdict(report)) for report in reports]
    return (failure_document(error) if error else {"outcome": "ok"}) | {"stages": stages}


def failure_document(error: Problem) -> dict[str, Any]:
    """The document of a command that came to nothing."""
    return {"outcome": "failed", "error": dataclasses.asdict(error)}


def _drop_empty_fields(data: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in data.items() if value not in ((), "", None)}
    return kept | {"seconds": round(data["seconds"], 3)}


def to_text(report: StageReport, *, diffs: bool) -> str:
    """The report of one stage for a person: a line that says it all, then the details."""
    lines = [f"{report.stage:<16} {report.outcome:<8} {report.summary}"]
    for check in report.checks:
        lines.append(f"  {check.status:<5} {check.name:<14} {check.reason}")
        if check.remedy and check.status in ("warn", "fail"):
            lines.append(f"        {'':<14} -> {check.remedy}")
    lines += [f"  - {change}" for change in report.changes]
    lines += [f"  note: {note}" for note in report.notes]
    if report.error and not report.checks:
        lines += [f"  at: {report.error.where}"] if report.error.where else []
        lines += [f"  hint: {report.error.hint}"] if report.error.hint else []
    if diffs and report.diff:
        lines.append(report.diff.rstrip("\n"))
    # A file name that is no UTF-8 would otherwise stop the printing.
    return "\n".join(lines).encode("utf-8", "backslashreplace").decode()


def write_termination_message(path: Path, report: StageReport) -> None:
    """Leave the stage's result where the kubelet picks it up for the pod's status.

    Only when the kubelet made that file: elsewhere there is nobody to read it. What cannot be written
    there is only logged, for the stage itself ended as it did.
    """
    if not os.access(path, os.W_OK) or not path.is_file():
        return
    try:
        path.write_bytes(termination_message(report))
    except OSError as error:
        log.warning("%s: the termination message could not be written: %s", path, error.strerror)


REPORT_SIZE_LIMIT = 65536
"""Bytes of a report left for others; nothing longer is read, for it is no report of ours."""


def write_shared_report(directory: Path, report: StageReport) -> None:
    """Leave the report in ``directory`` for the stages that come after it, in other containers.

    The directory is shared with containers of other rights, so nothing there is written to: a new file
    takes the place of what is there. What cannot be written is only logged, for the stage itself ended
    as it did.
    """
    new = directory / f".{report.stage}.{os.getpid()}"
    try:
        with contextlib.suppress(FileNotFoundError):
            new.unlink()
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644), "wb") as file:
            file.write(termination_message(report))
        new.replace(directory / f"{report.stage}.json")
    except OSError as error:
        log.warning("%s: the report could not be left there: %s", directory, error.strerror)


def read_shared_reports(directory: Path, stages: Sequence[str]) -> list[StageReport]:
    """The reports that those of ``stages`` have left, in this order; what is no report is passed over."""
    found = (_read_shared_report(directory / f"{stage}.json", stage) for stage in stages)
    return [report for report in found if report is not None]


def _read_shared_report(path: Path, stage: str) -> StageReport | None:
    try:
        # Neither led elsewhere, nor held up by what is no file.
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return None
            document = json.loads(file.read(REPORT_SIZE_LIMIT))
        outcome = document["outcome"]
        if outcome not in get_args(Outcome):
            return None
        notes = tuple(map(str, document.get("notes", ())))
        return StageReport(stage, outcome, str(document["summary"]), notes=notes)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        log.debug("%s is no report of a stage: %s", path, error)
        return None


def termination_message(report: StageReport) -> bytes:
    """One JSON document that the kubelet does not cut: its texts are shortened until it fits."""
    message: dict[str, Any] = {
        "stage": report.stage,
        "outcome": report.outcome,
        "summary": report.summary,
    }
    if report.error:
        message["error"] = dataclasses.asdict(report.error)
    failed = [f"{check.name}: {check.reason}" for check in report.checks if check.status == "fail"]
    if failed:
        message["failed"] = failed
    if report.notes:
        message["notes"] = list(report.notes)
    limit = TERMINATION_MESSAGE_LIMIT
    while len(text := _encode(_truncate(message, limit))) > TERMINATION_MESSAGE_LIMIT:
        limit //= 2
        if limit <= MIN_TEXT_LIMIT:
            message.pop("failed", None)  # the error names them as well
            message.pop("notes", None)
    return text


def _encode(message: dict[str, Any]) -> bytes:
    # A file name that is no UTF-8 has surrogates in it; their escape is the same in JSON.
    return json.dumps(message, ensure_ascii=False).encode("utf-8", "backslashreplace")


def _truncate(value: Any, limit: int) -> Any:
    """The same with no text longer than ``limit`` characters."""
    if isinstance(value, str):
        return value if len(value) <= limit else value[: limit - 1] + "…"
    if isinstance(value, dict):
        return {key: _truncate(each, limit) for key, each in value.items()}
    return [_truncate(each, limit) for each in value] if isinstance(value, list) else value
