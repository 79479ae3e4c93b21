"""The error of a release."""

from __future__ import annotations


class ReleaseError(Exception):
    """A release cannot be made or pushed. ``what`` says why, and ``hint`` what to do."""

    def __init__(self, what: str, hint: str) -> None:
        super().__init__(f"{what}\n  hint: {hint}")
