"""Fixtures for runs of the stages on a fake node."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kata_node.runtime import restart
from pipeline.harness import small_payload


@pytest.fixture
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip fsync and waits: with them, hundreds of runs take minutes."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    for name in ("POLL", "PATIENCE", "SETTLE_TIME", "WATCH_TIMEOUT"):
        monkeypatch.setattr(restart, name, 0.001)


@pytest.fixture(scope="module")
def payload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small payload, which the tests of one module share."""
    return small_payload(tmp_path_factory.mktemp("payload"))
