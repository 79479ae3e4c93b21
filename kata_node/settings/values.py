"""Read the values file: parse the YAML, and check the type of each value. All problems are collected."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import date, time
from pathlib import Path
from types import TracebackType
from typing import Self

from kata_node.errors import SettingsError
from kata_node.settings.config_file import PROPAGATION_TIMEOUT, read_config_file

MAX_PROBLEMS = 50
"""The maximum number of problems that an error lists."""
MAX_SHOWN, MAX_SHOWN_KEY = 40, 200
"""The maximum number of characters of a value and of a key in a message."""
MAX_PATH, MAX_NAME = 1024, 255
"""The maximum bytes of a path, and of one name in it. The kernel allows 4095, with the names below it."""
MAX_BITS = 64
"""The maximum size of a number in a message. Python refuses to print a number with thousands of digits."""


def read_yaml(
    path: str, digest: str = "", *, timeout: float = PROPAGATION_TIMEOUT
) -> Mapping[object, object]:
    """Return the mapping in the YAML file at ``path``; an empty mapping if the file is empty.

    ``digest`` and ``timeout`` are those of :func:`read_config_file`.

    Raises :class:`SettingsError`, with the line if there is one, if the file cannot be read, is not UTF-8, is
    not a single YAML document, has a key twice in one mapping, or is not a mapping.
    """
    try:
        raw = read_config_file(Path(path), digest, timeout=timeout)
    except OSError as error:
        raise SettingsError(
            f"the values file cannot be read: {error.strerror}",
            where=path,
            hint="set --config to a readable YAML file, or omit it to use the defaults",
        ) from error
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise SettingsError(
            f"line {line} is not UTF-8 text", where=path, hint="save the values file as UTF-8"
        ) from error
    return parse_values(text, path, hint="correct the YAML; nothing was changed on this node")


def parse_values(text: str, where: str, *, hint: str, as_helm: bool = False) -> Mapping[object, object]:
    """Return the mapping in the YAML ``text`` of the file ``where``; an empty mapping if it is empty.

    Raises :class:`SettingsError` like :func:`read_yaml`. ``hint`` is the remedy for text that is not YAML.
    With ``as_helm`` the values have the types that helm reads.
    """
    from kata_node.settings import yaml_parse

    try:
        data = yaml_parse.parse(text, unique_keys=True, as_helm=as_helm)
    except ValueError as error:
        raise SettingsError(str(error), where=where, hint=hint) from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise SettingsError(
            f"expected a mapping of keys to values, got {describe_value(data)}",
            where=where,
            hint="write the values of the Helm chart, for example `shims:` at the top level",
        )
    return data


def parse_yaml(text: str, *, as_helm: bool = False) -> object:
    """Return the single YAML document in ``text``. Raises :class:`ValueError` that names the line.

    With ``as_helm`` the values have the types that helm reads.
    """
    from kata_node.settings import yaml_parse

    return yaml_parse.parse(text, as_helm=as_helm)


def join_problems(problems: Sequence[str]) -> str:
    """Return the problems as the text of one error."""
    if len(problems) == 1:
        return problems[0]
    more = len(problems) - MAX_PROBLEMS
    listed = [*problems[:MAX_PROBLEMS], *([f"and {more} more"] if more > 0 else [])]
    return "\n  ".join([f"{len(problems)} problems", *listed])


def describe_value(value: object) -> str:
    """Return a short description of ``value`` for use in a sentence: ``the string "yes"``, ``a list``."""
    match value:
        case None:
            return "nothing"
        case bool():
            return "true" if value else "false"
        case str():
            return f'the string "{_printable(value)}"'
        case int() if value.bit_length() > MAX_BITS:
            return f"a number of more than {MAX_BITS} bits"
        case int() | float():
            return f"the number {value}"
        case bytes():
            return "binary data"
        case date() | time():
            return f"{value} (a {type(value).__name__})"
        case list():
            return "a list"
        case dict():
            return "a mapping"
    return f"a value of the type {type(value).__name__}"


def first_json_problem(value: object) -> tuple[str, str] | None:
    """Return the first value below ``value`` that JSON does not have, or ``None``.

    The result is its key, as ``.spec.containers[0].name``, and a sentence. ``value`` is what
    :func:`parse_yaml` returns, which is not deep.
    """
    items: Iterator[tuple[str, object]] = iter(())
    match value:
        case None | bool() | str():
            return None
        case int() if -(2**63) <= value < 2**63:
            return None
        case float() if math.isfinite(value):
            return None
        case dict():
            for key in value:
                if not isinstance(key, str):
                    return "", f"expected a string as the key, got {describe_value(key)}; put it in quotes"
            items = ((f".{_printable(key, MAX_SHOWN_KEY)}", item) for key, item in value.items())
        case list():
            items = ((f"[{index}]", item) for index, item in enumerate(value))
        case _:
            return "", f"expected a value that JSON has, got {describe_value(value)}; put it in quotes"
    for place, item in items:
        if problem := first_json_problem(item):
            return place + problem[0], problem[1]
    return None


def path_problem(path: str) -> str:
    """Return what keeps ``path`` from being a path on a node, as the end of a sentence; empty if nothing."""
    if not path.isprintable():
        return "has characters that cannot be printed"
    if len(path.encode(errors="surrogateescape")) > MAX_PATH:
        return f"is longer than {MAX_PATH} bytes"
    if any(len(name.encode(errors="surrogateescape")) > MAX_NAME for name in path.split("/")):
        return f"has a name of more than {MAX_NAME} bytes"
    return ""


def _printable(text: str, limit: int = MAX_SHOWN) -> str:
    """Return ``text`` for a message: at most ``limit`` characters, and without control characters."""
    shown = text if len(text) <= limit else f"{text[: limit - 3]}..."
    return shown if shown.isprintable() else shown.encode("unicode_escape").decode()


def did_you_mean(name: str, known: Collection[str]) -> str:
    """Return ``; did you mean X?`` with the closest of ``known``.

    If none is close, return ``; expected one of …`` with all of them, or nothing if they are more than 12.
    """
    if close := closest_name(name, known):
        return f"; did you mean {close}?"
    return f"; expected one of {', '.join(sorted(known))}" if len(known) <= 12 else ""


def closest_name(name: str, known: Collection[str]) -> str:
    """Return the one of ``known`` that ``name`` is probably a misspelling of; empty if none is close."""
    import difflib

    # The search takes longer with every character.
    return next(iter(difflib.get_close_matches(name[:MAX_SHOWN_KEY], known, n=1)), "")


class ValuesReader:
    """Read the keys of one mapping of the values file.

    Each method reads one key and checks the type of its value. If the value is wrong, the method adds a
    problem with the full path of the key (``shims.qemu.enabled``) to ``problems`` and returns the default, so
    that one run reports all problems. At the end of the ``with`` block, every key that was not read is a
    problem. Null counts as not set, as in Helm.
    """

    def __init__(self, values: Mapping[object, object], path: str, problems: list[str]) -> None:
        self._values = values
        self._path = path
        self._known: set[object] = set()
        self.problems = problems

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            return
        known = sorted(str(known) for known in self._known)
        for key in self._values:
            if key not in self._known:
                is_huge = isinstance(key, int) and key.bit_length() > MAX_BITS
                name = describe_value(key) if is_huge else str(key)
                what = (
                    "is not a known key"
                    if isinstance(key, str)
                    else f"expected a string as the key, got {describe_value(key)}"
                )
                is_listed = len(self.problems) < MAX_PROBLEMS
                self.add_problem(name, what + (did_you_mean(name, known) if is_listed else ""))

    def path(self, key: str) -> str:
        """Return the path of ``key`` from the top level of the file, for messages."""
        key = _printable(key, MAX_SHOWN_KEY)
        return f"{self._path}.{key}" if self._path else key

    def add_problem(self, key: str, what: str) -> None:
        """Add a problem with ``key`` to the list. ``what`` is a sentence about it."""
        self.problems.append(f"{self.path(key)}: {what}")

    def names(self) -> Iterator[str]:
        """Yield the keys that were not read yet. For mappings with keys that the user chooses."""
        return iter([key for key in self._values if isinstance(key, str) and key not in self._known])

    def has(self, key: str) -> bool:
        """Return whether ``key`` is set and not null."""
        return self._values.get(key) is not None

    def skip(self, *keys: str) -> None:
        """Accept ``keys`` without checking their values."""
        self._known.update(keys)

    def optional_flag(self, key: str) -> bool | None:
        """Return a boolean; ``None`` if ``key`` is not set."""
        value = self._take(key)
        if value is None or isinstance(value, bool):
            return value
        self.add_problem(key, f"expected true, false or nothing, got {describe_value(value)}")
        return None

    def flag(self, key: str) -> bool:
        """Return a boolean; false if ``key`` is not set."""
        value = self._take(key)
        if value is None or isinstance(value, bool):
            return bool(value)
        self.add_problem(key, f"expected true or false, got {describe_value(value)}")
        return False

    def text(self, key: str, default: str = "") -> str:
        """Return a string; ``default`` if ``key`` is not set."""
        value = self._take(key)
        if isinstance(value, str) and "\0" in value:
            self.add_problem(key, "has a NUL character, which no path and no configuration can have")
            return default
        if value is None or isinstance(value, str):
            return default if value is None else value
        quote = "" if isinstance(value, (list, dict)) else "; put it in quotes"
        self.add_problem(key, f"expected a string, got {describe_value(value)}{quote}")
        return default

    def choice(self, key: str, known: Sequence[str]) -> str:
        """Return one of the strings in ``known``; the first one if ``key`` is not set."""
        value = self.text(key, known[0])
        if value in known:
            return value
        self.add_problem(
            key, f"{describe_value(value)} is not one of {', '.join(name for name in known if name)}"
        )
        return known[0]

    def text_list(self, key: str) -> tuple[str, ...] | None:
        """Return a list of strings; ``None`` if ``key`` is not set."""
        value = self._take(key)
        if value is None:
            return None
        if not isinstance(value, list):
            self.add_problem(key, f"expected a list of strings, got {describe_value(value)}")
            return None
        for index, item in enumerate(value):
            if not isinstance(item, str):
                self.add_problem(f"{key}[{index}]", f"expected a string, got {describe_value(item)}")
            elif "\0" in item:
                self.add_problem(f"{key}[{index}]", "has a NUL character")
        return tuple(item for item in value if isinstance(item, str))

    def unchecked_list(self, key: str) -> list[object]:
        """Return a list, without a check of its items; an empty one if ``key`` is not set."""
        value = self._take(key)
        if value is None or isinstance(value, list):
            return value or []
        self.add_problem(key, f"expected a list, got {describe_value(value)}")
        return []

    def number(self, key: str, default: int = 0, *, least: int = 0) -> int:
        """Return an integer from ``least`` to 2^31 - 1; ``default`` if ``key`` is not set."""
        value = self._take(key)
        if value is None:
            return default
        if isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**31:
            return value
        self.add_problem(key, f"expected a whole number, {least} or more, got {describe_value(value)}")
        return default

    def value(self, key: str) -> object:
        """Return the value without a check; ``None`` if ``key`` is not set."""
        return self._take(key)

    def section(self, key: str) -> ValuesReader:
        """Return a reader of the mapping at ``key``; of an empty one if ``key`` is not set."""
        value = self._take(key)
        if value is not None and not isinstance(value, dict):
            self.add_problem(key, f"expected a mapping, got {describe_value(value)}")
            value = None
        return ValuesReader(value or {}, self.path(key), self.problems)

    def _take(self, key: str) -> object:
        self._known.add(key)
        return self._values.get(key)
