"""Every hint is followed: break the node, do what the hint says, and see the check pass."""

from __future__ import annotations

from pathlib import Path

import pytest

from checks.remedies import HOST_CHECK, Case, scene

pytestmark = pytest.mark.commands


@pytest.mark.parametrize("case", HOST_CHECK, ids=lambda case: f"{case.name}-{case.broken}")
def test_whoever_follows_the_hint_of_a_check_sees_it_pass(case: Case, tmp_path: Path) -> None:
    with scene(tmp_path) as made:
        assert made.problem(case.name) == ("", ""), "the node is not healthy before the test breaks it"
        case.break_node(made)
        what, hint = made.problem(case.name)
        assert what, f"{case.name} does not notice it"
        assert hint, what
        case.follow(made, hint, what)
        assert made.problem(case.name) == ("", "")
