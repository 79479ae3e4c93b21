"""Random histories of a node with a fixed seed. After each, an install and a revert must succeed.

A history is a series of installs, reverts, kills and changes by others on one node. The test keeps the
content that the administrator last wrote to the runtime's main file. After each step and at the end, it
compares the node with this content and with the steps.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fakes import MAIN, FakeNode
from kata_node.plan import receipt as receipts
from kata_node.plan.report import StageReport
from kata_node.runtime import restart
from kata_node.runtime.containerd.template import INITIAL_MAIN_FILES
from pipeline.harness import (
    CONFIG,
    Killed,
    exit_code,
    killed_after,
    make_node,
    outcomes,
    run,
    snapshot,
)
from stages import artifacts, cri, remove_artifacts, revert_cri

INSTALL, REVERT = (artifacts, cri), (revert_cri, remove_artifacts)

SEEDS = range(int(os.environ.get("HISTORIES", "24")))
STEPS = int(os.environ.get("HISTORY_STEPS", "9"))

RUNTIMES = "plugins.'io.containerd.cri.v1.runtime'.containerd"
EXTRA = f"[{RUNTIMES}.runtimes.extra]\nruntime_type = 'x'\n"
NO_DEFAULT = f"[{RUNTIMES}]\ndefault_runtime_name = 'nobody'\n"
NO_CRI = "[plugins.'io.containerd.cri.v1.images']\nsnapshotter = 'nobody'\n"
NO_TOML = "this is [not TOML\n"
WITH_CONF_D = b'# others too\nversion = 3\nimports = ["/etc/containerd/conf.d/*.toml"]\n'
OTHERS = b"[debug]\nlevel = 'warn'\n"
SHIMS = ("qemu", "clh", "qemu,clh")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    monkeypatch.setattr(restart, "POLL", 0.001)
    monkeypatch.setattr(restart, "PATIENCE", 0.01)


@dataclass
class History:
    """A node, and its expected state."""

    node: FakeNode
    payload: Path
    dice: random.Random
    suffixes: tuple[str, ...]
    main: bytes | None = CONFIG
    """The main file as the admin last wrote it, without the entries of kata-node."""
    copies: list[tuple[bytes, bytes | None]] = field(default_factory=list)
    """Earlier contents of the main file, each with its content without the entries of kata-node."""
    steps: list[str] = field(default_factory=list)
    """The steps so far, which the test prints when it fails."""

    def step(self) -> None:
        kinds = {
            self.install: 6,
            self.revert: 3,
            self.edit_main: 2,
            self.replace_main: 1,
            self.remove_main: 1,
            self.restore_main: 1,
            self.remove_drop_in: 1,
            self.restart: 1,
            self.stop: 0.3,
            self.other_version: 1,
        }
        step = self.dice.choices([*kinds], [*kinds.values()])[0]
        step()
        self.must_start()

    # Runs of kata-node

    def install(self) -> None:
        suffix, shims = self.dice.choice(self.suffixes), self.dice.choice(SHIMS)
        user_drop_in = self.dice.choice(("", "", EXTRA, EXTRA, NO_TOML, NO_DEFAULT, NO_CRI))
        cut = self.cut()
        if cut is not None and user_drop_in == NO_CRI and len(self.suffixes) > 1:
            user_drop_in = ""  # another installation cannot recover from this
        self.steps.append(f"install {suffix} {shims} cut={cut} {user_drop_in!r}")
        was_served, was_unfinished = self.serves(), self.is_unfinished(suffix)
        was_stopped, before = self.node.state == "inactive", snapshot(self.node, "etc")
        refusals = self.node.refusals = self.dice.choice((0,) * 9 + (1, 2))
        reports = self.carry_out(INSTALL, suffix, cut, shims=shims, user_drop_in=user_drop_in)
        refusals, self.node.refusals = refusals - self.node.refusals, 0
        if reports is None:
            return
        self.steps.append(f"  -> {outcomes(reports)[-1][:400]}")
        code = exit_code(reports)
        broken = user_drop_in in (NO_TOML, NO_DEFAULT, NO_CRI)
        if (not was_served and not was_unfinished) or refusals == 2:
            assert code == 1
        elif refusals and broken:
            assert code in (1, 4)  # the rollback may need no restart
        else:
            assert code == (4 if refusals or broken else 0)
        if code == 0:
            self.must_serve(suffix, shims, extra=user_drop_in == EXTRA)
        elif not was_unfinished:
            assert snapshot(self.node, "etc") == before
        if code in (0, 4) and not was_stopped:
            assert self.serves()

    def revert(self) -> None:
        suffix = self.dice.choice(self.suffixes)
        cut = self.cut()
        self.steps.append(f"revert {suffix} cut={cut}")
        was_served = self.serves()
        self.node.refusals = self.dice.choice((0,) * 9 + (1,))
        reports = self.carry_out(REVERT, suffix, cut)
        refused = self.node.refusals == 0
        self.node.refusals = 0
        if reports is None:
            return
        self.steps.append(f"  -> {outcomes(reports)[-1][:400]}")
        if was_served and not refused:
            assert exit_code(reports) == 0
        if exit_code(reports) == 0:
            assert self.handlers_of(suffix) == set()
            assert snapshot(self.node, f"opt/kata{suffix and '-'}{suffix}") == {}

    def cut(self) -> int | None:
        return self.dice.choice((None, None, self.dice.randrange(45)))

    def carry_out(
        self, stages: object, suffix: str, cut: int | None, *, shims: str = "qemu", user_drop_in: str = ""
    ) -> list[StageReport] | None:
        """Run ``stages`` and return the reports; ``None`` if the run was killed."""
        try:
            with killed_after(1 << 30 if cut is None else cut):
                return run(
                    self.node,
                    stages,
                    self.payload,
                    user_drop_in=user_drop_in,
                    multi_install_suffix=suffix,
                    shims=shims,
                )
        except Killed:
            return None

    # Changes by others

    def edit_main(self) -> None:
        text = b"# edit %d\n" % len(self.steps)
        there = self.node.root.read(MAIN)
        self.steps.append("edit")
        self.copies += [(there, self.main)] if there else []
        if there is None:
            self.main = text
        elif self.main is None:
            self.main = INITIAL_MAIN_FILES[2] + text
        else:
            self.main += text
        self.write_main((there or b"") + text)

    def replace_main(self) -> None:
        self.main = self.dice.choice((CONFIG, WITH_CONF_D, b""))
        self.steps.append(f"replace {self.main!r}")
        self.write_main(self.main)

    def restore_main(self) -> None:
        """The admin restores an earlier copy of the main file."""
        if copy := self.node.root.read(MAIN):
            self.copies.append((copy, self.main))
        if self.copies:
            self.steps.append("restore main")
            copy, self.main = self.dice.choice(self.copies)
            self.write_main(copy)

    def remove_main(self) -> None:
        self.steps.append("remove main")
        self.main = None
        self.node.root.resolve(MAIN).unlink(missing_ok=True)

    def write_main(self, content: bytes) -> None:
        self.node.root.resolve(MAIN).write_bytes(content)

    def remove_drop_in(self) -> None:
        drop_ins = [
            path
            for below in ("etc/containerd/conf.d", "opt")
            for path in snapshot(self.node, below)
            if "kata-deploy" in path and path.endswith(".toml")
        ]
        if drop_ins:
            path = self.dice.choice(sorted(drop_ins))
            self.steps.append(f"remove {path}")
            self.node.root.resolve(f"/{path}").unlink()

    def restart(self) -> None:
        self.steps.append("restart")
        self.node.restart("containerd.service", 1)

    def stop(self) -> None:
        self.steps.append("stop")
        self.node.stop()

    def other_version(self) -> None:
        self.node.version = self.dice.choice(("2.1.9", "2.2.1"))
        self.steps.append(f"version {self.node.version}")
        self.node.restart("containerd.service", 1)

    # Checks

    def must_start(self) -> None:
        """The runtime can start now. If no run is unfinished, it also serves the CRI."""
        served = self.node.load()
        if not any(map(self.is_unfinished, self.suffixes)):
            assert served is not None
            assert "runc" in served

    def must_serve(self, suffix: str, shims: str, *, extra: bool = False) -> None:
        served = self.node.handlers or ()
        tail = f"-{suffix}" if suffix else ""
        assert "runc" in served
        assert self.handlers_of(suffix) == {f"kata-{shim}{tail}" for shim in shims.split(",")}
        if len(self.suffixes) == 1:
            assert ("extra" in served) == extra

    def handlers_of(self, suffix: str) -> set[str]:
        kata = {name for name in self.node.handlers or () if name.startswith("kata-")}
        blue = {name for name in kata if name.endswith("-blue")}
        return blue if suffix else kata - blue

    def serves(self) -> bool:
        return self.node.state == "active" and self.node.handlers is not None

    def is_unfinished(self, suffix: str) -> bool:
        receipt = receipts.load(self.node.root, f"/opt/kata-{suffix}" if suffix else "/opt/kata")
        return receipt is not None and receipt.cri is not None and receipt.cri.state != "serving"

    def must_end_well(self) -> None:
        """Installs succeed, more installs change nothing, and reverts restore the node."""
        if self.node.state == "inactive":
            self.restart()
        for _ in self.suffixes:  # an unfinished installation can make the other one fail
            done = [self.carry_out(INSTALL, suffix, None, shims="qemu") for suffix in self.suffixes]
        assert [exit_code(reports or []) for reports in done] == [0] * len(done), done
        installed, restarts = snapshot(self.node), self.node.restarts
        for suffix in self.suffixes:
            self.must_serve(suffix, "qemu")
            again = self.carry_out(INSTALL, suffix, None, shims="qemu") or []
            assert outcomes(again) == ["artifacts skipped", "cri skipped"]
        assert (snapshot(self.node), self.node.restarts) == (installed, restarts)
        for suffix in self.dice.sample(self.suffixes, len(self.suffixes)):
            assert exit_code(self.carry_out(REVERT, suffix, None) or []) == 0
        assert self.node.handlers == ("runc",)
        assert self.node.root.read(MAIN) == self.main
        assert self.node.root.read("/etc/containerd/conf.d/10-admin.toml") == OTHERS
        admins = {"etc/containerd", "etc/containerd/conf.d", "etc/containerd/conf.d/10-admin.toml"}
        assert set(snapshot(self.node, "etc")) - admins - {MAIN.lstrip("/")} == set()
        assert snapshot(self.node, "opt") == {}


@pytest.mark.parametrize("seed", SEEDS)
def test_after_any_history_installs_and_reverts_succeed(tmp_path: Path, payload: Path, seed: int) -> None:
    node = make_node(tmp_path)
    (tmp_path / "etc/containerd/conf.d").mkdir()
    (tmp_path / "etc/containerd/conf.d/10-admin.toml").write_bytes(OTHERS)
    dice = random.Random(seed)
    history = History(node, payload, dice, dice.choice((("",), ("",), ("", "blue"))))
    try:
        for _ in range(STEPS):
            history.step()
        history.must_end_well()
    except BaseException:
        print("\n".join(history.steps))
        raise
