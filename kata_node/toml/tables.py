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

Path = tuple[str, ...]
"""A key path: ``("plugins", "io.containerd.grpc.v1.cri", "containerd")``."""

_NO_END = "(the line above had no end)"
_BEGINS = re.compile(r"# >>> kata-node [^\s:]+: managed, changes down to <<< are lost(?=\r?\n)")
_WITHIN = "# in inline tables above: "
_BARE = re.compile(r"[A-Za-z0-9_-]+")


def add(content: bytes, block: bytes, name: str, *, where: str, template: bool = False) -> bytes:
    """The file with ``block`` as the tables of the instance ``name``, in place of those it had.

    ``block`` is TOML of tables alone, with plain line feeds; the file's own line ends are used. A
    ``template`` is not read as TOML. Raises :class:`HostError`: the file is not valid TOML, or has one
    of these tables outside the block, or cannot be edited without a change to more than them.
    """
    markers = _markers(content, name, where)
    old = _whole(content, markers)
    if markers and old is None:
        raise _by_hand(name, where)
    base = _taken_out(content, old)
    if template:
        edited = _put(content, old, block, name)
        if _taken_out(edited, _only_block(edited, name, where)) != base:
            raise _by_hand(name, where)
        return edited

    before = load(base, where)
    for path in tables_of(block):
        if _get(before, path) is not None:
            raise HostError(
                f"it has a table {dotted(path)} of its own",
                where=where,
                hint="remove that table, or give this installation an env.multiInstallSuffix",
            )
    wanted = _merged(before, load(block, where))
    if wanted is None:
        raise _by_hand(name, where)
    edited = _put(content, old, block, name)
    if _parsed(edited) != wanted:
        edited = _put_within(base, block, name)
        if _parsed(edited) != wanted:
            raise _by_hand(name, where)
    if _taken_out(edited, _only_block(edited, name, where)) != base:
        raise _by_hand(name, where)
    return edited


def remove(
    content: bytes, name: str, *, where: str, template: bool = False, tables: Collection[Path] = ()
) -> bytes:
    """The file without the tables of the instance ``name``; what :func:`add` made becomes what it was.

    Nothing changes when there are none. Where a marker is gone, as a tool that writes the file anew
    without comments leaves it, the ``tables`` go instead, and those above them that are empty then: to
    containerd 1.x an empty table of runtimes means not even runc. A template cannot be searched for
    them. Raises :class:`HostError` like :func:`add`.
    """
    markers = _markers(content, name, where)
    if block := _whole(content, markers):
        edited = _taken_out(content, block)
        if not template and not _is_without(content, edited, block, where):
            raise _by_hand(name, where)
        return edited
    if markers and (template or not tables):
        raise _by_hand(name, where)
    if template or not (tables or markers):
        return content
    return _take_tables(_without_lines(content, markers), name, where, tables)


def has(content: bytes, name: str) -> bool:
    """Whether there is a marker of the instance ``name``, were it only one of the two."""
    return next(_scan(_text(content), name), None) is not None


def is_whole(content: bytes, name: str, *, where: str) -> bool:
    """Whether both markers are there. Raises :class:`HostError` when they are not one pair, in order."""
    return len(_markers(content, name, where)) == 2


def block_of(content: bytes, name: str, *, where: str) -> bytes:
    """What is between the markers of the instance ``name``; empty when they are not both there."""
    block = _only_block(content, name, where)
    return _bytes(block.inner) if block else b""


def tables_of(block: bytes) -> tuple[Path, ...]:
    """The key paths of the outermost tables in a block that hold a value of their own: its handlers."""

    def walk(table: Mapping[str, Any], path: Path) -> Iterator[Path]:
        if path and not (table and all(isinstance(value, dict) for value in table.values())):
            yield path
            return
        for key, value in table.items():
            if isinstance(value, dict):
                yield from walk(value, (*path, key))

    return tuple(walk(tomllib.loads(block.decode()), ()))


def dotted(path: Path) -> str:
    """A key path as it stands in a table's header."""
    return ".".join(part if _BARE.fullmatch(part) else quote(part) for part in path)


def _by_hand(name: str, where: str) -> HostError:
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
    ended_line: bool
    """Whether it gave an end to the line above."""

    @property
    def made(self) -> tuple[Path, ...]:
        """The keys made in inline tables, outer ones first."""
        for line in self.inner.splitlines():
            if line.startswith(_WITHIN):
                return tuple(tuple(path) for path in json.loads(line.removeprefix(_WITHIN)))
        return ()


def _begin(name: str) -> str:
    return f"# >>> kata-node {name}: managed, changes down to <<< are lost"


def _end(name: str) -> str:
    return f"# <<< kata-node {name}"


def _scan(text: str, name: str) -> Iterator[re.Match[str]]:
    """The lines that look like markers, whatever follows the name."""
    pattern = rf"^[ \t]*\#[ \t]*(>>>|<<<) kata-node {re.escape(name)}(?=[:\s]|\Z)[^\n]*\n?"
    return re.finditer(pattern, text, re.MULTILINE)


def _markers(content: bytes, name: str, where: str) -> list[re.Match[str]]:
    """None, one, or both in order. Raises :class:`HostError` on anything else."""
    found = list(_scan(_text(content), name))
    if len(found) > 2 or [item[1] for item in found] in ([">>>"] * 2, ["<<<"] * 2, ["<<<", ">>>"]):
        raise HostError(
            f"the lines that mark the tables of the Kata installation {name} are not one pair, in order",
            where=where,
            hint=f"leave one `{_begin(name)}` above its tables and one `{_end(name)}` below, then run again",
        )
    return found


