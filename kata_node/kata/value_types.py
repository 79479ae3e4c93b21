"""Whether a value has the type that Kata wants for its key. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kata_node.kata.documented_keys import accepts_fraction, number_range
from kata_node.settings.values import describe_value


def type_problem(runtime: str, name: str, value: Any, example: Any, current: Any = None) -> str:
    """Return a sentence if ``runtime`` refuses the type of ``value``; an empty string if it accepts it.

    ``name`` is the dotted key, and ``example`` a value that has the right type. ``current`` is the value in
    the shim's configuration; ``None`` if the key is not set there. A whole number is accepted for a fraction,
    but not the reverse.
    """
    key = name.rpartition(".")[2].lower()
    if _is_number(value) and _is_number(example):
        if isinstance(example, float) or accepts_fraction(key):
            return ""
        if isinstance(value, float):
            return f"{name} is {describe_value(value)}, but Kata wants a whole number"
        lowest, highest = number_range(runtime, key)
        if lowest <= value <= highest:
            return ""
        return f"{name} is {describe_value(value)}, but Kata wants a number from {lowest} to {highest}"
    if isinstance(value, list) and isinstance(example, list):
        return _item_problem(runtime, name, value, example[0] if example else "")
    if _is_number(value) or _is_number(example) or _plain_type(value) is not _plain_type(example):
        wanted = (
            f"Kata wants {_wanted(example)}"
            if current is None
            else f"it is {describe_value(current)} in the shim's configuration"
        )
        return f"{name} is {describe_value(value)}, but {wanted}"
    return ""


def _item_problem(runtime: str, name: str, values: list[Any], example: Any) -> str:
    """Return a sentence about the first item that has another type than ``example``."""
    for position, value in enumerate(values, start=1):
        place = f"item {position} of {name}"
        if not isinstance(value, Mapping) or not isinstance(example, Mapping):
            problem = type_problem(runtime, place, value, example)
        else:
            keys = (key for key in value if key in example)
            problems = (type_problem(runtime, f"{place}.{key}", value[key], example[key]) for key in keys)
            problem = next(filter(None, problems), "")
        if problem:
            return problem
    return ""


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _plain_type(value: object) -> type:
    return dict if isinstance(value, Mapping) else type(value)


def _wanted(example: object) -> str:
    match example:
        case bool():
            return "true or false"
        case str():
            return "a string"
        case int() | float():
            return "a number"
        case list():
            return "a list"
    return "a table"
