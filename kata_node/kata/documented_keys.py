"""The keys that Kata's configuration files document, each with an example of its value. Pure.

A configuration file of the payload documents a key when it sets it, or when it has it as a comment
``# key = value``. An example tells the type that Kata wants. ``assets/kata-keys.toml`` has what these files
do not tell: a few keys without documentation, the ranges of numbers, and the names of annotations.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from kata_node.assets import asset
from kata_node.kata.merge import Table, overlay, section

_HEADER = re.compile(r"\s*(?P<comment>#[#\s]*)?(?P<open>\[{1,2})(?P<name>[a-z0-9_.-]+)\]{1,2}\s*(#.*)?")
_SET_KEY = re.compile(r"\s*[A-Za-z0-9_\"'-]+\s*=")
_COMMENTED_KEY = re.compile(r"\s*#[#\s]*(?P<setting>[a-z][a-z0-9_]*\s*=\s*(?P<value>\S.*))")
_COMMENT = re.compile(r"\s*#[#\s]?")
_MAX_ARRAY_LINES = 40
"""The number of lines that a commented array may have."""

_RANGES = MappingProxyType(
    {
        "u8": (0, 2**8 - 1),
        "u32": (0, 2**32 - 1),
        "u64": (0, 2**63 - 1),  # TOML has no larger number
        "i32": (-(2**31), 2**31 - 1),
        "i64": (-(2**63), 2**63 - 1),
    }
)


@functools.cache
def _facts() -> Mapping[str, Any]:
    """Return what Kata's configuration files do not tell, see ``assets/kata-keys.toml``."""
    import tomllib

    return MappingProxyType(tomllib.loads(asset("kata-keys.toml").read_text(encoding="utf-8")))


def annotation_names() -> frozenset[str]:
    """Return the annotations of a pod that change its hypervisor, without the prefix of all of them."""
    return frozenset(_facts()["annotations"])


def accepts_fraction(key: str) -> bool:
    """Return whether Kata accepts a fraction for ``key``, though its files have a whole number there."""
    return key in _facts()["fractions"]


def number_range(runtime: str, key: str) -> tuple[int, int]:
    """Return the smallest and the largest whole number that ``runtime`` accepts for ``key``."""
    return _RANGES[_facts()[runtime]["numbers"].get(key, "u32")]


def accepted_values(runtime: str, key: str) -> Sequence[str]:
    """Return the values that ``runtime`` accepts for ``key``; an empty list if it accepts any."""
    values: Sequence[str] = _facts()[runtime]["values"].get(key, ())
    return values


def unsupported_keys(runtime: str, hypervisor: str) -> Sequence[str]:
    """Return the keys that ``runtime`` refuses for ``hypervisor`` unless they are false, 0 or empty."""
    keys: Sequence[str] = _facts()[runtime]["unsupported"].get(hypervisor, ())
    return keys


def is_mentioned(value: str, text: str) -> bool:
    """Return whether the configuration file ``text`` quotes ``value``, or has it in a list of options."""
    word = re.escape(value)
    return (
        value != ""
        and re.search(rf"[\"'`]{word}[\"'`]|^#\s*[-*]\s*{word}(?![\w-])", text, re.MULTILINE) is not None
    )


def known_keys(runtime: str, hypervisor: str, base: Table, texts: Iterable[str]) -> dict[str, Any]:
    """Return an example for each key that ``runtime`` can read, as a configuration for ``hypervisor``.

    ``base`` is the base configuration of the shim, and ``texts`` are files that document it. The keys of all
    hypervisors are in the one section of ``hypervisor``. Examples of ``base`` have the right type for sure,
    so they are the first choice.
    """
    examples: dict[str, Any] = {"hypervisor": {hypervisor: {}}, "agent": {"kata": {}}, "runtime": {}}
    for documented in (_facts()[runtime]["keys"], *map(documented_keys, texts)):
        for keys in section(documented, "hypervisor").values():
            examples = overlay(examples, {"hypervisor": {hypervisor: keys}}, _tells_more)
        others = {key: value for key, value in documented.items() if key != "hypervisor"}
        examples = overlay(examples, others, _tells_more)
    return overlay(examples, base, _tells_more)


def _tells_more(old: object, new: object) -> bool:
    """Return whether the example ``new`` replaces ``old``. An empty list tells less than one with items."""
    return new != [] or not isinstance(old, list)


@functools.lru_cache(maxsize=64)
def documented_keys(text: str) -> Mapping[str, Any]:
    """Return an example for each key that the configuration file ``text`` documents.

    Comments that are not ``key = value`` in TOML are prose. An invalid file documents nothing: reading it as
    a base configuration reports the error.
    """
    from kata_node.toml.parse import parse

    try:
        base = parse(text)
    except ValueError:
        return {}
    examples: dict[str, Any] = {}
    for path, is_list, settings in _commented_settings(text):
        inner: Any = [settings] if is_list else settings
        for key in reversed(path):
            inner = {key: inner}
        examples = overlay(inner, examples)
    return overlay(examples, base)


def _commented_settings(text: str) -> Iterable[tuple[list[str], bool, dict[str, Any]]]:
    """Yield the section, whether it is a list of tables, and the content of each commented setting.

    A commented header holds until the next key that is set, or the next header.
    """
    lines = text.splitlines()
    current: tuple[list[str], bool] = ([], False)
    commented: tuple[list[str], bool] | None = None
    for number, line in enumerate(lines):
        if header := _HEADER.fullmatch(line):
            found = (header["name"].split("."), header["open"] == "[[")
            if header["comment"]:
                commented = found
            else:
                current, commented = found, None
        elif _SET_KEY.match(line):
            commented = None
        elif (match := _COMMENTED_KEY.match(line)) and (
            settings := _parse_commented(match, lines[number + 1 : number + _MAX_ARRAY_LINES])
        ):
            yield *(commented or current), settings


def _parse_commented(match: re.Match[str], following: Sequence[str]) -> dict[str, Any]:
    """Return the setting of a comment as a table; an empty one if it is not TOML.

    ``following`` are the lines behind it, which an array can continue in.
    """
    from kata_node.toml.parse import parse

    setting = match["setting"]
    for line in ("", *(following if match["value"].startswith("[") else ())):
        if line and not line.lstrip().startswith("#"):
            break
        setting += "\n" + _COMMENT.sub("", line) if line else ""
        try:
            return parse(setting)
        except ValueError:
            continue
    return {}
