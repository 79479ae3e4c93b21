"""The last run of an installation, in ``<install dir>/.kata-node/last-run.json``: for ``kata-node status``.

It is written under the node's lock, at the end of each stage that changed the node or failed. A stage that
finds its work done writes nothing, unless it completes a run or follows one that failed. A record that cannot
be written never fails a run. It is only beside a receipt: after a revert, or the rollback of a first install,
nothing of it stays.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from kata_node import __version__
from kata_node.errors import KataNodeError
from kata_node.host import reserve
from kata_node.host.files import Root
from kata_node.plan import receipt as receipts
from kata_node.plan.report import StageReport

NAME = "last-run.json"
SCHEMA = 1
TEXT_LIMIT = 600  # characters of each text
OPTIONS_LIMIT = 20

STAGES_BEFORE: Mapping[str, tuple[str, ...]] = {
    "artifacts": (),
    "cri": ("artifacts",),
    "revert-cri": (),
    "remove-artifacts": ("revert-cri",),
}
"""Each stage that changes the node, and those of the same run before it.

In a node Job each stage is a process of its own, so each adds to the record of those before it."""

REVERT_STAGES = frozenset({"revert-cri", "remove-artifacts"})

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Invocation:
    """A command as it can be typed again: ``install``, ``revert`` or ``stage NAME``, and its options."""

    command: str = ""
    options: tuple[str, ...] = ()

    def option(self, name: str) -> str:
        """Return the value of the option ``--NAME``; empty if it is not given."""
        flag = f"--{name}"
        return self.options[self.options.index(flag) + 1] if flag in self.options[:-1] else ""


@dataclass(frozen=True)
class StageRun:
    """How one stage ended. Times are in UTC, as :func:`utc` formats them."""

    stage: str
    outcome: Literal["done", "skipped", "failed"]
    started: str
    ended: str
    exit_code: int = 0
    error: str = ""
    """The first line of the error, with its place."""


@dataclass(frozen=True)
class LastRun:
    """The stages of the last run, in their order, and how the latest one of them was started."""

    command: str
    options: tuple[str, ...]
    program: str
    """The version of kata-node."""
    stages: tuple[StageRun, ...]
    schema: int = SCHEMA

    @property
    def failed(self) -> StageRun | None:
        """The stage that failed, or ``None``."""
        return next((each for each in self.stages if each.outcome == "failed"), None)

    @property
    def is_revert(self) -> bool:
        """Whether this is a run of a revert."""
        return any(each.stage in REVERT_STAGES for each in self.stages)

    @property
    def ended(self) -> str:
        """When its latest stage ended."""
        return max((each.ended for each in self.stages), default="")

    @property
    def invocation(self) -> Invocation:
        """How it was started."""
        return Invocation(self.command, self.options)


def utc(seconds: float) -> str:
    """Return a time since the epoch as ``2026-10-03T08:12:44Z``."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def path(install_dir: str) -> str:
    """Return the path of the record."""
    return f"{receipts.directory(install_dir)}/{NAME}"


def record(root: Root, install_dir: str, report: StageReport, invocation: Invocation, started: float) -> None:
    """Record the end of a stage. ``started`` is from :func:`time.time`. The caller holds the node's lock.

    A failure is only logged.
    """
    if report.stage not in STAGES_BEFORE:
        return
    try:
        before = load(root, install_dir)
        if report.outcome == "skipped" and not _is_news(before, report.stage):
            return
        if root.lstat(receipts.path(install_dir)) is None:
            remove(root, install_dir)
        elif not receipts.untrusted(root, install_dir):
            _save(root, install_dir, _added(before, report, invocation, started))
    except (KataNodeError, OSError) as error:
        log.debug("the last run is not recorded: %s", error)


def _is_news(before: LastRun | None, stage: str) -> bool:
    """Return whether it must be recorded that ``stage`` had nothing to do.

    The record says that a run failed, or it ends with a stage before this one.
    """
    if before is None:
        return False
    return before.failed is not None or {each.stage for each in before.stages} <= set(STAGES_BEFORE[stage])


def load(root: Root, install_dir: str) -> LastRun | None:
    """Return the last run; ``None`` if none is recorded, or the record cannot be read."""
    try:
        raw = root.read(path(install_dir))
    except KataNodeError as error:
        log.debug("the record of the last run cannot be read: %s", error)
        return None
    if raw is None:
        return None
    import msgspec.json

    try:
        found = msgspec.json.decode(raw, type=LastRun)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        log.debug("the record of the last run is damaged: %s", error)
        return None
    return found if found.schema == SCHEMA else None


def remove_leftover(root: Root, install_dir: str) -> None:
    """Remove the temporary file of an interrupted write. A failure is only logged."""
    try:
        root.sweep(path(install_dir))
    except KataNodeError as error:
        log.debug("the temporary file of the last run is not removed: %s", error)


def remove(root: Root, install_dir: str) -> None:
    """Remove the record, its reserve and its temporary file. Raises :class:`HostError`."""
    reserve.forget(root, path(install_dir))
    root.remove(path(install_dir))


def _save(root: Root, install_dir: str, run: LastRun) -> None:
    """Write the record. If that fails, remove the old one, which would tell of another run."""
    import msgspec.json

    content, where = msgspec.json.encode(run) + b"\n", path(install_dir)
    try:
        reserve.replace(root, where, content, mode=0o600, use_reserve=True)
    except KataNodeError:
        remove(root, install_dir)
        raise
    reserve.allocate(root, where, len(content) + 2 * TEXT_LIMIT)


def _added(before: LastRun | None, report: StageReport, invocation: Invocation, started: float) -> LastRun:
    """Return the record with the stage of ``report``, and with the stages of the same run before it."""
    stages = before.stages if before else ()
    error = report.error
    place = f"{error.where}: " if error and error.where else ""
    stage = StageRun(
        report.stage,
        "failed" if error else "skipped" if report.outcome == "skipped" else "done",
        utc(started),
        utc(time.time()),
        report.exit_code,
        _line(f"{place}{error.what}") if error else "",
    )
    return LastRun(
        invocation.command,
        tuple(_line(each) for each in invocation.options[:OPTIONS_LIMIT]),
        __version__,
        (*(each for each in stages if each.stage in STAGES_BEFORE[report.stage]), stage),
    )


def _line(text: str) -> str:
    """Return the first line of a text, printable and at most :data:`TEXT_LIMIT` characters long."""
    line = next(iter(text.splitlines()), "")
    printable = "".join(char if char.isprintable() else "�" for char in line)
    return printable if len(printable) <= TEXT_LIMIT else f"{printable[: TEXT_LIMIT - 1]}…"
