"""Frozen dataclasses that are cheap to define.

For each frozen class, the decorator of the standard library generates the source of six methods and compiles
it. That takes up to a millisecond, and a stage needs about a hundred classes. With the decorator of this
module, the standard library only reads the fields. All classes share the methods below. ``field``,
``replace``, ``asdict``, ``match`` and msgspec treat a class from here like any other dataclass.
"""

from __future__ import annotations

from dataclasses import MISSING, FrozenInstanceError, fields
from dataclasses import dataclass as _dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
else:

    def dataclass(*, frozen):
        """Return the decorator. ``frozen`` is true; for another dataclass, use the standard library."""
        assert frozen
        return _make


_read_fields = _dataclass(init=False, repr=False, eq=False)
_set = object.__setattr__


def _make(cls: Any) -> Any:
    assert not hasattr(cls, "__post_init__"), "nothing would call it"
    _read_fields(cls)
    found = fields(cls)
    optional = [each.default is not MISSING or each.default_factory is not MISSING for each in found]
    assert optional == sorted(optional), "a field without a default is after one with a default"
    assert all(each.init and not each.kw_only and each.hash is None for each in found), "not supported"
    compared = [each.name for each in found if each.compare]
    cls._compared = property(attrgetter(*compared) if compared else lambda self: ())
    methods = {
        "__init__": _initializer(
            tuple(each.name for each in found),
            {each.name: each.default for each in found if each.default is not MISSING},
            {each.name: each.default_factory for each in found if each.default_factory is not MISSING},
        ),
        "__repr__": _repr,
        "__eq__": _eq,
        "__hash__": _hash,
        "__setattr__": _refuse_assignment,
        "__delattr__": _refuse_deletion,
    }
    own = vars(cls)
    for name, method in methods.items():
        if name not in own:
            setattr(cls, name, method)
    return cls


def _initializer(names: tuple[str, ...], defaults: dict[str, Any], factories: dict[str, Any]) -> Any:
    def initialize(self: Any, /, *args: Any, **given: Any) -> None:
        for name, value in zip(names, args, strict=False):
            _set(self, name, value)
        for name in names[len(args) :]:
            if name in given:
                _set(self, name, given.pop(name))
            elif name in defaults:
                _set(self, name, defaults[name])
            elif name in factories:
                _set(self, name, factories[name]())
            else:
                raise TypeError(f"{type(self).__qualname__}() needs the argument {name!r}")
        if given:
            wrong = next(iter(given))
            raise TypeError(f"{type(self).__qualname__}() has no argument {wrong!r}, or has it twice")
        if len(args) > len(names):
            raise TypeError(f"{type(self).__qualname__}() takes {len(names)} arguments, not {len(args)}")

    return initialize


def _repr(self: Any) -> str:
    shown = (f"{each.name}={getattr(self, each.name)!r}" for each in fields(self) if each.repr)
    return f"{type(self).__qualname__}({', '.join(shown)})"


def _eq(self: Any, other: Any) -> Any:
    return self._compared == other._compared if type(other) is type(self) else NotImplemented


def _hash(self: Any) -> int:
    return hash(self._compared)


def _refuse_assignment(self: Any, name: str, value: object) -> None:
    raise FrozenInstanceError(f"cannot assign to field {name!r}")


def _refuse_deletion(self: Any, name: str) -> None:
    raise FrozenInstanceError(f"cannot delete field {name!r}")