def _whole(content: bytes, markers: list[re.Match[str]]) -> _Block | None:
    if len(markers) != 2:
        return None
    begin, end = markers
    inner = _text(content)[begin.end() : end.start()]
    return _Block(begin.start(), end.end(), inner, _NO_END in begin[0])


def _only_block(content: bytes, name: str, where: str) -> _Block | None:
    return _whole(content, _markers(content, name, where))


def _put(content: bytes, old: _Block | None, block: bytes, name: str) -> bytes:
    """``content`` with the marked block in place of ``old``, or else at the end."""
    text = _text(content)
    line_end = "\r\n" if text.startswith("\r\n", text.find("\n") - 1) else "\n"
    ended_line = old.ended_line if old else bool(text) and not text.endswith("\n")
    begin = f"{_begin(name)} {_NO_END}" if ended_line else _begin(name)
    marked = line_end.join([begin, *_text(block).rstrip("\n").split("\n"), _end(name), ""])
    if old:
        return _bytes(text[: old.start] + marked + text[old.end :])
    return _bytes(text + (line_end if ended_line else "") + marked)


def _taken_out(content: bytes, block: _Block | None) -> bytes:
    """``content`` without the block and what it says it made elsewhere."""
    if block is None:
        return content
    text = _text(content)
    above, below = text[: block.start], text[block.end :]
    if block.ended_line and not below:
        above = above.removesuffix("\n").removesuffix("\r")
    elif block.ended_line and (next_one := _BEGINS.match(below)):
        # The end of the line above goes with that one, then.
        below = f"{next_one[0]} {_NO_END}{below[next_one.end() :]}"
    left = _bytes(above + below)
    return _delete(left, block.made) if block.made else left


def _is_without(content: bytes, edited: bytes, block: _Block, where: str) -> bool:
    """Whether ``edited`` says what ``content`` does, but for what the block has."""
    before, after = load(content, where), _parsed(edited)
    if block.made:
        return after == _less(before, block.made)
    inner = _parsed(_bytes(block.inner))
    return after is not None and inner is not None and _merged(after, inner) == before


def _without_lines(content: bytes, markers: Iterable[re.Match[str]]) -> bytes:
    text = _text(content)
    for marker in markers:
        text = text[: marker.start()] + text[marker.end() :]
    return _bytes(text)


# --- tables without a block around them --------------------------------------------------------------


def _put_within(base: bytes, block: bytes, name: str) -> bytes:
    """The tables put into the inline ones that are there, and a block that only says so."""
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    made: list[Path] = []
    try:
        document = tomlkit.parse(_text(base))
        for path in tables_of(block):
            table: Any = document
            for length, key in enumerate(path[:-1], 1):
                if key not in table:
                    table[key] = tomlkit.inline_table()
                    made.append(path[:length])
                table = table[key]
            table[path[-1]] = _get(tomllib.loads(block.decode()), path)
            made.append(path)
    except (TOMLKitError, TypeError, ValueError):
        return b""
    note = f"{_WITHIN}{json.dumps(made, ensure_ascii=False)}\n"
    return _put(_bytes(document.as_string()), None, note.encode(), name)


def _take_tables(content: bytes, name: str, where: str, tables: Collection[Path]) -> bytes:
    before = load(content, where)
    found = [path for path in tables if _get(before, path) is not None]
    if not found:
        return content
    above = {path[:length] for path in found for length in range(1, len(path))}
    keys = (*sorted(above, key=len), *found)
    edited = _delete(content, keys)
    if _parsed(edited) != _less(before, keys):
        raise _by_hand(name, where)
    return edited


def _delete(content: bytes, keys: Collection[Path]) -> bytes:
    """``content`` without ``keys``, given as :func:`_less` takes them; as it is when tomlkit cannot do it."""
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    try:
        document = tomlkit.parse(_text(content))
        _drop(document, keys)
        return _bytes(document.as_string())
    except (TOMLKitError, TypeError, ValueError):
        return content


def _less(table: Mapping[str, Any], keys: Collection[Path]) -> dict[str, Any]:
    """``table`` without ``keys``, outer ones first; one that has others of them in it goes only if empty."""
    left = _merged({}, table) or {}
    _drop(left, keys)
    return left


def _drop(table: Any, keys: Collection[Path]) -> None:
    above = {key[:length] for key in keys for length in range(1, len(key))}
    for key in reversed(tuple(keys)):
        holder = _get(table, key[:-1])
        if holder is not None and key[-1] in holder and not (key in above and holder[key[-1]]):
            del holder[key[-1]]


def _get(table: Mapping[str, Any], path: Path) -> Any:
    """What is at a key path; ``None`` for nothing."""
    found: Any = table
    for key in path:
        if not isinstance(found, Mapping) or key not in found:
            return None
        found = found[key]
    return found


def _merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any] | None:
    """Both in one, without a change to either; ``None`` when they give the same key a value."""
    out = dict(one)
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(out.get(key, {}), dict):
            value = _merged(out.get(key, {}), value)
        elif key in out:
            return None
        if value is None:
            return None
        out[key] = value
    return out


def _parsed(content: bytes) -> Mapping[str, Any] | None:
    """What it says; ``None`` when it is not valid TOML."""
    try:
        return load(content, "")
    except HostError:
        return None


def _text(content: bytes) -> str:
    return content.decode(errors="surrogateescape")


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogateescape")
