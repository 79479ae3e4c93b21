"""A scratch node to break, an operator who follows hints on it, and steps that break it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import pytest
from msgspec.structs import replace

from cli.cli_runner import preserve_logging, run_as
from fakes import FakeNode
from kata_node import pipeline
from kata_node.checks import facts, hardware
from kata_node.cli import commands, main, run_stages
from kata_node.errors import KataNodeError
from kata_node.host import kernel
from kata_node.host.cri import CriCallError, Reason
from kata_node.payload import index
from kata_node.plan.context import Options
from kata_node.plan.report import StageReport
from kata_node.settings import load as settings
from kata_node.settings.values import read_yaml
from payloads import CONFIG as KATA_CONFIG
from payloads import tree
from pipeline.harness import INSTALL, REVERT, SMALL, make_node
from pipeline.node_variants import NODE_VARIANTS
from pipeline.node_variants import make_node as make_variant
from stages import host_check

MKFS = "/usr/bin/mkfs.erofs"
MKFS_HELP = b"--tar=X --mkfs-time --sort=path"
MODULES = {"kvm_intel": "/dev/kvm", "vhost_net": "/dev/vhost-net", "vhost_vsock": "/dev/vhost-vsock"}


@contextlib.contextmanager
def open_output(path: str) -> Iterator[TextIO]:
    """Open a file for the output of a command. A full disk fails again when it is closed."""
    with contextlib.suppress(OSError), open(path, "w") as file:
        yield file


@dataclass
class Scene:
    """A scratch node, and what the operator has typed and written."""

    base: Path
    node: FakeNode
    payload: Path
    values: dict[str, Any] = field(default_factory=dict)
    text: str = ""
    """The values file, if it is not that of ``values``."""
    overrides: dict[str, str] = field(default_factory=lambda: {"shims": "qemu"})
    options: dict[str, Any] = field(default_factory=dict)
    stages: tuple[Any, ...] = (host_check,)
    modules: set[str] = field(default_factory=lambda: {"kvm_intel", "vhost_net", "vhost_vsock", "dm_verity"})
    memory: int = 8 << 30
    foreign_devices: set[str] = field(default_factory=set)
    socket: str = ""
    """The socket on which the runtime listens, if it is not the usual one."""
    command: list[str] = field(default_factory=list)
    """A command line, which is typed instead of a run. ``HOST`` is the root directory of the node."""
    stdout: str = os.devnull
    """The file to which the output of the command goes."""
    uid: int = 0
    """The user who types it."""

    # what kata-node sees

    def run(self, stages: tuple[Any, ...] | None = None, **overrides: str) -> list[StageReport]:
        file = self.base / "values.yaml"
        file.write_text(self.text or json.dumps(self.values))  # JSON is YAML
        loaded = settings.load(str(file), overrides={**self.overrides, **overrides}, arch="x86_64")
        options = Options(self.payload, restart_timeout=5, stable_for=0, **self.options)
        run = pipeline.Run(loaded, options, self.clients(), lock_timeout=1)
        return pipeline.run(self.stages if stages is None else stages, run)

    def clients(self) -> Any:
        clients = self.node.clients()
        usual = clients.cri

        def cri(socket: str) -> Any:
            if self.socket and socket != self.socket:
                raise CriCallError("there is no socket", reason=Reason.MISSING, where=socket)
            return usual(socket)

        return replace(clients, cri=cri)

    def problem(self, check: str) -> tuple[str, str]:
        """Return what is wrong and the hint, of a check or of an error; empty if nothing is wrong."""
        if self.command:
            return self._type()
        try:
            reports = self.run()
        except KataNodeError as error:
            return error.what, error.hint
        if not check.startswith("error: "):
            found = [
                each for each in reports[0].checks if each.name == check and each.status in ("warn", "fail")
            ]
            return (found[0].reason, found[0].remedy) if found else ("", "")
        failed = next((each.error for each in reports if each.error), None)
        return (failed.what, failed.hint) if failed else ("", "")

    def _type(self) -> tuple[str, str]:
        """Type the command, and return what is wrong and the hint."""
        caught: list[KataNodeError] = []

        def keep(arguments: Sequence[str], error: KataNodeError) -> int:
            caught.append(error)
            return error.exit_code

        with (
            pytest.MonkeyPatch.context() as patched,
            preserve_logging(),
            open_output(self.stdout) as out,
            open(os.devnull, "w") as err,
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            for name in [each for each in os.environ if each.startswith("KATA_NODE_")]:
                patched.delenv(name)
            patched.setattr(main, "report_error", keep)
            for module in (commands, run_stages):
                patched.setattr(module, "open_tools", lambda common: contextlib.nullcontext(self.clients()))
            patched.setattr(kernel, "arch", lambda: "x86_64")
            patched.setattr(read_yaml, "__kwdefaults__", {"timeout": 0})  # for a ConfigMap to change
            run_as(patched, self.uid)
            code = main.run([each.replace("HOST", str(self.node.root.base)) for each in self.command])
        assert caught or code in (0, 10), (self.command, code)
        return (caught[0].what, caught[0].hint) if caught else ("", "")

    def carry_out(self, case: Case) -> str:
        """Break the node, follow the hint, and return it. The problem must come, and go."""
        assert self.problem(case.name) == ("", ""), "the node is not healthy before the test breaks it"
        case.break_node(self)
        what, hint = self.problem(case.name)
        assert what, f"{case.name} does not notice it"
        assert hint, what
        case.follow(self, hint, what)
        assert self.problem(case.name) == ("", "")
        return hint

    # what the operator does

    def path(self, path: str) -> Path:
        assert path.startswith("/"), path
        return self.node.root.base / path.lstrip("/")

    def write(self, path: str, content: bytes | str) -> None:
        self.path(path).parent.mkdir(parents=True, exist_ok=True)
        self.path(path).write_bytes(content.encode() if isinstance(content, str) else content)

    def read(self, path: str) -> str:
        return self.path(path).read_text()

    def set(self, key: str, value: Any) -> None:
        """Set a dotted key of the values."""
        *parents, last = key.split(".")
        place = self.values
        for each in parents:
            place = place.setdefault(each, {})
        place[last] = value

    def unset(self, key: str) -> None:
        *parents, last = key.split(".")
        place = self.values
        for each in parents:
            place = place[each]
        del place[last]

    def replace_word(self, old: str, *new: str) -> None:
        """Replace a word of the command line."""
        at = self.command.index(old)
        self.command[at : at + 1] = new

    def shell(self, command: str) -> None:
        """Run a command of a hint on the scratch node."""
        program, *arguments = shlex.split(command)
        match program:
            case "rm" | "chmod":
                mapped = [str(self.path(each)) if each.startswith("/") else each for each in arguments]
                subprocess.run([program, *mapped], check=True)
                self.foreign_devices.difference_update(arguments)
            case "mknod":  # only root can make a device
                self.path(arguments[0]).touch()
            case "modprobe":
                # As the real one: without -a, the names after the first are options of the module.
                for module in arguments[1:] if arguments[0] == "-a" else arguments[:1]:
                    self.load_module(module)
            case "echo":
                text, redirect, target = arguments
                assert redirect == ">"
                self.write(target, text + "\n")
            case "systemctl":
                assert arguments[0] == "start"
                assert arguments[1] == self.node.unit_name
                self.node.state, self.node.handlers = "active", self.node.load()
            case "kata-node":
                stages = {"install": INSTALL, "revert": REVERT}[arguments[0]]
                assert [each.error for each in self.run(stages) if each.error] == []
            case _:
                raise AssertionError(f"no test knows this command: {command}")

    def load_module(self, module: str) -> None:
        self.modules.add(module)
        if module in MODULES:
            self.path(MODULES[module]).touch()


def payload_without(directory: Path, *missing: str) -> Path:
    """Make a payload, whose configuration has the keys that hints name."""
    config = (KATA_CONFIG + "default_memory = 2048\ndisable_vhost_net = false\n").encode()
    files = {**SMALL, "share/defaults/kata-containers/configuration-qemu.toml": config}
    index.write_manifest(tree(directory, {path: files[path] for path in files if path not in missing}))
    return directory


@contextlib.contextmanager
def scene(base: Path) -> Iterator[Scene]:
    """Yield a healthy node, with a kernel that is as the scene says."""
    made = Scene(base, make_node(base / "host"), payload_without(base / "payload"))

    def state(root: Any, path: str) -> str:
        return "other" if path in made.foreign_devices else "there" if root.exists(path) else "missing"

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(facts, "RESTART_GRACE_PERIOD", 0)
        patched.setattr(hardware, "device_state", state)
        patched.setattr(hardware, "_memory", lambda: made.memory)
        patched.setattr(kernel, "has_module", lambda name: name in made.modules)
        patched.setattr(kernel, "cpu_flags", lambda: {"vmx"})
        patched.setattr(kernel, "selinux", lambda: "disabled")
        patched.setattr(kernel, "read", lambda path: "nodev\terofs\n" if "erofs" in made.modules else "")
        yield made


Step = Callable[[Scene], None]
Follow = Callable[[Scene, str, str], None]
"""Do what a hint says. The arguments are the scene, the hint, and what is wrong."""


@dataclass(frozen=True)
class Case:
    """One way to break a node."""

    name: str
    """The check of host-check, or ``error: `` and the class of an error."""
    broken: str
    """How the test breaks the node, for the docs."""
    break_node: Step
    follow: Follow


# --- how a hint is followed -------------------------------------------------------------------------


def run_commands(scene: Scene, hint: str, what: str) -> None:
    """Run every command in the hint."""
    commands = re.findall(r"`([^`]+)`", hint)
    assert commands, hint
    for command in commands:
        scene.shell(command)


def set_values(scene: Scene, hint: str, what: str) -> None:
    """Set the first value that the hint names, as ``KEY: VALUE``."""
    found = re.search(r"set ([\w.]+): ([\w./]+)", hint)
    assert found, hint
    scene.set(found[1], {"false": False, "true": True}.get(found[2], found[2]))


def remove_keys(scene: Scene, hint: str, what: str) -> None:
    """Remove the keys that the hint names from the values."""
    found = re.search(r"remove ((?:[\w.]+(?:, | and )?)+)(?: from the values|$)", hint)
    assert found, hint
    for key in re.split(r", | and ", found[1]):
        scene.unset(key)


def expect(pattern: str, do: Callable[[Scene, re.Match[str]], None]) -> Follow:
    """Return how to follow a hint with ``pattern``, whose groups are the values to use."""

    def follow(scene: Scene, hint: str, what: str) -> None:
        found = re.search(pattern, hint)
        assert found, f"the hint does not say {pattern!r}: {hint}"
        do(scene, found)

    return follow


def restore(path: str, content: bytes | str) -> Follow:
    """Return how to correct a file that the hint, or the finding, names."""

    def follow(scene: Scene, hint: str, what: str) -> None:
        assert path in hint or path in what, (hint, what)
        scene.write(path, content)
        scene.node.load()

    return follow


# --- how a node is broken ---------------------------------------------------------------------------


def without(*paths: str, modules: tuple[str, ...] = ()) -> Step:
    def step(scene: Scene) -> None:
        for path in paths:
            scene.path(path).unlink()
        scene.modules.difference_update(modules)

    return step


def with_file(path: str, content: bytes | str) -> Step:
    return lambda scene: scene.write(path, content)


def with_value(**values: Any) -> Step:
    """Return a step that sets values. ``__`` in a name stands for the dot."""

    def step(scene: Scene) -> None:
        for key, value in values.items():
            scene.set(key.replace("__", "."), value)

    return step


def foreign(*devices: str) -> Step:
    return lambda scene: scene.foreign_devices.update(devices)


def both(*steps: Step) -> Step:
    def step(scene: Scene) -> None:
        for each in steps:
            each(scene)

    return step


def on(variant: str, **attributes: Any) -> Step:
    """Return a step that replaces the node by one of another distribution or runtime."""

    def step(scene: Scene) -> None:
        scene.node = make_variant(NODE_VARIANTS[variant], scene.base / "variant")
        for name, value in attributes.items():
            setattr(scene.node, name, value)
        for module in ("kvm_intel", "vhost_net", "vhost_vsock"):
            scene.load_module(module)

    return step


def version(text: str) -> Step:
    return lambda scene: setattr(scene.node, "version", text)


def option(**options: Any) -> Step:
    return lambda scene: scene.options.update(options)


def erofs(**more: Any) -> Step:
    """Return a step that has a node and values for erofs, without what ``more`` takes away."""

    def step(scene: Scene) -> None:
        scene.node.version = "2.3.1"
        scene.modules.add("erofs")
        scene.write(MKFS, MKFS_HELP)
        scene.set("snapshotter.setup", ["erofs"])
        scene.set("shims.qemu.containerd.snapshotter", "erofs")
        scene.set("snapshotter.erofsMergeMode", "unmerged")
        for key, value in more.items():
            scene.set(f"snapshotter.{key}", value)

    return step
