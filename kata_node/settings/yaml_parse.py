"""Parse YAML that a user wrote. Whatever the text is, the result is plain data or one error.

libyaml composes nested collections recursively in C: 100 KB of brackets would end the process. So the nesting
is checked first, on the stream of events. Aliases can make a small text stand for billions of values, or a
value contain itself. Both are refused, because code that walks the values would not end.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from yaml.nodes import Node

MAX_SIZE = 4 * 1024 * 1024
"""The maximum number of characters. A ConfigMap has at most 1 MiB."""
MAX_DEPTH = 100
"""The maximum nesting. A Job, the deepest value that is read, has less than 20 levels."""
MAX_VALUES = 1_000_000
"""The maximum number of values after aliases are replaced by what they stand for."""

_HELM_BOOLEANS = {"y": "yes", "Y": "yes", "n": "no", "N": "no"}
_EXPONENT = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+")
"""A number that PyYAML takes for a string, because the exponent has no sign or there is no dot."""
_OCTAL = re.compile(r"[-+]?0o[0-7]+")


def parse(text: str, *, unique_keys: bool = False, as_helm: bool = False) -> object:
    """Return the single YAML document in ``text``; ``None`` if it is empty.

    Raises :class:`ValueError`, with the line if it is known, if the text is not a single valid document, is
    too long or nested too deeply, or has a value that is none (``2025-99-99``). With ``unique_keys`` also if
    a mapping has a key twice: a YAML parser keeps only the last one, and would silently drop the others.
    With ``as_helm`` a scalar has the type that helm reads, where the two differ: a date is a string.
    """
    if len(text) > MAX_SIZE:
        raise ValueError(
            f"it has more than {MAX_SIZE >> 20} MiB; the values of the Helm chart fit into 1 MiB"
        )
    if text.startswith("{"):
        # The chart writes JSON for the node, because loading PyYAML takes a fifth of a short stage.
        with contextlib.suppress(ValueError, RecursionError):  # YAML's parser says what is wrong, and where
            return _parse_json(text)
    import yaml

    loader_type: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        _check_depth(text, loader_type)
        loader = loader_type(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _check_nodes(node, unique_keys=unique_keys)
            if as_helm:
                _resolve_as_helm(node, set())
            return _construct(loader, node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        what = getattr(error, "problem", None) or getattr(error, "reason", None) or "it cannot be read"
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(f"{place}not valid YAML: {what}") from error


def _parse_json(text: str) -> object:
    """Return the value of a JSON text. Raises :class:`ValueError` for one that YAML's parser has to judge."""

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        if len(found := dict(pairs)) < len(pairs):
            raise ValueError("a key occurs twice")
        return found

    def within_64_bits(digits: str) -> int:
        if not -(2**63) <= (value := int(digits)) < 2**64:
            raise ValueError("too large")
        return value

    def finite(number: str) -> float:
        if not math.isfinite(value := float(number)):
            raise ValueError("too large")
        return value

    if "\\ud" in text.lower():
        raise ValueError("a surrogate is no character")
    value = json.loads(
        text,
        object_pairs_hook=unique,
        parse_int=within_64_bits,
        parse_float=finite,
        parse_constant=finite,
    )
    _refuse_deep(value, MAX_DEPTH)
    return value


def _refuse_deep(value: object, levels: int) -> None:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    if children is None:
        return
    if not levels:
        raise ValueError("nested too deeply")
    for each in children:
        _refuse_deep(each, levels - 1)


def _check_depth(text: str, loader_type: Any) -> None:
    """Raise :class:`yaml.MarkedYAMLError` if a collection is more than :data:`MAX_DEPTH` levels deep."""
    import yaml

    depth = 0
    for event in yaml.parse(text, loader_type):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise _problem(f"nested more than {MAX_DEPTH} levels deep", event)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _check_nodes(root: Node, *, unique_keys: bool) -> None:
    """Raise :class:`yaml.MarkedYAMLError` for too many values, or for a key that a mapping has twice.

    The nodes are checked before they are constructed, because construction copies merged keys (``<<``) into
    the mappings.
    """
    import yaml

    # id of a node -> its number of values and levels; None while those of its children are counted
    measured: dict[int, tuple[int, int] | None] = {}

    def measure(node: Node) -> tuple[int, int]:
        if id(node) in measured:
            known = measured[id(node)]
            if known is None:
                raise _problem("an alias stands for a collection that contains it", node)
            return known
        measured[id(node)] = None
        children: list[Node] = []
        if isinstance(node, yaml.SequenceNode):
            children = node.value
        elif isinstance(node, yaml.MappingNode):
            if unique_keys:
                _refuse_duplicates(node)
            children = [child for pair in node.value for child in pair]
        below = [measure(child) for child in children]
        values, levels = 1 + sum(each[0] for each in below), 1 + max((each[1] for each in below), default=0)
        if values > MAX_VALUES:
            raise _problem(f"aliases make it more than {MAX_VALUES} values", node)
        if levels > MAX_DEPTH + 1:
            raise _problem(f"nested more than {MAX_DEPTH} levels deep", node)
        measured[id(node)] = values, levels
        return values, levels

    # An alias stands for something above it, which is measured by then. So this is not deeper than the text.
    measure(root)


def _resolve_as_helm(node: Node, seen: set[int]) -> None:
    """Give the scalars without quotes the types that helm's parser gives them."""
    import yaml

    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.ScalarNode):
        kind = str(node.tag).rpartition(":")[2]
        if node.style:
            return
        if kind == "timestamp" or (kind in ("int", "float") and ":" in node.value):
            node.tag = "tag:yaml.org,2002:str"
        elif kind == "str" and node.value in _HELM_BOOLEANS:
            node.tag, node.value = "tag:yaml.org,2002:bool", _HELM_BOOLEANS[node.value]
        elif kind == "str" and _EXPONENT.fullmatch(node.value) and math.isfinite(float(node.value)):
            node.tag = "tag:yaml.org,2002:float"
        elif kind == "str" and _OCTAL.fullmatch(node.value):
            node.tag = "tag:yaml.org,2002:int"
    elif isinstance(node, yaml.CollectionNode):
        for each in node.value:
            for child in each if isinstance(each, tuple) else (each,):
                _resolve_as_helm(child, seen)


def _refuse_duplicates(mapping: Any) -> None:
    import yaml

    seen: set[str] = set()
    for key, _ in mapping.value:
        if isinstance(key, yaml.ScalarNode):
            if key.value in seen:
                raise _problem(f"the key {_shortened(key.value)} occurs twice", key)
            seen.add(key.value)


def _construct(loader: Any, root: Node) -> object:
    """Return the value of ``root``. Name the line of a scalar that has no value, for example a month 99."""
    import yaml

    construct = loader.construct_object

    def construct_object(node: Node, deep: bool = False) -> object:
        try:
            value = construct(node, deep)
        except yaml.YAMLError:
            raise
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
            kind = str(node.tag).rpartition(":")[2]
            raise _problem(f"{_shortened(str(node.value))} is not a valid {kind}", node) from error
        if isinstance(value, int) and not -(2**63) <= value < 2**64:  # no program that reads it has more
            raise _problem(f"{_shortened(str(node.value))} does not fit into 64 bits; put it in quotes", node)
        return value

    loader.construct_object = construct_object
    return loader.construct_document(root)


def _problem(what: str, place: Any) -> Exception:
    import yaml

    return yaml.MarkedYAMLError(problem=what, problem_mark=place.start_mark)


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:37]}...")
