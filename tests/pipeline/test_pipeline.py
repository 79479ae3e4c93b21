"""Installs, updates and reverts on a fake node, with faults and changes by others."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

import payloads
from fakes import MAIN, FakeKube, FakeNode
from kata_node import __version__
from kata_node.checks import facts
from kata_node.checks.unread_facts import UnreadConfig
from kata_node.errors import HostError, KubeError, LockedError
from kata_node.host import lock, reserve
from kata_node.host.files import FileState, Root
from kata_node.host.journal import journal_command
from kata_node.host.spool import Spool
from kata_node.kube import node_status as records
from kata_node.kube.node_status import NodeStatus
from kata_node.payload import index
from kata_node.plan import receipt as receipts
from kata_node.runtime import restart
from kata_node.runtime.check_config import CheckConfig
from kata_node.runtime.trial_start import Trial
from kata_node.status.model import InstallationStatus
from pipeline.harness import (
    CONFIG,
    INSTALL,
    REVERT,
    Killed,
    errors,
    exit_code,
    killed_after,
    make_node,
    node_status,
    outcomes,
    run,
    snapshot,
)
from stages import artifacts, claim, cri, host_check, label, remove_artifacts, revert_cri, unclaim, unlabel

CRI = (artifacts, cri)
"""The stages that change the node, without host-check and labels."""
REVERT_CRI = (revert_cri, remove_artifacts)

NO_TOML = "this is [not TOML\n"
NO_CRI = '[plugins."io.containerd.cri.v1.images"]\nsnapshotter = "nobody"\n'
"""A drop-in that is valid, but with which containerd starts without its CRI."""
EXTRA = "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.extra]\nruntime_type = 'x'\n"
WITH_CONF_D = b'version = 3\nimports = ["/etc/containerd/conf.d/*.toml"]\n'
KATA_DEPLOY = b"[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.kata-qemu]\nruntime_type = 'x'\n"
DROP_IN = "/opt/kata/containerd/config.d/99-kata-deploy.toml"
SECRET = b"hunter2"
USER_DROP_IN = "/opt/kata/containerd/config.d/zz-kata-deploy-user.toml"
CONF_D = "/etc/containerd/conf.d/99-kata-deploy.toml"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    monkeypatch.setattr(restart, "POLL", 0.001)
    monkeypatch.setattr(restart, "PATIENCE", 0.01)


@pytest.fixture
def node(tmp_path: Path) -> FakeNode:
    return make_node(tmp_path / "host")


def test_archives_without_a_manifest_are_decompressed_once_and_a_look_writes_nothing(
    node: FakeNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened_archives: list[str]
) -> None:
    archives, spools, spool = payloads.tarballs(tmp_path / "archives"), list[object](), Spool.open

    def open_spool(*arguments: Any) -> Spool | None:
        spools.append(arguments)
        return spool(*arguments)

    monkeypatch.setattr(Spool, "open", open_spool)
    before = snapshot(node)
    for stages, dry_run in (((artifacts,), True), ((host_check,), False)):
        index._cache.clear()
        opened_archives.clear()
        assert errors(run(node, stages, archives, dry_run=dry_run)) == []
        assert (len(opened_archives), spools, snapshot(node)) == (len(payloads.COMPONENTS), [], before)
    index._cache.clear()
    opened_archives.clear()
    assert outcomes(run(node, (artifacts,), archives)) == ["artifacts done"]
    assert sorted(opened_archives) == sorted(set(opened_archives))
    assert outcomes(run(node, (artifacts,), archives)) == ["artifacts skipped"]
    assert len(opened_archives) == len(payloads.COMPONENTS)


def write(node: FakeNode, path: str, content: bytes) -> None:
    real = node.root.resolve(path)
    real.parent.mkdir(parents=True, exist_ok=True)
    real.write_bytes(content)


def read(node: FakeNode, path: str = MAIN) -> bytes | None:
    return node.root.read(path)


def handlers(node: FakeNode) -> tuple[str, ...]:
    return tuple(name for name in node.handlers or () if name.startswith("kata"))


def content_of_drop_ins(node: FakeNode) -> bytes:
    directory = "/opt/kata/containerd/config.d"
    return b"".join(read(node, f"{directory}/{name}") or b"" for name in node.root.list_dir(directory))


def die(*_: object, **__: object) -> None:
    raise Killed


def state(node: FakeNode, install_dir: str = "/opt/kata") -> str:
    receipt = receipts.load(node.root, install_dir)
    return receipt.cri.state if receipt and receipt.cri else "nothing"


# Content of the administrator


def test_a_large_main_file_is_not_parsed_many_times(
    node: FakeNode, payload: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To parse a file of 1 MB takes a quarter of a second."""
    marker = "mirror-of-the-admin"
    write(node, MAIN, CONFIG + f"[plugins.'{marker}']\n".encode())
    parsed: list[str] = []
    loads = tomllib.loads

    def counted(text: str) -> dict[str, Any]:
        if marker in text:
            parsed.append(text)
        return loads(text)

    monkeypatch.setattr(tomllib, "loads", counted)
    for stages in (INSTALL, INSTALL, REVERT):
        assert errors(run(node, stages, payload)) == []
    assert len(parsed) < 10  # more than 100 if each check parses it


def test_an_edit_by_the_admin_survives_an_update_and_the_revert_after_it(
    node: FakeNode, payload: Path
) -> None:
    """The update records the edited file. The backup of the first install is not its previous content."""
    assert errors(run(node, INSTALL, payload)) == []
    write(node, MAIN, (read(node) or b"") + b"# a new admin\n")
    assert errors(run(node, INSTALL, payload, shims="qemu,clh")) == []
    assert errors(run(node, REVERT, payload)) == []
    assert read(node) == CONFIG + b"# a new admin\n"


def test_a_revert_does_not_restore_a_main_file_that_the_admin_removed(node: FakeNode, payload: Path) -> None:
    assert errors(run(node, INSTALL, payload)) == []
    node.root.resolve(MAIN).unlink()
    assert errors(run(node, INSTALL, payload)) == []
    assert handlers(node) == ("kata-qemu",)
    assert errors(run(node, REVERT, payload)) == []
    assert read(node) is None


def test_a_main_file_that_became_a_symlink_stays_one_and_its_target_is_edited(
    node: FakeNode, payload: Path
) -> None:
    assert errors(run(node, INSTALL, payload)) == []
    real = node.root.resolve(MAIN)
    real.rename(real.with_name("real.toml"))
    real.symlink_to("real.toml")
    assert outcomes(run(node, INSTALL, payload))[3] == "cri skipped"
    assert errors(run(node, INSTALL, payload, user_drop_in=EXTRA)) == []
    assert errors(run(node, REVERT, payload)) == []
    assert node.root.read_link(MAIN) == "real.toml"
    assert read(node) == CONFIG


