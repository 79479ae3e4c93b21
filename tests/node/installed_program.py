"""kata-node as a program of the node: the node's Python runs the current sources of the checkout."""

from __future__ import annotations

import importlib.util
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from node.cache import CHECKOUT, NodeError, cache_dir, key_of, made_once

HOME = "/usr/local/lib/kata-node-cli"
"""The directory of the program in the node; outside /opt and /etc, so that tests can compare those."""

COMMAND = "/usr/local/bin/kata-node"

LAUNCHER = f"""#!/bin/sh
# The sources are mounted read-only; their bytecode is kept apart, so that only the first run compiles.
export PYTHONPATH={HOME}/source:{HOME}/libraries PYTHONPYCACHEPREFIX={HOME}/bytecode
exec python3 -P -m kata_node "$@"
"""

GLIBC_TAGS = ("manylinux_2_34", "manylinux_2_28", "manylinux_2_17", "manylinux2014")
"""Wheels with these tags run on bookworm (glibc 2.36) and every later suite."""


def python_version(tree: Path) -> str:
    """Return the version of the tree's ``python3``, for example ``3.14``; raises :class:`NodeError`."""
    link = tree / "usr" / "bin" / "python3"
    match = re.fullmatch(r"python(3\.\d+)", link.readlink().name) if link.is_symlink() else None
    if match is None:
        raise NodeError(f"{tree.name} has no /usr/bin/python3\n  hint: Add python3 to its packages")
    return match[1]


def requirements(version: str) -> list[str]:
    """Return the pins of ``requirements/runtime.txt`` for Python ``version``, one line each, with hashes.

    This evaluates the markers itself, because pip evaluates them for the Python that it runs on, even if
    it installs for another.
    """
    from packaging.requirements import Requirement

    text = (CHECKOUT / "requirements/runtime.txt").read_text().replace("\\\n", " ")
    node = {"python_version": version, "python_full_version": f"{version}.0"}
    chosen = []
    for line in text.splitlines():
        pin, *hashes = line.partition("#")[0].split(" --hash=")
        if pin.strip():
            requirement = Requirement(pin)
            if requirement.marker is None or requirement.marker.evaluate({**node}):
                exact = f"{requirement.name}{requirement.specifier}"
                chosen.append(" ".join((exact, *(f"--hash={each.strip()}" for each in hashes))))
    return sorted(chosen)


def libraries(version: str) -> Path:
    """Return a cached directory with the libraries of kata-node for the node's Python ``version``."""
    wanted = requirements(version)
    target = cache_dir() / "libraries" / f"python{version}-{key_of(version, platform.machine(), wanted)}"

    def make(directory: Path) -> None:
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as pins:
            pins.write("\n".join(wanted))
            pins.flush()
            what = ["--target", str(directory), "--no-deps", "--require-hashes", "-r", pins.name]
            command = [*_installer(version), *what]
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
            )
        if done.returncode:
            raise NodeError(f"cannot download the libraries for the node's Python {version}:\n{done.stderr}")

    return made_once(target, make)


def _installer(version: str) -> list[str]:
    arch = platform.machine()
    if importlib.util.find_spec("pip"):
        platforms = [f"--platform={tag}_{arch}" for tag in GLIBC_TAGS]
        pip = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-compile",
            "--disable-pip-version-check",
        ]
        return [*pip, "--only-binary=:all:", f"--python-version={version}", "--implementation=cp", *platforms]
    if uv := shutil.which("uv"):
        where = [f"--python={sys.executable}", f"--python-version={version}"]
        return [
            uv,
            "pip",
            "install",
            "--quiet",
            "--only-binary=:all:",
            *where,
            f"--python-platform={arch}-manylinux_2_34",
        ]
    raise NodeError(
        "neither pip nor uv is installed, so the libraries for the node's Python cannot be downloaded\n"
        "  hint: Run: apt-get install python3-pip"
    )


def binds(tree: Path, scratch: Path) -> list[str]:
    """Return the systemd-nspawn options that mount the program in the node.

    ``scratch`` is the node's directory on the machine, for the launcher.
    """
    version = python_version(tree)
    launcher = scratch / "kata-node"
    launcher.write_text(LAUNCHER)
    launcher.chmod(0o755)
    bytecode = cache_dir() / "bytecode" / f"python{version}"
    bytecode.mkdir(parents=True, exist_ok=True)
    return [
        f"--bind-ro={libraries(version)}:{HOME}/libraries",
        f"--bind={bytecode}:{HOME}/bytecode",
        f"--bind-ro={launcher}:{COMMAND}",
        *(f"--bind-ro={CHECKOUT / part}:{HOME}/source/{part}" for part in ("kata_node", "stages", "assets")),
    ]
