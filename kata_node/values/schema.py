"""Check values against the schema of the chart, as helm does. Pure.

Only the keywords of JSON Schema that the chart's schema uses are known. Helm's own messages name a path and a
rule; these name the key and what is expected.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from kata_node.settings.values import describe_value, did_you_mean

KEYWORDS = frozenset(
    {
        *("$defs", "$ref", "$schema", "additionalProperties", "anyOf", "deprecated", "enum", "items"),
        *("maximum", "minimum", "pattern", "patternProperties", "properties", "required", "title", "type"),
    }
)
"""The keywords that this module knows."""

_TYPES: Mapping[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "integer": lambda value: _is_number(value) and value % 1 == 0,
    "number": lambda value: _is_number(value),
    "null": lambda value: value is None,
}
_TYPE_NAMES = {
    "object": "a mapping",
    "array": "a list",
    "string": "a string",
    "boolean": "true or false",
    "integer": "a whole number",
    "number": "a number",
    "null": "nothing",
}


def problems(
    value: object, schema: Mapping[str, Any], root: Mapping[str, Any], path: str = ""
) -> Iterator[str]:
    """Yield a sentence for each violation of ``schema``, each with the path of the key.

    ``root`` is the whole schema, which ``$ref`` refers to.
    """
    if reference := schema.get("$ref"):
        schema = root["$defs"][reference.removeprefix("#/$defs/")]
    where = f"{path}: " if path else ""
    if "anyOf" in schema:
        found = [list(problems(value, each, root, path)) for each in schema["anyOf"]]
        if all(found):
            # A value of the right type has broken another rule of that alternative. That rule is useful.
            yield next((each[0] for each in found if "expected" not in each[0]), found[0][0])
        return
    if "enum" in schema and value not in schema["enum"]:
        names = [str(each) for each in schema["enum"] if each not in (None, "")]
        close = did_you_mean(value, names) if isinstance(value, str) else ""
        yield f"{where}{describe_value(value)} is not one of {', '.join(names)}" + (
            close if "did you mean" in close else ""
        )
        return
    types = schema.get("type", [])
    types = [types] if isinstance(types, str) else types
    if types and not any(_TYPES[each](value) for each in types):
        expected = " or ".join(_TYPE_NAMES[each] for each in types if each != "null")
        yield f"{where}expected {expected}, got {describe_value(value)}"
        return
    yield from _range_problems(value, schema, where)
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from problems(item, schema.get("items", {}), root, f"{path}[{index}]")
    elif isinstance(value, dict):
        yield from _mapping_problems(value, schema, root, path)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _range_problems(value: object, schema: Mapping[str, Any], where: str) -> Iterator[str]:
    if isinstance(value, int | float) and not isinstance(value, bool):
        if value < schema.get("minimum", value):
            yield f"{where}{value} is too small; set {schema['minimum']} or more"
        if value > schema.get("maximum", value):
            yield f"{where}{value} is too large; set {schema['maximum']} or less"
    # Helm, like JSON Schema, searches for the pattern anywhere in the text.
    if isinstance(value, str) and "pattern" in schema and not re.search(schema["pattern"], value):
        yield f"{where}{describe_value(value)} does not match {schema['pattern']}"


def _mapping_problems(
    value: Mapping[Any, Any], schema: Mapping[str, Any], root: Mapping[str, Any], path: str
) -> Iterator[str]:
    known = schema.get("properties", {})
    for key in schema.get("required", ()):
        if key not in value:
            yield f"{path}.{key}: is missing".lstrip(".")
    for key, below in value.items():
        if key is None:
            yield f"{path}: a key is null; write a name, or remove the entry".lstrip(": ")
            continue
        where = f"{path}.{key}" if path else str(key)
        patterns = [
            each
            for pattern, each in schema.get("patternProperties", {}).items()
            if re.search(pattern, str(key))
        ]
        others = schema.get("additionalProperties")
        if key in known:
            yield from problems(below, known[key], root, where)
        elif patterns:
            for each in patterns:
                yield from problems(below, each, root, where)
        elif others is False:
            yield f"{where}: is not a known key{did_you_mean(str(key), sorted(known))}"
        elif isinstance(others, dict):
            yield from problems(below, others, root, where)
