"""What the unit of the runtime wrote when a change failed: the reason that only its journal has."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterable, Sequence

from kata_node.errors import KataNodeError
from kata_node.host.host_program import HostProgram
from kata_node.plan.actions import Action, Clients
from kata_node.runtime.restart import RestartRuntime
from kata_node.text import quote_foreign

log = logging.getLogger(__name__)

JOURNALCTL = "/usr/bin/journalctl"
TIMEOUT = 5.0  # seconds, for all periods together
LINES = 2000
"""Lines of the journal to look at. A runtime writes about a hundred when it starts."""
LIMIT = 600
"""Maximum characters of the quoted lines."""

Period = tuple[float, float | None]
"""A start and an end in times of :func:`time.time`. ``None`` is now."""

_SEPARATOR = " | "
_LOWER_LEVEL = re.compile(r"level.{1,3}(trace|debug|info|warn)")
_REASON = re.compile(r"level.{1,3}(error|fatal|panic)|^(containerd|crio|k3s|rke2|k0s): |\bpanic:|\bfatal\b")
_TIME = re.compile(r"\btime=(\"[^\"]*\"|\S+) |\"time\":\"[^\"]*\",?")


def unit_of(actions: Iterable[Action], where: str) -> str:
    """Return the unit that an error is about: the one of its ``where``, or else that of the restart."""
    if where.endswith(".service"):
        return where
    return next((action.unit for action in actions if isinstance(action, RestartRuntime)), "")


def last_words(clients: Clients, unit: str, periods: Iterable[Period]) -> str:
    """Return the last error lines that ``unit`` wrote in the first of ``periods`` with any, and its name.

    The lines are the words of another program: they are one line of printable characters, at most
    :data:`LIMIT`. Empty if there are none, if the journal cannot be read within :data:`TIMEOUT`, or if
    ``unit`` is empty.
    """
    deadline = time.monotonic() + TIMEOUT
    for period in periods if unit else ():
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            break
        if words := _error_lines_of(clients, unit, period, remaining):
            return f"{unit} wrote: {quote_foreign(words, LIMIT)}"
    return ""


def _error_lines_of(clients: Clients, unit: str, period: Period, timeout: float) -> str:
    start, end = period
    command = (
        *(JOURNALCTL, "--quiet", "--no-pager", "--output=cat", f"--lines={LINES}"),
        *(f"--since=@{start:.6f}", *(() if end is None else (f"--until=@{end:.6f}",))),
        f"_SYSTEMD_UNIT={unit}",  # unlike --unit, without the lines that systemd writes about the unit
    )
    try:
        output = clients.systemd().run_program(HostProgram(command, timeout))
    except KataNodeError as error:
        log.debug("cannot read the journal of %s: %s", unit, error)
        return ""
    return error_lines(output.text.splitlines())


def error_lines(lines: Sequence[str]) -> str:
    """Return the last of ``lines`` that give a reason, each once and without its time, joined by `` | ``.

    They are as many as fit in :data:`LIMIT` characters, and at least one, which can be longer.

    A line of plain text counts as one, because the last words of a program that ends often have no level. If
    lines with a level or the name of the runtime give a reason, the others are left out: a panic comes with
    hundreds of lines about goroutines.
    """
    serious = [line for line in lines if line.strip() and not _LOWER_LEVEL.search(line)]
    reasons = [line for line in serious if _REASON.search(line)] or serious
    # The last occurrence counts: a runtime that is started again and again writes the same lines each time.
    distinct = list(dict.fromkeys(_TIME.sub("", line).strip() for line in reversed(reasons)))
    kept: list[str] = []
    for line in distinct:
        if kept and len(_SEPARATOR.join((line, *kept))) > LIMIT:
            break
        kept.insert(0, line)
    return _SEPARATOR.join(kept)
