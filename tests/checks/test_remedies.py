"""Every hint is followed: break the node, do what the hint says, and see the check pass."""

from __future__ import annotations

import html
from pathlib import Path

import pytest

from checks.hint_texts import hint_texts, is_in
from checks.remedies import CASES
from checks.remedies_page import PAGE, row, rows
from checks.reviewed_hints import REVIEWED, REVIEWED_CHECKS
from checks.scratch_node import Case, scene
from kata_node.cli.explain import read_guide

pytestmark = pytest.mark.commands

ROWS = rows(PAGE.read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name}-{case.broken}")
def test_whoever_follows_a_hint_sees_the_check_pass(case: Case, tmp_path: Path) -> None:
    with scene(tmp_path) as made:
        hint = made.carry_out(case)
    assert row(case, hint) in ROWS, "run scripts/remedies"


def test_the_page_has_no_other_rows() -> None:
    assert len(ROWS) == len(CASES), "run scripts/remedies"


def test_every_check_is_followed_or_reviewed() -> None:
    followed = {case.name for case in CASES}
    assert set(read_guide().checks) - followed == set(REVIEWED_CHECKS)


def test_every_hint_in_the_code_is_followed_or_reviewed() -> None:
    seen = [html.unescape(each).replace("\\|", "|") for each in ROWS]
    reviewed = [text for texts in REVIEWED.values() for text in texts]
    missing = {text: module for text, module in hint_texts().items() if text not in reviewed}
    missing = {
        text: module for text, module in missing.items() if not any(is_in(text, hint) for hint in seen)
    }
    assert missing == {}, "follow these hints in a case of checks/remedies.py, or review them"
    assert set(reviewed) - hint_texts().keys() == set(), "these hints are gone"
    assert len(reviewed) == len(set(reviewed))
