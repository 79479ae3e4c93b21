"""Show the progress of a long copy: a bar on a terminal, otherwise a log line every few seconds."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer

LOG_INTERVAL = 5.0  # seconds between two log lines
MAX_BAR_UPDATES = 200
"""The bar is drawn at most this often, because a payload is copied in thousands of pieces."""
MIN_BAR_COLUMNS = 40
"""Columns that the bar needs beside its title. With fewer, the title and the remaining time are left out."""

log = logging.getLogger(__name__)


@contextmanager
def progress(total: int, title: str) -> Iterator[Callable[[int], None]]:
    """Show how many of ``total`` bytes are copied. Yield a function that adds bytes, from any thread."""
    if not total or not log.isEnabledFor(logging.INFO):
        yield lambda _: None
    elif sys.stderr is not None and sys.stderr.isatty():
        with _progress_bar(total, title) as advance:
            yield advance
    else:
        with _progress_lines(total, title) as advance:
            yield advance


@contextmanager
def _progress_bar(total: int, title: str) -> Iterator[Callable[[int], None]]:
    lock = threading.Lock()
    # The terminal cannot redraw a line that it has wrapped. Width 0 fills the rest of the line.
    fits_title = typer.get_terminal_size().columns >= len(title) + MIN_BAR_COLUMNS
    with typer.progressbar(
        length=total,
        label=title if fits_title else "",
        show_eta=fits_title,
        width=0,
        file=sys.stderr,
        update_min_steps=total // MAX_BAR_UPDATES,
    ) as bar:

        def advance(size: int) -> None:
            with lock:
                bar.update(size)

        yield advance
        bar.finish()
        bar.render_progress()


@contextmanager
def _progress_lines(total: int, title: str) -> Iterator[Callable[[int], None]]:
    lock, done, last_logged, shown = threading.Lock(), 0, time.monotonic(), 0

    def advance(size: int) -> None:
        nonlocal done, last_logged, shown
        with lock:
            done += size
            if (now := time.monotonic()) - last_logged >= LOG_INTERVAL:
                last_logged, shown = now, min(100, done * 100 // total)
                log.info("%s: %d %%", title, shown)

    yield advance
    if 0 < shown < 100:  # a short copy has no line at all
        log.info("%s: 100 %%", title)
