"""kata-node as a program of the node: run by the node's own Python, from the checkout as it is now."""

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
"""Where the node sees the program; not in /opt or /etc, so that a test can compare those whole."""

COMMAND = "/usr/local/bin/kata-node"

LAUNCHER = f"""#!/bin/sh
# The sources are mounted read-only; their bytecode is kept apart, so that only the first run compiles.
export PYTHONPATH={HOME}/source:{HOME}/libraries PYTHONPYCACHEPREFIX={HOME}/bytecode
exec python3 -P -m kata_node "$@"
"""

GLIBC_TAGS = ("manylinux_2_34", "manylinux_2_28", "manylinux_2_17", "manylinux2014")
"""Wheels for these run on every suite from bookworm (glibc 2.36) on."""


def python_version(tree: Path) -> str:
    """The version of the node's ``python3``, such as ``3.14``; raises :class:`NodeError` without one."""
    link = tree / "usr" / "bin" / "python3"
    match = re.fullmatch(r"python(3\.\d+)", link.readlink().name) if link.is_symlink() else None
    if match is None:
        raise NodeError(f"{tree.name} has no /usr/bin/python3; python3 must be among its packages")
    return match[1]


def requirements(version: str) -> list[str]:
    """What ``requirements/runtime.txt`` pins for Python ``version``, with the hashes, a line each.

    The markers are judged here because pip judges them for the Python it runs on, even when told
    to install for another.
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
    """A directory with everything the program imports, for the node's Python; made once and kept."""
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
            raise NodeError(f"could not fetch the libraries for the node's Python {version}:\n{done.stderr}")

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
    raise NodeError("neither pip (python -m pip) nor uv is here to fetch the libraries of the node's Python")


def binds(tree: Path, scratch: Path) -> list[str]:
    """The options of systemd-nspawn that put the program into the node; ``scratch`` is the node's own."""
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
