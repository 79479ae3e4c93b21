"""Build programs that no Debian suite has in the wanted version from their Go modules, and cache them.

All downloads come from the Go module proxy: the module, the modules that its ``go.mod`` and ``go.sum`` pin,
and the toolchain :data:`GO`, which is a module too, if the machine has another version. So the machine's
Go may be too old for the program.
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
"""The Go version of every build; newer than the ``go`` line of every module built here."""

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def missing_go() -> str:
    """Return why this machine cannot build Go programs, with the remedy; empty when it can."""
    if shutil.which("go") is None:
        return "Go is missing, which builds some programs of the nodes: run: apt-get install golang-go"
    return ""


@dataclass(frozen=True)
class Program:
    """A program of a Go module, with everything that determines the build."""

    module: str
    version: str  # of the module, for example v2.4.2
    package: str  # an import path, or a path in the module, for example ./cmd/containerd
    tags: str = ""  # separated by spaces or commas
    cgo: bool = False
    ldflags: str = ""

    @property
    def name(self) -> str:
        """The file name of the program."""
        return self.package.rstrip("/").rpartition("/")[2]

    @property
    def path(self) -> Path:
        """Its path in the cache, whether it exists yet or not."""
        key = key_of(*astuple(self), GO, platform.machine())
        return cache_dir() / "go" / f"{self.name}-{self.version}-{key}" / self.name


def build(
    module: str, version: str, package: str, *, tags: str = "", cgo: bool = False, ldflags: str = ""
) -> Path:
    """Return the path of the program ``package`` of ``module``; see :func:`built`."""
    return built(Program(module, version, package, tags, cgo, ldflags))


def built(program: Program) -> Path:
    """Return the path of ``program``; build it if it is not cached, which takes minutes and a download.

    Without ``cgo`` it is static and runs in every node; with ``cgo`` it needs the libraries it was linked
    to. Two processes that want the same program build it once. Raises :class:`NodeError` with the last
    lines of Go's output.
    """

    def make(directory: Path) -> None:
        if reason := missing_go():
            raise NodeError(reason)
        go = toolchain()
        source = directory / "source"
        # The module in Go's cache is read-only.
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
    return shutil.copyfile(source, target)  # without the read-only mode of a file in Go's cache


def toolchain() -> str:
    """Return the ``go`` command of version :data:`GO`: the machine's, or a download from the module proxy."""
    go = shutil.which("go") or "go"
    if output(run([go, "env", "GOVERSION"])).strip() == f"go{GO}":
        return go
    architecture = _ARCHITECTURES.get(platform.machine(), platform.machine())

    def make(directory: Path) -> None:
        module = _download(go, f"golang.org/toolchain@v0.0.1-go{GO}.linux-{architecture}")
        shutil.copytree(module, directory, copy_function=_writable, dirs_exist_ok=True)
        # A module cannot contain executable files or other modules, so restore both.
        for program in (*directory.glob("bin/*"), *directory.glob("pkg/tool/*/*")):
            program.chmod(0o755)
        for file in directory.rglob("_go.mod"):
            file.rename(file.with_name("go.mod"))

    return str(made_once(cache_dir() / "go" / f"go{GO}-{architecture}", make) / "bin" / "go")


def _download(go: str, what: str) -> Path:
    """Return the directory of the module ``what`` in Go's module cache; download it if it is missing."""
    done = run([go, "mod", "download", "-json", what])
    answer: dict[str, Any] = json.loads(done.stdout or "{}")
    if done.returncode or "Error" in answer:
        raise NodeError(f"Go cannot download {what}: {answer.get('Error') or done.stderr}")
    return Path(answer["Dir"])


def _drop_local_replacements(go: str, source: Path) -> None:
    """Drop the ``replace`` lines of ``go.mod`` that name directories of the repository, which is not here."""
    content = json.loads(output(run([go, "mod", "edit", "-json"], source)))
    for each in content.get("Replace") or ():
        if "Version" not in each["New"]:
            replaced = "@".join(filter(None, (each["Old"]["Path"], each["Old"].get("Version"))))
            output(run([go, "mod", "edit", f"-dropreplace={replaced}"], source))


def run(
    command: Sequence[str], directory: Path | None = None, env: Mapping[str, str] | None = None
) -> CommandResult:
    """Run Go without the user's own toolchain, flags or workspace."""
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
    """Return Go's stdout; raises :class:`NodeError` with the last lines of stderr if it failed."""
    if done.returncode:
        stderr = "\n".join(done.stderr.splitlines()[-20:])
        raise NodeError(f"{' '.join(done.args)} ended with exit code {done.returncode}:\n{stderr}")
    return done.stdout
