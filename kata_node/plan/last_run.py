"""The last run of an installation, in ``<install dir>/.kata-node/last-run.json``: for ``kata-node status``.

It is written under the node's lock, at the end of each stage that changed the node or failed. A stage that
finds its work done writes nothing, unless it belongs to a run that did not finish. A record that cannot be
written never fails a run. It is only beside a receipt: after a revert, nothing of it stays. Without a receipt
a failed run, such as a first install that was rolled back, has its record in ``/run`` until the next run that
succeeds, or until a reboot. Offline it has none.
"""

import hashlib
import logging
import stat
import time
from collections.abc import Mapping
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from kata_node import __version__
from kata_node.errors import KataNodeError
from kata_node.host import reserve
from kata_node.host.files import Root
from kata_node.host.lock import LOCK_DIR
from kata_node.plan import receipt as receipts
from kata_node.plan.report import StageReport
from kata_node.plan.small_records import load_record
from kata_node.text import utc

NAME = "last-run.json"
SCHEMA = 1
TEXT_LIMIT = 600  # characters of each text
OPTIONS_LIMIT = 40
STAGES_LIMIT = 4

STAGES_BEFORE: Mapping[str, tuple[str, ...]] = {
    "artifacts": (),
    "cri": ("artifacts",),
    "revert-cri": (),
    "remove-artifacts": ("revert-cri",),
}
"""Each stage that changes the node, and those of the same run before it.

In a node Job each stage is a process of its own, so each adds to the record of those before it."""

REVERT_STAGES = frozenset({"revert-cri", "remove-artifacts"})
LAST_STAGES = frozenset({"cri", "remove-artifacts"})

log = logging.getLogger(__name__)


class Invocation(Struct, frozen=True):
    """A command as it can be typed again: ``install``, ``revert`` or ``stage NAME``, and its options."""

    command: str = ""
    options: tuple[str, ...] = ()

    def option(self, name: str) -> str:
        """Return the value of the option ``--NAME``; empty if it is not given."""
        flag = f"--{name}"
        return self.options[self.options.index(flag) + 1] if flag in self.options[:-1] else ""


class StageRun(Struct, frozen=True):
    """How one stage ended. Times are in UTC, as :func:`utc` formats them."""

    stage: str
    outcome: Literal["done", "skipped", "failed"]
    started: str
    ended: str
    exit_code: int = 0
    error: str = ""
    """The first line of the error, with its place."""


class LastRun(Struct, frozen=True):
    """The stages of the last run, in their order, and how the latest one of them was started."""

    command: str
    options: tuple[str, ...]
    program: str
    """The version of kata-node."""
    stages: tuple[StageRun, ...]
    schema: int = SCHEMA
    is_cut: bool = False
    """Whether the record lacks a part of an option, so that the command cannot be repeated from it."""

    @property
    def failed(self) -> StageRun | None:
        """The stage that failed, or ``None``."""
        return next((each for each in self.stages if each.outcome == "failed"), None)

    @property
    def is_finished(self) -> bool:
        """Whether no stage failed, and none is left to do."""
        return self.failed is None and self.stages[-1:] != () and self.stages[-1].stage in LAST_STAGES

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
        if report.outcome == "skipped" and (before is None or before.is_finished):
            return
        found = _added(before, report, invocation, started)
        has_receipt = root.lstat(receipts.path(install_dir)) is not None
        if not has_receipt:
            remove(root, install_dir)
        elif not receipts.untrusted(root, install_dir):
            _save(root, install_dir, found)
        if found.failed and not has_receipt and "--offline" not in invocation.options:
            root.write(_volatile_path(install_dir), _encoded(found), mode=0o600)
        else:
            root.remove(_volatile_path(install_dir))
    except (KataNodeError, OSError) as error:
        log.debug("the last run is not recorded: %s", error)


def _volatile_path(install_dir: str) -> str:
    """Return the path of the record of a run that left no receipt."""
    return f"{LOCK_DIR}/{hashlib.sha256(install_dir.encode()).hexdigest()[:16]}-{NAME}"


def load(root: Root, install_dir: str) -> LastRun | None:
    """Return the last run; ``None`` if none is recorded, or the record cannot be read.

    Its texts are printable and within the limits, whatever is in the file.
    """
    return _load(root, path(install_dir)) or _load(root, _volatile_path(install_dir))


def _load(root: Root, where: str) -> LastRun | None:
    found = load_record(root, where, LastRun)
    return _bounded(found) if found is not None and found.schema == SCHEMA else None


def _bounded(run: LastRun) -> LastRun:
    """Return the run with printable texts within the limits."""
    options = tuple(map(_line, run.options[:OPTIONS_LIMIT]))
    return replace(
        run,
        command=_line(run.command),
        options=options,
        program=_line(run.program),
        stages=tuple(
            replace(
                each,
                stage=_line(each.stage),
                started=_line(each.started),
                ended=_line(each.ended),
                error=_line(each.error),
            )
            for each in run.stages[:STAGES_LIMIT]
        ),
        is_cut=run.is_cut or options != run.options,
    )


def remove_leftover(root: Root, install_dir: str) -> None:
    """Remove the temporary file of an interrupted write. A failure is only logged."""
    try:
        root.sweep(path(install_dir))
    except KataNodeError as error:
        log.debug("the temporary file of the last run is not removed: %s", error)


def remove(root: Root, install_dir: str) -> None:
    """Remove the record, its reserve and its temporary file. Raises :class:`HostError`.

    A directory in its place is not ours. It stays unless it is empty.
    """
    where = path(install_dir)
    reserve.forget(root, where)
    info = root.lstat(where)
    if info is None or not stat.S_ISDIR(info.st_mode):
        root.remove(where)
    elif not root.remove_dir(where):
        log.warning("%s: kata-node did not make this directory; it stays", where)


def _save(root: Root, install_dir: str, run: LastRun) -> None:
    """Write the record. If that fails, remove the old one, which would tell of another run."""
    content, where = _encoded(run), path(install_dir)
    try:
        reserve.replace(root, where, content, mode=0o600, use_reserve=True)
    except KataNodeError:
        remove(root, install_dir)
        raise
    reserve.allocate(root, where, len(content) + 2 * TEXT_LIMIT)


def _encoded(run: LastRun) -> bytes:
    import msgspec.json

    return msgspec.json.encode(run) + b"\n"


def _added(before: LastRun | None, report: StageReport, invocation: Invocation, started: float) -> LastRun:
    """Return the record with the stage of ``report``, and with the stages of the same run before it."""
    stages = before.stages if before and not before.is_finished else ()
    error = report.error
    place = f"{error.where}: " if error and error.where else ""
    stage = StageRun(
        report.stage,
        "failed" if error else "skipped" if report.outcome == "skipped" else "done",
        utc(started),
        utc(time.time()),
        report.exit_code,
        f"{place}{error.what}" if error else "",
    )
    before_it = (each for each in stages if each.stage in STAGES_BEFORE[report.stage])
    return _bounded(LastRun(invocation.command, invocation.options, __version__, (*before_it, stage)))


def _line(text: str) -> str:
    """Return the first line of a text, printable and at most :data:`TEXT_LIMIT` characters long.

    ``…`` is the mark of a longer one.
    """
    line = next(iter(text[: 2 * TEXT_LIMIT].splitlines()), "")
    printable = "".join(char if char.isprintable() else "�" for char in line)
    return printable if len(printable) <= TEXT_LIMIT else f"{printable[: TEXT_LIMIT - 1]}…"
