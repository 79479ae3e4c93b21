"""Expand the command line of a systemd unit as systemd does. Pure.

Sources: systemd.service(5), section "Command lines", systemd.exec(5), and systemd's ``replace_env_argv`` and
``parse_env_file``. systemd itself has already replaced specifiers (``%i``) and quotes when it shows a unit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

_BRACED = re.compile(r"\$(\$|\{([A-Za-z_][A-Za-z0-9_]*)\})")
_WORD = re.compile(r"\$([A-Za-z_][A-Za-z0-9_]*)\Z")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")

_QUOTED = re.compile(r"[ \t\r]*(?:'([^']*)(?:'|\Z)|\"((?:[^\"\\]|\\.)*)(?:\"|\Z))", re.DOTALL)
_PLAIN = re.compile(r"(?:[^\\\n]|\\.)*", re.DOTALL)
_TRAILING_BLANKS = re.compile(r"(?<!\\)[ \t\r]+\Z")
_ESCAPE = re.compile(r"\\(?:\n|(.))")
_DOUBLE_QUOTED_ESCAPE = re.compile(r'\\(?:\n|(["\\`$]))')


def uses_variables(argv: Iterable[str]) -> bool:
    """Return whether systemd replaces something in the command line ``argv``."""
    return any("$" in argument for argument in argv)


def variables(argv: Iterable[str]) -> frozenset[str]:
    """Return the names of the variables that systemd replaces in the command line ``argv``."""
    names: set[str] = set()
    for argument in argv:
        if word := _WORD.match(argument):
            names.add(word[1])
        names.update(name for _, name in _BRACED.findall(argument) if name)
    return frozenset(names)


def expand(argv: Sequence[str], environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return ``argv`` with its variables replaced.

    ``$X`` as a word becomes any number of words, and loses its quotes. ``${X}`` stays in its word. A variable
    that is not set is empty. ``$$`` is a dollar sign.
    """
    expanded: list[str] = []
    for argument in argv:
        if word := _WORD.match(argument):
            expanded += _split(environment.get(word[1], ""))
        else:
            expanded.append(
                _BRACED.sub(lambda found: environment.get(found[2], "") if found[2] else "$", argument)
            )
    return tuple(expanded)


def _split(text: str) -> list[str]:
    """Split a value at blanks; quotes enclose blanks, and a backslash escapes the next character."""
    words: list[str] = []
    word: str | None = None
    quote = ""
    characters = iter(text)
    for character in characters:
        if character == "\\":
            word = (word or "") + next(characters, "")
        elif quote and character == quote:
            quote = ""
        elif not quote and character in "\"'":
            word, quote = word or "", character
        elif not quote and character in " \t\r\n":
            words += [] if word is None else [word]
            word = None
        else:
            word = (word or "") + character
    return words if word is None else [*words, word]


def assignments(lines: Iterable[str]) -> dict[str, str]:
    """Return the variables of ``NAME=value`` texts; the last assignment of a name wins."""
    pairs = (line.partition("=") for line in lines)
    return {name: value for name, equals, value in pairs if equals and _NAME.match(name)}


def parse_environment_file(text: str) -> dict[str, str]:
    """Return the variables that systemd reads from an ``EnvironmentFile``.

    Lines without ``=`` and lines that begin with ``#`` or ``;`` mean nothing. Quotes at the start of a value
    are removed. A backslash at the end of a line joins the next line.
    """
    found: dict[str, str] = {}
    at = 0
    while at < len(text):
        line_end = text.find("\n", at) % (len(text) + 1)
        name, equals, _ = text[at:line_end].partition("=")
        if not equals or name.lstrip().startswith(("#", ";")):
            at = line_end + 1
            continue
        value, at = _environment_value(text, at + len(name) + 1)
        if _NAME.match(name := name.strip()):
            found[name] = value
    return found


def _environment_value(text: str, at: int) -> tuple[str, int]:
    """Return the value of ``text`` that starts at ``at``, and where the next line starts."""
    value = ""
    while quoted := _QUOTED.match(text, at):
        value += quoted[1] or _DOUBLE_QUOTED_ESCAPE.sub(r"\1", quoted[2] or "")
        at = quoted.end()
    plain = _PLAIN.match(text, at)
    assert plain is not None
    words = _TRAILING_BLANKS.sub("", plain[0].lstrip(" \t\r"))
    return value + _ESCAPE.sub(r"\1", words), plain.end() + 1
