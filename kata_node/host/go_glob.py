"""Patterns for names, by the rules of Go's ``filepath.Match``, as containerd has its imports matched.

They are not those of a shell or of Python's fnmatch: ``*`` and ``?`` match a leading dot too, a class
is negated by ``^`` and by nothing else, a backslash escapes, and a pattern can be malformed.
"""

from __future__ import annotations

import functools
import re

_SPECIAL = frozenset("*?[\\")


def is_pattern(name: str) -> bool:
    """Whether any character of ``name``, one component of a path, is more than itself."""
    return not _SPECIAL.isdisjoint(name)


def matches(pattern: str, path: str) -> bool:
    """Whether a pattern for a whole path finds ``path``; a malformed one finds nothing."""
    parts, names = pattern.split("/"), path.split("/")
    try:
        found = [compile_name(part).fullmatch(name) for part, name in zip(parts, names, strict=False)]
    except ValueError:
        return False
    return len(parts) == len(names) and None not in found


@functools.lru_cache(maxsize=64)
def compile_name(pattern: str) -> re.Pattern[str]:
    """An expression whose ``fullmatch`` says whether ``pattern``, one component of a path, finds a name.

    Raises :class:`ValueError` when it is malformed.
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
    """The class whose inside begins at ``at``, and where the pattern goes on behind it."""
    negated = pattern[at : at + 1] == "^"
    at += negated
    ranges = ""
    start = at
    while at == start or pattern[at : at + 1] != "]":
        low, at = _bound(pattern, at)
        high = low
        if pattern[at : at + 1] == "-":
            high, at = _bound(pattern, at + 1)
        if low <= high:  # others hold nothing
            ranges += f"{re.escape(low)}-{re.escape(high)}"
    if not ranges:
        return ("." if negated else "(?!)"), at + 1
    return f"[{'^' if negated else ''}{ranges}]", at + 1


def _bound(pattern: str, at: int) -> tuple[str, int]:
    if pattern[at : at + 1] in ("", "-", "]"):
        raise ValueError("the class of characters lacks its end or an end of a range")
    return _literal(pattern, at)


def _literal(pattern: str, at: int) -> tuple[str, int]:
    if pattern[at] != "\\":
        return pattern[at], at + 1
    if at + 1 == len(pattern):
        raise ValueError("nothing follows its last backslash")
    return pattern[at + 1], at + 2
