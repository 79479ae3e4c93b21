"""The report of a stage: as text, as JSON, and as the termination message of its container."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from msgspec import Struct, to_builtins
from msgspec.structs import replace

from kata_node.errors import IneligibleNodeError, KataNodeError, PodsRunError, UnfitNodeError, UsageError
from kata_node.text import TERMINATION_MESSAGE_LIMIT, foreign_words

if TYPE_CHECKING:
    from kata_node.plan.preview import Preview

FindingStatus = Literal["pass", "warn", "fail", "skip"]
Outcome = Literal["done", "skipped", "planned", "failed"]

NOT_OURS = "not ours"
"""How the summary of a stage begins that finds nothing of this installation on the node."""

MIN_TEXT_LIMIT = 128
"""Maximum characters per text at which a termination message without its lists always fits.

A character takes at most six bytes of JSON.
"""

log = logging.getLogger(__name__)


class Finding(Struct, frozen=True):
    """One finding of host-check. ``permanent`` is True if a retry cannot succeed."""

    name: str
    status: FindingStatus
    reason: str
    remedy: str = ""
    permanent: bool = True
    unfit: bool = False
    """Whether a failure says that the node cannot run Kata because of what it is."""
    usage: bool = False
    """Whether a failure says that an option is missing."""
    depends_on_other_runs: bool = False
    """Whether a run that works on the node now can be the cause of a failure, also of a permanent one."""


class Problem(Struct, frozen=True):
    """An error as data."""

    what: str
    where: str
    hint: str
    exit_code: int
    unfit: bool = False
    """Whether the node cannot run Kata because of what it is, see :class:`UnfitNodeError`."""
    unit_log: str = ""
    """What the unit of the container runtime wrote, see :class:`KataNodeError`."""
    pods_run: bool = False
    """Whether pods run on handlers that a change would remove, see :class:`PodsRunError`."""

    @classmethod
    def from_error(cls, error: KataNodeError) -> Problem:
        """Return the error as data."""
        return cls(
            *(error.what, error.where, error.hint, error.exit_code),
            unfit=isinstance(error, UnfitNodeError),
            unit_log=error.unit_log,
            pods_run=isinstance(error, PodsRunError),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the error as a JSON object. The optional keys are there only with a value."""
        optional = ("unfit", "unit_log", "pods_run")
        return {key: value for key, value in to_builtins(self).items() if value or key not in optional}

    def __str__(self) -> str:
        return str(KataNodeError(self.what, where=self.where, hint=self.hint, unit_log=self.unit_log))


class StageReport(Struct, frozen=True):
    """The result of one stage. ``changes`` are one line per action."""

    stage: str
    outcome: Outcome
    summary: str
    changes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    checks: tuple[Finding, ...] = ()
    left_out: tuple[str, ...] = ()
    """The shims that the settings enable and this node does not get."""
    other_install_dirs: tuple[str, ...] = ()
    """The install dirs of other programs that the runtime's configuration names after a revert."""
    kata_version: str = ""
    """The version of Kata in the payload, if the stage has read it."""
    seconds: float = 0.0
    error: Problem | None = None
    preview: Preview | None = None
    """What a dry run would change; see :mod:`kata_node.plan.dry_run`, which shows it."""
    not_served: str = ""
    """Why the runtime does not serve the installation. host-check finds out, claim withdraws the labels."""
    handlers: tuple[str, ...] = ()
    """The handlers that the stage cri has made the runtime serve."""
    is_new: bool = False
    """Whether nothing of the installation was on the node, as host-check found."""

    @property
    def exit_code(self) -> int:
        """The exit code of the process if this is the last stage."""
        return self.error.exit_code if self.error else 0


def problem_of_findings(checks: Sequence[Finding]) -> Problem | None:
    """Return the error of all findings that failed; ``None`` if none did."""
    failed = [check for check in checks if check.status == "fail"]
    if not failed:
        return None
    what = "; ".join(f"{check.name}: {check.reason}" for check in failed)
    hint = "; ".join(check.remedy for check in failed if check.remedy)
    kind: type[KataNodeError] = (
        IneligibleNodeError if any(check.permanent for check in failed) else KataNodeError
    )
    if any(check.unfit for check in failed):
        kind = UnfitNodeError
    elif all(check.usage for check in failed):
        kind = UsageError
    return Problem.from_error(kind(what, hint=hint))