def test_reverting_one_of_two_installations_leaves_the_other_served(node: FakeNode, payload: Path) -> None:
    before = snapshot(node)
    assert errors(run(node, CRI, payload)) == []
    assert errors(run(node, CRI, payload, multi_install_suffix="blue")) == []
    assert errors(run(node, CRI, payload, shims="qemu,clh")) == []
    assert handlers(node) == ("kata-clh", "kata-qemu", "kata-qemu-blue")
    assert errors(run(node, REVERT_CRI, payload)) == []
    assert handlers(node) == ("kata-qemu-blue",)
    assert errors(run(node, REVERT_CRI, payload, multi_install_suffix="blue")) == []
    assert snapshot(node) == before


def test_a_rollback_keeps_what_the_admin_wrote_while_a_run_was_unfinished(
    node: FakeNode, payload: Path
) -> None:
    """The rollback failed, the admin repaired the node by hand, and the next run fails too."""
    node.refusals = 2
    assert exit_code(run(node, INSTALL, payload)) == 1
    write(node, MAIN, CONFIG + b"# repaired by hand\n")
    node.restart("containerd.service", 1)
    node.refusals = 1
    assert exit_code(run(node, INSTALL, payload)) == 4
    assert read(node) == CONFIG + b"# repaired by hand\n"
    assert node.handlers == ("runc",)


def test_a_user_drop_in_that_was_removed_by_hand_and_from_the_settings_is_unloaded(
    node: FakeNode, payload: Path
) -> None:
    """No file has to be written, but the running invocation has read the drop-in."""
    assert errors(run(node, INSTALL, payload, user_drop_in=EXTRA)) == []
    node.root.resolve(USER_DROP_IN).unlink()
    assert errors(run(node, INSTALL, payload)) == []
    assert node.handlers == ("kata-qemu", "runc")


def test_a_rollback_succeeds_although_the_drop_in_was_removed_by_hand(node: FakeNode, payload: Path) -> None:
    assert errors(run(node, INSTALL, payload)) == []
    node.root.resolve(DROP_IN).unlink()
    node.restart("containerd.service", 1)
    reports = run(node, INSTALL, payload, user_drop_in=NO_CRI)
    assert exit_code(reports) == 4, reports
    assert node.handlers == ("runc",)
    assert errors(run(node, INSTALL, payload)) == []
    assert handlers(node) == ("kata-qemu",)


# Handlers that foreign files define


def test_a_handler_of_another_installer_is_refused_and_nothing_is_changed(
    node: FakeNode, payload: Path
) -> None:
    write(node, MAIN, CONFIG + KATA_DEPLOY)
    node.restart("containerd.service", 1)
    assert errors(run(node, (artifacts,), payload)) == []
    before = snapshot(node, "etc")
    reports = run(node, (cri,), payload)
    assert exit_code(reports) == 4, reports
    assert snapshot(node, "etc") == before
    assert state(node) == "nothing"
    assert node.restarts == 1


def test_a_revert_succeeds_although_the_admin_defines_the_same_handler(node: FakeNode, payload: Path) -> None:
    assert errors(run(node, INSTALL, payload)) == []
    write(node, MAIN, (read(node) or b"") + KATA_DEPLOY)
    assert errors(run(node, REVERT, payload)) == []
    assert read(node) == CONFIG + KATA_DEPLOY
    assert handlers(node) == ("kata-qemu",)


# Interrupted runs, followed by other runs


def every_cut(
    tmp_path: Path, prepare: Callable[[FakeNode], None], cut: Callable[[FakeNode], object]
) -> list[FakeNode]:
    """Return a node for each change after which ``cut`` can be killed. ``prepare`` runs before it."""
    nodes = []
    for changes in range(200):
        node = make_node(tmp_path / f"host-{changes}")
        prepare(node)
        try:
            with killed_after(changes):
                cut(node)
        except Killed:
            nodes.append(node)
        else:
            return nodes
    pytest.fail("the run did not end")


def test_a_broken_user_drop_in_is_never_on_the_disk(tmp_path: Path, payload: Path) -> None:
    """If the node lost power then, it would boot without its runtime."""

    def placed(node: FakeNode) -> None:
        assert errors(run(node, (artifacts,), payload)) == []

    for node in every_cut(tmp_path, placed, lambda node: run(node, (cri,), payload, user_drop_in=NO_TOML)):
        assert node.load() == ("runc",)


@pytest.mark.slow
def test_an_install_that_was_killed_and_completed_is_reverted_by_one_run(
    tmp_path: Path, payload: Path
) -> None:
    before = snapshot(make_node(tmp_path / "untouched"))
    for node in every_cut(tmp_path, lambda _: None, lambda node: run(node, CRI, payload)):
        assert errors(run(node, CRI, payload)) == []
        assert errors(run(node, REVERT_CRI, payload)) == []
        assert snapshot(node) == before


@pytest.mark.slow
def test_an_update_that_moves_the_drop_ins_can_be_killed_anywhere_and_reverted(
    tmp_path: Path, payload: Path
) -> None:
    """containerd was upgraded and now imports conf.d. The old drop-ins must be removed too."""

    def upgraded(node: FakeNode) -> None:
        assert errors(run(node, CRI, payload, user_drop_in=EXTRA)) == []
        write(node, MAIN, WITH_CONF_D.replace(b"]", b', "/opt/kata/containerd/config.d/*.toml"]'))
        node.version = "2.2.1"
        node.restart("containerd.service", 1)

    nodes = every_cut(tmp_path, upgraded, lambda node: run(node, CRI, payload))
    assert len(nodes) > 5
    for node in nodes:
        assert errors(run(node, REVERT_CRI, payload)) == []
        assert node.handlers == ("runc",)
        assert read(node) == WITH_CONF_D
        assert snapshot(node, "opt") == {}
        assert snapshot(node, "etc/containerd/conf.d") == {}


@pytest.mark.slow
def test_a_resumed_install_that_is_rolled_back_leaves_no_directory_behind(
    tmp_path: Path, payload: Path
) -> None:
    def placed(node: FakeNode) -> None:
        assert errors(run(node, (artifacts,), payload)) == []

    for node in every_cut(tmp_path, placed, lambda node: run(node, (cri,), payload)):
        served = ("kata-qemu", "runc") if state(node) == "serving" else ("runc",)
        assert exit_code(run(node, (cri,), payload, user_drop_in=NO_CRI)) == 4
        assert node.handlers == served
        assert errors(run(node, REVERT_CRI, payload)) == []
        assert snapshot(node, "opt") == {}
        assert read(node) == CONFIG


