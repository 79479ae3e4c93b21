"""Edit one top-level array of strings in somebody else's TOML file, and no other byte of it. Pure.

The text is spliced, never rendered anew: comments, order, quoting and line ends stay. A small
scanner finds the place; it is not trusted. The standard library's parser reads the file before and
after, and an edit that changes anything but the one entry, or that could not be taken back to the
same bytes, is refused with the request to do it by hand.

tomlkit, which writes our own files, does not keep this promise (0.15.2): with the entry taken out
again a trailing comma is gone or added, an array with a comment before its bracket is a ValueError,
and a file of 1 MB takes 5 s.

containerd, whose file this is made for, matches top-level keys whatever their case, and of two
spellings the later one counts (measured on 2.1.9 and 2.3.4). So ``Imports`` is found as well, and a
file with two spellings is refused.
"""

from __future__ import annotations

import functools
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kata_node.errors import HostError

ADDED_LINE_COMMENT = "# added by kata-node"
"""Ends a line that was added whole, so that it goes whole when its last entry goes."""

_TOKEN = re.compile(
    r'''"""(?:\\.|[^\\])*?""""{0,2}'''  # a multi-line string may end in quotes of its own
    r"""|'''.*?''''{0,2}"""
    r'''|"(?:\\.|[^"\\\n])*"'''
    r"""|'[^'\n]*'"""
    r"""|\#[^\r\n]*|\r?\n|[ \t]+|[\[\]{},=]|[^\s"'\#\[\]{},=]+""",
    re.DOTALL,
)
_REST_OF_LINE = re.compile(r"[ \t]*(\#[^\r\n]*)?(?=\r?\n)")
_BREAK = re.compile(r"\r?\n|\Z")