def to_json(reports: Sequence[StageReport]) -> dict[str, Any]:
    """Return the JSON document for ``reports``; the first error is also at its top level."""
    error = next((report.error for report in reports if report.error), None)
    stages = [_stage_document(report) for report in reports]
    return (failure_document(error) if error else {"outcome": "ok"}) | {"stages": stages}


def failure_document(error: Problem) -> dict[str, Any]:
    """Return the JSON document of a command that failed."""
    return {"outcome": "failed", "error": error.to_json()}


def _stage_document(report: StageReport) -> dict[str, Any]:
    data = to_builtins(replace(report, preview=None))
    if report.error:
        data["error"] = report.error.to_json()
    optional = ("unfit", "usage", "depends_on_other_runs")
    data["checks"] = tuple(
        {key: value for key, value in check.items() if key not in optional or value}
        for check in data["checks"]
    )
    fields = {key: value for key, value in data.items() if value not in ((), "", None, False)}
    return fields | {"seconds": round(report.seconds, 3)}


def to_text(report: StageReport) -> str:
    """Return the report of one stage as text: one line with the summary, then the details."""
    lines = [f"{report.stage:<16} {report.outcome:<8} {report.summary}"]
    for check in report.checks:
        lines.append(f"  {check.status:<5} {check.name:<14} {check.reason}")
        if check.remedy and check.status in ("warn", "fail"):
            lines.append(f"        {'':<14} -> {check.remedy}")
    lines += [f"  - {change}" for change in report.changes]
    lines += [f"  note: {note}" for note in report.notes]
    if report.error and not report.checks:
        lines += [f"  at: {report.error.where}"] if report.error.where else []
        lines += [f"  {report.error.unit_log}"] if report.error.unit_log else []
        lines += [f"  hint: {report.error.hint}"] if report.error.hint else []
    # A file name can contain bytes that are not UTF-8, which cannot be printed.
    return "\n".join(lines).encode("utf-8", "backslashreplace").decode()


def write_termination_message(path: Path, report: StageReport) -> None:
    """Write the termination message, which the kubelet copies into the pod's status.

    Does nothing if ``path`` is not a writable file, because then the kubelet did not create it. A failed
    write is only logged; it does not change the result of the stage.
    """
    if not os.access(path, os.W_OK) or not path.is_file():
        return
    try:
        path.write_bytes(termination_message(report))
    except OSError as error:
        log.warning("cannot write the termination message to %s: %s", path, error.strerror)


REPORT_SIZE_LIMIT = 65536
"""Maximum bytes to read of a shared report; kata-node writes none that is longer."""


def write_shared_report(directory: Path, report: StageReport) -> None:
    """Write the report to ``directory`` for later stages in other containers.

    Containers with other rights can write to this directory, so an existing file is never opened for
    writing; a new file replaces it. A failed write is only logged; it does not change the result of the
    stage.
    """
    new = directory / f".{report.stage}.{os.getpid()}"
    try:
        with contextlib.suppress(FileNotFoundError):
            new.unlink()
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644), "wb") as file:
            file.write(termination_message(report))
        new.replace(directory / f"{report.stage}.json")
    except OSError as error:
        log.warning("cannot write the report to %s: %s", directory, error.strerror)


def read_shared_reports(directory: Path, stages: Sequence[str]) -> list[StageReport]:
    """Return the reports of ``stages``, in this order. Missing and invalid reports are skipped."""
    found = (_report_of(_read_document(directory / f"{stage}.json"), stage) for stage in stages)
    return [report for report in found if report is not None]


def read_failure_for_claim(directory: Path) -> StageReport | None:
    """Return the shared report of host-check, if it has failed and claim must change the labels.

    The node is unfit, or does not serve the installation.
    """
    document = _read_document(directory / "host-check.json")
    found = _report_of(document, "host-check")
    error = document.get("error") if document else None
    if found is None or not isinstance(error, dict):
        return None
    unfit = error.get("unfit") is True
    if not unfit and not found.not_served:
        return None
    kinds = (UnfitNodeError,) if unfit else (KataNodeError, UsageError, IneligibleNodeError)
    codes = [kind.exit_code for kind in kinds]
    code = error["exit_code"] if error.get("exit_code") in codes else codes[0]
    what, where, hint = (foreign_words(str(error.get(key, ""))) for key in ("what", "where", "hint"))
    return replace(found, outcome="failed", error=Problem(what, where, hint, code, unfit=unfit))


