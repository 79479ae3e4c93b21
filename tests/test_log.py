"""The lines of the log on stderr."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from kata_node import log as logs

log = logging.getLogger("kata_node.test")


@pytest.fixture(autouse=True)
def _configured() -> Iterator[None]:
    logger = logging.getLogger("kata_node")
    before = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:], level, logger.propagate = before
    logger.setLevel(level)


@pytest.mark.parametrize("terminal", [True, False])
def test_a_path_with_terminal_commands_is_escaped(
    terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    logs.configure_logging("info")
    log.info("remove %s", "/opt/kata/\x1b[2J\u202e\udcff")
    written = capsys.readouterr().err
    assert written.endswith("remove /opt/kata/\\x1b[2J\\u202e\\udcff\n")
    assert written.startswith("remove") is terminal
