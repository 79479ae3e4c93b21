"""Colors for results and errors on a terminal. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

RED, GREEN, YELLOW, CYAN, BOLD, DIM = "31", "32", "33", "36", "1", "2"
"""Parameters of the command SGR of terminals (ECMA-48)."""

_WORDS: Mapping[str, str] = {
    **dict.fromkeys(("done", "pass", "healthy", "served"), GREEN),
    **dict.fromkeys(("failed", "fail", "broken", "NOT served"), RED),
    **dict.fromkeys(("planned", "warn", "drifted", "degraded", "owed"), YELLOW),
    **dict.fromkeys(("skipped", "skip", "unknown"), DIM),
}

_LINE = re.compile(
    r"(?P<error>error:)(?= )"
    r"|(?P<hint> *(?:hint:|->|→))(?= )"
    r"|(?P<note> *note:)(?= )"
    # The columns of a stage, a check, or an installation: a word, then its outcome.
    r"|(?P<before>[a-z][a-z-]* +|  )(?P<outcome>done|skipped|planned|failed|pass|warn|fail|skip)(?= |$)"
    r"|(?P<subject>\S+: |  [a-z]+ +(?:\S+: )?)"
    r"(?P<verdict>healthy|drifted|degraded|broken|unknown|served|NOT served|owed)\b"
)


def paint(text: str) -> str:
    """Return ``text`` with colors for outcomes, errors, hints and diffs."""
    in_diff = False
    lines = []
    for line in text.split("\n"):
        if line.startswith("--- "):
            in_diff = True
        elif in_diff and line[:1] not in ("+", "-", " ", "@", "\\"):
            in_diff = False
        lines.append(_paint_diff(line) if in_diff else _paint_line(line))
    return "\n".join(lines)


def _paint_diff(line: str) -> str:
    if line.startswith(("--- ", "+++ ")):
        return _colored(line, BOLD)
    color = {"@": CYAN, "+": GREEN, "-": RED}.get(line[:1])
    return _colored(line, color) if color else line


def _paint_line(line: str) -> str:
    found = _LINE.match(line)
    if found is None:
        return line
    before, word = "", found[0]
    if found["outcome"] or found["verdict"]:
        before = found["before"] or found["subject"]
        word = found["outcome"] or found["verdict"]
        color = _WORDS[word]
    else:
        color = f"{BOLD};{RED}" if found["error"] else CYAN if found["hint"] else YELLOW
    return f"{before}{_colored(word, color)}{line[found.end() :]}"


def _colored(text: str, color: str) -> str:
    return f"\x1b[{color}m{text}\x1b[0m"
