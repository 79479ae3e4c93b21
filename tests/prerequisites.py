"""What a suite on real parts needs of the machine."""

from __future__ import annotations

import os

import pytest


def skip_if_missing(reason: str, variable: str) -> None:
    """Skip the test for ``reason`` if there is one; fail it where ``variable`` is 1, which requires it."""
    if reason and os.environ.get(variable) == "1":
        pytest.fail(f"the parts are required here ({variable}=1): {reason}", pytrace=False)
    if reason:
        pytest.skip(reason)
