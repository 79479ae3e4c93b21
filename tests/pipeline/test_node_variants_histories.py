"""Random histories of two installations, on every variant of a node that can have two.

Runs of kata-node, some of them killed, and changes by others happen in any order. The runtime must always be
able to start with the files on the disk. Finished runs must serve their handlers. At the end only the content
of the administrator is left in the files.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fakes import MAIN, FakeNode
from kata_node.plan import receipt as receipts
from kata_node.plan.report import StageReport
from pipeline.harness import CONFIG, Killed, exit_code, killed_after, outcomes, run, snapshot
from pipeline.node_variants import MICROK8S, NODE_VARIANTS, RANCHER, NodeVariant, make_node
from stages import artifacts, cri, remove_artifacts, revert_cri

INSTALL, REVERT = (artifacts, cri), (revert_cri, remove_artifacts)
SEEDS = range(int(os.environ.get("HISTORIES", "24")) // 4)
STEPS = int(os.environ.get("HISTORY_STEPS", "9"))
SHIMS = ("qemu", "clh", "qemu,clh")
SUFFIXES = ("", "blue")

TEMPLATE = f"{RANCHER}/config-v3.toml.tmpl"
CRIO_FILE = "/etc/crio/crio.conf.d/10-crio.conf"


@dataclass(frozen=True)
class Ground:
    """A variant of a node, and the foreign file that the history edits; empty if there is none."""

    kind: NodeVariant
    edited: str


PLAIN = NodeVariant(FakeNode, {MAIN: CONFIG.decode()}, (MAIN,))
NOTHING = NodeVariant(FakeNode, {}, (MAIN,))
GROUNDS = {
    "containerd": Ground(PLAIN, MAIN),
    "containerd-without-a-file": Ground(NOTHING, ""),
    "k3s-template": Ground(NODE_VARIANTS["k3s with an admin's template"], TEMPLATE),
    "k3s-no-template": Ground(NODE_VARIANTS["k3s that imports no drop-ins"], ""),
    "k3s-drop-ins": Ground(NODE_VARIANTS["k3s with drop-ins"], ""),
    "microk8s": Ground(NODE_VARIANTS["microk8s"], f"{MICROK8S}/containerd-template.toml"),
    "k0s": Ground(NODE_VARIANTS["k0s"], ""),
    "cri-o": Ground(NODE_VARIANTS["CRI-O"], CRIO_FILE),
}


pytestmark = pytest.mark.usefixtures("no_waits")


@dataclass
class History:
    """A node, and its expected state."""

    ground: Ground
    node: FakeNode
    payload: Path
    dice: random.Random
    before: dict[str, tuple[object, ...]]
    served: frozenset[str]
    edited: bytes | None
    """The content of the edited file without the entries of kata-node."""
    steps: list[str] = field(default_factory=list)
    """The steps so far, which the test prints when it fails."""

    def step(self) -> None:
        kinds = {
            self.install: 6,
            self.revert: 3,
            self.edit: 2,
            self.restart: 1,
            self.stop: 0.3,
            self.remove: 0.5,
        }
        self.dice.choices([*kinds], [*kinds.values()])[0]()
        assert self.served <= set(self.node.load() or ())

    def install(self) -> None:
        suffix, shims, cut = self.dice.choice(SUFFIXES), self.dice.choice(SHIMS), self.cut()
        self.node.refusals = refusals = self.dice.choice((0,) * 9 + (1,))
        was_up, was_unfinished = self.node.state == "active", self.is_unfinished(suffix)
        was = self.handlers_of(suffix)
        self.steps.append(f"install {suffix} {shims} cut={cut} refusals={refusals}")
        reports = self.carry_out(INSTALL, suffix, cut, shims)
        refused, self.node.refusals = refusals - self.node.refusals, 0
        if reports is None:
            return
        self.steps.append(f"  -> {outcomes(reports)[-1][:300]}")
        if exit_code(reports) == 0:
            assert self.handlers_of(suffix) == self.named(suffix, shims)
        else:
            assert refused or not was_up
            assert not was_up or was_unfinished or self.handlers_of(suffix) == was

    def revert(self) -> None:
        suffix, cut = self.dice.choice(SUFFIXES), self.cut()
        was_up = self.node.state == "active"
        self.steps.append(f"revert {suffix} cut={cut}")
        reports = self.carry_out(REVERT, suffix, cut)
        if reports is None:
            return
        self.steps.append(f"  -> {outcomes(reports)[-1][:300]}")
        assert exit_code(reports) == 0 or not was_up
        if exit_code(reports) == 0:
            assert self.handlers_of(suffix) == set()
            assert snapshot(self.node, f"opt/kata{suffix and '-'}{suffix}") == {}

    def edit(self) -> None:
        path, text = self.ground.edited, b"# edit %d\n" % len(self.steps)
        if not path:
            return
        self.steps.append("edit")
        there = self.node.root.read(path) or b""
        # kata-node ends an unfinished last line, and the line end stays when text is added below.
        end = b"" if there == self.edited or (self.edited or b"").endswith(b"\n") else b"\n"
        self.edited = (self.edited or b"") + end + text
        self.node.root.write(path, there + text)

    def restart(self) -> None:
        self.steps.append("restart")
        self.node.restart(self.node.unit_name, 1)

    def stop(self) -> None:
        self.steps.append("stop")
        self.node.stop()

    def remove(self) -> None:
        drop_ins = sorted(
            path
            for path in snapshot(self.node)
            if "99-kata-deploy" in path and not path.startswith("opt/kata/.")
        )
        if drop_ins:
            path = self.dice.choice(drop_ins)
            self.steps.append(f"remove {path}")
            self.node.root.resolve(f"/{path}").unlink()

    def cut(self) -> int | None:
        return self.dice.choice((None, None, self.dice.randrange(45)))

    def carry_out(
        self, stages: Sequence[object], suffix: str, cut: int | None, shims: str = "qemu"
    ) -> list[StageReport] | None:
        """Run ``stages`` and return the reports; ``None`` if the run was killed."""
        try:
            with killed_after(1 << 30 if cut is None else cut):
                return run(
                    self.node,
                    stages,
                    self.payload,
                    multi_install_suffix=suffix,
                    shims=shims,
                    k8s_distribution=self.ground.kind.distribution,
                )
        except Killed:
            return None

    def handlers_of(self, suffix: str) -> set[str]:
        if self.node.state == "active" and hasattr(self.node, "watch"):
            self.node.watch()
        kata = {name for name in self.node.handlers or () if name.startswith("kata-")}
        blue = {name for name in kata if name.endswith("-blue")}
        return blue if suffix else kata - blue

    def named(self, suffix: str, shims: str) -> set[str]:
        return {f"kata-{shim}{suffix and '-'}{suffix}" for shim in shims.split(",")}

    def is_unfinished(self, suffix: str) -> bool:
        receipt = receipts.load(self.node.root, f"/opt/kata-{suffix}" if suffix else "/opt/kata")
        return receipt is not None and receipt.cri is not None and receipt.cri.state != "serving"

    def must_end_well(self) -> None:
        """Installs succeed, more installs change nothing, and reverts restore the node."""
        if self.node.state != "active":
            self.restart()
        for _ in SUFFIXES:
            done = [self.carry_out(INSTALL, suffix, None) or [] for suffix in SUFFIXES]
        assert [exit_code(reports) for reports in done] == [0] * len(done), done
        installed, restarts = snapshot(self.node), self.node.restarts
        for suffix in SUFFIXES:
            assert self.handlers_of(suffix) == self.named(suffix, "qemu")
            again = self.carry_out(INSTALL, suffix, None) or []
            assert outcomes(again) == ["artifacts skipped", "cri skipped"]
        assert (snapshot(self.node), self.node.restarts) == (installed, restarts)
        for suffix in self.dice.sample(SUFFIXES, len(SUFFIXES)):
            assert exit_code(self.carry_out(REVERT, suffix, None) or []) == 0
        assert self.served == set(self.node.handlers or ())
        edited, rendered = self.ground.edited.lstrip("/"), self.node.main.lstrip("/")
        apart = {edited, rendered} if f"/{rendered}" not in self.ground.kind.kata_files else {edited}
        left = {path: what for path, what in snapshot(self.node).items() if path not in apart}
        assert left == {path: what for path, what in self.before.items() if path not in apart}
        assert self.edited is None or self.node.root.read(self.ground.edited) == self.edited


@pytest.mark.parametrize("ground", [pytest.param(each, id=name) for name, each in GROUNDS.items()])
@pytest.mark.parametrize("seed", SEEDS)
def test_after_any_history_installs_and_reverts_of_two_installations_succeed(
    tmp_path: Path, payload: Path, ground: Ground, seed: int
) -> None:
    node = make_node(ground.kind, tmp_path)
    edited = node.root.read(ground.edited) if ground.edited else None
    history = History(
        ground, node, payload, random.Random(seed), snapshot(node), frozenset(node.handlers or ()), edited
    )
    try:
        for _ in range(STEPS):
            history.step()
        history.must_end_well()
    except BaseException:
        print("\n".join(history.steps))
        raise
