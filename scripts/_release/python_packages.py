"""The wheel and the sdist."""

from __future__ import annotations

import sys
from pathlib import Path

from _release.commands import run
from _release.source import Source


def build(export: Path, source: Source, directory: Path) -> None:
    """Build both into ``directory``. hatchling takes all times from the commit's."""
    epoch = {"SOURCE_DATE_EPOCH": str(source.epoch)}
    run(sys.executable, "-m", "hatchling", "build", f"--directory={directory}", directory=export, env=epoch)
