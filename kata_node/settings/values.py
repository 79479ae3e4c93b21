"""The values file as it is read: YAML, and typed look-ups that collect every problem at once."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from kata_node.errors import SettingsError

if TYPE_CHECKING:
    from yaml.nodes import Node


def read_yaml(path: str) -> Mapping[object, object]:
    """The mapping in the YAML file at ``path``; an empty file is an empty mapping.

    Raises :class:`SettingsError` with the line where there is one: the file cannot be read, is not
    UTF-8, is not one YAML document, names a key twice in one mapping, or holds something else.
    """
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise SettingsError(
            f"the values file cannot be read: {error.strerror}",
            where=path,
            hint="give --config the path of a readable YAML file, or leave it out for the defaults",
        ) from error
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise SettingsError(
            f"line {line} is not UTF-8 text", where=path, hint="save the values file in the encoding UTF-8"
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
            hint="the values file has the shape of the Helm chart's values: `shims:` and so on",
        )
    return data


def parse_yaml(text: str) -> object:
    """The one YAML document in ``text``. Raises :class:`ValueError` that tells the line."""
    import yaml

    try:
        return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(_yaml_problem(error)) from error


def _refuse_duplicates(node: Node | None) -> None:
    """YAML's last-one-wins would silently drop half of somebody's settings.

    The tree is walked before it is constructed: construction copies merged keys (``<<``) into it.
    """
    import yaml

    todo = [node] if node else []
    done: set[int] = set()  # an alias is the same node again, and may lie inside itself
    while todo:
        here = todo.pop()
        if id(here) in done:
            continue
        done.add(id(here))
        if isinstance(here, yaml.SequenceNode):
            todo += here.value
        elif isinstance(here, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in here.value:
                todo += (key, value)
                if isinstance(key, yaml.ScalarNode):
                    if key.value in seen:
                        problem = f"the key {key.value!r} is given twice"
                        raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
                    seen.add(key.value)


def _yaml_problem(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    what = getattr(error, "problem", None) or getattr(error, "reason", None) or "nested too deeply"
    place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return f"{place}not valid YAML: {what}"


def describe_value(value: object) -> str:
    """What ``value`` is, for a sentence that ends in it: ``the string "yes"``, ``a list``."""
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
    """`` Did you mean X?`` for the closest of ``known``, else all of them when they are few."""
    import difflib

    if close := difflib.get_close_matches(name, known, n=1):
        return f"; did you mean {close[0]}?"
    return f"; known are {', '.join(sorted(known))}" if len(known) <= 12 else ""


class ValuesReader:
    """One mapping of the values file, read key by key.

    Every look-up names a key this project knows and its type; leaving the ``with`` block refuses
    the keys nobody asked for. A wrong value is noted in ``problems`` under its path
    (``shims.qemu.enabled``) and its default handed back, so that one run names them all. Null counts
    as not given, as it does for Helm.
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
                    "no such key"
                    if isinstance(key, str)
                    else f"a key must be text, got {describe_value(key)}"
                )
                self.add_problem(str(key), what + did_you_mean(str(key), known))

    def path(self, key: str) -> str:
        """The whole path of ``key`` from the top of the file."""
        return f"{self._path}.{key}" if self._path else key

    def add_problem(self, key: str, what: str) -> None:
        """Note that the value of ``key`` cannot be used."""
        self.problems.append(f"{self.path(key)}: {what}")

    def names(self) -> Iterator[str]:
        """The keys nobody asked for yet, of a mapping whose keys are names somebody chose."""
        return iter([key for key in self._values if isinstance(key, str) and key not in self._known])

    def has(self, key: str) -> bool:
        """Whether ``key`` is given, with something other than null."""
        return self._values.get(key) is not None

    def skip(self, *keys: str) -> None:
        """Know ``keys`` without looking at what they hold."""
        self._known.update(keys)

    def optional_flag(self, key: str) -> bool | None:
        """True, false, or nothing."""
        value = self._take(key)
        if value is None or isinstance(value, bool):
            return value
        self.add_problem(key, f"expected true, false or nothing, got {describe_value(value)}")
        return None

    def flag(self, key: str) -> bool:
        """True or false; false when not given."""
        value = self._take(key)
        if value is None or isinstance(value, bool):
            return bool(value)
        self.add_problem(key, f"expected true or false, got {describe_value(value)}")
        return False

    def text(self, key: str, default: str = "") -> str:
        """A string."""
        value = self._take(key)
        if value is None or isinstance(value, str):
            return default if value is None else value
        quote = "" if isinstance(value, (list, dict)) else "; put it in quotes"
        self.add_problem(key, f"expected a string, got {describe_value(value)}{quote}")
        return default

    def choice(self, key: str, known: Sequence[str]) -> str:
        """One of the strings in ``known``; the first when not given."""
        value = self.text(key, known[0])
        if value in known:
            return value
        self.add_problem(
            key, f"{describe_value(value)} is not one of {', '.join(name for name in known if name)}"
        )
        return known[0]

    def text_list(self, key: str) -> tuple[str, ...] | None:
        """A list of strings; ``None`` when not given."""
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
        """A list whose items are not looked at; empty when not given."""
        value = self._take(key)
        if value is None or isinstance(value, list):
            return value or []
        self.add_problem(key, f"expected a list, got {describe_value(value)}")
        return []

    def number(self, key: str, default: int = 0, *, least: int = 0) -> int:
        """A whole number of ``least`` or more."""
        value = self._take(key)
        if value is None:
            return default
        if isinstance(value, int) and not isinstance(value, bool) and value >= least:
            return value
        self.add_problem(key, f"expected a whole number, {least} or more, got {describe_value(value)}")
        return default

    def value(self, key: str) -> object:
        """Whatever is there, for the caller to check; ``None`` when not given."""
        return self._take(key)

    def section(self, key: str) -> ValuesReader:
        """The mapping at ``key``; an empty one when not given."""
        value = self._take(key)
        if value is not None and not isinstance(value, dict):
            self.add_problem(key, f"expected a mapping, got {describe_value(value)}")
            value = None
        return ValuesReader(value or {}, self.path(key), self.problems)

    def _take(self, key: str) -> object:
        self._known.add(key)
        return self._values.get(key)
