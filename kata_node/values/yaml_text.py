"""Edit the text of a YAML file and keep every other line: comments, blank lines, quotes and order.

Each edit parses the text, finds the lines of a key, and changes only these. A key is a path of the keys of
mappings. Mappings in braces are written anew as blocks when a key in them changes. An edit raises
:class:`ValueError` when an earlier one has made the text invalid, for example by removing an anchor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

Path = Sequence[str]


def remove(text: str, path: Path, *, keep_comments: bool = False) -> tuple[str, list[str]]:
    """Return ``text`` without a key, and the comments that belonged to the key.

    These are the comment lines directly above it, and the comments in its lines, without indentation. With
    ``keep_comments`` they stay in the text. A mapping that becomes empty is removed too. Without the key,
    ``text`` is returned as it is.
    """
    found = _entry(_root(text), path)
    if found is None:
        return text, []
    parent, key, value = found
    if len(parent.value) == 1 and len(path) > 1:
        return remove(text, path[:-1], keep_comments=keep_comments)
    if parent.flow_style:
        data = _load(text, path[:-1])
        del data[path[-1]]
        return put(text, path[:-1], data), []
    lines = text.splitlines(keepends=True)
    first, last = key.start_mark.line, _last_line(lines, key, value)
    above = first
    while above and _is_comment(lines[above - 1]):
        above -= 1
    within = [f"#{comment}" for line in lines[first : last + 1] if (comment := _comment_of(line))]
    if keep_comments:
        indentation, newline = " " * key.start_mark.column, _newline(text)
        kept = [*lines[above:first], *(f"{indentation}{comment}{newline}" for comment in within)]
        return "".join([*lines[:above], *kept, *lines[last + 1 :]]), []
    comments = [line.strip() for line in lines[above:first]]
    below = lines[last + 1 :]
    if below and not below[0].strip() and (not above or not lines[above - 1].strip()):
        below = below[1:]  # not two blank lines in a row
    return "".join([*lines[:above], *below]), [*comments, *within]


def put(text: str, path: Path, value: object, comments: Sequence[str] = ()) -> str:
    """Return ``text`` with a key set to ``value``. A new key gets ``comments`` as lines above it."""
    root = _root(text)
    depth = len(path)
    while depth and _entry(root, path[:depth]) is None:
        depth -= 1
    newline = _newline(text)
    lines = text.splitlines(keepends=True)
    if depth == len(path):
        found = _entry(root, path)
        assert found is not None
        return _replace(lines, found, path, value, newline, text)
    parent = root if not depth else _value(root, path[:depth])
    if isinstance(parent, yaml.MappingNode) and (not parent.flow_style or not depth):
        for key in reversed(path[depth + 1 :]):
            value = {key: value}
        return _insert(lines, parent, path[depth], value, comments, newline)
    data: dict[str, Any] = dict(_load(text, path[:depth]) or {})
    below = data
    for key in path[depth:-1]:
        below = below.setdefault(key, {})
    below[path[-1]] = value
    return put(text, path[:depth], data)


def rename(text: str, path: Path, name: str) -> str:
    """Return ``text`` with another name for a key."""
    found = _entry(_root(text), path)
    if found is None:
        return text
    start, end = found[1].start_mark.index, found[1].end_mark.index
    return text[:start] + name + text[end:]


def _newline(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def _root(text: str) -> Any:
    try:
        node = yaml.compose(text, yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ValueError("the edited text is not valid YAML") from error
    # A file of comments, or of `---` only, has no value, or an empty one.
    if node is None or (isinstance(node, yaml.ScalarNode) and not node.value):
        return yaml.MappingNode("tag:yaml.org,2002:map", [], flow_style=False)
    return node


def _load(text: str, path: Path) -> Any:
    data = yaml.safe_load(text)
    for key in path:
        data = data[key]
    return data


def _entry(root: Any, path: Path) -> tuple[Any, Any, Any] | None:
    """Return the mapping, the key and the value at a path; ``None`` if there is none."""
    parent = root if len(path) == 1 else _value(root, path[:-1])
    if not isinstance(parent, yaml.MappingNode):
        return None
    return next(((parent, key, value) for key, value in parent.value if key.value == path[-1]), None)


def _value(root: Any, path: Path) -> Any:
    found = _entry(root, path)
    return found[2] if found else None


def _last_line(lines: list[str], key: Any, value: Any) -> int:
    """Return the last line of a value. The mark of a block points behind what follows it."""
    if isinstance(value, yaml.CollectionNode) and not value.flow_style and value.value:
        last = value.value[-1]
        return _last_line(lines, *last) if isinstance(last, tuple) else _last_line(lines, last, last)
    if isinstance(value, yaml.ScalarNode) and value.style in ("|", ">"):
        end = int(value.end_mark.line) - (value.end_mark.column == 0)  # the last line may have no end
        keeps_blank_lines = value.value.endswith("\n\n")
        while not keeps_blank_lines and end > key.start_mark.line and not lines[end].strip():
            end -= 1
        return end
    is_empty = value.start_mark.index == value.end_mark.index
    return int(key.end_mark.line if is_empty else value.end_mark.line)


def _is_comment(line: str) -> bool:
    return line.lstrip().startswith("#")


def _comment_of(line: str) -> str:
    """Return the comment at the end of a line of YAML, without ``#``; empty if there is none."""
    try:
        tokens = [token for token in yaml.scan(line.strip()) if isinstance(token, yaml.ScalarToken)]
    except yaml.YAMLError:
        return ""
    stripped = line.strip()
    end = tokens[-1].end_mark.index if tokens else 0
    before, mark, comment = stripped[end:].partition("#")
    return comment if mark and (not before or before[-1] in " \t]}") else ""


