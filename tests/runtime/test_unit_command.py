"""The command line of a unit, expanded as systemd does it."""

from __future__ import annotations

import pytest

from kata_node.runtime import unit_command

ENVIRONMENT = {"X": "/a b.toml", "ARGS": "--config '/c d.toml'  -l debug", "EMPTY": ""}


@pytest.mark.parametrize(
    ("word", "words"),
    [
        pytest.param("${X}", ("/a b.toml",), id="braces-keep-one-word"),
        pytest.param("--config=${X}", ("--config=/a b.toml",), id="inside-a-word"),
        pytest.param(
            "$ARGS", ("--config", "/c d.toml", "-l", "debug"), id="split-at-blanks-but-not-in-quotes"
        ),
        pytest.param("$EMPTY", (), id="empty-words-disappear"),
        pytest.param("${EMPTY}", ("",), id="empty-braces-stay"),
        pytest.param("$UNSET", (), id="unset"),
        pytest.param("--config=$X", ("--config=$X",), id="no-braces-inside-a-word"),
        pytest.param("$$X", ("$X",), id="a-dollar-sign"),
    ],
)
def test_a_variable_is_replaced_as_systemd_does(word: str, words: tuple[str, ...]) -> None:
    assert unit_command.expand(("containerd", word), ENVIRONMENT) == ("containerd", *words)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("A=b\n", {"A": "b"}, id="plain"),
        pytest.param("A=b", {"A": "b"}, id="no-line-end"),
        pytest.param("# A=b\n;B=c\n\n C = d e \n", {"C": "d e"}, id="comments-and-blanks"),
        pytest.param('A="b c"\nB=\'d "e\'\n', {"A": "b c", "B": 'd "e'}, id="quotes"),
        pytest.param("A='b '\"c\"d\n", {"A": "b cd"}, id="joined-quotes"),
        pytest.param('A=b"c"\n', {"A": 'b"c"'}, id="a-quote-inside-is-plain"),
        pytest.param('A="b\\"c\\d"\n', {"A": 'b"c\\d'}, id="escapes-in-quotes"),
        pytest.param("A=b \\\n c\nB=d\n", {"A": "b  c", "B": "d"}, id="a-line-that-goes-on"),
        pytest.param("A=b\nno assignment\nA=c\n", {"A": "c"}, id="the-last-one-counts"),
        pytest.param("A=\n1B=c\nexport C=d\n", {"A": ""}, id="names-that-systemd-refuses"),
        pytest.param('A="b\nc"\n', {"A": "b\nc"}, id="a-line-end-in-quotes"),
        pytest.param("A=\\", {"A": ""}, id="a-last-backslash"),
    ],
)
def test_an_environment_file_is_read_as_systemd_does(text: str, expected: dict[str, str]) -> None:
    assert unit_command.parse_environment_file(text) == expected