@pytest.mark.slow
def test_a_rollback_that_is_killed_leaves_a_restart_owed(tmp_path: Path, payload: Path) -> None:
    """The running invocation has not read the files that are on the disk then."""

    def installed(node: FakeNode) -> None:
        assert errors(run(node, CRI, payload)) == []
        # The runtime loads the update, but leaves out one of the handlers.
        node.on_restart = lambda: setattr(
            node, "handlers", tuple(sorted(set(node.handlers or ()) - {"kata-clh"}))
        )

    nodes = every_cut(
        tmp_path, installed, lambda node: run(node, CRI, payload, shims="qemu,clh", user_drop_in=EXTRA)
    )
    assert any(
        "extra" in (node.handlers or ()) and b"extra" not in content_of_drop_ins(node) for node in nodes
    )
    for node in nodes:
        assert errors(run(node, CRI, payload)) == []
        assert node.handlers == ("kata-qemu", "runc")


def test_a_restart_that_kills_kata_node_is_resumed_although_no_file_was_changed(
    node: FakeNode, payload: Path
) -> None:
    """The runtime lost the handlers without a change of files: the run writes nothing, but restarts."""
    assert errors(run(node, INSTALL, payload)) == []
    node.handlers = ("runc",)
    node.on_restart = die
    with pytest.raises(Killed):
        run(node, (cri,), payload)
    node.on_restart = lambda: None
    assert errors(run(node, INSTALL, payload)) == []
    assert handlers(node) == ("kata-qemu",)


# A revert after which the runtime does not start


def test_a_revert_after_which_the_runtime_does_not_start_is_rolled_back(
    node: FakeNode, payload: Path
) -> None:
    assert errors(run(node, INSTALL, payload)) == []
    before = snapshot(node)
    node.refusals = 1
    reports = run(node, (revert_cri,), payload)
    assert exit_code(reports) == 4, reports
    assert handlers(node) == ("kata-qemu",)
    assert {
        path: what for path, what in snapshot(node).items() if "backups" not in path and "receipt" not in path
    } == {path: what for path, what in before.items() if "backups" not in path and "receipt" not in path}
    assert errors(run(node, REVERT, payload)) == []
    assert read(node) == CONFIG
    assert snapshot(node, "opt") == {}


# The unit of the runtime


def test_a_runtime_that_a_killed_run_left_stopped_is_started_or_rolled_back(
    node: FakeNode, payload: Path
) -> None:
    assert errors(run(node, (artifacts,), payload)) == []
    node.on_restart = die
    with pytest.raises(Killed):
        run(node, (cri,), payload)
    node.on_restart = lambda: None
    node.stop()
    reports = run(node, (cri,), payload, user_drop_in=NO_CRI)
    assert exit_code(reports) == 4, reports
    assert node.handlers == ("runc",)
    assert state(node) == "nothing"


def test_a_runtime_that_starts_without_the_cri_is_reported_with_the_command_that_shows_why(
    node: FakeNode, payload: Path
) -> None:
    (error,) = errors(run(node, INSTALL, payload, user_drop_in=NO_CRI))
    assert journal_command("containerd.service") in str(error)


def test_a_runtime_that_was_stopped_after_a_killed_run_is_started(node: FakeNode, payload: Path) -> None:
    node.on_restart = die
    with pytest.raises(Killed):
        run(node, INSTALL, payload)
    node.on_restart = lambda: None
    node.stop()
    assert errors(run(node, INSTALL, payload, restart_timeout=0.05)) == []
    assert handlers(node) == ("kata-qemu",)


@pytest.mark.slow
def test_a_killed_revert_continues_after_the_admin_corrects_a_broken_main_file(
    tmp_path: Path, payload: Path
) -> None:
    def installed(node: FakeNode) -> None:
        assert errors(run(node, CRI, payload)) == []

    dangling, right = b'imports = ["/etc/missing.toml"]\n' + CONFIG, CONFIG + b"# corrected\n"
    for node in every_cut(tmp_path, installed, lambda node: run(node, (revert_cri,), payload)):
        if state(node) == "nothing":
            continue
        served = node.handlers
        write(node, MAIN, dangling)
        # The runtime needs a restart, but cannot start with this file.
        assert exit_code(run(node, (revert_cri,), payload)) == 3
        assert (read(node), node.handlers) == (dangling, served)
        write(node, MAIN, right)
        assert errors(run(node, REVERT_CRI, payload)) == []
        assert (read(node), node.handlers) == (right, ("runc",))


def test_a_runtime_that_serves_is_not_restarted_with_a_main_file_that_was_broken_meanwhile(
    node: FakeNode, payload: Path
) -> None:
    node.on_restart = die
    with pytest.raises(Killed):
        run(node, INSTALL, payload)
    node.on_restart = lambda: None
    written, restarts = read(node) or b"", node.restarts
    write(node, MAIN, written.replace(b"imports = [", b'imports = ["/etc/missing.toml", '))
    for stage in (cri, revert_cri):
        assert exit_code(run(node, (stage,), payload)) in (1, 3, 4)
        assert (handlers(node), node.restarts) == (("kata-qemu",), restarts)
    write(node, MAIN, written)
    assert errors(run(node, INSTALL, payload)) == []
    assert errors(run(node, REVERT, payload)) == []
    assert read(node) == CONFIG


def test_a_revert_does_not_start_a_stopped_runtime(node: FakeNode, payload: Path) -> None:
    before = snapshot(node)
    assert errors(run(node, INSTALL, payload)) == []
    node.stop()
    assert errors(run(node, REVERT, payload)) == []
    assert (node.state, node.restarts, snapshot(node)) == ("inactive", 1, before)


def test_a_revert_does_not_start_a_stopped_runtime_and_is_not_held_up_by_its_broken_file(
    node: FakeNode, payload: Path
) -> None:
    assert errors(run(node, INSTALL, payload)) == []
    write(node, MAIN, b'imports = ["/etc/missing.toml"]\n' + (read(node) or b"").replace(b"imports", b"#"))
    node.stop()
    restarts = node.restarts
    reports = run(node, REVERT, payload)
    assert errors(reports) == []
    assert node.state == "inactive"
    assert node.restarts == restarts


def test_a_live_node_without_the_unit_is_refused(node: FakeNode, payload: Path) -> None:
    assert errors(run(node, (artifacts,), payload)) == []
    node.exists = False
    before = snapshot(node)
    reports = run(node, (cri,), payload)
    assert exit_code(reports) == 3, reports
    assert snapshot(node) == before


def test_a_node_of_another_distribution_is_refused(node: FakeNode, payload: Path) -> None:
    assert errors(run(node, (artifacts,), payload)) == []
    node.others = ("k3s.service",)
    before = snapshot(node)
    reports = run(node, (cri,), payload)
    assert exit_code(reports) == 3, reports
    assert snapshot(node) == before


