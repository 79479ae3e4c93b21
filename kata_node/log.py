"""The log on stderr. stdout belongs to results.

Timestamps are UTC and to the second: pods of one rollout are compared across nodes. A person at a
terminal sees the lines as they come, and gets them without.
"""

from __future__ import annotations

import logging
import sys
import time

LEVELS = ("debug", "info", "warning", "error")


def configure_logging(level: str) -> None:
    """Send this project's log records of ``level`` (one of :data:`LEVELS`) and above to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    formatter: logging.Formatter = _PlainFormatter()
    if sys.stderr is None or not sys.stderr.isatty():
        formatter = logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%Y-%m-%dT%H:%M:%SZ")
        formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    logger = logging.getLogger("kata_node")
    logger.handlers[:] = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False


class _PlainFormatter(logging.Formatter):
    """``restart containerd.service``, ``warning: …``."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno == logging.INFO else f"{record.levelname.lower()}: {text}"
