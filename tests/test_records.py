"""Records behave like frozen dataclasses of the standard library, which each case compares them with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import msgspec
import pytest

from kata_node import records


def make(decorator: Any) -> tuple[type, type]:
    """Return a class and a class that inherits from it, both made by ``decorator``."""

    @decorator(frozen=True)
    class Base:
        """A class."""

        name: str
        size: int = 7
        secret: str = dataclasses.field(default="", repr=False)

        @property
        def double(self) -> int:
            return self.size * 2

    @decorator(frozen=True)
    class Sub(Base):
        """A class that inherits."""

        tags: Mapping[str, int] = dataclasses.field(default_factory=dict)
        note: str = dataclasses.field(default="", compare=False)
        convert: Callable[[str], str] = str.upper

    return Base, Sub


MADE = {"records": make(records.dataclass), "standard library": make(dataclasses.dataclass)}


def outcome(function: Callable[[], Any]) -> Any:
    """Return the result, or the type of the exception."""
    try:
        return function()
    except Exception as error:
        return type(error)


CASES: dict[str, Callable[[Any, Any], Any]] = {
    "positional": lambda base, sub: repr(sub("a", 1, "s", {"t": 2}, "n")),
    "keywords": lambda base, sub: repr(sub(tags={}, name="a", note="n")),
    "a hidden field": lambda base, sub: (
        "s3cret" in repr(base("a", secret="s3cret")) + str(sub("a", 1, "s3cret"))
    ),
    "a default": lambda base, sub: (base("a").size, base.size, vars(base("a"))),
    "a factory makes one each": lambda base, sub: sub("a").tags is sub("b").tags,
    "a function as default": lambda base, sub: sub("a").convert("x"),
    "a property": lambda base, sub: sub("a", 4).double,
    "missing": lambda base, sub: base(),
    "missing with others": lambda base, sub: base(size=1),
    "unknown": lambda base, sub: base("a", colour=1),
    "twice": lambda base, sub: base("a", name="b"),
    "too many": lambda base, sub: base("a", 1, "s", 4),
    "equal": lambda base, sub: (base("a") == base("a", 7), sub("a") == sub("a", note="other")),
    "not equal": lambda base, sub: (base("a") == base("b"), base("a") == sub("a"), base("a") == ("a", 7, "")),
    "a secret counts": lambda base, sub: base("a", secret="1") == base("a", secret="2"),
    "hash": lambda base, sub: len({base("a"), base("a", 7), base("b")}),
    "hash of a mutable field": lambda base, sub: hash(sub("a")),
    "assign": lambda base, sub: setattr(base("a"), "size", 1),
    "assign another name": lambda base, sub: setattr(sub("a"), "colour", 1),
    "delete": lambda base, sub: delattr(base("a"), "size"),
    "replace": lambda base, sub: repr(dataclasses.replace(sub("a", tags={"t": 1}), size=3)),
    "replace an unknown field": lambda base, sub: dataclasses.replace(base("a"), colour=1),
    "asdict": lambda base, sub: dataclasses.asdict(sub("a", tags={"t": 1})),
    "fields": lambda base, sub: [(each.name, each.repr, each.compare) for each in dataclasses.fields(sub)],
    "match": lambda base, sub: sub.__match_args__,
    "to JSON": lambda base, sub: msgspec.json.encode(base("a", 1)),
    "from JSON": lambda base, sub: repr(msgspec.json.decode(b'{"name": "a", "secret": "s"}', type=base)),
    "from wrong JSON": lambda base, sub: msgspec.json.decode(b'{"name": 1}', type=base),
}


@pytest.mark.parametrize("case", CASES)
def test_a_record_behaves_like_a_frozen_dataclass(case: str) -> None:
    found, expected = (outcome(partial(CASES[case], *made)) for made in MADE.values())
    assert found == expected


def test_an_error_names_the_class_and_the_argument() -> None:
    base, _ = MADE["records"]
    for arguments, given, says in (
        ((), {}, "'name'"),
        (("a",), {"colour": 1}, "'colour'"),
        (range(4), {}, "4"),
    ):
        with pytest.raises(TypeError, match=f"Base.*{says}"):
            base(*arguments, **given)
