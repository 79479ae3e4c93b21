"""Render our own TOML files. Pure.

tomli_w writes them. tomlkit, which edits the files of others, takes a third of the time of a stage that has
nothing to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def render(tables: Mapping[str, Any], comments: tuple[str, ...] = ()) -> bytes:
    """Return ``tables`` as TOML, below ``comments`` of one line each."""
    import tomli_w

    head = [f"# {line}\n" for line in comments]
    return "".join([*head, *(["\n"] if head else []), tomli_w.dumps(tables)]).encode()
