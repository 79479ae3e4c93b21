"""Run the programs that a release needs, and find out which are missing."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

from _release.errors import ReleaseError

PACKAGES = {
    "buildah": "run `apt-get install buildah`",
    "git": "run `apt-get install git`",
    "helm": "install helm 4, or name it in the variable HELM",
    "skopeo": "run `apt-get install skopeo`",
}
"""The programs -> how to get them."""


def program(name: str) -> str:
    """Return the path of a program; ``HELM`` names a helm that is not on the PATH."""
    wanted = os.environ.get(name.upper(), name) if name == "helm" else name
    found = shutil.which(wanted)
    if found is None:
        raise ReleaseError(f"{wanted} is not installed", PACKAGES[name])
    return found


def require(names: Iterable[str]) -> None:
    """Raise :class:`ReleaseError` for the first program that is missing."""
    for name in names:
        program(name)


def run(
    *command: str | Path,
    directory: Path | None = None,
    env: Mapping[str, str] | None = None,
    hint: str = "Read the output above",
) -> None:
    """Show a command and run it with its output."""
    words = [str(word) for word in command]
    print(f"\n$ {shlex.join(words)}", flush=True)
    done = subprocess.run(
        words, cwd=directory, env={**os.environ, **(env or {})}, stdin=subprocess.DEVNULL, check=False
    )
    if done.returncode:
        raise ReleaseError(f"{shlex.join(words)} ended with exit code {done.returncode}", hint)


def output(*command: str | Path, directory: Path | None = None) -> str:
    """Return the stdout of a command, without space around it."""
    words = [str(word) for word in command]
    done = subprocess.run(
        words, cwd=directory, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ReleaseError(
            f"{shlex.join(words)} ended with exit code {done.returncode}: {done.stderr.strip()}",
            "Run the command by hand",
        )
    return done.stdout.strip()
