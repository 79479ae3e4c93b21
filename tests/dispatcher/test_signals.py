"""The dispatcher ends on SIGTERM also while it waits for its configuration."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from kata_node.dispatcher import __main__ as command


def test_sigterm_ends_the_wait_for_the_content_of_the_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("{}")
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as for the first process of a container
    sleep = time.sleep
    timers: list[threading.Timer] = []

    def sleep_until_sigterm(seconds: float) -> None:
        timers.append(threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)))
        timers[-1].start()
        sleep(min(seconds, 5))

    monkeypatch.setattr("kata_node.settings.config_file.time.sleep", sleep_until_sigterm)
    try:
        code = command.run(["--config", str(config), "--config-digest", "0" * 64, "--termination-log", ""])
    finally:
        for timer in timers:
            timer.join()
        signal.signal(signal.SIGTERM, before)
    assert (code, len(timers)) == (143, 1)
    assert "asked to stop; no node was changed" in capsys.readouterr().err
