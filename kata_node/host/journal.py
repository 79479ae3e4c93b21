"""The command that shows why a unit failed, for hints."""

from __future__ import annotations

import shlex


def journal_command(unit: str) -> str:
    """Return a command that shows the recent warnings and errors of a unit.

    A runtime writes about a hundred lines when it starts, and a rollback starts it once more, so the last
    lines of the journal do not show the failure. The journal gives all lines the same priority. Only
    their text has a level, and a fatal error may have none, so the command hides the lower levels.
    """
    lines = f"journalctl -u {shlex.quote(unit)} -n 2000"
    # Matches plain and JSON lines. It has no double quote, so it can be copied from our JSON output.
    return f"{lines} | grep -Ev 'level.{{1,3}}(trace|debug|info)' | tail -n 40"