def test_a_runtime_that_does_not_answer_is_not_restarted_unless_a_restart_is_owed(
    node: FakeNode, payload: Path
) -> None:
    assert errors(run(node, INSTALL, payload)) == []
    node.cri_hangs = True
    before = snapshot(node)
    assert exit_code(run(node, (cri,), payload)) == 1
    assert (node.restarts, snapshot(node)) == (1, before)


def test_another_main_file_in_the_units_arguments_gets_the_entry(node: FakeNode, payload: Path) -> None:
    assert errors(run(node, INSTALL, payload)) == []
    write(node, "/etc/own/containerd.toml", b"version = 3\n")
    node.argv = ("/usr/bin/containerd", "--config", "/etc/own/containerd.toml")
    assert errors(run(node, INSTALL, payload)) == []
    assert handlers(node) == ("kata-qemu",)
    assert read(node) == CONFIG
    assert errors(run(node, REVERT, payload)) == []
    assert read(node, "/etc/own/containerd.toml") == b"version = 3\n"
    assert snapshot(node, "opt") == {}


def test_a_runtime_that_hangs_after_the_restart_is_rolled_back_and_restarted(
    node: FakeNode, payload: Path
) -> None:
    before = snapshot(node, "etc")
    node.on_restart = lambda: setattr(node, "cri_hangs", node.restarts == 1)
    reports = run(node, INSTALL, payload, restart_timeout=0.05)
    assert exit_code(reports) == 4, reports
    assert (node.handlers, node.restarts) == (("runc",), 2)
    assert snapshot(node, "etc") == before


def test_a_runtime_that_stays_activating_is_rolled_back(node: FakeNode, payload: Path) -> None:
    node.on_restart = lambda: setattr(node, "state", "activating" if node.restarts == 1 else "active")
    reports = run(node, INSTALL, payload, restart_timeout=0.05)
    assert exit_code(reports) == 4, reports
    assert (node.handlers, state(node)) == (("runc",), "nothing")


