"""The last words of a unit: which lines of its journal say why it failed."""

from __future__ import annotations

import pytest

from kata_node.runtime.unit_log import LIMIT, error_lines

INFO = 'time="2026-11-29T21:07:44.1Z" level=info msg="loading plugin" error="no scratch file: skip plugin"'
WARNING = 'time="2026-11-29T21:07:44.1Z" level=warning msg="failed to load plugin" error="not configured"'
LOAD = "containerd: failed to unmarshal TOML at row 3 column 25: toml: cannot decode TOML string"


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ([INFO, WARNING, LOAD], LOAD),
        ([INFO, WARNING], ""),
        ([], ""),
        (["plain words of another program"], "plain words of another program"),
        (
            ["panic: index out of range", "", "goroutine 1 [running]:", "main.main()"],
            "panic: index out of range",
        ),
        (
            ['time="2026-11-29T21:08:01Z" level=fatal msg="validating"', INFO],
            'level=fatal msg="validating"',
        ),
        (
            ['{"error":"bad","level":"error","msg":"serve","time":"2026-11-29T21:08:29Z"}'],
            '{"error":"bad","level":"error","msg":"serve",}',
        ),
    ],
)
def test_the_lines_with_a_reason_are_shown_without_their_time(lines: list[str], says: str) -> None:
    assert error_lines(lines) == says


def test_a_runtime_that_is_started_again_and_again_says_it_once() -> None:
    first = 'time="2026-11-29T21:08:01Z" level=error msg="x"'
    again = 'time="2026-11-29T21:08:02Z" level=error msg="x"'
    assert error_lines([first, LOAD, again, LOAD]) == f'level=error msg="x" | {LOAD}'


def test_of_many_reasons_the_last_ones_are_shown() -> None:
    lines = [f"containerd: reason {number} {'x' * 100}" for number in range(50)]
    found = error_lines(lines)
    assert found.endswith(lines[-1])
    assert "reason 0 " not in found
    assert len(found) <= LIMIT
