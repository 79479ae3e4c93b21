"""The log, which goes to stderr; stdout is for results.

Lines have a timestamp in UTC, in whole seconds, so that the logs of several nodes can be compared.
On a terminal they have none.
"""

from __future__ import annotations

import logging
import sys
import time

from kata_node.text import escape_unprintable

LEVELS = ("debug", "info", "warning", "error")


def configure_logging(level: str) -> None:
    """Send kata-node's log records of ``level`` (one of :data:`LEVELS`) and above to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    formatter: logging.Formatter = _TerminalFormatter()
    if sys.stderr is None or not sys.stderr.isatty():
        formatter = _PlainFormatter("%(asctime)s %(levelname)-7s %(message)s", "%Y-%m-%dT%H:%M:%SZ")
        formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    logger = logging.getLogger("kata_node")
    logger.handlers[:] = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False


class _PlainFormatter(logging.Formatter):
    """Escapes what is not printable: a path can have any character, and a terminal obeys some of them."""

    def format(self, record: logging.LogRecord) -> str:
        return escape_unprintable(super().format(record), keep="\n\t")


class _TerminalFormatter(_PlainFormatter):
    """The format for a terminal: only the message, with the level before it unless that is INFO."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno == logging.INFO else f"{record.levelname.lower()}: {text}"
