"""What a child process that failed says: its termination message, or else its exit code."""

from __future__ import annotations

import json
from typing import Any

from kata_node.errors import IneligibleNodeError, RolledBackError, UsageError
from kata_node.text import TERMINATION_MESSAGE_LIMIT, foreign_words

_EXIT_CODE_TEXTS = {
    1: "it failed",
    RolledBackError.exit_code: "it failed and was rolled back",
    5: "another run holds the node's lock",
    IneligibleNodeError.exit_code: "this node cannot run it",
    UsageError.exit_code: "the options or the settings are wrong",
}


def says_unfit(termination_log: str) -> bool:
    """Return whether the last install says that this node cannot run Kata because of what it is."""
    try:
        return _read(termination_log)["error"]["unfit"] is True
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return False


def failure_reason(termination_log: str, code: int) -> str:
    """Return the error in the termination message of a child, or else the meaning of its exit code."""
    try:
        message = _read(termination_log)
        error = message["error"]
        place = f" ({error['where']})" if error["where"] else ""
        hint = f"; {error['hint']}" if error["hint"] else ""
        unit_log = f"; {error['unit_log']}" if error.get("unit_log") else ""
        return foreign_words(
            f"{message['stage']}: {error['what']}{place}{hint}{unit_log}", TERMINATION_MESSAGE_LIMIT
        )
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return _describe_exit_code(code)


def _read(termination_log: str) -> Any:
    with open(termination_log, "rb") as file:
        return json.loads(file.read(TERMINATION_MESSAGE_LIMIT + 1))


def _describe_exit_code(code: int) -> str:
    if code < 0:
        return f"signal {-code} ended it"
    return _EXIT_CODE_TEXTS.get(code, f"it ended with exit code {code}")
