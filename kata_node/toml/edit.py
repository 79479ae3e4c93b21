"""Add a string to a top-level array in a foreign TOML file, or remove it. No other byte changes. Pure.

The text is spliced, not rendered: comments, order, quoting and line ends stay. A small scanner finds
the place. The standard library's parser then checks the result: :func:`add` and :func:`remove` raise
an error that asks for an edit by hand when the edit changes anything other than the one string, or
when removing the string again would not give the same bytes.

tomlkit is not exact enough for this (0.15.2): after the string is
removed again a trailing comma is gone or added, an array with a comment before its bracket raises a
ValueError, and a file of 1 MB takes 5 s.

containerd ignores the case of top-level keys, and of two spellings it uses the later one (measured on
2.1.9 and 2.3.4). So ``Imports`` is found as well, and a file with two spellings raises an error.
"""

from __future__ import annotations

import functools
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

from msgspec import Struct

from kata_node.errors import HostError, UnusableFileError
from kata_node.toml.parse import parse

ADDED_LINE_COMMENT = "# added by kata-node"
"""The end of a line that :func:`add` wrote. :func:`remove` removes such a line with its last string."""

TOKEN = re.compile(
    r'''"""(?:\\.|[^\\])*?""""{0,2}'''  # a multi-line string may have up to two quotes before its end
    r"""|'''.*?''''{0,2}"""
    r'''|"(?:\\.|[^"\\\n])*"'''
    r"""|'[^'\n]*'"""
    r"""|\#[^\r\n]*|\r?\n|[ \t]+|[\[\]{},=]|[^\s"'\#\[\]{},=]+""",
    re.DOTALL,
)
"""The tokens of TOML: strings, comments, line breaks, blanks, punctuation and bare text."""
_REST_OF_LINE = re.compile(r"[ \t]*(\#[^\r\n]*)?(?=\r?\n)")
_BREAK = re.compile(r"\r?\n|\Z")


class DuplicateKeyError(UnusableFileError):
    """A file has one key in two spellings; the runtime starts with it."""


class BrokenTomlError(UnusableFileError):
    """A file is not valid TOML."""


def quote(text: str) -> str:
    """Return ``text`` as a TOML basic string."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


@functools.lru_cache(maxsize=32)
def _parse(content: bytes) -> Mapping[str, Any]:
    """Parse a TOML file. Cached, because one stage parses the same few contents dozens of times."""
    return parse(content.decode())


def load(content: bytes, where: str) -> Mapping[str, Any]:
    """Parse a TOML file; the result must not be changed.

    Raises :class:`BrokenTomlError` with the line and column when it is not valid TOML.
    """
    try:
        return _parse(content)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        what = f"the file is not valid TOML: line {line} is not UTF-8"
    except tomllib.TOMLDecodeError as error:
        last = content.count(b"\n") + 1
        reason = str(error).replace("at end of document", f"at line {last}, the end")
        if content.startswith(b"\xef\xbb\xbf"):
            reason = "it begins with a byte order mark"
        what = f"the file is not valid TOML: {reason}"
    raise BrokenTomlError(what, where=where, hint="correct the file by hand; kata-node does not repair it")


def get(table: Mapping[str, Any], name: str, where: str) -> Any:
    """Return the value of the top-level key ``name``, spelled in any case; ``None`` when it is missing.

    Raises :class:`DuplicateKeyError` when the file has the key in two spellings.
    """
    found = [spelling for spelling in table if spelling.lower() == name]
    if len(found) > 1:
        raise DuplicateKeyError(
            f"the keys {' and '.join(found)} are the same key to the runtime, which uses only the last one",
            where=where,
            hint=f"merge them into one key {name}",
        )
    return table[found[0]] if found else None


def string_array(table: Mapping[str, Any], name: str, where: str) -> tuple[str, ...]:
    """Return the array of strings under the top-level key ``name``; empty when the key is missing.

    Raises :class:`UnusableFileError` when the value is not an array of strings.
    """
    value = get(table, name, where)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise UnusableFileError(
            f"{name} is not an array of strings", where=where, hint=f"make {name} an array of strings"
        )
    return tuple(value)


def add(content: bytes, name: str, value: str, *, after: str = "", where: str) -> bytes:
    """Return ``content`` with ``value`` added to the array ``name``; unchanged when it is in the array.

    If the key is missing, a new line goes below the key ``after``, or else to the top. Raises
    :class:`HostError` when the file is not valid TOML, or cannot be edited safely.
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
    """Return ``content`` without ``value`` in the array ``name``; unchanged when it is not in the array.

    The result of :func:`add` becomes the previous content, byte for byte. Raises :class:`HostError`
    like :func:`add`.
    """
    before = load(content, where)
    times = string_array(before, name, where).count(value)
    if not times:
        return content
    edited = _remove_elements(content, name, value, times)
    if not _only_removes(edited, before, name, value):
        raise _manual_edit_error("remove", name, value, where)
    return edited


