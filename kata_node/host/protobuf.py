"""A reader of serialized protocol buffers, as far as the CRI's answers need it.

Unknown fields are ignored, so it also reads the answers of newer runtimes. The protobuf library needs
generated code and a compiler of a matching version, which is too much for a few fields. The format is
described in https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Iterator

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class DecodeError(ValueError):
    """The bytes are not a serialized message."""


class Message:
    """A parsed message with its fields by number. Raises :class:`DecodeError`."""

    def __init__(self, data: bytes) -> None:
        self._fields: dict[int, list[int | bytes]] = {}
        for number, value in _fields(data):
            self._fields.setdefault(number, []).append(value)

    def text(self, number: int) -> str:
        """Return the string in a field; empty when it is not set."""
        value = self._last(number)
        return value.decode(errors="replace") if isinstance(value, bytes) else ""

    def flag(self, number: int) -> bool:
        """Return the boolean in a field; false when it is not set."""
        return bool(self._last(number))

    def messages(self, number: int) -> list[Message]:
        """Return the messages in a repeated field, in order."""
        return [Message(value) for value in self._fields.get(number, ()) if isinstance(value, bytes)]

    def _last(self, number: int) -> int | bytes | None:
        values = self._fields.get(number)
        return values[-1] if values else None  # protobuf: the last value of a singular field counts


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        kind = tag & 7
        if kind == _VARINT:
            number, position = _varint(data, position)
            yield tag >> 3, number
            continue
        if kind == _BYTES:
            length, position = _varint(data, position)
        elif kind in (_FIXED64, _FIXED32):
            length = 8 if kind == _FIXED64 else 4
        else:
            raise DecodeError(f"a field has the unknown wire type {kind}")
        end = position + length
        if end > len(data):
            raise DecodeError("a field ends too early")
        yield tag >> 3, data[position:end]
        position = end


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """Return the varint at ``position`` (seven bits per byte, lowest first) and the position after it."""
    number = 0
    for shift in range(0, 64, 7):
        if position == len(data):
            raise DecodeError("a number ends too early")
        byte = data[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, position
    raise DecodeError("a number has more than 64 bits")
