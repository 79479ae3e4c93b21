"""What people are told to run to see why a unit failed."""

from __future__ import annotations

import shlex


def journal_command(unit: str) -> str:
    """The command that shows what a runtime, or another unit, has complained of lately.

    A start writes a hundred lines, and after a rollback there is another, so the last lines say nothing
    of the failure. To the journal all are of one priority: only their text has the level, and that of a
    fatal error need not have one.
    """
    lines = f"journalctl -u {shlex.quote(unit)} -n 2000"
    # Plain or JSON, and without a double quote, so that it can be copied out of JSON of ours.
    return f"{lines} | grep -Ev 'level.{{1,3}}(trace|debug|info)' | tail -n 40"
