"""The answer of the child process ``verify``, which asks whether this node still serves Kata."""

from __future__ import annotations

import json
from typing import Any

SERVED, CHANGED, NOT_SERVED, UNKNOWN = "served", "changed", "not served", "unknown"

OUTPUT_LIMIT = 65536
"""Bytes of an answer; kata-node writes none that is longer."""


class Verification:
    """What ``verify`` found. ``reason`` says why the state is not :data:`SERVED`.

    ``paths`` are the files that tell of a change: what the install placed, and the socket of the runtime.
    """

    def __init__(self, state: str, reason: str = "", paths: tuple[str, ...] = ()) -> None:
        self.state = state
        self.reason = reason
        self.paths = paths

    @classmethod
    def parse(cls, output: bytes) -> Verification:
        """Return the answer in the output of the child; :data:`UNKNOWN` if there is none."""
        try:
            found: Any = json.loads(output)
            paths = tuple(map(str, found["watch"]))
            state, reason = str(found["state"]), str(found["reason"])
        except (ValueError, LookupError, TypeError, RecursionError):
            return cls(UNKNOWN, "kata-node verify failed, see the log of this pod")
        return cls(state, reason, paths)
