"""Diffs of configuration files for a plan. Pure.

A plan is shown to people, kept in logs and attached to change requests, so a diff has no secrets: the value
of a key with a name like ``password`` or ``auth`` is masked. A changed value still gives a changed line.
"""

from __future__ import annotations

import hashlib
import re

from kata_node.plan.effects import MAX_TEXT_SIZE
from kata_node.text import unified_diff

MAX_LINES = 10_000
"""Lines of both contents together that are compared, which takes more than linear time."""
MAX_LINE_LENGTH = 2000
"""Characters. A longer line is not searched for secrets, and not shown."""

MASK = '"(masked)"'

_SENSITIVE = re.compile(
    r"(?i)pass(?:word|wd|phrase)|secret|token|auth|credential|(?:private|api|access)[-_]?key"
)
_NAMES_A_FILE = re.compile(r"(?i)(?:file|path|dir)$")
_KEY = re.compile(r"(?<![\w-])(?P<name>[\w-]++)[\"']?\s*[=:]\s*(?=\S)")
_NO_SECRET = re.compile(r"\"\"(?!\")|''(?!')|true\b|false\b|-?\d+\s*(?:[,#}\]]|$)")
"""Values that cannot be a secret: an empty string, a boolean, a number."""
_STRING = re.compile(r'"(?!"")(?:[^"\\]|\\.)*"|\'(?!\'\')[^\']*\'')
_USER_IN_URL = re.compile(r"://[^/@\s\"']+@")
_DIGEST = re.compile(r"\0[0-9a-f]{64}")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def file_diff(path: str, before: bytes | None, after: bytes | None, *, is_secret: bool = False) -> str:
    """Return a change of a text file as ``diff -u`` shows it. ``None`` stands for a missing file.

    Secrets are masked. Bytes that are not UTF-8 and control characters become escapes. For content that is
    not text or is too large, the result says that instead. With ``is_secret`` all strings are masked.
    """
    contents = [content for content in (before, after) if content is not None]
    old, new = ("/dev/null" if content is None else path for content in (before, after))
    if any(b"\0" in content for content in contents):
        return f"--- {old}\n+++ {new}\nthe content is not text, so there is no diff\n"
    counts = [(content or b"").count(b"\n") for content in (before, after)]
    if sum(counts) > MAX_LINES or any(len(content) > MAX_TEXT_SIZE for content in contents):
        return f"--- {old}\n+++ {new}\n{counts[0]} lines become {counts[1]}: too large for a diff\n"
    shown = (_masked(content, is_secret=is_secret) for content in (before, after))
    return _DIGEST.sub("", unified_diff(path, *shown))


def _masked(content: bytes | None, *, is_secret: bool) -> bytes | None:
    """Return the content without secrets and control characters.

    A masked line has the digest of the original in it, behind a zero byte, so that the diff shows a change.
    """
    if content is None:
        return None
    text = _CONTROL.sub(lambda found: repr(found[0])[1:-1], content.decode("utf-8", "backslashreplace"))
    masked: list[str] = []
    end = ""  # what ends a secret value of several lines
    for line in re.split(r"(?<=\n)", text):
        shown, end = _mask_line(line, end, is_secret=is_secret)
        if shown != line:
            body, newline, _ = shown.partition("\n")
            shown = f"{body}\0{hashlib.sha256(line.encode()).hexdigest()}{newline}"
        masked.append(shown)
    return "".join(masked).encode()


def _mask_line(line: str, end: str, *, is_secret: bool) -> tuple[str, str]:
    """Return the line without secrets, and what ends the secret value that continues in the next line."""
    newline = "\n" if line.endswith("\n") else ""
    if len(line) > MAX_LINE_LENGTH:
        return f"({len(line)} characters, too long for a diff){newline}", end
    if end:
        return f"(masked){newline}", _still_open(line, end)
    done, rest = "", _USER_IN_URL.sub("://(masked)@", line)
    while found := _KEY.search(rest):
        is_shown = (not is_secret and _is_shown(found["name"])) or _NO_SECRET.match(rest, found.end())
        done, rest = done + rest[: found.end()], rest[found.end() :]
        if is_shown:
            continue
        done += MASK
        if string := _STRING.match(rest):
            rest = rest[string.end() :]
            continue
        return f"{done}{newline}", _still_open(rest, "")
    return done + rest, ""


def _is_shown(key: str) -> bool:
    """Return whether the value of a key is shown. A key that names a file has a path, and no secret."""
    return not _SENSITIVE.search(key) or _NAMES_A_FILE.search(key) is not None


def _still_open(text: str, end: str) -> str:
    """Return what still has to close a value after ``text``: quotes, or one bracket for each open one."""
    for quotes in ('"""', "'''"):
        if end == quotes:
            return "" if quotes in text else quotes
        if not end and text.lstrip().startswith(quotes):
            return "" if quotes in text.lstrip()[3:] else quotes
    text = _STRING.sub("", text).partition("#")[0]
    depth = len(end) + sum(text.count(each) for each in "[{") - sum(text.count(each) for each in "]}")
    return "]" * max(0, depth)
