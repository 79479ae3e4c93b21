"""Parse TOML that others wrote. Whatever the text is, the result is plain data or one error."""

from __future__ import annotations

import re
import tomllib
from typing import Any

MAX_DEPTH = 100
"""The maximum nesting of tables and arrays. Configurations of runtimes have less than 10 levels."""
MAX_DOTS = 1000
"""The maximum number of dots in one key. The time of the parser grows with the square of it."""

_KEY_LIKE = re.compile(r"""[\w.\-"' \t]+""")


def parse(text: str) -> dict[str, Any]:
    """Return the tables of ``text``.

    Raises :class:`tomllib.TOMLDecodeError` if it is not valid TOML, is nested more than :data:`MAX_DEPTH`
    levels deep, or has a number of more than 64 bits. The parsers of the runtimes refuse such a number too.
    """
    if text.count(".") > MAX_DOTS and any(run[0].count(".") > MAX_DOTS for run in _KEY_LIKE.finditer(text)):
        raise tomllib.TOMLDecodeError(f"a key has more than {MAX_DOTS} parts")
    try:
        parsed = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:  # Python converts no text of so many digits
        raise _too_long() from error
    _check_values(parsed)
    return parsed


def _check_values(parsed: dict[str, Any]) -> None:
    level: list[Any] = [parsed]
    for _ in range(MAX_DEPTH + 1):
        items = [item for value in level for item in (value.values() if isinstance(value, dict) else value)]
        if any(isinstance(item, int) and not -(2**63) <= item < 2**63 for item in items):
            raise _too_long()
        level = [item for item in items if isinstance(item, (dict, list))]
        if not level:
            return
    raise _too_deep()


def _too_long() -> tomllib.TOMLDecodeError:
    return tomllib.TOMLDecodeError("a number does not fit into 64 bits")


def _too_deep() -> tomllib.TOMLDecodeError:
    return tomllib.TOMLDecodeError(f"tables or arrays are nested more than {MAX_DEPTH} levels deep")