def test_an_interrupted_install_is_rolled_back(
    node: FakeNode, payload: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(node, "etc")

    def control_c(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(FakeNode, "restart", control_c)
    reports = run(node, INSTALL, payload)
    assert exit_code(reports) == 4, reports
    assert snapshot(node, "etc") == before


# Lost receipts and backups, and installations with the same name


def test_a_revert_succeeds_without_the_backups(node: FakeNode, payload: Path) -> None:
    assert errors(run(node, INSTALL, payload)) == []
    shutil.rmtree(node.root.resolve("/opt/kata/.kata-node/backups"))
    assert errors(run(node, INSTALL, payload, shims="qemu,clh")) == []
    assert errors(run(node, REVERT, payload)) == []
    assert read(node) == CONFIG
    assert snapshot(node, "opt") == {}


def test_a_damaged_backup_is_not_restored(node: FakeNode, payload: Path) -> None:
    assert errors(run(node, INSTALL, payload)) == []
    backups = "/opt/kata/.kata-node/backups"
    for name in node.root.list_dir(backups):
        write(node, f"{backups}/{name}", b"")
    assert errors(run(node, REVERT, payload)) == []
    assert read(node) == CONFIG


def test_a_run_continues_although_the_backups_of_a_killed_run_are_lost(node: FakeNode, payload: Path) -> None:
    assert errors(run(node, INSTALL, payload)) == []
    node.on_restart = die
    with pytest.raises(Killed):
        run(node, CRI, payload, shims="qemu,clh")
    node.on_restart = lambda: None
    shutil.rmtree(node.root.resolve("/opt/kata/.kata-node/backups"))
    assert exit_code(run(node, CRI, payload, shims="clh", user_drop_in=NO_CRI)) == 4
    assert node.handlers is not None
    assert errors(run(node, REVERT, payload)) == []
    assert read(node) == CONFIG


def test_a_revert_finds_all_files_without_the_receipt(node: FakeNode, payload: Path) -> None:
    assert errors(run(node, INSTALL, payload, user_drop_in=EXTRA)) == []
    shutil.rmtree(node.root.resolve("/opt/kata/.kata-node"))
    assert errors(run(node, REVERT, payload)) == []
    assert (read(node), node.handlers) == (CONFIG, ("runc",))
    assert (read(node, DROP_IN), read(node, USER_DROP_IN)) == (None, None)


def test_an_install_writes_a_lost_receipt_again_and_a_later_revert_is_complete(
    node: FakeNode, payload: Path
) -> None:
    assert errors(run(node, INSTALL, payload)) == []
    shutil.rmtree(node.root.resolve("/opt/kata/.kata-node"))
    assert errors(run(node, INSTALL, payload)) == []
    assert node.restarts == 2
    assert errors(run(node, REVERT, payload)) == []
    assert read(node) == CONFIG
    # Empty directories stay: without the first receipt it is not known who created them.
    assert {kind for _, kind, _ in snapshot(node, "opt").values()} == {""}


@pytest.mark.parametrize("lost", ["opt/kata", "opt"])
def test_a_revert_without_a_receipt_leaves_nothing_of_its_own(
    node: FakeNode, payload: Path, lost: str
) -> None:
    assert errors(run(node, INSTALL, payload)) == []
    shutil.rmtree(node.root.base / lost)
    assert errors(run(node, REVERT_CRI, payload)) == []
    assert (read(node), node.handlers) == (CONFIG, ("runc",))
    assert set(snapshot(node)) & {"opt", "opt/kata"} == ({"opt"} if lost == "opt/kata" else set())


def test_an_import_of_ours_that_was_there_before_stays_after_the_revert(
    node: FakeNode, payload: Path
) -> None:
    before = b'version = 3\nimports = ["/opt/kata/containerd/config.d/*.toml"]\n'
    write(node, MAIN, before)
    assert errors(run(node, INSTALL, payload)) == []
    assert handlers(node) == ("kata-qemu",)
    assert outcomes(run(node, CRI, payload)) == ["artifacts skipped", "cri skipped"]
    assert errors(run(node, REVERT, payload)) == []
    assert (read(node), node.handlers) == (before, ("runc",))


@pytest.mark.parametrize("stage", [cri, revert_cri])
def test_what_the_proving_plan_raises_is_rolled_back(
    node: FakeNode, payload: Path, monkeypatch: pytest.MonkeyPatch, stage: Any
) -> None:
    assert errors(run(node, (artifacts,) if stage is cri else INSTALL, payload)) == []
    before, served, restarts = snapshot(node, "etc"), node.handlers, node.restarts
    real = stage.plan

    def plan_and_fail(*args: Any) -> Any:
        if node.restarts > restarts:
            raise HostError("the tables cannot be read", where=MAIN)
        return real(*args)

    monkeypatch.setattr(stage, "plan", plan_and_fail)
    reports = run(node, (stage,), payload)
    assert exit_code(reports) == 4, reports
    assert "the tables cannot be read" in str(reports[-1].error)
    assert (snapshot(node, "etc"), node.handlers) == (before, served)
    monkeypatch.undo()
    assert errors(run(node, (stage,), payload)) == []


def test_old_backups_are_removed_when_an_update_serves(node: FakeNode, payload: Path) -> None:
    for user_drop_in in ("", EXTRA, ""):
        assert errors(run(node, INSTALL, payload, user_drop_in=user_drop_in)) == []
        write(node, MAIN, (read(node) or b"") + b"# edited\n")
    receipt = receipts.load(node.root, "/opt/kata")
    assert receipt is not None
    assert receipt.cri is not None
    assert set(node.root.list_dir("/opt/kata/.kata-node/backups")) == {
        backup.sha256 for backup in receipt.cri.backups()
    }


def test_foreign_files_in_the_install_dir_stay_and_do_not_fail_a_revert(
    node: FakeNode, payload: Path
) -> None:
    assert errors(run(node, INSTALL, payload)) == []
    copy, notes = "/opt/kata/.kata-node/receipt.json.bak", "/opt/kata/notes"
    write(node, copy, b"a copy")
    write(node, notes, b"a note")
    reports = run(node, REVERT, payload)
    assert errors(reports) == []
    assert {note.rpartition(" ")[2] for note in reports[-2].notes} == {copy, notes}
    assert read(node, copy) == b"a copy"
    assert errors(run(node, REVERT, payload)) == []


def test_an_install_dir_that_is_a_mount_point_stays(
    node: FakeNode, payload: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounted = node.root.resolve("/opt/kata")
    mounted.mkdir()
    real = Path.rmdir

    def busy(self: Path) -> None:
        if self == mounted:
            raise OSError(errno.EBUSY, "Device or resource busy")
        real(self)

    monkeypatch.setattr(Path, "rmdir", busy)
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == mounted)
    assert errors(run(node, INSTALL, payload)) == []
    assert errors(run(node, REVERT, payload)) == []
    assert set(snapshot(node, "opt")) == {"opt/kata"}
    assert outcomes(run(node, REVERT, payload))[-2] == "remove-artifacts skipped"


def test_a_revert_with_another_prefix_keeps_the_drop_in_of_the_other_installation(
    node: FakeNode, payload: Path
) -> None:
    write(node, MAIN, WITH_CONF_D)
    node.version = "2.2.1"
    assert errors(run(node, CRI, payload, installation_prefix="/srv")) == []
    assert errors(run(node, REVERT_CRI, payload)) == []
    assert handlers(node) == ("kata-qemu",)
    assert read(node, CONF_D) is not None


def test_an_install_at_another_prefix_does_not_overwrite_the_drop_in_of_the_first(
    node: FakeNode, payload: Path
) -> None:
    write(node, MAIN, WITH_CONF_D)
    node.version = "2.2.1"
    assert errors(run(node, CRI, payload)) == []
    before = snapshot(node, "etc")
    reports = run(node, CRI, payload, installation_prefix="/srv")
    assert exit_code(reports) == 3, reports
    assert snapshot(node, "etc") == before


# A full disk, and a lost connection to systemd


def test_an_install_on_a_full_disk_changes_nothing(
    node: FakeNode, payload: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert errors(run(node, (artifacts,), payload)) == []
    before = snapshot(node)

    def full(*_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fchmod", full)
    reports = run(node, (cri,), payload)
    assert exit_code(reports) == 4, reports
    assert {path: what for path, what in snapshot(node).items() if not path.endswith("backups")} == before


def test_the_runtime_is_restarted_although_a_file_cannot_be_restored(
    node: FakeNode, payload: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = reserve.restore

    def refuse_to_restore(root: Root, path: str, previous: FileState) -> None:
        if path == MAIN:
            raise HostError("Input/output error", where=path)
        real(root, path, previous)

    with monkeypatch.context() as patched:
        patched.setattr(reserve, "restore", refuse_to_restore)
        reports = run(node, INSTALL, payload, user_drop_in=NO_CRI)
    assert exit_code(reports) == 1, reports
    assert "restore /etc/containerd/config.toml: " in reports[-1].summary
    assert (node.handlers, state(node)) == (("runc",), "restarting")
    assert errors(run(node, REVERT, payload)) == []
    assert read(node) == CONFIG
    assert snapshot(node, "opt") == {}


def test_if_systemd_is_lost_before_the_restart_the_files_are_restored_and_the_next_run_continues(
    node: FakeNode, payload: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(node, "etc")
    real = CheckConfig.apply

    def apply_and_lose_systemd(self: CheckConfig, clients: object) -> None:
        real(self, clients)  # type: ignore[arg-type]
        node.systemd_gone = True

    monkeypatch.setattr(CheckConfig, "apply", apply_and_lose_systemd)
    reports = run(node, INSTALL, payload)
    assert exit_code(reports) == 1, reports
    assert snapshot(node, "etc") == before
    monkeypatch.undo()
    node.systemd_gone = False
    assert errors(run(node, INSTALL, payload)) == []
    assert handlers(node) == ("kata-qemu",)
    assert set(outcomes(run(node, INSTALL, payload))[1:]) == {
        "claim skipped",
        "artifacts skipped",
        "cri skipped",
        "label skipped",
    }


# The cluster


@pytest.fixture
def cluster(node: FakeNode) -> FakeKube:
    kube = FakeKube(node, {"kubernetes.io/hostname": "n1"})
    node.kube = kube
    return kube


MARKS = {"katacontainers.io/kata-runtime": "true", "kata-deploy.katacontainers.io/default": "true"}


def test_an_install_sets_the_labels_and_a_revert_removes_them(
    node: FakeNode, payload: Path, cluster: FakeKube
) -> None:
    assert errors(run(node, INSTALL, payload, node_name="n1")) == []
    assert cluster.marks == {"kubernetes.io/hostname": "n1"} | MARKS
    assert outcomes(run(node, INSTALL, payload, node_name="n1"))[-1] == "label skipped"
    assert errors(run(node, REVERT, payload, node_name="n1")) == []
    assert cluster.labels == {"kubernetes.io/hostname": "n1"}
    assert cluster.annotations == {}


def record_of(cluster: FakeKube) -> NodeStatus:
    record = records.read(cluster.annotations, "default")
    assert record is not None
    return record


def test_the_record_on_the_node_follows_an_install_an_upgrade_and_a_revert(
    node: FakeNode, payload: Path, cluster: FakeKube
) -> None:
    seen: list[NodeStatus] = []
    cluster.on_settled = lambda kube: seen.append(record_of(kube))
    cluster.machine_id = "ab" * 16
    assert errors(run(node, INSTALL, payload, node_name="n1")) == []
    claimed, installed = seen[0], record_of(cluster)
    assert (claimed.outcome, installed.outcome) == ("installing", "installed")
    assert (installed.kata_version, installed.program_version) == ("4.1.0-test", __version__)
    assert (installed.machine_id, installed.handlers) == ("ab" * 16, ("kata-qemu",))
    assert replace(claimed, outcome="installed", handlers=("kata-qemu",), since=installed.since) == installed
    assert cluster.labels["version.kata-deploy.katacontainers.io/default"] == "4.1.0-test"
    assert cluster.labels["outcome.kata-deploy.katacontainers.io/default"] == "installed"

    before = dict(cluster.labels), dict(cluster.annotations)
    again = run(node, INSTALL, payload, node_name="n1")
    assert {each.outcome for each in again if each.stage in ("claim", "label")} == {"skipped"}
    assert (cluster.labels, cluster.annotations) == before, "an unchanged upgrade writes nothing"

    seen.clear()
    changed = run(node, INSTALL, payload, node_name="n1", shims="qemu,clh")
    assert errors(changed) == []
    assert [each.outcome for each in seen][:1] == ["installing"]
    assert cluster.labels.items() >= MARKS.items()
    assert record_of(cluster).settings != installed.settings
    assert record_of(cluster).handlers == ("kata-clh", "kata-qemu")

    seen.clear()
    assert errors(run(node, (unlabel,), payload, node_name="n1")) == []
    assert record_of(cluster).outcome == "removing"
    assert record_of(cluster).kata_version == "4.1.0-test"


def test_records_of_installations_side_by_side_do_not_disturb_each_other(
    node: FakeNode, payload: Path, cluster: FakeKube
) -> None:
    for suffix in ("", "blue"):
        assert errors(run(node, INSTALL, payload, node_name="n1", multi_install_suffix=suffix)) == []
    blue = records.annotation("blue")
    kept = cluster.annotations[blue]
    assert errors(run(node, REVERT, payload, node_name="n1")) == []
    assert {key for key in cluster.annotations if key.startswith("status.")} == {blue}
    assert cluster.annotations[blue] == kept
    assert {key for key in cluster.labels if key.startswith(("version.", "outcome."))} == {
        records.version_label("blue"),
        records.outcome_label("blue"),
    }


def test_a_revert_without_a_cluster_notes_the_commands_that_remove_the_labels(
    node: FakeNode, payload: Path
) -> None:
    """The shared label belongs to both installations until the last one is reverted."""
    for suffix in ("", "blue"):
        assert errors(run(node, INSTALL, payload, multi_install_suffix=suffix)) == []
    unlabeled, *_ = run(node, REVERT, payload, multi_install_suffix="blue")
    (note,) = unlabeled.notes
    assert "`kubectl label node NAME kata-deploy.katacontainers.io/blue-`" in note
    unlabeled, *_ = run(node, REVERT, payload)
    (note,) = unlabeled.notes
    keys = "kata-deploy.katacontainers.io/default- katacontainers.io/kata-runtime-"
    assert f"`kubectl label node NAME {keys}`" in note
    unlabeled, *_ = run(node, REVERT, payload, offline=True, runtime="containerd://2.1.9")
    assert unlabeled.notes == ()


def test_a_node_is_claimed_before_anything_is_written_to_it(
    node: FakeNode, payload: Path, cluster: FakeKube
) -> None:
    before, seen = snapshot(node), []
    cluster.on_settled = lambda kube: seen.append((dict(kube.labels), snapshot(node) == before))
    assert errors(run(node, INSTALL, payload, node_name="n1")) == []
    labels, untouched = seen[0]
    assert labels.items() >= ({"kubernetes.io/hostname": "n1"} | dict.fromkeys(MARKS, "false")).items()
    assert untouched


def test_the_labels_are_false_after_a_failed_install_or_revert(
    node: FakeNode, payload: Path, cluster: FakeKube
) -> None:
    claims = dict.fromkeys(MARKS, "false")
    failed = run(node, INSTALL, payload, node_name="n1", user_drop_in=NO_CRI)
    assert exit_code(failed) == 4
    assert cluster.labels.items() >= claims.items()
    assert errors(run(node, INSTALL, payload, node_name="n1")) == []
    node.systemd_gone = True
    assert exit_code(run(node, REVERT, payload, node_name="n1")) == 1
    assert cluster.labels.items() >= claims.items()
    node.systemd_gone = False
    assert errors(run(node, REVERT, payload, node_name="n1")) == []
    assert not cluster.labels.keys() & claims.keys()


def test_the_shared_label_stays_true_while_a_serving_node_is_updated(
    node: FakeNode, payload: Path, cluster: FakeKube
) -> None:
    assert errors(run(node, INSTALL, payload, node_name="n1")) == []
    seen: list[str] = []
    cluster.on_settled = lambda kube: seen.append(kube.labels["katacontainers.io/kata-runtime"])
    assert errors(run(node, INSTALL, payload, node_name="n1", shims="qemu,clh")) == []
    assert "false" not in seen
    assert cluster.labels.items() >= MARKS.items()


def test_all_requests_of_a_stage_have_the_same_deadline(
    node: FakeNode, payload: Path, cluster: FakeKube, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert errors(run(node, (claim, *CRI), payload, node_name="n1")) == []
    deadlines: list[float] = []

    def spied(name: str) -> None:
        real = getattr(FakeKube, name)

        def spy(self: FakeKube, *args: Any, **more: Any) -> Any:
            deadlines.append(more["deadline"])
            return real(self, *args, **more)

        monkeypatch.setattr(FakeKube, name, spy)

    for name in ("wait_ready", "ensure_labels"):
        spied(name)
    cluster.away = 1
    assert errors(run(node, (label,), payload, node_name="n1")) == []
    first, second = deadlines
    assert first == second


GONE = {"key": "example.com/starting", "effect": "NoSchedule", "value": "yes"}
STAYS = {"key": "example.com/starting", "effect": "NoExecute"}


@pytest.mark.parametrize(
    ("startup", "left"),
    [
        pytest.param("example.com/starting", [], id="by key"),
        pytest.param("example.com/starting:NoSchedule", [STAYS], id="by key and effect"),
        pytest.param("example.com/start", [GONE, STAYS], id="another key"),
    ],
)
def test_startup_taints_are_removed_after_the_node_is_labeled(
    node: FakeNode, payload: Path, cluster: FakeKube, startup: str, left: list[dict[str, str]]
) -> None:
    cluster.taints = [GONE, STAYS]
    taints_when_labeled: list[int] = []
    cluster.on_settled = lambda kube: taints_when_labeled.append(len(kube.taints))
    assert errors(run(node, INSTALL, payload, node_name="n1", startup_taints=startup)) == []
    assert cluster.taints == left
    assert set(taints_when_labeled) == {2}


def test_a_startup_taint_that_cannot_be_removed_is_noted_and_does_not_fail_the_run(
    node: FakeNode, payload: Path, cluster: FakeKube
) -> None:
    cluster.taints, cluster.keeps_taints = [GONE], True
    reports = run(node, INSTALL, payload, node_name="n1", startup_taints=GONE["key"])
    assert exit_code(reports) == 0
    assert ["example.com/starting:NoSchedule" in note for note in reports[-1].notes] == [True]
    cluster.keeps_taints = False
    reports = run(node, INSTALL, payload, node_name="n1", startup_taints=GONE["key"])
    assert (outcomes(reports)[-1], cluster.taints) == ("label done", [])


def test_the_label_stage_waits_for_a_node_that_registers_again_after_the_restart(
    node: FakeNode, payload: Path, cluster: FakeKube
) -> None:
    cluster.away = 1
    assert errors(run(node, INSTALL, payload, node_name="n1")) == []
    assert cluster.labels.items() >= MARKS.items()


def test_a_node_that_is_not_ready_right_after_it_was_labeled_does_not_fail_the_run(
    node: FakeNode, payload: Path, cluster: FakeKube
) -> None:
    def away(kube: FakeKube) -> None:
        kube.ready = "true" not in kube.labels.values()

    cluster.on_settled = away
    assert errors(run(node, INSTALL, payload, node_name="n1")) == []


def test_if_the_api_server_refuses_the_labels_the_next_run_sets_them(
    node: FakeNode, payload: Path, cluster: FakeKube
) -> None:
    run(node, (claim,), payload, node_name="n1")
    cluster.error = KubeError("it refuses", where="https://api")
    reports = run(node, (*CRI, label), payload, node_name="n1")
    assert (reports[-1].stage, exit_code(reports)) == ("label", 1)
    assert handlers(node) == ("kata-qemu",)
    cluster.error = None
    assert outcomes(run(node, INSTALL, payload, node_name="n1"))[1:] == [
        "claim done",  # only host-check has told the version of Kata, which the record has now
        "artifacts skipped",
        "cri skipped",
        "label done",
    ]


def test_a_node_that_cannot_be_claimed_is_not_changed(
    node: FakeNode, payload: Path, cluster: FakeKube
) -> None:
    before = snapshot(node)
    cluster.error = KubeError("it refuses", where="https://api")
    reports = run(node, INSTALL, payload, node_name="n1")
    assert (reports[-1].stage, exit_code(reports)) == ("claim", 1)
    assert snapshot(node) == before


def test_a_revert_changes_nothing_if_the_labels_cannot_be_withdrawn(
    node: FakeNode, payload: Path, cluster: FakeKube
) -> None:
    assert errors(run(node, INSTALL, payload, node_name="n1")) == []
    before = snapshot(node)
    cluster.error = KubeError("it refuses", where="https://api")
    assert exit_code(run(node, REVERT, payload, node_name="n1")) == 1
    assert (snapshot(node), handlers(node)) == (before, ("kata-qemu",))


# Refusals


@pytest.mark.parametrize("installed", [False, True])
def test_host_check_waits_for_a_runtime_that_is_restarting(
    node: FakeNode, payload: Path, monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    if installed:
        assert errors(run(node, INSTALL, payload)) == []
    node.state = "activating"
    waited: list[float] = []

    class Clock:
        monotonic = staticmethod(lambda: float(len(waited)))

        @staticmethod
        def sleep(seconds: float) -> None:
            waited.append(seconds)
            node.state = "active" if len(waited) == 2 else "activating"

    monkeypatch.setattr(facts, "time", Clock)
    monkeypatch.setattr(facts, "RESTART_GRACE_PERIOD", 3)
    assert errors(run(node, INSTALL, payload)) == []
    assert len(waited) == 2
    node.state = "activating"
    waited.clear()
    monkeypatch.setattr(Clock, "sleep", waited.append)
    assert exit_code(run(node, INSTALL, payload)) == 1
    assert len(waited) == 3


def test_a_revert_does_not_change_another_machine(node: FakeNode, payload: Path) -> None:
    write(node, "/etc/machine-id", b"0123456789abcdef0123456789abcdef\n")
    right = "01234567-89AB-CDEF-0123-456789ABCDEF"
    assert errors(run(node, INSTALL, payload, machine_id=right)) == []
    before = snapshot(node)
    assert exit_code(run(node, REVERT, payload, machine_id="f" * 32)) == 3
    assert snapshot(node) == before


def test_the_labels_of_another_machine_are_not_changed(
    node: FakeNode, payload: Path, cluster: FakeKube
) -> None:
    for there in ({}, MARKS):
        cluster.labels = dict(there)
        for stage in (claim, label, unlabel, unclaim):
            assert exit_code(run(node, (stage,), payload, node_name="n1", machine_id="f" * 32)) == 3
            assert cluster.labels == there


def test_unread_files_fail_for_good_only_if_no_other_run_is_about_to_load_them(
    node: FakeNode, payload: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unread = UnreadConfig(1.0, {MAIN: 2.0}, Trial("fails", "it wrote: no"))
    found = iter((unread, unread, unread, None))
    monkeypatch.setattr(facts, "unread_config", lambda *_: next(found))
    assert exit_code(run(node, (host_check,), payload)) == 3
    with lock.hold(node.root, "cri", 0):  # it does not end in time, so a retry may help
        assert exit_code(run(node, (host_check,), payload, lock_timeout=0)) == 1
    other = lock.hold(node.root, "cri", 0)
    other.__enter__()
    monkeypatch.setattr("time.sleep", lambda seconds: other.__exit__(None, None, None))
    assert errors(run(node, (host_check,), payload)) == []


def test_the_lock_is_released_before_a_failure_is_reported(node: FakeNode, payload: Path) -> None:
    free: list[bool] = []

    def report(_: object) -> None:
        with contextlib.suppress(LockedError), lock.hold(node.root, "cri", 0):
            free.append(True)

    node.systemd_gone = True
    assert exit_code(run(node, CRI, payload, report=report)) == 1
    assert free == [True]


def test_a_run_fails_while_another_run_holds_the_lock(node: FakeNode, payload: Path) -> None:
    with lock.hold(node.root, "cri", 0):
        before = snapshot(node)
        assert exit_code(run(node, CRI, payload, lock_timeout=0)) == 5
        assert snapshot(node) == before


# Status, dry run and notes


def test_status_shows_an_owed_restart_until_it_is_done(node: FakeNode, payload: Path) -> None:
    (done,) = install_and_status(node, payload)
    assert (done.restart_owed, done.drift, done.cri) == (False, (), "serving")
    node.handlers = ("runc",)
    node.restart = die  # type: ignore[method-assign]
    with pytest.raises(Killed):
        run(node, (cri,), payload)
    (owed,) = gather_status(node, payload)
    assert (owed.recorded.cri, owed.restart_owed, owed.cri) == ("restarting", True, "not serving")
    node.systemd_gone = True
    assert gather_status(node, payload)[0].restart_owed
    node.systemd_gone = False
    del node.restart
    node.restart("containerd.service", 1)
    assert not gather_status(node, payload)[0].restart_owed


def test_status_names_changed_files_and_receipts_that_cannot_be_read(node: FakeNode, payload: Path) -> None:
    assert gather_status(node, payload) == ()
    install_and_status(node, payload)
    write(node, DROP_IN, b"# by hand\n")
    write(node, "/opt/kata/bin/qemu-system-x86_64", b"# by hand")
    write(
        node, "/opt/kata-copy/.kata-node/receipt.json", read(node, "/opt/kata/.kata-node/receipt.json") or b""
    )
    found, copy = gather_status(node, payload)
    assert found.drift == ("/opt/kata/bin/qemu-system-x86_64: changed", f"{DROP_IN}: changed")
    assert "/opt/kata" in copy.error


def install_and_status(node: FakeNode, payload: Path) -> tuple[InstallationStatus, ...]:
    assert errors(run(node, CRI, payload)) == []
    return gather_status(node, payload)


def gather_status(node: FakeNode, payload: Path) -> tuple[InstallationStatus, ...]:
    return node_status(node, payload).installations


def test_a_dry_run_shows_all_changes_and_makes_none(node: FakeNode, payload: Path) -> None:
    before = snapshot(node)
    planned = run(node, INSTALL, payload, dry_run=True)
    assert [report.outcome for report in planned] == ["done", "skipped", "planned", "planned", "skipped"]
    assert planned[3].preview is not None
    assert MAIN in [each.path for each in planned[3].preview.configuration()]
    assert (snapshot(node), node.restarts) == (before, 0)
    assert errors(run(node, INSTALL, payload)) == []
    installed = snapshot(node)
    planned = run(node, REVERT, payload, dry_run=True)
    assert [report.outcome for report in planned] == ["skipped", "planned", "planned", "skipped"]
    assert [note for report in planned[1:] for note in report.notes] == []
    assert (snapshot(node), node.restarts) == (installed, 1)


def test_a_revert_by_hand_without_a_cluster_notes_that_labels_stay(node: FakeNode, payload: Path) -> None:
    assert errors(run(node, INSTALL, payload)) == []
    (note,) = run(node, REVERT, payload)[0].notes
    assert "NODE_NAME and KUBECONFIG" in note
    assert run(node, (unlabel,), payload, offline=True)[0].notes == ()


def test_a_node_is_not_labeled_from_another_machine(node: FakeNode, payload: Path, cluster: FakeKube) -> None:
    write(node, "/etc/machine-id", b"0123456789abcdef0123456789abcdef\n")
    cluster.machine_id = "f" * 32
    before = snapshot(node)
    for stages in (INSTALL, REVERT):
        reports = run(node, stages, payload, node_name="n1", has_host_root=True)
        assert exit_code(reports) == 3
        assert "but this node has 0123456789abcdef" in reports[-1].summary
    assert (snapshot(node), cluster.labels) == (before, {"kubernetes.io/hostname": "n1"})
    assert errors(run(node, (claim,), payload, node_name="n1", has_host_root=False)) == []
    cluster.machine_id = "01234567-89AB-CDEF-0123-456789ABCDEF"
    assert errors(run(node, INSTALL, payload, node_name="n1", has_host_root=True)) == []


@pytest.mark.parametrize("late", ["away", "registered anew"])
def test_a_taint_that_appears_while_the_node_is_labeled_is_removed(
    node: FakeNode, payload: Path, cluster: FakeKube, late: str
) -> None:
    assert errors(run(node, (claim, *CRI), payload, node_name="n1")) == []
    if late == "away":
        cluster.taints, cluster.away = [GONE], 1
    else:
        cluster.on_settled = lambda kube: kube.taints.append(GONE)
    assert errors(run(node, (label,), payload, node_name="n1", startup_taints=GONE["key"])) == []
    assert cluster.taints == []


def test_a_taint_that_cannot_be_removed_does_not_keep_other_taints(
    node: FakeNode, payload: Path, cluster: FakeKube
) -> None:
    cluster.taints, cluster.stuck = [GONE, STAYS], STAYS
    reports = run(node, INSTALL, payload, node_name="n1", startup_taints=GONE["key"])
    assert cluster.taints == [STAYS]
    assert ["NoExecute" in note for note in reports[-1].notes] == [True]


def test_a_startup_taint_of_another_effect_is_noted(node: FakeNode, payload: Path, cluster: FakeKube) -> None:
    cluster.taints = [GONE]
    reports = run(node, INSTALL, payload, node_name="n1", startup_taints=f"{GONE['key']}:PreferNoSchedule")
    assert ["another effect" in note for note in reports[-1].notes] == [True]


def test_a_revert_needs_neither_the_payload_nor_the_settings_of_the_install(
    node: FakeNode, payload: Path, tmp_path: Path
) -> None:
    before = snapshot(node)
    assert errors(run(node, INSTALL, payload, shims="qemu,clh", user_drop_in=EXTRA)) == []
    assert errors(run(node, REVERT, tmp_path / "no-payload", shims="remote")) == []
    assert snapshot(node) == before


def test_only_root_can_read_the_drop_in_of_the_user(node: FakeNode, payload: Path) -> None:
    def others() -> list[str]:
        found = (path for path in node.root.base.rglob("*") if path.is_file() and SECRET in path.read_bytes())
        return [str(path) for path in found if path.stat().st_mode & 0o077]

    for text in (f'a = "{SECRET.decode()}"\n', f'b = "{SECRET.decode()}"\n'):  # the second has a backup
        assert errors(run(node, INSTALL, payload, user_drop_in=text)) == []
        assert others() == []
    drop_in, restarts = node.root.resolve(USER_DROP_IN), node.restarts
    drop_in.chmod(0o644)  # as an earlier release left it
    assert errors(run(node, INSTALL, payload, user_drop_in=text)) == []
    assert (others(), node.restarts) == ([], restarts)
    reports = run(node, INSTALL, payload, user_drop_in=text)
    assert {each.outcome for each in reports} == {"skipped"} | {each.outcome for each in reports[:1]}
    assert errors(run(node, REVERT, payload)) == []
    assert not [path for path in node.root.base.rglob("*") if path.is_file() and SECRET in path.read_bytes()]
