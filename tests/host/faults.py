"""Functions of the operating system that fail."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any


def fail_with(code: int) -> Callable[..., Any]:
    """Return a function that raises :class:`OSError` with ``code``."""

    def fail(*_: object, **__: object) -> Any:
        raise OSError(code, os.strerror(code))

    return fail
