"""Diffs of configuration files for a plan. Pure.

A plan is shown to people, kept in logs and attached to change requests, so a diff has no secrets: the value
of a key with a name like ``password`` or ``auth`` is masked. A changed value still gives a changed line.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Iterable, Iterator

MAX_TEXT_SIZE = (
    1 << 20
)  # bytes; a larger file is not compared line by line, which takes more than linear time
MAX_LINES = 10_000
"""Lines of both contents together that are compared."""
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
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def file_diff(path: str, before: bytes | None, after: bytes | None) -> str:
    """Return a change of a text file as ``diff -u`` shows it. ``None`` stands for a missing file.

    Secrets are masked. Bytes that are not UTF-8 and control characters become escapes. For content that is
    not text or is too large, the result says that instead.
    """
    contents = [content for content in (before, after) if content is not None]
    old, new = ("/dev/null" if content is None else path for content in (before, after))
    if any(b"\0" in content for content in contents):
        return f"--- {old}\n+++ {new}\nthe content is not text, so there is no diff\n"
    texts = [_lines(content) for content in (before, after)]
    if sum(map(len, texts)) > MAX_LINES or any(len(content) > MAX_TEXT_SIZE for content in contents):
        return f"--- {old}\n+++ {new}\n{len(texts[0])} lines become {len(texts[1])}: too large for a diff\n"
    masked_before, masked_after = (list(_masked(text)) for text in texts)
    lines = difflib.unified_diff(masked_before, masked_after, old, new)
    return "".join(
        line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"
        for line in (re.sub("\0[0-9a-f]+", "", line) for line in lines)
    )


def _lines(content: bytes | None) -> list[str]:
    """Return the lines with their ends. Only ``\\n`` ends a line."""
    text = _CONTROL.sub(
        lambda found: repr(found[0])[1:-1], (content or b"").decode("utf-8", "backslashreplace")
    )
    return [line for line in re.split(r"(?<=\n)", text) if line]


def _masked(lines: Iterable[str]) -> Iterator[str]:
    """Yield the lines without secrets.

    A masked line has the digest of the original in it, behind a zero byte, so that the diff shows a change.
    """
    end = ""  # what ends a secret value of several lines
    for line in lines:
        shown, end = _mask_line(line, end)
        body, newline = shown.removesuffix("\n"), "\n" if shown.endswith("\n") else ""
        digest = f"\0{hashlib.sha256(line.encode()).hexdigest()}" if shown != line else ""
        yield f"{body}{digest}{newline}"


def _mask_line(line: str, end: str) -> tuple[str, str]:
    """Return the line without secrets, and what ends the secret value that continues in the next line."""
    newline = "\n" if line.endswith("\n") else ""
    if len(line) > MAX_LINE_LENGTH:
        return f"({len(line)} characters, too long for a diff){newline}", end
    if end:
        return f"(masked){newline}", _still_open(line, end)
    done, rest = "", _USER_IN_URL.sub("://(masked)@", line)
    while found := _KEY.search(rest):
        is_shown = _is_shown(found["name"]) or _NO_SECRET.match(rest, found.end())
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
