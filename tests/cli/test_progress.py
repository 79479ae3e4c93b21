"""The progress of a long copy, on a terminal and elsewhere."""

from __future__ import annotations

import contextlib
import io
import itertools
import re
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import pytest

from cli.cli_runner import preserve_logging
from kata_node import log
from kata_node.cli import progress as cli_progress
from kata_node.cli.progress import progress

TITLE = "placing below /opt/kata"
MIB = 1024 * 1024


class Terminal(io.StringIO):
    """A terminal that keeps what is written to it."""

    def isatty(self) -> bool:
        return True

    @property
    def lines(self) -> list[str]:
        """The lines that show text; a line of spaces erases a longer one."""
        text = re.sub(r"\x1b\[\?25[lh]", "", self.getvalue()).rstrip("\n")
        return [line.rstrip() for line in text.split("\r") if line.strip()]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal of 80 columns, and a clock that stands still."""
    monkeypatch.setenv("COLUMNS", "80")
    clock(monkeypatch, seconds=0)
    return Terminal()


def clock(monkeypatch: pytest.MonkeyPatch, *, seconds: int) -> None:
    """Make so many seconds pass between two looks of the bar at the clock.

    The bar shows the time left once a copy takes longer than a second.
    """
    now = itertools.count(1_000_000_000, seconds)
    monkeypatch.setattr(time, "time", lambda: next(now))


@contextmanager
def stderr(stream: io.StringIO | None, level: str = "info") -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched, preserve_logging():
        patched.setattr("sys.stderr", stream)
        log.configure_logging(level)
        yield


def copy(pieces: int, *, threads: int = 1) -> None:
    """Copy so many MiB, as several threads do."""
    with progress(pieces * MIB, TITLE) as advance, ThreadPoolExecutor(threads) as pool:
        list(pool.map(advance, [MIB] * pieces))


def test_a_terminal_shows_a_bar_up_to_100_percent(terminal: Terminal) -> None:
    with stderr(terminal):
        copy(1003)
    assert terminal.lines[0].startswith(f"{TITLE}  [---")
    assert re.fullmatch(rf"{TITLE}  \[#+\]  100%", terminal.lines[-1])
    assert terminal.getvalue().endswith("\n"), "what is printed next has a line of its own"


@pytest.mark.parametrize(
    ("seconds", "left"),
    [
        pytest.param(0, "", id="before the time left is known"),
        pytest.param(1, r"  \d\d:\d\d:\d\d", id="with the time left"),
    ],
)
def test_a_bar_is_drawn_correctly_from_several_threads(
    terminal: Terminal,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    seconds: int,
    left: str,
) -> None:
    clock(monkeypatch, seconds=seconds)
    request.addfinalizer(partial(sys.setswitchinterval, sys.getswitchinterval()))
    sys.setswitchinterval(1e-6)  # switch threads as often as possible
    with stderr(terminal):
        copy(5000, threads=8)
    drawn = [int(percent) for percent in re.findall(r"(\d+)%", terminal.getvalue())]
    assert drawn == sorted(drawn)
    assert drawn[-1] == 100
    first, *middle, last = terminal.lines
    for line in middle:
        assert re.fullmatch(rf"{TITLE}  \[#*-*\]  +\d+%{left}", line)
    assert re.fullmatch(rf"{TITLE}  \[-+\]    0%", first)
    assert re.fullmatch(rf"{TITLE}  \[#+\]  100%", last)


def test_a_bar_is_not_drawn_for_every_piece(terminal: Terminal) -> None:
    with stderr(terminal):
        copy(5000)
    assert len(terminal.lines) <= cli_progress.MAX_BAR_UPDATES + 2


@pytest.mark.parametrize("seconds", [0, 1])
@pytest.mark.parametrize("columns", [200, 80, 60, 40, 15])
def test_a_bar_fits_the_terminal(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, columns: int, seconds: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    clock(monkeypatch, seconds=seconds)
    with stderr(terminal):
        copy(50)
    for line in terminal.lines:
        assert len(line) <= columns
    assert (TITLE in terminal.getvalue()) == (columns > 60)


def test_a_failed_copy_does_not_show_100_percent(terminal: Terminal) -> None:
    with stderr(terminal), contextlib.suppress(KeyboardInterrupt), progress(10 * MIB, TITLE) as advance:
        advance(5 * MIB)
        raise KeyboardInterrupt
    assert "100%" not in terminal.getvalue()
    assert terminal.getvalue().endswith("\x1b[?25h\n"), "the cursor is back"


def test_without_a_terminal_the_progress_is_logged_every_few_seconds_up_to_100_percent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter(range(0, 100, 2))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    file = io.StringIO()
    with stderr(file), progress(10 * MIB, TITLE) as advance:
        for _ in range(10):
            advance(MIB)
    told = [line.partition("INFO    ")[2] for line in file.getvalue().splitlines()]
    assert told == [f"{TITLE}: 30 %", f"{TITLE}: 60 %", f"{TITLE}: 90 %", f"{TITLE}: 100 %"]


def test_a_failed_copy_logs_no_100_percent(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 100, 6))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    file = io.StringIO()
    with stderr(file), contextlib.suppress(KeyboardInterrupt), progress(2 * MIB, TITLE) as advance:
        advance(MIB)
        raise KeyboardInterrupt
    assert f"{TITLE}: 50 %" in file.getvalue()
    assert "100" not in file.getvalue().partition(TITLE)[2]


def test_a_short_copy_without_a_terminal_logs_nothing() -> None:
    file = io.StringIO()
    with stderr(file):
        copy(10)
    assert file.getvalue() == ""


@pytest.mark.parametrize("level", ["warning", "error"])
def test_a_higher_log_level_hides_the_progress(terminal: Terminal, level: str) -> None:
    with stderr(terminal, level):
        copy(10)
    assert terminal.getvalue() == ""


def test_a_copy_of_only_links_shows_no_bar(terminal: Terminal) -> None:
    with stderr(terminal):
        copy(0)
    assert terminal.getvalue() == ""


def test_a_copy_works_with_a_closed_stderr() -> None:
    with stderr(None):
        copy(10)
