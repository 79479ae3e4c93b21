"""The log, which goes to stderr; stdout is for results.

Lines have a timestamp in UTC, in whole seconds, so that the logs of several nodes can be compared.
On a terminal they have none.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Iterator

from kata_node.text import escape_unprintable

_COLORS = {logging.DEBUG: "2", logging.WARNING: "33", logging.ERROR: "1;31"}
"""The level names on a terminal: parameters of the command SGR (ECMA-48)."""

LEVELS = ("debug", "info", "warning", "error")


def configure_logging(level: str, *, color: bool = False) -> None:
    """Send kata-node's log records of ``level`` (one of :data:`LEVELS`) and above to stderr.

    ``color`` is for terminals only.
    """
    handler = logging.StreamHandler(sys.stderr)
    formatter: logging.Formatter = _TerminalFormatter(color=color)
    if sys.stderr is None or not sys.stderr.isatty():
        formatter = _PlainFormatter("%(asctime)s %(levelname)-7s %(message)s", "%Y-%m-%dT%H:%M:%SZ")
        formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    logger = logging.getLogger("kata_node")
    logger.handlers[:] = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False


@contextlib.contextmanager
def timed(log: logging.Logger, what: str) -> Iterator[None]:
    """Log with the level debug how long the body takes, and whether it fails."""
    if not log.isEnabledFor(logging.DEBUG):
        yield
        return
    began, outcome = time.monotonic(), "failed"
    try:
        yield
        outcome = "done"
    finally:
        log.debug("%s: %s in %.0f ms", what, outcome, (time.monotonic() - began) * 1000)


class _PlainFormatter(logging.Formatter):
    """Escapes what is not printable: a path can have any character, and a terminal obeys some of them."""

    def format(self, record: logging.LogRecord) -> str:
        return escape_unprintable(super().format(record), keep="\n\t")


class _TerminalFormatter(_PlainFormatter):
    """The format for a terminal: only the message, with the level before it unless that is INFO."""

    def __init__(self, *, color: bool) -> None:
        super().__init__()
        self._colors = _COLORS if color else {}

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if record.levelno == logging.INFO:
            return text
        level = f"{record.levelname.lower()}:"
        if color := self._colors.get(record.levelno):
            level = f"\x1b[{color}m{level}\x1b[0m"
        return f"{level} {text}"
