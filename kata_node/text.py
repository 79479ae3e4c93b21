"""How bytes, sizes and numbers of things are shown to people. Pure."""

from __future__ import annotations

import difflib
import re


def unified_diff(path: str, before: bytes | None, after: bytes | None) -> str:
    """A change to a text file as ``diff -u`` shows it: only ``\\n`` ends a line, all else is part of it.

    Bytes that are no UTF-8 are shown as escapes.
    """

    def lines(content: bytes | None) -> list[str]:
        text = (content or b"").decode("utf-8", "backslashreplace")
        return [line for line in re.split(r"(?<=\n)", text) if line]

    old, new = ("/dev/null" if content is None else path for content in (before, after))
    diff = difflib.unified_diff(lines(before), lines(after), old, new)
    return "".join(
        line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in diff
    )


def pluralize(number: int, one: str, many: str = "") -> str:
    """So many things: ``1 file``, ``2 files``; ``many`` where that takes more than an s."""
    return f"{number} {one if number == 1 else many or f'{one}s'}"


def human_size(size: int) -> str:
    """A size for people: ``1.5 GiB``."""
    value = float(size)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"
