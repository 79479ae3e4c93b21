"""Find flags in a command line as Go's ``flag`` package does, which containerd and CRI-O use. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def flag_values(argv: Sequence[str], with_value: Collection[str]) -> dict[str, str]:
    """Return the values of the flags ``with_value`` behind the program ``argv[0]``, without their dashes.

    ``-c X``, ``--c X``, ``-c=X`` and ``--c=X`` are the same; the last one counts. ``-cX`` is another flag.
    ``--``, and the first word that is neither a flag nor the value of one, end the flags. A word without dash
    behind an unknown flag counts as its value.
    """
    found: dict[str, str] = {}
    words = list(argv[1:])
    while words:
        word = words.pop(0)
        if word == "--" or len(word) < 2 or not word.startswith("-"):
            break
        name, equals, value = word.removeprefix("-").removeprefix("-").partition("=")
        if not equals and words and (name in with_value or not words[0].startswith("-")):
            value = words.pop(0)
        if name in with_value:
            found[name] = value
    return found
