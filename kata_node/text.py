"""Format diffs, counts, sizes and the words of others for people. Pure."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence

FOREIGN_LIMIT = 600
"""Maximum characters of one text that does not come from kata-node."""
TERMINATION_MESSAGE_LIMIT = 4096
"""Maximum bytes of the termination message of a container. The kubelet cuts what is longer."""


RELEASE = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?/[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
"""The form of a Helm release, ``NAMESPACE/NAME``."""


def utc(seconds: float) -> str:
    """Return a time since the epoch as ``2026-10-03T08:12:44Z``."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def escape_unprintable(text: str, keep: str = "") -> str:
    """Return ``text`` with an escape (``\\x1b``, ``\\u202e``) for each character that is not printable.

    Not printable are control characters, among them line ends, format characters, among them those that
    reverse the direction of text, separators other than a blank, surrogates, characters for private use, and
    unassigned ones. Those in ``keep`` stay as they are.
    """
    if text.isprintable():
        return text
    return "".join(
        each if each in keep or each.isprintable() else each.encode("unicode_escape").decode()
        for each in text
    )


def foreign_words(text: str, limit: int = FOREIGN_LIMIT) -> str:
    """Return text of another program or machine as one line that is safe to show.

    White space becomes one blank. Other characters that are not printable become escapes. What is longer
    than ``limit`` characters ends with ``…``.
    """
    # What is cut away in any case is not looked at: the text may have megabytes.
    text = text.strip()
    head = text[: 4 * limit]
    words = escape_unprintable(" ".join(head.split()))
    if len(words) <= limit and len(head) == len(text):
        return words
    return words[: limit - 1] + "…"


def quote_foreign(text: str, limit: int = FOREIGN_LIMIT) -> str:
    """Return :func:`foreign_words` in double quotes. No double quote in it can end the quotation."""
    return f'"{foreign_words(text, limit).translate(_SINGLE_QUOTES)}"'


_SINGLE_QUOTES = str.maketrans(dict.fromkeys('"\u201c\u201d\u201e\u201f\u2033\u301d\u301e\uff02', "'"))
"""Double quotes, and what looks like them, to single quotes."""


def unified_diff(path: str, before: bytes | None, after: bytes | None) -> str:
    """Return a change to a text file as ``diff -u`` shows it.

    Only ``\\n`` ends a line. Bytes that are not UTF-8 become escapes. ``None`` stands for a missing file.
    """

    # Imported late: most programs that format texts show no diff.
    import difflib
    import re

    def lines(content: bytes | None) -> list[str]:
        text = (content or b"").decode("utf-8", "backslashreplace")
        return [line for line in re.split(r"(?<=\n)", text) if line]

    old, new = ("/dev/null" if content is None else path for content in (before, after))
    diff = difflib.unified_diff(lines(before), lines(after), old, new)
    return "".join(
        line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in diff
    )


def pluralize(number: int, one: str, many: str = "") -> str:
    """Return a count with its noun: ``1 file``, ``2 files``. ``many`` is the plural if it is not one + s."""
    return f"{number} {one if number == 1 else many or f'{one}s'}"


def first_of(names: Sequence[object], limit: int) -> str:
    """Return the first names, and how many more there are: ``a, b and 3 more``."""
    more = len(names) - limit
    return ", ".join(map(str, names[:limit])) + (f" and {more} more" if more > 0 else "")


def human_size(size: int) -> str:
    """Return a size in bytes with a binary unit: ``1.5 GiB``."""
    value = float(size)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"
