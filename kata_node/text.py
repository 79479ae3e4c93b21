"""Format diffs, counts and sizes for people. Pure."""

from __future__ import annotations

import difflib
import re


def unified_diff(path: str, before: bytes | None, after: bytes | None) -> str:
    """Return a change to a text file as ``diff -u`` shows it.

    Only ``\\n`` ends a line. Bytes that are not UTF-8 become escapes. ``None`` stands for a missing file.
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
    """Return a count with its noun: ``1 file``, ``2 files``. ``many`` is the plural if it is not one + s."""
    return f"{number} {one if number == 1 else many or f'{one}s'}"


def human_size(size: int) -> str:
    """Return a size in bytes with a binary unit: ``1.5 GiB``."""
    value = float(size)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"
