"""Tables are cut out of a foreign file however they are written, and every other byte stays."""

from __future__ import annotations

import random
import tomllib
from typing import Any

import pytest

from kata_node.errors import HostError
from kata_node.toml.tables import remove_tables

TABLE = ("plugins", "io.x", "runtimes", "kata")
ABOVE, BELOW = '# top\nversion = 3\n\n[plugins."io.x".runtimes.runc]\ntype = "r" # r\n', "[debug]\nx = 1\n"


def remove(text: str, *, template: bool = False) -> str:
    return remove_tables(text.encode(), [TABLE], where="/x", template=template).decode()


@pytest.mark.parametrize(
    "table",
    [
        pytest.param('[plugins."io.x".runtimes.kata]\ntype = "k"\n', id="a-table"),
        pytest.param("  [plugins.'io.x'.runtimes.\"kata\"]\n  type = 'k'\n\n", id="indented-and-quoted"),
        pytest.param('[plugins."io.x".runtimes.kata.options]\nConfigPath = "/a"\n', id="a-table-below"),
        pytest.param(
            '[plugins."io.x".runtimes.kata]\ntype = "k"\n# why\n\n'
            '[plugins."io.x".runtimes.kata.options]\nx = """\n[debug]\n"""\n\n\n',
            id="two-tables-and-a-comment",
        ),
        pytest.param('[[plugins."io.x".runtimes.kata.list]]\nx = ["]", {a = 1}]\n', id="an-array-of-tables"),
        pytest.param('[ plugins . "io.x" . runtimes . kata ]\n', id="an-empty-table"),
    ],
)
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_a_table_under_headers_is_cut(table: str, line_end: str) -> None:
    text, rest = ((ABOVE + middle + BELOW).replace("\n", line_end) for middle in (table, ""))
    assert remove(text) == rest


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        pytest.param(
            'plugins."io.x".runtimes.kata.a = 1\nplugins."io.x".runtimes.kata.b.c = 2\nx = 3\n',
            "x = 3\n",
            id="dotted-keys",
        ),
        pytest.param(
            '[plugins."io.x"]\nruntimes.kata.a = [\n  1,\n] # one\nruntimes.runc.a = 2\n',
            '[plugins."io.x"]\nruntimes.runc.a = 2\n',
            id="dotted-keys-below-a-table",
        ),
        pytest.param(
            'plugins."io.x" = { runtimes = { kata = { a = "}" }, runc = { a = 1 } }, b = 2 }\n',
            'plugins."io.x" = { runtimes = { runc = { a = 1 } }, b = 2 }\n',
            id="the-first-of-an-inline-table",
        ),
        pytest.param(
            '[plugins."io.x"]\nruntimes = {runc = {a = 1}, kata = {a = {b = 2}}}# end\n',
            '[plugins."io.x"]\nruntimes = {runc = {a = 1}}# end\n',
            id="the-last-of-an-inline-table",
        ),
        pytest.param(
            '[plugins."io.x"]\nruntimes = {kata.a = 1, runc.a = 2, kata.b = 3}\n',
            '[plugins."io.x"]\nruntimes = {runc.a = 2}\n',
            id="dotted-keys-of-an-inline-table",
        ),
        pytest.param(f'{ABOVE}\n\n[plugins."io.x".runtimes.kata]\na = 1', ABOVE, id="at-the-end-of-the-file"),
        pytest.param(
            'version = 3\n[plugins."io.x".runtimes]\n[plugins."io.x".runtimes.kata]\na = 1\n',
            "version = 3\n",
            id="the-only-table-of-its-parents",
        ),
    ],
)
def test_other_forms_are_cut(text: str, rest: str) -> None:
    assert remove(text) == rest


def test_a_comment_that_belongs_to_the_next_table_stays() -> None:
    text = f'{ABOVE}\n[plugins."io.x".runtimes.kata]\na = 1\n\n# next\n{BELOW}'
    assert remove(text) == f"{ABOVE}\n# next\n{BELOW}"


def test_a_file_without_the_table_is_not_changed() -> None:
    assert remove(ABOVE + BELOW) == ABOVE + BELOW


def test_a_template_loses_the_table_and_keeps_its_actions() -> None:
    text = f'{ABOVE}{{{{ if .X }}}}\n{BELOW}{{{{ end }}}}\n[plugins."io.x".runtimes.kata]\na = 1\n'
    assert remove(text, template=True) == f"{ABOVE}{{{{ if .X }}}}\n{BELOW}{{{{ end }}}}\n"


def test_a_table_around_an_action_of_a_template_is_an_error() -> None:
    text = f'{ABOVE}[plugins."io.x".runtimes.kata]\na = 1\n{{{{ if .X }}}}\nb = 2\n{{{{ end }}}}\n'
    with pytest.raises(HostError, match="the tables of kata cannot be removed safely"):
        remove(text, template=True)


def test_random_files_keep_all_other_values() -> None:
    source = random.Random(7)
    for _ in range(300):
        lines = [f"k{n} = {source.choice(['1', chr(34) + '[a]' + chr(34), '[1, 2]'])}\n" for n in range(3)]
        tables = [f'[plugins."io.x".runtimes.{name}]\na = 1\n' for name in ("kata", "runc", "b")]
        tables += ['[plugins."io.x".runtimes.kata.options]\nx = {y = 1}\n', "[other]\nz.z = 1\n"]
        source.shuffle(tables)
        breaks = (source.choice(["", "\n", "# note\n", "\n\n"]) for _ in tables)
        text = "".join((*lines, *(f"{space}{table}" for space, table in zip(breaks, tables, strict=True))))
        wanted: Any = tomllib.loads(text)
        del wanted["plugins"]["io.x"]["runtimes"]["kata"]
        assert tomllib.loads(remove(text)) == wanted