def _read_document(path: Path) -> dict[str, Any] | None:
    try:
        # Another container can put anything here: do not follow a symlink, and do not block on a FIFO.
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return None
            document = json.loads(file.read(REPORT_SIZE_LIMIT))
        return document if isinstance(document, dict) else None
    except (OSError, ValueError, RecursionError) as error:
        log.debug("%s is not a stage report: %s", path, error)
        return None


def _report_of(document: Mapping[str, Any] | None, stage: str) -> StageReport | None:
    return None if document is None else _parse_document(document, stage)


def parse_termination_message(text: str, stage: str) -> StageReport | None:
    """Return what the termination message of ``stage`` says, without its error; ``None`` if it is not one.

    Its texts are printable, whatever the message has.
    """
    if len(text) > TERMINATION_MESSAGE_LIMIT:  # no kubelet passes on so much, and no stage writes it
        return None
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return _parse_document(document, stage) if isinstance(document, dict) else None


def _parse_document(document: Mapping[str, Any], stage: str) -> StageReport | None:
    try:
        outcome = document["outcome"]
        if outcome not in get_args(Outcome):
            return None
        notes = tuple(foreign_words(str(note)) for note in document.get("notes", ()))
        left_out = tuple(map(str, document.get("left_out", ())))
        others = tuple(map(str, document.get("other_install_dirs", ())))
        summary = foreign_words(str(document["summary"]))
        version = foreign_words(str(document.get("kata_version", "")))
        not_served = foreign_words(str(document.get("not_served", "")))
        handlers = tuple(foreign_words(str(each)) for each in document.get("handlers", ()))
        return StageReport(
            *(stage, outcome, summary, (), notes, (), left_out, others, version),
            not_served=not_served,
            handlers=handlers,
            is_new=document.get("is_new") is True,
        )
    except (LookupError, TypeError, ValueError) as error:
        log.debug("this is not a report of %s: %s", stage, error)
        return None


def termination_message(report: StageReport) -> bytes:
    """Return the report as a JSON document of at most ``TERMINATION_MESSAGE_LIMIT`` bytes.

    Texts are shortened until it fits; if that is not enough, the lists are left out.
    """
    message: dict[str, Any] = {
        "stage": report.stage,
        "outcome": report.outcome,
        "summary": report.summary,
    }
    if report.error:
        message["error"] = report.error.to_json()
    for key in ("left_out", "other_install_dirs", "kata_version", "not_served", "handlers", "is_new"):
        if value := getattr(report, key):
            message[key] = list(value) if isinstance(value, tuple) else value
    failed = [f"{check.name}: {check.reason}" for check in report.checks if check.status == "fail"]
    if failed:
        message["failed"] = failed
    if report.notes:
        message["notes"] = list(report.notes)
    limit = TERMINATION_MESSAGE_LIMIT
    while len(text := _encode(_truncate(message, limit))) > TERMINATION_MESSAGE_LIMIT:
        limit //= 2
        if limit <= MIN_TEXT_LIMIT:
            message.pop("failed", None)  # the error names the failed checks as well
            message.pop("notes", None)
        if limit < MIN_TEXT_LIMIT // 2:
            message.pop("handlers", None)
    return text


def _encode(message: dict[str, Any]) -> bytes:
    # A file name that is not UTF-8 contains surrogates; their backslash escape is valid JSON.
    return json.dumps(message, ensure_ascii=False).encode("utf-8", "backslashreplace")


def _truncate(value: Any, limit: int) -> Any:
    """Return a copy of ``value`` in which every text has at most ``limit`` characters."""
    if isinstance(value, str):
        return value if len(value) <= limit else value[: limit - 1] + "…"
    if isinstance(value, dict):
        return {key: _truncate(each, limit) for key, each in value.items()}
    return [_truncate(each, limit) for each in value] if isinstance(value, list) else value