def quote(text: str) -> str:
    """``text`` as a TOML basic string."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


@functools.lru_cache(maxsize=32)
def _parse(content: bytes) -> Mapping[str, Any]:
    """One stage asks for the same few files, as they are and as they are to be, dozens of times."""
    return tomllib.loads(content.decode())


def load(content: bytes, where: str) -> Mapping[str, Any]:
    """Parse a TOML file, to be read only. Raises :class:`HostError` that tells the line and column."""
    try:
        return _parse(content)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        what = f"this is not valid TOML: line {line} is not UTF-8"
    except tomllib.TOMLDecodeError as error:
        last = content.count(b"\n") + 1
        reason = str(error).replace("at end of document", f"at line {last}, the end")
        if content.startswith(b"\xef\xbb\xbf"):
            reason = "it begins with a byte order mark"
        what = f"this is not valid TOML: {reason}"
    raise HostError(what, where=where, hint="correct the file; it is never repaired automatically")


def get(table: Mapping[str, Any], name: str, where: str) -> Any:
    """The value of the top-level key ``name`` in any case, or ``None``.

    Raises :class:`HostError` when two spellings of it are there.
    """
    found = [spelling for spelling in table if spelling.lower() == name]
    if len(found) > 1:
        raise HostError(
            f"the keys {' and '.join(found)} are one and the same to the runtime, which reads only the later",
            where=where,
            hint=f"merge them into one key {name}",
        )
    return table[found[0]] if found else None


def string_array(table: Mapping[str, Any], name: str, where: str) -> tuple[str, ...]:
    """The array of strings under the top-level key ``name``; empty when there is no such key.

    Raises :class:`HostError` when it is anything else.
    """
    value = get(table, name, where)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise HostError(f"{name} is not an array of strings", where=where, hint="correct the file")
    return tuple(value)


def add(content: bytes, name: str, value: str, *, after: str = "", where: str) -> bytes:
    """Add ``value`` to the array ``name``, by one insertion; nothing changes when it is there.

    Without such a key a line is added below that of the key ``after``, or else on top. Raises
    :class:`HostError`: the file is not valid TOML, or the place cannot be found with certainty.
    """
    before = load(content, where)
    if value in string_array(before, name, where):
        return content
    text = content.decode()
    array = _find_array(text, name)
    if array is not None:
        at, insertion = _append(text, array, quote(value))
    elif get(before, name, where) is None:
        at, insertion = _line_insertion(text, _array_line(name, value), after)
    else:
        raise _manual_edit_error("add", name, value, where)
    edited = (text[:at] + insertion + text[at:]).encode()
    if not _only_adds(edited, before, name, value) or _remove_elements(edited, name, value, 1) != content:
        raise _manual_edit_error("add", name, value, where)
    return edited


def remove(content: bytes, name: str, value: str, *, where: str) -> bytes:
    """Take ``value`` out of the array ``name``; what :func:`add` made becomes what it was, byte for byte.

    Nothing changes when it is not there. Raises :class:`HostError` like :func:`add`.
    """
    before = load(content, where)
    times = string_array(before, name, where).count(value)
    if not times:
        return content
    edited = _remove_elements(content, name, value, times)
    if not _only_removes(edited, before, name, value):
        raise _manual_edit_error("remove", name, value, where)
    return edited


def _manual_edit_error(verb: str, name: str, value: str, where: str) -> HostError:
    preposition = "to" if verb == "add" else "from"
    return HostError(
        f"the array {name} cannot be edited without risk to the rest of the file",
        where=where,
        hint=f"{verb} {quote(value)} {preposition} {name} by hand, then run again",
    )


def _only_adds(edited: bytes, before: Mapping[str, Any], name: str, value: str) -> bool:
    """Whether ``edited`` says what ``before`` does, and ``value`` in the array is all it has beyond that."""
    now = _try_split(edited, name)
    if now is None or value not in now[0]:
        return False
    return ([item for item in now[0] if item != value], now[1]) == _split_array(before, name)


def _only_removes(edited: bytes, before: Mapping[str, Any], name: str, value: str) -> bool:
    """Whether ``edited`` says what ``before`` does, and lacks nothing but ``value`` in the array."""
    array, rest = _split_array(before, name)
    return _try_split(edited, name) == ([item for item in array if item != value], rest)


def _try_split(content: bytes, name: str) -> tuple[list[str], dict[str, Any]] | None:
    """The array, and all else the file says; ``None`` when an edit broke it."""
    try:
        return _split_array(load(content, ""), name)
    except HostError:
        return None


def _split_array(table: Mapping[str, Any], name: str) -> tuple[list[str], dict[str, Any]]:
    rest = {key: value for key, value in table.items() if key.lower() != name}
    return list(string_array(table, name, "")), rest


@dataclass(frozen=True)
class _Statement:
    """``key = value`` above the first table; tokens of the value as ``(start, end)`` in the text."""

    start: int
    end: int
    key: str
    value: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class _Element:
    """A string in the array: its span, and where the comma behind it ends."""

    start: int
    end: int
    comma: int | None


@dataclass(frozen=True)
class _Array:
    start: int
    """Where its key starts."""
    end: int
    """Behind the closing bracket."""
    open: int
    """Behind the opening bracket."""
    elements: tuple[_Element, ...]


def _statements(text: str) -> Iterator[_Statement]:
    """The statements above the first table header, of a text known to be valid TOML."""
    start, depth, parts = -1, 0, list[tuple[int, int]]()
    for match in _TOKEN.finditer(text + "\n"):
        part, first = match[0], match[0][0]
        if start < 0:
            if part == "[":
                return
            if first not in " \t\r\n#":
                start = match.start()
        if start < 0 or first in " \t":
            continue
        if depth == 0 and first in "\r\n#":
            equals = next(i for i, (at, _) in enumerate(parts) if text[at] == "=")
            name = text[start : parts[equals][0]].strip()
            yield _Statement(start, parts[-1][1], name, tuple(parts[equals + 1 :]))
            start, parts = -1, []
            continue
        depth += (part in ("[", "{")) - (part in ("]", "}"))
        parts.append(match.span())


def _find_statement(text: str, name: str) -> _Statement | None:
    return next((item for item in _statements(text) if item.key.strip("\"'").lower() == name), None)


def _find_array(text: str, name: str) -> _Array | None:
    """The array under the top-level key ``name``, known to hold only strings."""
    statement = _find_statement(text, name)
    if statement is None or text[statement.value[0][0]] != "[":
        return None
    elements: list[_Element] = []
    for start, end in statement.value[1:-1]:
        if text[start] in "\"'":
            elements.append(_Element(start, end, None))
        elif text[start] == "," and elements:
            elements[-1] = _Element(elements[-1].start, elements[-1].end, end)
    return _Array(statement.start, statement.end, statement.value[0][1], tuple(elements))


def _array_line(name: str, value: str) -> str:
    return f"{name} = [{quote(value)}] {ADDED_LINE_COMMENT}"


def _line_start(text: str, at: int) -> int:
    return text.rfind("\n", 0, at) + 1


def _blanks_before(text: str, at: int) -> int:
    """Where the blanks right before ``at`` start."""
    line = _line_start(text, at)
    return line + len(text[line:at].rstrip(" \t"))


def _blanks_after(text: str, at: int) -> int:
    """Where the blanks right behind ``at`` end."""
    while text.startswith((" ", "\t"), at):
        at += 1
    return at


def _break_before(text: str, line: int) -> int:
    """Where the line break before the line that starts at ``line`` starts."""
    return line - (2 if text.startswith("\r\n", max(line - 2, 0)) else 1) if line else 0


def _line_break_of(text: str) -> str:
    """How this file ends its lines, judged by the first."""
    return "\r\n" if text.startswith("\r\n", text.find("\n") - 1) else "\n"


def _line_insertion(text: str, line: str, after: str) -> tuple[int, str]:
    """Where to insert ``line`` when there is no array, and the insertion."""
    statement = _find_statement(text, after) if after else None
    if statement is None:
        return 0, line + _line_break_of(text)
    end = text.find("\n", statement.end) + 1
    return (end, line + _line_break_of(text)) if end else (len(text), _line_break_of(text) + line)


def _append(text: str, array: _Array, literal: str) -> tuple[int, str]:
    """Where to insert ``literal`` into the array, and the insertion with its comma and blanks."""
    if not array.elements:
        return array.open, literal
    last = array.elements[-1]
    line, blanks = _line_start(text, last.start), _blanks_before(text, last.start)
    indent = text[line : _blanks_after(text, line)] if line > array.start else "  "
    own_line = (text[_break_before(text, line) : line] or _line_break_of(text)) + indent
    if last.comma is not None:
        rest = _REST_OF_LINE.match(text, last.comma)
        return (rest.end(), f"{own_line}{literal},") if rest else (last.comma, f" {literal},")
    if text.startswith("#", _blanks_after(text, last.end)):
        # A comma behind the last entry would take the comment away from it.
        return last.start, f"{literal},{own_line if blanks == line else text[blanks : last.start]}"
    return last.end, f",{own_line if blanks == line else ' '}{literal}"


def _remove_elements(content: bytes, name: str, value: str, times: int) -> bytes:
    """Cut ``times`` entries ``value``, the last one first; the caller checks the outcome."""
    text = content.decode()
    for _ in range(times):
        array = _find_array(text, name)
        found = [
            number
            for number, item in enumerate(array.elements if array else ())
            if _parse_literal(text[item.start : item.end]) == value
        ]
        if array is None or not found:
            break
        start, end = _span_to_cut(text, array, found[-1], _array_line(name, value))
        text = text[:start] + text[end:]
    return text.encode()


def _parse_literal(literal: str) -> str:
    return str(tomllib.loads(f"x = {literal}")["x"])


def _span_to_cut(text: str, array: _Array, index: int, added_line: str) -> tuple[int, int]:
    """What to cut so that the entry at ``index`` is gone; ``whole`` is the line if :func:`add` made it."""
    item = array.elements[index]
    line, blanks = _line_start(text, item.start), _blanks_before(text, item.start)
    if len(array.elements) == 1:
        line_break = _BREAK.match(text, line + len(added_line))
        if not text.startswith(added_line, line) or line_break is None:
            return item.start, item.comma or item.end
        return (line, line_break.end()) if line_break[0] else (_break_before(text, line), len(text))
    rest = _REST_OF_LINE.match(text, item.comma or item.end)
    alone = blanks == line and rest is not None and rest[1] is None
    if item.comma is None:  # the last one: the comma before it goes too, unless a comment is in between
        comma = array.elements[index - 1].comma or item.start
        if not text[comma : item.start].strip():
            return comma - 1, item.end
        return _break_before(text, line) if alone else blanks, item.end
    if alone:
        return _break_before(text, line), item.comma
    return (blanks, item.comma) if index else (item.start, _blanks_after(text, item.comma))
