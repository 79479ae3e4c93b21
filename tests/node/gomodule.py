"""Programs that no Debian suite has in the wanted version, built from their Go modules and kept.

Only the module proxy is asked: for the module, for what its own ``go.mod`` and ``go.sum`` pin, and,
where the machine's Go is another than :data:`GO`, for that very toolchain, which is a module as well.
So any Go will do to begin with, also one too old for what is built.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from node.cache import NodeError, cache_dir, key_of, made_once
from node.commands import CommandResult

GO = "1.26.8"
"""What everything is built with; newer than the ``go`` line of every module built here."""

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def missing_go() -> str:
    """Why this machine cannot build Go programs, with the remedy; empty when it can."""
    if shutil.which("go") is None:
        return "Go is missing, which some of a node's programs are built with: apt-get install golang-go"
    return ""


@dataclass(frozen=True)
class Program:
    """A program of a Go module: all that decides what comes out."""

    module: str
    version: str  # the module's, such as v2.4.2
    package: str  # an import path, or one below the module, such as ./cmd/containerd
    tags: str = ""  # separated by spaces or commas
    cgo: bool = False
    ldflags: str = ""

    @property
    def name(self) -> str:
        """What it is called."""
        return self.package.rstrip("/").rpartition("/")[2]

    @property
    def path(self) -> Path:
        """Where it is kept, whether it is there yet or not."""
        key = key_of(*astuple(self), GO, platform.machine())
        return cache_dir() / "go" / f"{self.name}-{self.version}-{key}" / self.name


def build(
    module: str, version: str, package: str, *, tags: str = "", cgo: bool = False, ldflags: str = ""
) -> Path:
    """The program of ``package`` in ``module``, built when it is not kept yet; see :class:`Program`.

    Without ``cgo`` it is static and runs in every node; with it, it wants the libraries it was linked
    to. Minutes and a download the first time; asked for twice at once it is built once. Raises
    :class:`NodeError` with the last lines of what Go said.
    """
    return built(Program(module, version, package, tags, cgo, ldflags))


def built(program: Program) -> Path:
    """As :func:`build`."""

    def make(directory: Path) -> None:
        if reason := missing_go():
            raise NodeError(reason)
        go = toolchain()
        source = directory / "source"
        # The copy in Go's own cache is read-only.
        shutil.copytree(_download(go, f"{program.module}@{program.version}"), source, copy_function=_writable)
        _drop_local_replacements(go, source)
        flags = ["-trimpath", "-buildvcs=false", "-mod=mod"]
        flags += [f"-tags={program.tags}", f"-ldflags={program.ldflags}"]
        command = ["nice", go, "build", *flags, "-o", str(directory / program.name), program.package]
        output(run(command, source, {"CGO_ENABLED": "1" if program.cgo else "0"}))
        shutil.rmtree(source)

    made_once(program.path.parent, make)
    return program.path


def _writable(source: str, target: str) -> str:
    return shutil.copyfile(source, target)  # and not its mode, nor that of a file of Go's cache


def toolchain() -> str:
    """The ``go`` command of :data:`GO`: the machine's if it is that, else fetched from the module proxy."""
    go = shutil.which("go") or "go"
    if output(run([go, "env", "GOVERSION"])).strip() == f"go{GO}":
        return go
    architecture = _ARCHITECTURES.get(platform.machine(), platform.machine())

    def make(directory: Path) -> None:
        module = _download(go, f"golang.org/toolchain@v0.0.1-go{GO}.linux-{architecture}")
        shutil.copytree(module, directory, copy_function=_writable, dirs_exist_ok=True)
        # What a module cannot have: executable files, and other modules inside.
        for program in (*directory.glob("bin/*"), *directory.glob("pkg/tool/*/*")):
            program.chmod(0o755)
        for file in directory.rglob("_go.mod"):
            file.rename(file.with_name("go.mod"))

    return str(made_once(cache_dir() / "go" / f"go{GO}-{architecture}", make) / "bin" / "go")


def _download(go: str, what: str) -> Path:
    """The directory in Go's module cache that has the module ``what``, fetched if it is not there."""
    done = run([go, "mod", "download", "-json", what])
    answer: dict[str, Any] = json.loads(done.stdout or "{}")
    if done.returncode or "Error" in answer:
        raise NodeError(f"{what} cannot be fetched: {answer.get('Error') or done.stderr}")
    return Path(answer["Dir"])


def _drop_local_replacements(go: str, source: Path) -> None:
    """Take the published modules where ``go.mod`` names directories of the repository, which are not here."""
    content = json.loads(output(run([go, "mod", "edit", "-json"], source)))
    for each in content.get("Replace") or ():
        if "Version" not in each["New"]:
            replaced = "@".join(filter(None, (each["Old"]["Path"], each["Old"].get("Version"))))
            output(run([go, "mod", "edit", f"-dropreplace={replaced}"], source))


def run(
    command: Sequence[str], directory: Path | None = None, env: Mapping[str, str] | None = None
) -> CommandResult:
    """Run Go as it comes: with no toolchain, flag or workspace of the person's own."""
    plain = {"GOTOOLCHAIN": "local", "GOFLAGS": "", "GOWORK": "off", "GOROOT": "", "GO111MODULE": "on"}
    return subprocess.run(
        command,
        cwd=directory or "/",
        env={**os.environ, **plain, **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def output(done: CommandResult) -> str:
    """What Go printed; raises :class:`NodeError` with the last lines of what it said when it failed."""
    if done.returncode:
        said = "\n".join(done.stderr.splitlines()[-20:])
        raise NodeError(f"{' '.join(done.args)} ended with {done.returncode}:\n{said}")
    return done.stdout
