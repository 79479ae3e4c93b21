"""Match names by the rules of Go's ``filepath.Match``, which containerd uses for its imports.

They differ from those of a shell and of Python's fnmatch: ``*`` and ``?`` match a leading dot, only
``^`` negates a class, a backslash escapes a character, and a pattern can be malformed.
"""

from __future__ import annotations

import functools
import re

_SPECIAL = frozenset("*?[\\")


def is_pattern(name: str) -> bool:
    """Return whether ``name``, one component of a path, has a special character."""
    return not _SPECIAL.isdisjoint(name)


def matches(pattern: str, path: str) -> bool:
    """Return whether a pattern for a whole path matches ``path``; a malformed pattern matches nothing."""
    parts, names = pattern.split("/"), path.split("/")
    try:
        found = [compile_name(part).fullmatch(name) for part, name in zip(parts, names, strict=False)]
    except ValueError:
        return False
    return len(parts) == len(names) and None not in found


def is_malformed(pattern: str) -> bool:
    """Return whether a part of a pattern for a whole path is malformed."""
    try:
        for part in pattern.split("/"):
            compile_name(part)
    except ValueError:
        return True
    return False


@functools.lru_cache(maxsize=64)
def compile_name(pattern: str) -> re.Pattern[str]:
    """Compile a pattern for one component of a path to a regular expression, to use with ``fullmatch``.

    Raises :class:`ValueError` when the pattern is malformed.
    """
    expression, at = "", 0
    while at < len(pattern):
        char = pattern[at]
        if char == "[":
            part, at = _class(pattern, at + 1)
        elif char in "*?":
            part, at = (".*" if char == "*" else "."), at + 1
        else:
            char, at = _literal(pattern, at)
            part = re.escape(char)
        expression += part
    return re.compile(expression, re.DOTALL)


def _class(pattern: str, at: int) -> tuple[str, int]:
    """Return the character class that begins after ``[`` at ``at``, and the position after its ``]``."""
    negated = pattern[at : at + 1] == "^"
    at += negated
    ranges = ""
    start = at
    while at == start or pattern[at : at + 1] != "]":
        low, at = _bound(pattern, at)
        high = low
        if pattern[at : at + 1] == "-":
            high, at = _bound(pattern, at + 1)
        if low <= high:  # otherwise the range is empty
            ranges += f"{re.escape(low)}-{re.escape(high)}"
    if not ranges:
        return ("." if negated else "(?!)"), at + 1
    return f"[{'^' if negated else ''}{ranges}]", at + 1


def _bound(pattern: str, at: int) -> tuple[str, int]:
    if pattern[at : at + 1] in ("", "-", "]"):
        raise ValueError("a character class lacks its closing bracket or the end of a range")
    return _literal(pattern, at)


def _literal(pattern: str, at: int) -> tuple[str, int]:
    if pattern[at] != "\\":
        return pattern[at], at + 1
    if at + 1 == len(pattern):
        raise ValueError("it ends with a backslash")
    return pattern[at + 1], at + 2