def _replace(
    lines: list[str], found: tuple[Any, Any, Any], path: Path, value: object, newline: str, text: str
) -> str:
    parent, key, old = found
    if parent.flow_style:
        data = _load(text, path[:-1])
        data[path[-1]] = value
        if len(path) == 1:
            return _dump(data, 0, newline)
        return put(text, path[:-1], data)
    first, last = key.start_mark.line, _last_line(lines, key, old)
    scalar = isinstance(old, yaml.ScalarNode) and old.style not in ("|", ">") and first == last
    if scalar and not isinstance(value, dict | list):
        shown = _dump({"k": value}, 0, newline).strip().removeprefix("k:").strip()
        start, end = old.start_mark.index, old.end_mark.index
        gap = "" if start > key.end_mark.index + 1 and start < end else " "
        return text[:start] + gap + shown + text[end:]
    column = key.start_mark.column
    within = [f"#{comment}" for line in lines[first : last + 1] if (comment := _comment_of(line))]
    made = "".join(f"{' ' * column}{comment}{newline}" for comment in within if old.flow_style)
    made += _dump({path[-1]: value}, column, newline)
    return "".join([*lines[:first], made, *lines[last + 1 :]])


def _insert(
    lines: list[str], parent: Any, name: str, value: object, comments: Sequence[str], newline: str
) -> str:
    column = 0
    at = next((number for number, line in enumerate(lines) if line.rstrip() == "..."), len(lines))
    if parent.value:
        column = parent.value[0][0].start_mark.column
        at = _last_line(lines, *parent.value[-1]) + 1
    elif parent.flow_style:  # the file is `{}`
        lines, at = [], 0
    if at and not lines[at - 1].endswith("\n"):
        lines[at - 1] += newline
    made = "".join(f"{' ' * column}{comment}{newline}" for comment in comments)
    made += _dump({name: value}, column, newline)
    apart = newline if not column and at and "".join(lines).count(f"{newline}{newline}") else ""
    return "".join([*lines[:at], apart, made, *lines[at:]])


class _Dumper(yaml.SafeDumper):
    """Writes lists indented below their key, as Helm charts do."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        del indentless
        super().increase_indent(flow, False)


def _dump(value: object, column: int, newline: str) -> str:
    text = yaml.dump(
        value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False, width=1 << 20
    )
    return "".join(f"{' ' * column}{line}{newline}" for line in text.splitlines())
