"""Read the values file: parse the YAML, and check the type of each value. All problems are collected."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from kata_node.errors import SettingsError
from kata_node.settings.config_file import PROPAGATION_TIMEOUT, read_config_file

if TYPE_CHECKING:
    from yaml.nodes import Node


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

    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(text)
    try:
        node = loader.get_single_node()
        _refuse_duplicates(node)
        data = loader.construct_document(node) if node else {}
    except (yaml.YAMLError, RecursionError) as error:
        raise SettingsError(
            _yaml_problem(error), where=path, hint="correct the YAML; nothing was changed on this node"
        ) from error
    finally:
        loader.dispose()
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise SettingsError(
            f"expected a mapping of keys to values, got {describe_value(data)}",
            where=path,
            hint="write the values of the Helm chart, for example `shims:` at the top level",
        )
    return data


def parse_yaml(text: str) -> object:
    """Return the single YAML document in ``text``. Raises :class:`ValueError` that names the line."""
    import yaml

    try:
        return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(_yaml_problem(error)) from error


def _refuse_duplicates(node: Node | None) -> None:
    """Raise :class:`yaml.MarkedYAMLError` if a mapping below ``node`` has a key twice.

    A YAML parser keeps only the last one, and would silently drop the other settings. The nodes are checked
    before they are constructed, because construction copies merged keys (``<<``) into the mappings.
    """
    import yaml

    todo = [node] if node else []
    done: set[int] = set()  # an alias is the same node, and can contain itself
    while todo:
        current = todo.pop()
        if id(current) in done:
            continue
        done.add(id(current))
        if isinstance(current, yaml.SequenceNode):
            todo += current.value
        elif isinstance(current, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in current.value:
                todo += (key, value)
                if isinstance(key, yaml.ScalarNode):
                    if key.value in seen:
                        problem = f"the key {key.value!r} occurs twice"
                        raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
                    seen.add(key.value)


def _yaml_problem(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    what = getattr(error, "problem", None) or getattr(error, "reason", None) or "nested too deeply"
    place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return f"{place}not valid YAML: {what}"


def describe_value(value: object) -> str:
    """Return a short description of ``value`` for use in a sentence: ``the string "yes"``, ``a list``."""
    match value:
        case None:
            return "nothing"
        case bool():
            return "true" if value else "false"
        case str():
            shown = value if len(value) <= 40 else value[:37] + "..."
            return f'the string "{shown if shown.isprintable() else shown.encode("unicode_escape").decode()}"'
        case int() | float():
            return f"the number {value}"
        case list():
            return "a list"
        case dict():
            return "a mapping"
    return f"{value!s} (a {type(value).__name__})"


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

    return next(iter(difflib.get_close_matches(name, known, n=1)), "")


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
        for key in self._values:
            if key not in self._known:
                known = sorted(str(known) for known in self._known)
                what = (
                    "is not a known key"
                    if isinstance(key, str)
                    else f"expected a string as the key, got {describe_value(key)}"
                )
                self.add_problem(str(key), what + did_you_mean(str(key), known))

    def path(self, key: str) -> str:
        """Return the path of ``key`` from the top level of the file."""
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
        return tuple(item for item in value if isinstance(item, str))

    def unchecked_list(self, key: str) -> list[object]:
        """Return a list, without a check of its items; an empty one if ``key`` is not set."""
        value = self._take(key)
        if value is None or isinstance(value, list):
            return value or []
        self.add_problem(key, f"expected a list, got {describe_value(value)}")
        return []

    def number(self, key: str, default: int = 0, *, least: int = 0) -> int:
        """Return an integer not less than ``least``; ``default`` if ``key`` is not set."""
        value = self._take(key)
        if value is None:
            return default
        if isinstance(value, int) and not isinstance(value, bool) and value >= least:
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
