"""Run command lines in the test process, on a scratch node: :class:`CliRunner` and its :class:`Result`."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import payloads
from fakes import DEVICES, FakeNode
from kata_node.cli import commands, main, run_stages
from kata_node.cli.options import COMMAND_OPTIONS
from kata_node.host import kernel, ownership
from kata_node.host.files import Root
from kata_node.plan.actions import Clients

CONFIG = "# the admin's own: 雪\nversion = 3\n\n[debug]\n  level = 'info' # keep\n"
MAIN = "etc/containerd/config.toml"
RECEIPT = "opt/kata/.kata-node/receipt.json"
CLH_CONFIG = "share/defaults/kata-containers/configuration-clh.toml"
FILES = {**payloads.FILES, CLH_CONFIG: payloads.CONFIG.encode()}
COMPONENTS = {**payloads.COMPONENTS, "shim-v2-go": [*payloads.COMPONENTS["shim-v2-go"], CLH_CONFIG]}


def make_payload(directory: Path, form: str) -> Path:
    """Make a payload for the shims qemu and clh; ``form`` is ``tree`` or ``tarballs``."""
    if form == "tree":
        return payloads.tree(directory, FILES)
    packed = {
        name: payloads.members({path: FILES[path] for path in paths}) for name, paths in COMPONENTS.items()
    }
    return payloads.tarballs(
        directory, packed, {name: {"x86_64": list(COMPONENTS)} for name in ("qemu", "clh")}
    )


@dataclass(frozen=True)
class Result:
    """The exit code and the output of a command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """stdout, parsed as one JSON document."""
        return json.loads(self.out)

    @property
    def outcomes(self) -> list[str]:
        """The outcome of each stage (``artifacts done``), from the text or the JSON document."""
        if self.out.startswith("{"):
            return [f"{stage['stage']} {stage['outcome']}" for stage in self.json["stages"]]
        lines = re.findall(r"^([a-z-]+) +(done|skipped|planned|failed) +\S", self.out, flags=re.MULTILINE)
        return [f"{stage} {outcome}" for stage, outcome in lines]


@dataclass(frozen=True)
class CliRunner:
    """Runs commands on the scratch node below ``host``, with the payload in ``payload``."""

    host: Path
    payload: Path
    capsys: pytest.CaptureFixture[str]

    def run(self, *arguments: str | Path) -> Result:
        """Run a command line."""
        code = main.run([str(argument) for argument in arguments])
        return Result(code, *self.capsys.readouterr())

    def offline(self, *arguments: str | Path) -> Result:
        """Run a command line with ``--offline`` on the scratch node, as if it had containerd 2.1.9."""
        paths = self.paths_for(str(arguments[0]))
        return self.run(*arguments, *paths, "--offline", "--runtime", "containerd://2.1.9")

    def online(self, *arguments: str | Path) -> Result:
        """Run a command line on the scratch node without ``--offline``."""
        return self.run(*arguments, *self.paths_for(str(arguments[0])))

    def paths_for(self, command: str) -> Sequence[str | Path]:
        """Return the options with the paths of the node and, if the command has it, of the payload."""
        has_payload = "payload" in COMMAND_OPTIONS.get(command, ())
        return ("--host-root", self.host, *(("--payload", self.payload) if has_payload else ()))

    @property
    def path_options(self) -> Sequence[str | Path]:
        return ("--host-root", self.host, "--payload", self.payload)

    def files(self) -> dict[str, tuple[object, ...]]:
        """Return everything on the node, including the times of files, without the record of the last run."""
        return payloads.without_last_runs(payloads.snapshot(self.host))

    def content(self) -> dict[str, tuple[object, ...]]:
        """Return everything on the node except times. A revert must restore it."""
        return {path: found[:3] for path, found in self.files().items()}


@contextmanager
def open_cli_runner(directory: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[CliRunner]:
    """Yield a runner with a node and a payload in ``directory``, independent of the environment."""
    host = directory / "host"
    (host / MAIN).parent.mkdir(parents=True)
    (host / MAIN).write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patched, preserve_logging():
        for name in os.environ:
            if name.startswith("KATA_NODE_") or name == "NODE_NAME":
                patched.delenv(name)
        patched.setenv("COLUMNS", "80")
        patched.setattr(kernel, "arch", lambda: "x86_64")
        patched.setattr(os, "fsync", lambda fd: None)  # a test needs no durability
        yield CliRunner(host, make_payload(directory / "payload", "tree"), capsys)


def run_as(monkeypatch: pytest.MonkeyPatch, uid: int) -> None:
    """Make the program run as the user ``uid``. The files of the test keep their owner, who stays trusted."""
    tester = SimpleNamespace(geteuid=os.geteuid, getegid=os.getegid)
    monkeypatch.setattr(ownership, "os", tester)
    monkeypatch.setattr(os, "geteuid", lambda: uid)


def use_clients(monkeypatch: pytest.MonkeyPatch, clients: Clients) -> None:
    """Make the commands use ``clients`` instead of the real systemd and CRI."""
    for module in (commands, run_stages):
        monkeypatch.setattr(module, "open_tools", lambda common: nullcontext(clients))


def make_live(cli_runner: CliRunner, monkeypatch: pytest.MonkeyPatch) -> FakeNode:
    """Let a fake containerd run on the scratch node, and the commands use it as root."""
    run_as(monkeypatch, 0)
    (cli_runner.host / "run").mkdir()
    for path in DEVICES:
        (cli_runner.host / path).parent.mkdir(exist_ok=True)
        (cli_runner.host / path).touch()
    node = FakeNode(Root(cli_runner.host), handlers=("runc",))
    use_clients(monkeypatch, node.clients())
    return node


@contextmanager
def preserve_logging() -> Iterator[None]:
    """Restore the logger afterwards: every command configures it, and other tests read it."""
    logger = logging.getLogger("kata_node")
    before = logger.handlers[:], logger.level, logger.propagate
    try:
        yield
    finally:
        logger.handlers[:], level, logger.propagate = before
        logger.setLevel(level)
