"""Whether Kata would start pods with a drop-in of the user. Pure.

Facts from the source of Kata's loaders (``src/runtime/pkg/katautils/config.go`` and ``src/libs/kata-types``).
A loader that refuses the configuration refuses every pod.

- The Go runtime refuses an unknown key below ``[hypervisor.<name>]`` and ``[agent.<name>]`` in a drop-in.
  runtime-rs refuses one below ``[agent.<name>]`` and in tables in a hypervisor's section. Both ignore all
  other unknown keys and sections.
- Both refuse a value of another type.
- Both refuse the section of another hypervisor. The Go runtime does not see one without keys.
- The Go runtime uses one section below ``[agent]`` at random if there are several. runtime-rs uses the one
  that ``agent_name`` names.
- The Go runtime has no experimental feature, so it refuses each. runtime-rs accepts all names.
- The Go runtime reads ``[runtime]`` and ``[factory]`` and their keys in any case.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from kata_node.kata.annotations import pattern_problems
from kata_node.kata.documented_keys import (
    accepted_values,
    documented_keys,
    is_mentioned,
    known_keys,
    unsupported_keys,
)
from kata_node.kata.merge import Table, all_strings, section
from kata_node.kata.value_types import type_problem
from kata_node.settings.values import closest_name, describe_value

if TYPE_CHECKING:
    from kata_node.settings.shims import Shim

GUEST_PULL_KEY = "experimental_force_guest_pull"
"""The key of the Go runtime that makes the guest pull images."""
GUEST_PULL_FEATURE = "force_guest_pull"
"""The experimental feature of runtime-rs for the same."""

_SECTIONS = ("hypervisor", "agent", "runtime", "factory")
_SELECTING_KEYS = ("name", "hypervisor_name", "agent_name")
"""Keys of ``[runtime]`` that tell runtime-rs which program and which sections it uses."""


class Problem(NamedTuple):
    """One sentence about a drop-in, which begins with a key and has no full stop."""

    sentence: str
    is_fatal: bool = True
    """Whether Kata refuses the configuration. Otherwise the setting has no effect."""


def find_problems(drop_in: Table, shim: Shim, base: Table, texts: Sequence[str]) -> Iterator[Problem]:
    """Yield each problem of the parsed ``drop_in`` for ``shim``.

    ``base`` is the configuration below the drop-in. ``texts`` are the configuration files of the payload for
    the same runtime, which document the keys.
    """
    yield from _Checker(shim, base, texts).problems(drop_in)


class _Checker:
    """Checks drop-ins of one shim."""

    def __init__(self, shim: Shim, base: Table, texts: Sequence[str]) -> None:
        self._shim, self._base = shim, base
        self._own_texts = [
            text for text in texts if shim.hypervisor in section(documented_keys(text), "hypervisor")
        ]
        self._known = known_keys(shim.runtime, shim.hypervisor, base, texts)
        own = known_keys(shim.runtime, shim.hypervisor, base, self._own_texts)
        self._keys_of_hypervisor = section(own, "hypervisor", shim.hypervisor)
        self._is_go = shim.runtime == "go"
        self._loader = "Kata's Go runtime" if self._is_go else "runtime-rs"

    def problems(self, drop_in: Table) -> Iterator[Problem]:
        for name, value in drop_in.items():
            match self._spelling(name, _SECTIONS):
                case "hypervisor" | "agent" as kind if kind == name:
                    yield from self._sections(kind, value)
                case "runtime" | "factory" as kind if kind in self._known:
                    yield from self._table(kind, value, self._known[kind], is_strict=False)
                case _:
                    yield self._unknown(name, value, is_strict=False)

    def _sections(self, kind: str, value: Any) -> Iterator[Problem]:
        """Check the table of all hypervisors or of all agents."""
        if not isinstance(value, Mapping):
            yield from self._type_problems(kind, value, {})
            return
        own = self._shim.hypervisor if kind == "hypervisor" else "kata"
        known = section(self._known, kind)
        for name, content in value.items():
            path = f"{kind}.{name}"
            if name in known:
                # runtime-rs has no strict list of the keys of a hypervisor.
                is_strict = self._is_go or kind == "agent"
                yield from self._table(path, content, known[name], is_strict=is_strict)
            elif not isinstance(content, Mapping):
                yield Problem(f"{path} is not in a section of Kata; did you mean [{kind}.{own}]?")
            elif kind == "hypervisor":
                yield Problem(
                    f"{path} is not the section of the shim {self._shim.name}, and {self._loader} refuses "
                    f"a second hypervisor; write the keys in [{kind}.{own}]",
                    bool(content) or not self._is_go,
                )
            else:
                yield from self._table(path, content, known.get(own, {}), is_strict=True)
                use = "uses one of several agents at random" if self._is_go else "ignores a second agent"
                yield Problem(
                    f"{path} is not the section of Kata's agent, and {self._loader} {use}; "
                    f"write the keys in [{kind}.{own}]",
                    bool(content) and self._is_go,
                )

    def _table(self, path: str, value: Any, known: Any, *, is_strict: bool) -> Iterator[Problem]:
        """Check the keys of one table. ``is_strict``: whether Kata refuses unknown keys in it."""
        if not isinstance(known, Mapping) or not isinstance(value, Mapping):
            yield from self._type_problems(path, value, known)
            return
        for written, content in value.items():
            key = self._spelling(written, known) if path in ("runtime", "factory") else written
            name = f"{path}.{written}"
            if key not in known:
                yield self._unknown(name, content, is_strict=is_strict)
            elif isinstance(known[key], Mapping):
                yield from self._table(name, content, known[key], is_strict=True)
            elif problems := list(self._type_problems(name, content, known[key])):
                yield from problems
            else:
                yield from self._value_problems(f"{path}.{key}", content)

    def _type_problems(self, name: str, value: Any, example: Any) -> Iterator[Problem]:
        *parents, key = name.split(".")
        current = section(self._base, *parents).get(key)
        if problem := type_problem(self._shim.runtime, name, value, example, current):
            yield Problem(problem)

    def _value_problems(self, name: str, value: Any) -> Iterator[Problem]:
        """Yield problems of a value that has the right type."""
        path, _, key = name.rpartition(".")
        runtime, hypervisor = self._shim.runtime, self._shim.hypervisor
        if path == f"hypervisor.{hypervisor}":
            if key not in self._keys_of_hypervisor:
                yield Problem(
                    f"{name} is only in configurations of other hypervisors, so it can be without effect",
                    is_fatal=False,
                )
            if value and key in unsupported_keys(runtime, hypervisor):
                yield Problem(f"{name} is set, but {self._loader} does not support it with {hypervisor}")
        # A newer Kata can accept more values. Its configuration files mention them.
        accepted = accepted_values(runtime, key)
        if (
            accepted
            and isinstance(value, str)
            and value not in accepted
            and not any(is_mentioned(value, text) for text in self._own_texts)
        ):
            names = ", ".join(f'"{each}"' for each in accepted if each)
            yield Problem(f"{name} is {describe_value(value)}, but Kata wants one of {names}")
        if key == "enable_annotations":
            for sentence in pattern_problems(name, list(all_strings(value)), self._base):
                yield Problem(sentence, is_fatal=False)
        elif key == "guest_extension_images" and not all(map(_has_name, value)):
            yield Problem(f"{name} has an image without a name, and {self._loader} refuses it")
        elif name == "runtime.experimental":
            yield from self._feature_problems(name, list(all_strings(value)))
        elif path == "runtime" and key in _SELECTING_KEYS:
            current = section(self._base, path).get(key, value)
            if value != current:
                yield Problem(f'{name} is "{value}", but the shim {self._shim.name} needs "{current}"')

    def _feature_problems(self, name: str, features: Sequence[str]) -> Iterator[Problem]:
        """Yield problems of the list of experimental features."""
        if self._is_go:
            if features:
                hint = f"; set {GUEST_PULL_KEY} = true instead" if GUEST_PULL_FEATURE in features else ""
                yield Problem(f"{name} is not empty, but {self._loader} has no such feature{hint}")
            return
        known = [GUEST_PULL_FEATURE, *all_strings(section(self._base, "runtime").get("experimental"))]
        for feature in features:
            if feature not in known:
                yield Problem(
                    f'{name} has "{feature}", but {self._loader} knows only "{GUEST_PULL_FEATURE}"',
                    is_fatal=False,
                )

    def _spelling(self, name: str, known: Collection[str]) -> str:
        """Return the known name that Kata reads ``name`` as; ``name`` itself if there is none."""
        if name in known or not self._is_go:
            return name
        return next((each for each in known if each.casefold() == name.casefold()), name)

    def _unknown(self, name: str, value: Any, *, is_strict: bool) -> Problem:
        """Return the problem of a key or section that the configuration files do not document."""
        thing = "section" if isinstance(value, Mapping) else "key"
        fate = "refuses unknown keys there" if is_strict else f"ignores the {thing}"
        return Problem(
            f"{name} is not a {thing} of the shim {self._shim.name}, and {self._loader} {fate}"
            + self._suggestion(name),
            is_strict,
        )

    def _suggestion(self, name: str) -> str:
        """Return the end of a sentence about an unknown key: where it belongs, or the closest known key."""
        path, _, key = name.rpartition(".")
        for home in (f"hypervisor.{self._shim.hypervisor}", "agent.kata", "runtime"):
            if key in section(self._known, *home.split(".")):
                return f"; it belongs in [{home}]"
        known = section(self._known, *path.split(".")) if path else _SECTIONS
        close = closest_name(key.lower(), known)
        return f"; did you mean {close}?" if close else ""


def _has_name(image: object) -> bool:
    return isinstance(image, Mapping) and bool(image.get("name"))
