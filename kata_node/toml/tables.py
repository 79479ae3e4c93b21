"""Add our tables to a foreign TOML file as one managed block, or remove them. Pure.

The block goes to the end of the file, between two marker lines that name the installation. Removing
it gives back every byte. If the last line of the file has no line break, it gets one and the first
marker says so. When that block is removed before a block below it, the note moves to that block. The
scanners here only find places. The standard library's parser then checks the result: an edit that
changes anything other than our tables raises an error that asks for an edit by hand.

If the file already has a parent of one of our tables, TOML allows another ``[header]`` to extend it,
even if the parent comes from a dotted key, but not if it is an inline table (``plugins = {}``). Then
tomlkit adds our tables to the inline table, and a comment in the block lists the added keys. In all
such forms that were tried, the parser of containerd 1.6.20 and 1.7.24 accepts and refuses the same
text as tomllib.

A Go template (``config.toml.tmpl`` of k3s and rke2) is not TOML before it is rendered. There only the
markers tell which lines are ours.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from msgspec import Struct

from kata_node.errors import HostError, UnusableFileError
from kata_node.toml import cut
from kata_node.toml.cut import KeyPath
from kata_node.toml.edit import load, quote
from kata_node.toml.parse import parse

_ADDED_LINE_END = "(the line above had no end)"
_BEGIN_LINE = re.compile(r"# >>> kata-node [^\s:]+: managed, changes down to <<< are lost(?=\r?\n)")
_INLINE_KEYS_COMMENT = "# in inline tables above: "
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def add(content: bytes, block: bytes, name: str, *, where: str, template: bool = False) -> bytes:
    """Return the file with ``block`` as the tables of the installation ``name``, instead of previous ones.

    ``block`` is TOML that consists of tables, with ``\\n`` as line break; the result uses the line
    breaks of the file. A ``template`` is not parsed as TOML. Raises :class:`HostError` when the file is
    not valid TOML, has one of these tables outside the block, or cannot be edited safely.
    """
    markers = _checked_markers(content, name, where)
    old = _block_between(content, markers)
    if markers and old is None:
        raise _manual_edit_error(name, where)
    base = _without_block(content, old)
    if template:
        edited = _insert_block(content, old, block, name)
        if _without_block(edited, _find_block(edited, name, where)) != base:
            raise _manual_edit_error(name, where)
        return edited

    before = load(base, where)
    for path in table_paths(block):
        if _value_at(before, path) is not None:
            raise UnusableFileError(
                f"the file already has a table {dotted_key(path)}",
                where=where,
                hint="remove that table, or set env.multiInstallSuffix to install under other names",
            )
    wanted = _merge(before, load(block, where))
    if wanted is None:
        raise _manual_edit_error(name, where)
    edited = _insert_block(content, old, block, name)
    if _try_parse(edited) != wanted:
        edited = _insert_into_inline_tables(base, block, name)
        if _try_parse(edited) != wanted:
            raise _manual_edit_error(name, where)
    if _without_block(edited, _find_block(edited, name, where)) != base:
        raise _manual_edit_error(name, where)
    return edited


def remove(
    content: bytes, name: str, *, where: str, template: bool = False, tables: Collection[KeyPath] = ()
) -> bytes:
    """Return the file without the tables of the installation ``name``; unchanged when it has none.

    The result of :func:`add` becomes the previous content. A tool that rewrites the file without
    comments removes the markers. If a marker is missing, this function removes ``tables`` and then
    their parents that became empty: with an empty table of runtimes containerd 1.x does not even serve
    runc. A template cannot be searched for tables. Raises :class:`HostError` like :func:`add`.
    """
    markers = _checked_markers(content, name, where)
    if block := _block_between(content, markers):
        edited = _without_block(content, block)
        if not template and not _only_removes(content, edited, block, where):
            raise _manual_edit_error(name, where)
        return edited
    if markers and (template or not tables):
        raise _manual_edit_error(name, where)
    if template or not (tables or markers):
        return content
    return _remove_tables(_without_markers(content, markers), name, where, tables)


def remove_tables(
    content: bytes, tables: Collection[KeyPath], *, where: str, template: bool = False
) -> bytes:
    """Return the file without ``tables``, which may be other keys, and without parents that become empty.

    No other byte changes, except empty lines beside a table. A ``template`` is read without its lines that
    are only an action. Raises :class:`HostError` when the file is not valid TOML, or cannot be edited safely.
    """
    text = _decode(content)
    if template:
        text = cut.masked_template(text)
    before = load(_encode(text), where)
    found = [path for path in tables if _value_at(before, path) is not None]
    if not found:
        return content
    left = _without_keys(before, _with_parents(found))
    gone = {path for path in _with_parents(found) if _value_at(left, path) is None}
    spans = cut.spans(text, gone)
    edited = _encode(cut.cut(text, spans))
    holds_action = template and any("{{" in _decode(content)[start:end] for start, end in spans)
    if holds_action or _try_parse(edited) != left:
        names = ", ".join(dict.fromkeys(path[-1] for path in found))
        is_table = isinstance(_value_at(before, found[0]), Mapping)
        subject = f"the tables of {names}" if is_table else f"the key {names}"
        raise UnusableFileError(
            f"{subject} cannot be removed safely",
            where=where,
            hint=f"remove {subject} from this file by hand, then run again",
        )
    return _encode(cut.cut(_decode(content), spans))


def _with_parents(tables: Collection[KeyPath]) -> tuple[KeyPath, ...]:
    """Return the key paths of ``tables``, after those of their parents."""
    above = {path[:length] for path in tables for length in range(1, len(path))}
    return (*sorted(above, key=len), *tables)


def has_marker(content: bytes, name: str) -> bool:
    """Return whether at least one of the two markers of the installation ``name`` is present."""
    return next(_find_marker_lines(_decode(content), name), None) is not None


def has_both_markers(content: bytes, name: str, *, where: str) -> bool:
    """Return whether both markers are present. Raises :class:`HostError` on duplicates or a wrong order."""
    return len(_checked_markers(content, name, where)) == 2


def block_content(content: bytes, name: str, *, where: str) -> bytes:
    """Return the text between the markers of the installation ``name``; empty unless both are present."""
    block = _find_block(content, name, where)
    return _encode(block.inner) if block else b""


def table_paths(block: bytes) -> tuple[KeyPath, ...]:
    """Return the key paths of the outermost tables in a block that have a value: those of its handlers."""

    def walk(table: Mapping[str, Any], path: KeyPath) -> Iterator[KeyPath]:
        if path and not (table and all(isinstance(value, dict) for value in table.values())):
            yield path
            return
        for key, value in table.items():
            if isinstance(value, dict):
                yield from walk(value, (*path, key))

    return tuple(walk(parse(block.decode()), ()))


def dotted_key(path: KeyPath) -> str:
    """Return a key path as a table header writes it."""
    return ".".join(part if _BARE_KEY.fullmatch(part) else quote(part) for part in path)


def _manual_edit_error(name: str, where: str) -> UnusableFileError:
    return UnusableFileError(
        f"the tables of the Kata installation {name} cannot be added or removed safely",
        where=where,
        hint=f"remove by hand the lines from `{_begin(name)}` to `{_end(name)}`, replace inline tables above "
        "them, like `plugins = {}`, by table headers, like `[plugins]`, then run again",
    )


# --- the block and its markers -----------------------------------------------------------------------


class _Block(Struct, frozen=True):
    """A managed block: the start of its first marker, and the end of the line of its second one."""

    start: int
    end: int
    inner: str
    added_line_end: bool
    """Whether the line break before the block was added with it."""

    @property
    def inline_keys(self) -> tuple[KeyPath, ...]:
        """The keys that were added to inline tables, parents first."""
        for line in self.inner.splitlines():
            if line.startswith(_INLINE_KEYS_COMMENT):
                try:
                    return tuple(tuple(path) for path in json.loads(line.removeprefix(_INLINE_KEYS_COMMENT)))
                except (ValueError, TypeError, RecursionError):  # edited by hand; the check of the edit fails
                    return ()
        return ()


def _begin(name: str) -> str:
    return f"# >>> kata-node {name}: managed, changes down to <<< are lost"


def _end(name: str) -> str:
    return f"# <<< kata-node {name}"


def _find_marker_lines(text: str, name: str) -> Iterator[re.Match[str]]:
    """Find the marker lines of ``name``, with any text after the name."""
    pattern = rf"^[ \t]*\#[ \t]*(>>>|<<<) kata-node {re.escape(name)}(?=[:\s]|\Z)[^\n]*\n?"
    return re.finditer(pattern, text, re.MULTILINE)


def _checked_markers(content: bytes, name: str, where: str) -> list[re.Match[str]]:
    """Return no marker, one, or both in order. Raises :class:`HostError` on anything else."""
    found = list(_find_marker_lines(_decode(content), name))
    if len(found) > 2 or [item[1] for item in found] in ([">>>"] * 2, ["<<<"] * 2, ["<<<", ">>>"]):
        raise UnusableFileError(
            f"the marker lines of the Kata installation {name} are duplicated or in the wrong order",
            where=where,
            hint=f"leave one line `{_begin(name)}` above its tables and one line `{_end(name)}` below them, "
            "then run again",
        )
    return found


def _block_between(content: bytes, markers: list[re.Match[str]]) -> _Block | None:
    if len(markers) != 2:
        return None
    begin, end = markers
    inner = _decode(content)[begin.end() : end.start()]
    return _Block(begin.start(), end.end(), inner, _ADDED_LINE_END in begin[0])


def _find_block(content: bytes, name: str, where: str) -> _Block | None:
    return _block_between(content, _checked_markers(content, name, where))


def _insert_block(content: bytes, old: _Block | None, block: bytes, name: str) -> bytes:
    """Return ``content`` with the managed block instead of ``old``, or at the end if there is no ``old``."""
    text = _decode(content)
    line_end = "\r\n" if text.startswith("\r\n", text.find("\n") - 1) else "\n"
    added_line_end = old.added_line_end if old else bool(text) and not text.endswith("\n")
    begin = f"{_begin(name)} {_ADDED_LINE_END}" if added_line_end else _begin(name)
    marked = line_end.join([begin, *_decode(block).rstrip("\n").split("\n"), _end(name), ""])
    if old:
        return _encode(text[: old.start] + marked + text[old.end :])
    return _encode(text + (line_end if added_line_end else "") + marked)


def _without_block(content: bytes, block: _Block | None) -> bytes:
    """Return ``content`` without the block, the line break before it, and its keys in inline tables."""
    if block is None:
        return content
    text = _decode(content)
    above, below = text[: block.start], text[block.end :]
    if block.added_line_end and not below:
        above = above.removesuffix("\n").removesuffix("\r")
    elif block.added_line_end and (next_one := _BEGIN_LINE.match(below)):
        # The next block then takes over the note about the added line break.
        below = f"{next_one[0]} {_ADDED_LINE_END}{below[next_one.end() :]}"
    left = _encode(above + below)
    return _delete_keys(left, block.inline_keys) if block.inline_keys else left


def _only_removes(content: bytes, edited: bytes, block: _Block, where: str) -> bool:
    """Return whether ``edited`` has the values of ``content`` except those of the block."""
    before, after = load(content, where), _try_parse(edited)
    if block.inline_keys:
        return after == _without_keys(before, block.inline_keys)
    inner = _try_parse(_encode(block.inner))
    return after is not None and inner is not None and _merge(after, inner) == before


def _without_markers(content: bytes, markers: Iterable[re.Match[str]]) -> bytes:
    text = _decode(content)
    for marker in markers:
        text = text[: marker.start()] + text[marker.end() :]
    return _encode(text)


# --- tables without a block around them --------------------------------------------------------------


def _insert_into_inline_tables(base: bytes, block: bytes, name: str) -> bytes:
    """Return ``base`` with the tables added to its inline tables, and a block that lists the added keys."""
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    inline_keys: list[KeyPath] = []
    try:
        document = tomlkit.parse(_decode(base))
        for path in table_paths(block):
            table: Any = document
            for length, key in enumerate(path[:-1], 1):
                if key not in table:
                    table[key] = tomlkit.inline_table()
                    inline_keys.append(path[:length])
                table = table[key]
            table[path[-1]] = _value_at(parse(block.decode()), path)
            inline_keys.append(path)
    except (TOMLKitError, TypeError, ValueError, RecursionError):
        return b""
    note = f"{_INLINE_KEYS_COMMENT}{json.dumps(inline_keys, ensure_ascii=False)}\n"
    return _insert_block(_encode(document.as_string()), None, note.encode(), name)


def _remove_tables(content: bytes, name: str, where: str, tables: Collection[KeyPath]) -> bytes:
    try:
        return remove_tables(content, tables, where=where)
    except HostError as error:
        raise _manual_edit_error(name, where) from error


def _delete_keys(content: bytes, keys: Collection[KeyPath]) -> bytes:
    """Return ``content`` without ``keys``, parents first; unchanged when tomlkit fails."""
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    try:
        document = tomlkit.parse(_decode(content))
        _drop_keys(document, keys)
        return _encode(document.as_string())
    except (TOMLKitError, TypeError, ValueError, RecursionError):
        return content


def _without_keys(table: Mapping[str, Any], keys: Collection[KeyPath]) -> dict[str, Any]:
    """Return ``table`` without ``keys``, parents first. A parent is removed only if it becomes empty."""
    left = _merge({}, table) or {}
    _drop_keys(left, keys)
    return left


def _drop_keys(table: Any, keys: Collection[KeyPath]) -> None:
    above = {key[:length] for key in keys for length in range(1, len(key))}
    for key in reversed(tuple(keys)):
        holder = _value_at(table, key[:-1])
        if holder is not None and key[-1] in holder and not (key in above and holder[key[-1]]):
            del holder[key[-1]]


def _value_at(table: Mapping[str, Any], path: KeyPath) -> Any:
    """Return the value at a key path; ``None`` when it is missing."""
    found: Any = table
    for key in path:
        if not isinstance(found, Mapping) or key not in found:
            return None
        found = found[key]
    return found


def _merge(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the union of two tables as a new one; ``None`` when both have a value for the same key."""
    out = dict(one)
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(out.get(key, {}), dict):
            value = _merge(out.get(key, {}), value)
        elif key in out:
            return None
        if value is None:
            return None
        out[key] = value
    return out


def _try_parse(content: bytes) -> Mapping[str, Any] | None:
    """Parse ``content``; ``None`` when it is not valid TOML."""
    try:
        return load(content, "")
    except HostError:
        return None


def _decode(content: bytes) -> str:
    return content.decode(errors="surrogateescape")


def _encode(text: str) -> bytes:
    return text.encode(errors="surrogateescape")
