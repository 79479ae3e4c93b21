"""The page of the docs with all remedies that were carried out."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from checks.remedies import CASES
from checks.scratch_node import Case, scene

PAGE = Path(__file__).parents[2] / "docs/reference/remedies.md"
_BEGIN, _END = "<!-- generated: remedies -->", "<!-- end of remedies -->"


def row(case: Case, hint: str) -> str:
    """Return the row of a case that was carried out."""
    name = case.name if case.name.startswith("error: ") else f"`{case.name}`"
    cells = (name, case.broken, hint.replace("|", "\\|").replace("<", "&lt;"), "yes")
    return f"| {' | '.join(cells)} |"


def rows(page: str) -> list[str]:
    """Return the generated rows of the page."""
    return page.partition(_BEGIN)[2].partition(_END)[0].strip().splitlines()[2:]


def write(cases: Sequence[Case] = CASES) -> None:
    """Carry out all cases, and write the page. An :class:`AssertionError` is a hint that does not work."""
    found = ["| check or error | how the test breaks it | hint | seen to work |", "|---|---|---|---|"]
    for case in cases:
        with tempfile.TemporaryDirectory() as directory, scene(Path(directory)) as made:
            found.append(row(case, made.carry_out(case)))
    text = PAGE.read_text(encoding="utf-8")
    body = "\n".join(found)
    pattern = f"{re.escape(_BEGIN)}.*{re.escape(_END)}"
    PAGE.write_text(re.sub(pattern, lambda _: f"{_BEGIN}\n\n{body}\n\n{_END}", text, flags=re.DOTALL))
