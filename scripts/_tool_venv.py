"""Make an environment of its own for a tool that one script needs. Scripts import it; it is no program."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]


def make_venv(name: str) -> Path:
    """Make or update ``.cache/NAME`` with the packages of ``requirements/NAME.txt``, and return it."""
    venv, requirements = CHECKOUT / ".cache" / name, CHECKOUT / f"requirements/{name}.txt"
    stamp, wanted = venv / "requirements", requirements.read_text()
    if stamp.is_file() and stamp.read_text() == wanted:
        return venv
    print(f"making .cache/{name}", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", "--clear", venv], check=True)
    install = ("--disable-pip-version-check", "install", "--quiet", "--require-hashes", "-r")
    subprocess.run([venv / "bin/pip", *install, requirements], check=True)
    stamp.write_text(wanted)
    return venv
