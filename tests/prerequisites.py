"""Skip tests with real programs when this machine lacks a prerequisite."""

from __future__ import annotations

import os

import pytest


def skip_if_missing(reason: str, variable: str) -> None:
    """Skip the test if there is a ``reason``; fail it instead if the environment variable is 1."""
    if reason and os.environ.get(variable) == "1":
        pytest.fail(f"{variable}=1 requires this test, but it cannot run: {reason}", pytrace=False)
    if reason:
        pytest.skip(reason)
