"""Two independent installations of different releases on one node."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from node.commands import RunningCommand
from node.conftest import BootNode
from node.containerd_build import NEWEST
from node.debian_node import Node
from node.installation import UNIT, VALUES, WATCHED, configure, fake_kvm, make_payload, outcomes
from node.snapshot import Snapshot, changes

CONF_D = b'version = 3\nimports = ["/etc/containerd/conf.d/*.toml"]\n'


@dataclass(frozen=True)
class Instance:
    suffix: str
    payload: str

    @property
    def ending(self) -> str:
        return f"-{self.suffix}" if self.suffix else ""

    @property
    def handlers(self) -> tuple[str, ...]:
        return tuple(f"kata-{shim}{self.ending}" for shim in ("clh", "qemu", "qemu-runtime-rs"))

    @property
    def install_dir(self) -> str:
        return f"/opt/kata{self.ending}"

    def start(self, node: Node, *command: str, payload: str = "") -> RunningCommand:
        config = {**VALUES, "env": {"multiInstallSuffix": self.suffix}}
        return node.start_kata_node(*command, config=config, payload=payload or self.payload)

    def run(self, node: Node, *command: str, payload: str = "") -> str:
        done = self.start(node, *command, payload=payload).wait()
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def files(self, node: Node) -> Snapshot:
        """Return a snapshot of the installation's files."""
        names = (f"99-kata-deploy{self.ending}.toml", f"zz-kata-deploy-user{self.ending}.toml")
        return node.snapshot(self.install_dir, *(f"/etc/containerd/conf.d/{name}" for name in names))


PLAIN, BLUE, GREEN = Instance("", "/srv/one"), Instance("blue", "/srv/two"), Instance("green", "/srv/one")
BY_LETTER = {"p": PLAIN, "b": BLUE, "g": GREEN}


@pytest.fixture(scope="session")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with two releases of a payload, ``one`` and ``two``."""
    directory = tmp_path_factory.mktemp("releases")
    for seed, name in enumerate(("one", "two"), 1):
        make_payload(directory / name, f"--release=sample-{name}", f"--seed={seed}")
    return directory


@pytest.fixture(
    params=[
        pytest.param(("", None), id="import"),
        pytest.param(("", "none"), id="import-and-no-main-file"),
        pytest.param((NEWEST, CONF_D), id="conf.d"),
    ]
)
def two(boot_node: BootNode, releases: Path, request: pytest.FixtureRequest) -> Node:
    """Return a node with both releases mounted."""
    release, config = request.param
    node = fake_kvm(boot_node("forky", containerd=release))
    for name in ("one", "two"):
        node.mount(releases / name, f"/srv/{name}")
    if config:
        configure(node, None if config == "none" else config)
    return node


@pytest.mark.parametrize(
    "order",
    [
        pytest.param("+p +b -p -b", id="first-in-first-out"),
        pytest.param("+b +p -p -b", id="last-in-first-out"),
        pytest.param("+p +b ^p -b +b ^b -p -b", id="updates-in-between"),
        pytest.param("+b +g -b +b -g -b", id="both-with-a-suffix"),
    ],
)
def test_each_change_restarts_once_and_does_not_change_the_other_installation(two: Node, order: str) -> None:
    """``+`` installs, ``-`` reverts, and ``^`` installs the other release, which needs no restart."""
    before, starts = two.snapshot(*WATCHED), two.activations(UNIT)
    there: set[Instance] = set()
    for step in order.split():
        act, instance = step[0], BY_LETTER[step[1]]
        others = {other: other.files(two) for other in there - {instance}}
        if act == "-":
            instance.run(two, "revert")
            there.discard(instance)
            assert not instance.files(two)
        else:
            other_release = "/srv/two" if instance.payload == "/srv/one" else "/srv/one"
            instance.run(two, "install", payload=other_release if act == "^" else "")
            there.add(instance)
        starts += act != "^"
        served = sorted(handler for each in there for handler in each.handlers)
        assert two.cri_handlers() == (*served, "runc"), step
        assert two.activations(UNIT) == starts, step
        for other, files in others.items():
            assert changes(files, other.files(two), times=True) == [], step
    assert changes(before, two.snapshot(*WATCHED)) == []


def test_an_install_does_nothing_after_the_other_installation_was_added_or_removed(two: Node) -> None:
    PLAIN.run(two, "install")
    BLUE.run(two, "install")
    starts = two.activations(UNIT)
    for instance in (PLAIN, BLUE):
        done = instance.start(two, "install", "--output", "json").wait()
        assert outcomes(done)["cri"] == "skipped", done.stdout
    status = json.loads(two.kata_node("status", "--output", "json").stdout)["installations"]
    assert sorted((each["instance"], each["cri"], tuple(each["drift"])) for each in status) == [
        ("blue", "serving", ()),
        ("default", "serving", ()),
    ]
    PLAIN.run(two, "revert")
    done = BLUE.start(two, "install", "--output", "json").wait()
    assert outcomes(done)["cri"] == "skipped", done.stdout
    assert two.activations(UNIT) == starts + 1


def test_two_concurrent_installs_or_reverts_wait_for_each_other(two: Node) -> None:
    before, starts = two.snapshot(*WATCHED), two.activations(UNIT)
    for command, handlers in (("install", (*PLAIN.handlers, *BLUE.handlers)), ("revert", ())):
        both = [instance.start(two, command) for instance in (PLAIN, BLUE)]
        codes = [running.wait().returncode for running in both]
        assert codes == [0, 0]
        assert two.cri_handlers() == (*sorted(handlers), "runc")
        starts += 2
        assert two.activations(UNIT) == starts
    assert changes(before, two.snapshot(*WATCHED)) == []


def test_a_killed_run_of_one_installation_does_not_block_the_other(two: Node) -> None:
    before = two.snapshot(*WATCHED)
    inject = ("strace", "--quiet=all", "-o", "/dev/null", "--inject=sendto:signal=KILL:when=1")
    config = {**VALUES, "env": {"multiInstallSuffix": BLUE.suffix}}
    BLUE.run(two, "stage", "artifacts")
    killed = two.kata_node("stage", "cri", config=config, payload=BLUE.payload, prefix=inject)
    assert killed.returncode in (-9, 137), killed.stdout + killed.stderr
    PLAIN.run(two, "install")
    assert set(PLAIN.handlers) <= set(two.cri_handlers())
    BLUE.run(two, "install")
    assert two.cri_handlers() == (*sorted((*PLAIN.handlers, *BLUE.handlers)), "runc")
    BLUE.run(two, "revert")
    PLAIN.run(two, "revert")
    assert changes(before, two.snapshot(*WATCHED)) == []