def _manual_edit_error(verb: str, name: str, value: str, where: str) -> UnusableFileError:
    preposition = "to" if verb == "add" else "from"
    return UnusableFileError(
        f"the array {name} cannot be edited safely",
        where=where,
        hint=f"{verb} {quote(value)} {preposition} {name} by hand, then run again",
    )


def _only_adds(edited: bytes, before: Mapping[str, Any], name: str, value: str) -> bool:
    """Return whether ``value`` in the array is the only difference of ``edited`` from ``before``."""
    now = _try_split(edited, name)
    if now is None or value not in now[0]:
        return False
    return ([item for item in now[0] if item != value], now[1]) == _split_array(before, name)


def _only_removes(edited: bytes, before: Mapping[str, Any], name: str, value: str) -> bool:
    """Return whether ``edited`` is ``before`` without ``value`` in the array."""
    array, rest = _split_array(before, name)
    return _try_split(edited, name) == ([item for item in array if item != value], rest)


def _try_split(content: bytes, name: str) -> tuple[list[str], dict[str, Any]] | None:
    """Return the array and all other keys; ``None`` when ``content`` is not valid TOML."""
    try:
        return _split_array(load(content, ""), name)
    except HostError:
        return None


def _split_array(table: Mapping[str, Any], name: str) -> tuple[list[str], dict[str, Any]]:
    rest = {key: value for key, value in table.items() if key.lower() != name}
    return list(string_array(table, name, "")), rest


class _Statement(Struct, frozen=True):
    """A line ``key = value`` above the first table. ``value`` has the span of each token of the value."""

    start: int
    end: int
    key: str
    value: tuple[tuple[int, int], ...]


class _Element(Struct, frozen=True):
    """A string in the array: its span, and the end of the comma behind it."""

    start: int
    end: int
    comma: int | None


class _Array(Struct, frozen=True):
    start: int
    """The start of its key."""
    end: int
    """The end of its closing bracket."""
    open: int
    """The end of its opening bracket."""
    elements: tuple[_Element, ...]


def _statements(text: str) -> Iterator[_Statement]:
    """Return the statements above the first table header. ``text`` must be valid TOML."""
    start, depth, parts = -1, 0, list[tuple[int, int]]()
    for match in TOKEN.finditer(text + "\n"):
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
    """Return the array under the top-level key ``name``, which must have only strings."""
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
    """Return the start of the blanks right before ``at``."""
    line = _line_start(text, at)
    return line + len(text[line:at].rstrip(" \t"))


def _blanks_after(text: str, at: int) -> int:
    """Return the end of the blanks right after ``at``."""
    while text.startswith((" ", "\t"), at):
        at += 1
    return at


def _break_before(text: str, line: int) -> int:
    """Return the start of the line break before the line that starts at ``line``."""
    return line - (2 if text.startswith("\r\n", max(line - 2, 0)) else 1) if line else 0


def _line_break_of(text: str) -> str:
    """Return the line break of the first line."""
    return "\r\n" if text.startswith("\r\n", text.find("\n") - 1) else "\n"


def _line_insertion(text: str, line: str, after: str) -> tuple[int, str]:
    """Return where to insert ``line`` if there is no array, and the text to insert."""
    statement = _find_statement(text, after) if after else None
    if statement is None:
        return 0, line + _line_break_of(text)
    end = text.find("\n", statement.end) + 1
    return (end, line + _line_break_of(text)) if end else (len(text), _line_break_of(text) + line)


def _append(text: str, array: _Array, literal: str) -> tuple[int, str]:
    """Return where to insert ``literal`` into the array, and the text to insert with comma and blanks."""
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
        # A comma behind the last string would separate it from its comment.
        return last.start, f"{literal},{own_line if blanks == line else text[blanks : last.start]}"
    return last.end, f",{own_line if blanks == line else ' '}{literal}"


def _remove_elements(content: bytes, name: str, value: str, times: int) -> bytes:
    """Cut ``value`` out of the array ``times`` times, the last one first. The caller checks the result."""
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
    return str(parse(f"x = {literal}")["x"])


def _span_to_cut(text: str, array: _Array, index: int, added_line: str) -> tuple[int, int]:
    """Return the span to cut to remove the string at ``index``.

    ``added_line`` is the whole line as :func:`add` writes it.
    """
    item = array.elements[index]
    line, blanks = _line_start(text, item.start), _blanks_before(text, item.start)
    if len(array.elements) == 1:
        line_break = _BREAK.match(text, line + len(added_line))
        if not text.startswith(added_line, line) or line_break is None:
            return item.start, item.comma or item.end
        return (line, line_break.end()) if line_break[0] else (_break_before(text, line), len(text))
    rest = _REST_OF_LINE.match(text, item.comma or item.end)
    alone = blanks == line and rest is not None and rest[1] is None
    if item.comma is None:  # the last string: cut the comma before it too, unless a comment is in between
        comma = array.elements[index - 1].comma or item.start
        if not text[comma : item.start].strip():
            return comma - 1, item.end
        return _break_before(text, line) if alone else blanks, item.end
    if alone:
        return _break_before(text, line), item.comma
    return (blanks, item.comma) if index else (item.start, _blanks_after(text, item.comma))
