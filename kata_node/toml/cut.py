"""Find the bytes of tables in a TOML file, so that they can be cut out and every other byte stays. Pure.

A table can be written under headers, in dotted keys, and in inline tables above it. The scanner finds all
three. It needs valid TOML, and only finds places: the caller checks the result with a parser.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from msgspec import Struct

from kata_node.toml.edit import TOKEN

KeyPath = tuple[str, ...]
"""The keys that lead to a table: ``("plugins", "io.containerd.grpc.v1.cri", "containerd")``."""

Span = tuple[int, int]


class _Statement(Struct, frozen=True):
    """A table header, or ``key = value``. ``start`` and ``end`` are those of its lines."""

    start: int
    end: int
    path: KeyPath
    is_header: bool
    value: tuple[Span, ...] = ()
    """The tokens of the value, without blanks and comments."""


def spans(text: str, tables: Collection[KeyPath]) -> list[Span]:
    """Return the spans to cut out of ``text`` to remove ``tables``, in order. They do not overlap."""
    found: list[Span] = []
    run: list[_Statement] = []
    for statement in _statements(text):
        if any(_is_at_or_below(statement.path, table) for table in tables):
            run.append(statement)
            continue
        if run:
            found.append(_span_of_run(text, run, statement.start))
            run = []
        below = {table for table in tables if _is_at_or_below(table, statement.path)}
        if not statement.is_header and below and text[statement.value[0][0]] == "{":
            rest = {table[len(statement.path) :] for table in below}
            found += _spans_in_inline_table(text, list(statement.value), rest)
    if run:
        found.append(_span_of_run(text, run, len(text)))
    return found


def cut(text: str, cut_spans: Sequence[Span]) -> str:
    """Return ``text`` without ``cut_spans``, which are in order."""
    starts = [0, *(end for _, end in cut_spans)]
    ends = [*(start for start, _ in cut_spans), len(text)]
    return "".join(text[start:end] for start, end in zip(starts, ends, strict=True))


def _is_at_or_below(path: KeyPath, table: KeyPath) -> bool:
    return path[: len(table)] == table


def _span_of_run(text: str, run: list[_Statement], limit: int) -> Span:
    """Return the span of consecutive statements, with the empty lines that separate their table.

    Those below it are cut too, or those above it at the end of the file. ``limit`` is the start of the next
    statement, or the end of the text.
    """
    start, end = run[0].start, run[-1].end
    if not any(statement.is_header for statement in run):
        return start, end
    while (line := text.find("\n", end, limit) + 1) and not text[end:line].strip():
        end = line
    if not text[end:].strip():
        end = len(text)
        while start and not text[(line := text.rfind("\n", 0, start - 1) + 1) : start].strip():
            start = line
    return start, end


def _statements(text: str) -> Iterator[_Statement]:
    """Yield all statements. The lines of a statement include its last line break."""
    header: KeyPath = ()
    line, start, depth, parts = 0, -1, 0, list[Span]()
    for match in TOKEN.finditer(text + "\n"):
        token, first = match[0], match[0][0]
        if start < 0 and first not in " \t\r\n#":
            start = match.start()
        if token in ("\n", "\r\n"):
            if start < 0:
                line = match.end()
                continue
            if depth:
                continue
            end = min(match.end(), len(text))
            if text[start] == "[":
                header = _key_path(text[parts[0][0] : parts[-1][1]].strip("[] \t"))
                yield _Statement(line, end, header, is_header=True)
            else:
                equals = next(at for at, (begin, _) in enumerate(parts) if text[begin] == "=")
                path = (*header, *_key_path(text[start : parts[equals][0]]))
                yield _Statement(line, end, path, is_header=False, value=tuple(parts[equals + 1 :]))
            line, start, parts = match.end(), -1, []
        elif start >= 0 and first not in " \t#":
            depth += (token in ("[", "{")) - (token in ("]", "}"))
            parts.append(match.span())


def _key_path(key: str) -> KeyPath:
    """Return the parts of a bare, quoted or dotted key."""
    found: Any = tomllib.loads(f"{key} = 0")
    path: list[str] = []
    while isinstance(found, dict):
        ((part, found),) = found.items()
        path.append(part)
    return tuple(path)


class _Entry(Struct, frozen=True):
    """One ``key = value`` of an inline table; ``next`` is the start of the next one, if there is one."""

    start: int
    end: int
    path: KeyPath
    value: tuple[Span, ...]


def _spans_in_inline_table(text: str, tokens: list[Span], tables: Collection[KeyPath]) -> list[Span]:
    """Return the spans to cut out of the inline table of ``tokens`` to remove ``tables``."""
    entries = list(_entries(text, tokens[1:-1]))
    gone = [any(_is_at_or_below(entry.path, table) for table in tables) for entry in entries]
    kept_until = len(gone)
    while kept_until and gone[kept_until - 1]:
        kept_until -= 1
    found: list[Span] = []
    for at, entry in enumerate(entries[:kept_until]):
        if gone[at]:
            found.append((entry.start, entries[at + 1].start))
            continue
        below = {table[len(entry.path) :] for table in tables if _is_at_or_below(table, entry.path)}
        if below and text[entry.value[0][0]] == "{":
            found += _spans_in_inline_table(text, list(entry.value), below)
    if kept_until < len(entries):
        start = entries[kept_until - 1].end if kept_until else entries[0].start
        found.append((start, entries[-1].end))
    return _joined(found)


def _joined(found: list[Span]) -> list[Span]:
    """Return the spans with neighbors joined."""
    joined: list[Span] = []
    for start, end in found:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return joined


def _entries(text: str, tokens: list[Span]) -> Iterator[_Entry]:
    """Yield the entries of an inline table, given the tokens between its braces."""
    depth, entry = 0, list[Span]()
    for start, end in (*tokens, (-1, -1)):
        part = text[start:end] if start >= 0 else ","
        if part == "," and depth == 0:
            if entry:
                equals = next(at for at, (begin, _) in enumerate(entry) if text[begin] == "=")
                key = text[entry[0][0] : entry[equals][0]]
                yield _Entry(entry[0][0], entry[-1][1], _key_path(key), tuple(entry[equals + 1 :]))
            entry = []
            continue
        depth += (part in ("[", "{")) - (part in ("]", "}"))
        entry.append((start, end))


_ACTION_LINE = re.compile(r"^([ \t]*)\{\{(?:(?!\}\}).)*\}\}[ \t]*(?=\r?$)", re.MULTILINE)


def masked_template(text: str) -> str:
    """Return a Go template with each line that is only an action as a comment of the same length."""
    return _ACTION_LINE.sub(lambda line: line[1] + "#" * (len(line[0]) - len(line[1])), text)
