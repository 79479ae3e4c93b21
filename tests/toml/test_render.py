"""Our own TOML files: they mean what they were made from, and a line of text stays one line."""

from __future__ import annotations

import datetime
import tomllib
from typing import Any

import pytest
import tomlkit

from kata_node.toml.render import render


@pytest.mark.parametrize(
    "tables",
    [
        {},
        {"version": 3, "plugins": {"io.containerd.cri.v1.runtime": {"runtimes": {"kata-qemu": {"a": 1}}}}},
        {"a.b": {"c d": {"": 'quote " backslash \\ tab \t line \n delete \x7f é'}}},
        {
            "empty": {},
            "flag": True,
            "number": -1.5,
            "huge": float("inf"),
            "array": [],
            "nested": [[1], ["x"]],
        },
        {"tables": [{"a": 1, "b": {"c": [{"d": 2}]}}, {}], "time": datetime.date(2026, 1, 2)},
        {"mixed": [1, {"a": [1, 2]}, "x"]},
    ],
    ids=["nothing", "handlers", "strings", "values", "arrays-of-tables", "inline-tables"],
)
def test_a_file_means_what_it_was_made_from(tables: dict[str, Any]) -> None:
    text = render(tables, ("One line.", "Another.")).decode()
    assert text.startswith("# One line.\n# Another.\n\n")
    assert tomllib.loads(text) == tomlkit.parse(text).unwrap() == tables
    assert render(tables).decode() == text.removeprefix("# One line.\n# Another.\n\n")
