"""Put tables of ours into somebody else's TOML file as one marked block, and take them out again. Pure.

The block goes to the end, between two comment lines that name the instance, so that taking it out
gives back every byte. A file whose last line has no end gets one; the opening line says so, and leaves
it to the next block when it goes before that. The
scanners here only find places: the standard library's parser reads the file before and after, and an
edit that changes anything but our tables is refused with the request to do it by hand.

Where the file has one of the tables above ours already, TOML lets another ``[header]`` add to it,
also if it came from a dotted key, but not if it is an inline table (``plugins = {}``). Then tomlkit
puts ours into that one, and a comment in the block says which keys were made. On all such forms
tried, the parser of containerd 1.6.20 and 1.7.24 agrees with tomllib: what one refuses, so does the other.

A Go template (``config.toml.tmpl`` of k3s and rke2) is no TOML before it is rendered. There the
markers are all there is to go by.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kata_node.errors import HostError
from kata_node.toml.edit import load, quote

KeyPath = tuple[str, ...]
"""A key path: ``("plugins", "io.containerd.grpc.v1.cri", "containerd")``."""

_ADDED_LINE_END = "(the line above had no end)"
_BEGIN_LINE = re.compile(r"# >>> kata-node [^\s:]+: managed, changes down to <<< are lost(?=\r?\n)")
_INLINE_KEYS_COMMENT = "# in inline tables above: "
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def add(content: bytes, block: bytes, name: str, *, where: str, template: bool = False) -> bytes:
    """The file with ``block`` as the tables of the instance ``name``, in place of those it had.

    ``block`` is TOML of tables alone, with plain line feeds; the file's own line ends are used. A
    ``template`` is not read as TOML. Raises :class:`HostError`: the file is not valid TOML, or has one
    of these tables outside the block, or cannot be edited without a change to more than them.
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
            raise HostError(
                f"it has a table {dotted_key(path)} of its own",
                where=where,
                hint="remove that table, or give this installation an env.multiInstallSuffix",
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
    """The file without the tables of the instance ``name``; what :func:`add` made becomes what it was.

    Nothing changes when there are none. Where a marker is gone, as a tool that writes the file anew
    without comments leaves it, the ``tables`` go instead, and those above them that are empty then: to
    containerd 1.x an empty table of runtimes means not even runc. A template cannot be searched for
    them. Raises :class:`HostError` like :func:`add`.
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


def has_marker(content: bytes, name: str) -> bool:
    """Whether there is a marker of the instance ``name``, were it only one of the two."""
    return next(_find_marker_lines(_decode(content), name), None) is not None


def has_both_markers(content: bytes, name: str, *, where: str) -> bool:
    """Whether both markers are there. Raises :class:`HostError` when they are not one pair, in order."""
    return len(_checked_markers(content, name, where)) == 2


def block_content(content: bytes, name: str, *, where: str) -> bytes:
    """What is between the markers of the instance ``name``; empty when they are not both there."""
    block = _find_block(content, name, where)
    return _encode(block.inner) if block else b""


def table_paths(block: bytes) -> tuple[KeyPath, ...]:
    """The key paths of the outermost tables in a block that hold a value of their own: its handlers."""

    def walk(table: Mapping[str, Any], path: KeyPath) -> Iterator[KeyPath]:
        if path and not (table and all(isinstance(value, dict) for value in table.values())):
            yield path
            return
        for key, value in table.items():
            if isinstance(value, dict):
                yield from walk(value, (*path, key))

    return tuple(walk(tomllib.loads(block.decode()), ()))


def dotted_key(path: KeyPath) -> str:
    """A key path as it stands in a table's header."""
    return ".".join(part if _BARE_KEY.fullmatch(part) else quote(part) for part in path)


def _manual_edit_error(name: str, where: str) -> HostError:
    return HostError(
        f"the tables of the Kata installation {name} cannot be put in or taken out without risk to the rest",
        where=where,
        hint=f"take out by hand what the lines `{_begin(name)}` and `{_end(name)}` mark, and write inline "
        "tables above it, as `plugins = {}`, with headers, as [plugins]; then run again",
    )


# --- the block and its markers -----------------------------------------------------------------------


@dataclass(frozen=True)
class _Block:
    """A whole block: where its opening line starts, and where its closing one, with its break, ends."""

    start: int
    end: int
    inner: str
    added_line_end: bool
    """Whether it gave an end to the line above."""

    @property
    def inline_keys(self) -> tuple[KeyPath, ...]:
        """The keys made in inline tables, outer ones first."""
        for line in self.inner.splitlines():
            if line.startswith(_INLINE_KEYS_COMMENT):
                return tuple(tuple(path) for path in json.loads(line.removeprefix(_INLINE_KEYS_COMMENT)))
        return ()


def _begin(name: str) -> str:
    return f"# >>> kata-node {name}: managed, changes down to <<< are lost"


def _end(name: str) -> str:
    return f"# <<< kata-node {name}"


def _find_marker_lines(text: str, name: str) -> Iterator[re.Match[str]]:
    """The lines that look like markers, whatever follows the name."""
    pattern = rf"^[ \t]*\#[ \t]*(>>>|<<<) kata-node {re.escape(name)}(?=[:\s]|\Z)[^\n]*\n?"
    return re.finditer(pattern, text, re.MULTILINE)


def _checked_markers(content: bytes, name: str, where: str) -> list[re.Match[str]]:
    """None, one, or both in order. Raises :class:`HostError` on anything else."""
    found = list(_find_marker_lines(_decode(content), name))
    if len(found) > 2 or [item[1] for item in found] in ([">>>"] * 2, ["<<<"] * 2, ["<<<", ">>>"]):
        raise HostError(
            f"the lines that mark the tables of the Kata installation {name} are not one pair, in order",
            where=where,
            hint=f"leave one `{_begin(name)}` above its tables and one `{_end(name)}` below, then run again",
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
    """``content`` with the marked block in place of ``old``, or else at the end."""
    text = _decode(content)
    line_end = "\r\n" if text.startswith("\r\n", text.find("\n") - 1) else "\n"
    added_line_end = old.added_line_end if old else bool(text) and not text.endswith("\n")
    begin = f"{_begin(name)} {_ADDED_LINE_END}" if added_line_end else _begin(name)
    marked = line_end.join([begin, *_decode(block).rstrip("\n").split("\n"), _end(name), ""])
    if old:
        return _encode(text[: old.start] + marked + text[old.end :])
    return _encode(text + (line_end if added_line_end else "") + marked)


def _without_block(content: bytes, block: _Block | None) -> bytes:
    """``content`` without the block and what it says it made elsewhere."""
    if block is None:
        return content
    text = _decode(content)
    above, below = text[: block.start], text[block.end :]
    if block.added_line_end and not below:
        above = above.removesuffix("\n").removesuffix("\r")
    elif block.added_line_end and (next_one := _BEGIN_LINE.match(below)):
        # The end of the line above goes with that one, then.
        below = f"{next_one[0]} {_ADDED_LINE_END}{below[next_one.end() :]}"
    left = _encode(above + below)
    return _delete_keys(left, block.inline_keys) if block.inline_keys else left


def _only_removes(content: bytes, edited: bytes, block: _Block, where: str) -> bool:
    """Whether ``edited`` says what ``content`` does, but for what the block has."""
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
    """The tables put into the inline ones that are there, and a block that only says so."""
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
            table[path[-1]] = _value_at(tomllib.loads(block.decode()), path)
            inline_keys.append(path)
    except (TOMLKitError, TypeError, ValueError):
        return b""
    note = f"{_INLINE_KEYS_COMMENT}{json.dumps(inline_keys, ensure_ascii=False)}\n"
    return _insert_block(_encode(document.as_string()), None, note.encode(), name)


def _remove_tables(content: bytes, name: str, where: str, tables: Collection[KeyPath]) -> bytes:
    before = load(content, where)
    found = [path for path in tables if _value_at(before, path) is not None]
    if not found:
        return content
    above = {path[:length] for path in found for length in range(1, len(path))}
    keys = (*sorted(above, key=len), *found)
    edited = _delete_keys(content, keys)
    if _try_parse(edited) != _without_keys(before, keys):
        raise _manual_edit_error(name, where)
    return edited


def _delete_keys(content: bytes, keys: Collection[KeyPath]) -> bytes:
    """``content`` without ``keys``, given as :func:`_less` takes them; as it is when tomlkit cannot do it."""
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    try:
        document = tomlkit.parse(_decode(content))
        _drop_keys(document, keys)
        return _encode(document.as_string())
    except (TOMLKitError, TypeError, ValueError):
        return content


def _without_keys(table: Mapping[str, Any], keys: Collection[KeyPath]) -> dict[str, Any]:
    """``table`` without ``keys``, outer ones first; one that has others of them in it goes only if empty."""
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
    """What is at a key path; ``None`` for nothing."""
    found: Any = table
    for key in path:
        if not isinstance(found, Mapping) or key not in found:
            return None
        found = found[key]
    return found


def _merge(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any] | None:
    """Both in one, without a change to either; ``None`` when they give the same key a value."""
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
    """What it says; ``None`` when it is not valid TOML."""
    try:
        return load(content, "")
    except HostError:
        return None


def _decode(content: bytes) -> str:
    return content.decode(errors="surrogateescape")


def _encode(text: str) -> bytes:
    return text.encode(errors="surrogateescape")
