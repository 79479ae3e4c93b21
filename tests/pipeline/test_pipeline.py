"""Installations as their users live through them, end to end over a node in memory."""

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
from fakes import MAIN, FakeKube, FakeNode

from kata_node import status
from kata_node.checks import facts
from kata_node.errors import HostError, KubeError, LockedError
from kata_node.host import lock
from kata_node.host.files import Root
from kata_node.host.journal import journal_command
from kata_node.plan import receipt as receipts
from kata_node.plan.context import Options
from kata_node.runtime import restart
from kata_node.settings import load as settings
from pipeline.harness import (
    CONFIG,
    INSTALL,
    REVERT,
    Killed,
    errors,
    exit_code,
    killed_after,
    make_node,
    outcomes,
    run,
    small_payload,
    snapshot,
)
from stages import artifacts, claim, cri, label, remove_artifacts, revert_cri, unclaim, unlabel

CRI = (artifacts, cri)
"""Without host-check, which refuses what this release does not promise, such as suffixes."""
BACK = (revert_cri, remove_artifacts)

NO_TOML = "this is [not TOML\n"
NO_CRI = '[plugins."io.containerd.cri.v1.images"]\nsnapshotter = "nobody"\n'
"""What only a restart shows."""
EXTRA = "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.extra]\nruntime_type = 'x'\n"
WITH_CONF_D = b'version = 3\nimports = ["/etc/containerd/conf.d/*.toml"]\n'
KATA_DEPLOY = b"[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.kata-qemu]\nruntime_type = 'x'\n"
DROP_IN = "/opt/kata/containerd/config.d/99-kata-deploy.toml"
USER_DROP_IN = "/opt/kata/containerd/config.d/zz-kata-deploy-user.toml"
CONF_D = "/etc/containerd/conf.d/99-kata-deploy.toml"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    monkeypatch.setattr(restart, "POLL", 0.001)
    monkeypatch.setattr(restart, "PATIENCE", 0.01)


@pytest.fixture(scope="module")
def payload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_payload(tmp_path_factory.mktemp("payload"))


@pytest.fixture
def node(tmp_path: Path) -> FakeNode:
    return make_node(tmp_path / "host")


def write(node: FakeNode, path: str, content: bytes) -> None:
    real = node.root.resolve(path)
    real.parent.mkdir(parents=True, exist_ok=True)
    real.write_bytes(content)


def read(node: FakeNode, path: str = MAIN) -> bytes | None:
    return node.root.read(path)


def handlers(node: FakeNode) -> tuple[str, ...]:
    return tuple(name for name in node.handlers or () if name.startswith("kata"))


def all_of_ours(node: FakeNode) -> bytes:
    directory = "/opt/kata/containerd/config.d"
    return b"".join(read(node, f"{directory}/{name}") or b"" for name in node.root.list_dir(directory))


def die(*_: object, **__: object) -> None:
    raise Killed


def state(node: FakeNode, install_dir: str = "/opt/kata") -> str:
    receipt = receipts.load(node.root, install_dir)
    return receipt.cri.state if receipt and receipt.cri else "nothing"


# What the admin wrote


def test_a_large_file_of_the_admin_is_not_parsed_again_and_again(
    node: FakeNode, payload: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of 1 MB takes a quarter of a second each time."""
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
    assert len(parsed) < 10  # more than a hundred when every question parses it


def test_an_edit_by_the_admin_survives_an_update_and_the_revert_after_it(
    node: FakeNode, payload: Path
) -> None:
    """The update records the edited file anew: what the node had first is not what it has now."""
    assert errors(run(node, INSTALL, payload)) == []
    write(node, MAIN, (read(node) or b"") + b"# a new admin\n")
    assert errors(run(node, INSTALL, payload, shims="qemu,clh")) == []
    assert errors(run(node, REVERT, payload)) == []
    assert read(node) == CONFIG + b"# a new admin\n"


def test_a_main_file_the_admin_removed_does_not_come_back_with_the_revert(
    node: FakeNode, payload: Path
) -> None:
    assert errors(run(node, INSTALL, payload)) == []
    node.root.resolve(MAIN).unlink()
    assert errors(run(node, INSTALL, payload)) == []
    assert handlers(node) == ("kata-qemu",)
    assert errors(run(node, REVERT, payload)) == []
    assert read(node) is None


def test_a_main_file_that_became_a_symlink_stays_one_and_what_it_leads_to_is_edited(
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
    assert errors(run(node, BACK, payload)) == []
    assert handlers(node) == ("kata-qemu-blue",)
    assert errors(run(node, BACK, payload, multi_install_suffix="blue")) == []
    assert snapshot(node) == before


def test_a_rollback_keeps_what_the_admin_wrote_while_a_run_was_unfinished(
    node: FakeNode, payload: Path
) -> None:
    """Undoing failed, the admin repaired the node by hand, and the next run fails as well."""
    node.refusals = 2
    assert exit_code(run(node, INSTALL, payload)) == 1
    write(node, MAIN, CONFIG + b"# repaired by hand\n")
    node.restart("containerd.service", 1)
    node.refusals = 1
    assert exit_code(run(node, INSTALL, payload)) == 4
    assert read(node) == CONFIG + b"# repaired by hand\n"
    assert node.handlers == ("runc",)


def test_a_drop_in_that_was_removed_by_hand_is_unloaded_once_it_is_not_wanted(
    node: FakeNode, payload: Path
) -> None:
    """Nothing is left to write, yet the running invocation has read it."""
    assert errors(run(node, INSTALL, payload, user_drop_in=EXTRA)) == []
    node.root.resolve(USER_DROP_IN).unlink()
    assert errors(run(node, INSTALL, payload)) == []
    assert node.handlers == ("kata-qemu", "runc")


def test_a_drop_in_somebody_removed_does_not_keep_a_rollback_from_ending(
    node: FakeNode, payload: Path
) -> None:
    assert errors(run(node, INSTALL, payload)) == []
    node.root.resolve(DROP_IN).unlink()
    node.restart("containerd.service", 1)
    reports = run(node, INSTALL, payload, user_drop_in=NO_CRI)
    assert exit_code(reports) == 4, reports
    assert node.handlers == ("runc",)
    assert errors(run(node, INSTALL, payload)) == []
    assert handlers(node) == ("kata-qemu",)


# Handlers that others define


def test_a_handler_of_another_installer_is_refused_and_the_node_stays_as_it_was(
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


def test_a_handler_that_the_admin_took_over_does_not_hold_up_the_revert(
    node: FakeNode, payload: Path
) -> None:
    assert errors(run(node, INSTALL, payload)) == []
    write(node, MAIN, (read(node) or b"") + KATA_DEPLOY)
    assert errors(run(node, REVERT, payload)) == []
    assert read(node) == CONFIG + KATA_DEPLOY
    assert handlers(node) == ("kata-qemu",)


# Interrupted, then something else


def every_cut(
    tmp_path: Path, prepare: Callable[[FakeNode], None], cut: Callable[[FakeNode], object]
) -> list[FakeNode]:
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
    pytest.fail("the run never came to its end")


def test_a_broken_user_drop_in_is_on_the_disk_at_no_time(tmp_path: Path, payload: Path) -> None:
    """A node that loses its power meanwhile would come up without its runtime."""

    def placed(node: FakeNode) -> None:
        assert errors(run(node, (artifacts,), payload)) == []

    for node in every_cut(tmp_path, placed, lambda node: run(node, (cri,), payload, user_drop_in=NO_TOML)):
        assert node.load() == ("runc",)


def test_an_install_killed_anywhere_and_completed_is_reverted_in_one_go(
    tmp_path: Path, payload: Path
) -> None:
    before = snapshot(make_node(tmp_path / "untouched"))
    for node in every_cut(tmp_path, lambda _: None, lambda node: run(node, CRI, payload)):
        assert errors(run(node, CRI, payload)) == []
        assert errors(run(node, BACK, payload)) == []
        assert snapshot(node) == before


def test_an_update_that_moves_the_drop_ins_can_be_killed_anywhere_and_reverted(
    tmp_path: Path, payload: Path
) -> None:
    """containerd was upgraded, and the admin made it import conf.d: the drop-ins of old must go too."""

    def upgraded(node: FakeNode) -> None:
        assert errors(run(node, CRI, payload, user_drop_in=EXTRA)) == []
        write(node, MAIN, WITH_CONF_D.replace(b"]", b', "/opt/kata/containerd/config.d/*.toml"]'))
        node.version = "2.2.1"
        node.restart("containerd.service", 1)

    nodes = every_cut(tmp_path, upgraded, lambda node: run(node, CRI, payload))
    assert len(nodes) > 5
    for node in nodes:
        assert errors(run(node, BACK, payload)) == []
        assert node.handlers == ("runc",)
        assert read(node) == WITH_CONF_D
        assert snapshot(node, "opt") == {}
        assert snapshot(node, "etc/containerd/conf.d") == {}


def test_a_resumed_install_that_is_rolled_back_leaves_no_directory_behind(
    tmp_path: Path, payload: Path
) -> None:
    def placed(node: FakeNode) -> None:
        assert errors(run(node, (artifacts,), payload)) == []

    for node in every_cut(tmp_path, placed, lambda node: run(node, (cri,), payload)):
        served = ("kata-qemu", "runc") if state(node) == "serving" else ("runc",)
        assert exit_code(run(node, (cri,), payload, user_drop_in=NO_CRI)) == 4
        assert node.handlers == served
        assert errors(run(node, BACK, payload)) == []
        assert snapshot(node, "opt") == {}
        assert read(node) == CONFIG


def test_a_rollback_that_is_killed_leaves_a_restart_owed(tmp_path: Path, payload: Path) -> None:
    """What the running invocation has read is not what is on the disk any more."""

    def installed(node: FakeNode) -> None:
        assert errors(run(node, CRI, payload)) == []
        # The update loads, yet without one of the handlers wanted.
        node.on_restart = lambda: setattr(
            node, "handlers", tuple(sorted(set(node.handlers or ()) - {"kata-clh"}))
        )

    nodes = every_cut(
        tmp_path, installed, lambda node: run(node, CRI, payload, shims="qemu,clh", user_drop_in=EXTRA)
    )
    assert any("extra" in (node.handlers or ()) and b"extra" not in all_of_ours(node) for node in nodes)
    for node in nodes:
        assert errors(run(node, CRI, payload)) == []
        assert node.handlers == ("kata-qemu", "runc")


def test_a_restart_that_kills_the_installer_itself_can_be_resumed_though_the_files_were_right(
    node: FakeNode, payload: Path
) -> None:
    """The handlers were lost without a file changed, so nothing is written but the restart is done."""
    assert errors(run(node, INSTALL, payload)) == []
    node.handlers = ("runc",)
    node.on_restart = die
    with pytest.raises(Killed):
        run(node, (cri,), payload)
    node.on_restart = lambda: None
    assert errors(run(node, INSTALL, payload)) == []
    assert handlers(node) == ("kata-qemu",)


# A revert that cannot be proven


def test_a_revert_after_which_the_runtime_does_not_start_is_taken_back(node: FakeNode, payload: Path) -> None:
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


# The unit


def test_a_runtime_that_a_killed_run_left_stopped_is_started_and_put_back_if_that_fails(
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


def test_a_runtime_that_came_up_without_the_cri_is_told_with_the_way_to_see_why(
    node: FakeNode, payload: Path
) -> None:
    (error,) = errors(run(node, INSTALL, payload, user_drop_in=NO_CRI))
    assert journal_command("containerd.service") in str(error)


def test_a_runtime_that_somebody_stopped_after_the_run_was_killed_is_started(
    node: FakeNode, payload: Path
) -> None:
    node.on_restart = die
    with pytest.raises(Killed):
        run(node, INSTALL, payload)
    node.on_restart = lambda: None
    node.stop()
    assert errors(run(node, INSTALL, payload, restart_timeout=0.05)) == []
    assert handlers(node) == ("kata-qemu",)


def test_a_revert_killed_anywhere_waits_for_the_admin_to_correct_the_file_it_puts_back(
    tmp_path: Path, payload: Path
) -> None:
    def installed(node: FakeNode) -> None:
        assert errors(run(node, CRI, payload)) == []

    dangling, right = b'imports = ["/etc/missing.toml"]\n' + CONFIG, CONFIG + b"# corrected\n"
    for node in every_cut(tmp_path, installed, lambda node: run(node, (revert_cri,), payload)):
        if state(node) == "nothing":
            continue
        served, has_read = node.handlers, state(node) == "unloading"
        write(node, MAIN, dangling)
        # One that may have read what is put back would have to be restarted, and must not be.
        assert exit_code(run(node, (revert_cri,), payload)) == (1 if has_read else 4)
        assert (read(node), node.handlers) == (dangling, served)
        write(node, MAIN, right)
        assert errors(run(node, BACK, payload)) == []
        assert (read(node), node.handlers) == (right, ("runc",))


def test_a_runtime_that_serves_is_not_restarted_into_a_file_somebody_broke_meanwhile(
    node: FakeNode, payload: Path
) -> None:
    node.on_restart = die
    with pytest.raises(Killed):
        run(node, INSTALL, payload)
    node.on_restart = lambda: None
    written, restarts = read(node) or b"", node.restarts
    write(node, MAIN, written.replace(b"imports = [", b'imports = ["/etc/missing.toml", '))
    for stage in (cri, revert_cri):
        assert exit_code(run(node, (stage,), payload)) in (1, 4)
        assert (handlers(node), node.restarts) == (("kata-qemu",), restarts)
    write(node, MAIN, written)
    assert errors(run(node, INSTALL, payload)) == []
    assert errors(run(node, REVERT, payload)) == []
    assert read(node) == CONFIG


def test_a_revert_leaves_a_runtime_stopped_that_somebody_stopped(node: FakeNode, payload: Path) -> None:
    before = snapshot(node)
    assert errors(run(node, INSTALL, payload)) == []
    node.stop()
    assert errors(run(node, REVERT, payload)) == []
    assert (node.state, node.restarts, snapshot(node)) == ("inactive", 1, before)


def test_a_revert_that_is_refused_does_not_start_a_runtime_that_somebody_stopped(
    node: FakeNode, payload: Path
) -> None:
    assert errors(run(node, INSTALL, payload)) == []
    write(node, MAIN, b'imports = ["/etc/missing.toml"]\n' + (read(node) or b"").replace(b"imports", b"#"))
    node.stop()
    restarts = node.restarts
    reports = run(node, REVERT, payload)
    assert exit_code(reports) == 4, reports
    assert node.state == "inactive"
    assert node.restarts == restarts


def test_without_the_unit_a_live_node_is_not_taken_for_an_image(node: FakeNode, payload: Path) -> None:
    assert errors(run(node, (artifacts,), payload)) == []
    node.exists = False
    before = snapshot(node)
    reports = run(node, (cri,), payload)
    assert exit_code(reports) == 3, reports
    assert snapshot(node) == before


def test_on_a_node_of_another_distribution_containerd_is_left_alone(node: FakeNode, payload: Path) -> None:
    assert errors(run(node, (artifacts,), payload)) == []
    node.others = ("k3s.service",)
    before = snapshot(node)
    reports = run(node, (cri,), payload)
    assert exit_code(reports) == 3, reports
    assert snapshot(node) == before


def test_a_runtime_that_does_not_answer_is_not_restarted_when_nothing_is_owed(
    node: FakeNode, payload: Path
) -> None:
    assert errors(run(node, INSTALL, payload)) == []
    node.cri_hangs = True
    before = snapshot(node)
    assert exit_code(run(node, (cri,), payload)) == 1
    assert (node.restarts, snapshot(node)) == (1, before)


def test_another_main_file_named_by_the_unit_takes_over_all_of_ours(node: FakeNode, payload: Path) -> None:
    assert errors(run(node, INSTALL, payload)) == []
    write(node, "/etc/own/containerd.toml", b"version = 3\n")
    node.argv = ("/usr/bin/containerd", "--config", "/etc/own/containerd.toml")
    assert errors(run(node, INSTALL, payload)) == []
    assert handlers(node) == ("kata-qemu",)
    assert read(node) == CONFIG
    assert errors(run(node, REVERT, payload)) == []
    assert read(node, "/etc/own/containerd.toml") == b"version = 3\n"
    assert snapshot(node, "opt") == {}


def test_a_runtime_that_hangs_after_the_restart_is_put_back_and_restarted(
    node: FakeNode, payload: Path
) -> None:
    before = snapshot(node, "etc")
    node.on_restart = lambda: setattr(node, "cri_hangs", node.restarts == 1)
    reports = run(node, INSTALL, payload, restart_timeout=0.05)
    assert exit_code(reports) == 4, reports
    assert (node.handlers, node.restarts) == (("runc",), 2)
    assert snapshot(node, "etc") == before


def test_a_runtime_that_systemd_keeps_starting_in_vain_is_put_back(node: FakeNode, payload: Path) -> None:
    node.on_restart = lambda: setattr(node, "state", "activating" if node.restarts == 1 else "active")
    reports = run(node, INSTALL, payload, restart_timeout=0.05)
    assert exit_code(reports) == 4, reports
    assert (node.handlers, state(node)) == (("runc",), "nothing")


def test_an_interrupted_install_is_put_back(
    node: FakeNode, payload: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(node, "etc")

    def control_c(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(FakeNode, "restart", control_c)
    reports = run(node, INSTALL, payload)
    assert exit_code(reports) == 4, reports
    assert snapshot(node, "etc") == before


# Records lost, and installations of the same name


def test_a_backup_that_is_lost_costs_nothing_but_the_copy(node: FakeNode, payload: Path) -> None:
    assert errors(run(node, INSTALL, payload)) == []
    shutil.rmtree(node.root.resolve("/opt/kata/.kata-node/backups"))
    assert errors(run(node, INSTALL, payload, shims="qemu,clh")) == []
    assert errors(run(node, REVERT, payload)) == []
    assert read(node) == CONFIG
    assert snapshot(node, "opt") == {}


def test_a_damaged_backup_is_not_put_back(node: FakeNode, payload: Path) -> None:
    assert errors(run(node, INSTALL, payload)) == []
    backups = "/opt/kata/.kata-node/backups"
    for name in node.root.list_dir(backups):
        write(node, f"{backups}/{name}", b"")
    assert errors(run(node, REVERT, payload)) == []
    assert read(node) == CONFIG


def test_backups_that_are_lost_in_the_middle_do_not_keep_a_run_from_ending(
    node: FakeNode, payload: Path
) -> None:
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


def test_what_a_lost_record_does_not_tell_is_found_by_the_revert(node: FakeNode, payload: Path) -> None:
    assert errors(run(node, INSTALL, payload, user_drop_in=EXTRA)) == []
    shutil.rmtree(node.root.resolve("/opt/kata/.kata-node"))
    assert errors(run(node, REVERT, payload)) == []
    assert (read(node), node.handlers) == (CONFIG, ("runc",))
    assert (read(node, DROP_IN), read(node, USER_DROP_IN)) == (None, None)


def test_a_lost_record_is_made_anew_and_the_revert_after_it_is_complete(
    node: FakeNode, payload: Path
) -> None:
    assert errors(run(node, INSTALL, payload)) == []
    shutil.rmtree(node.root.resolve("/opt/kata/.kata-node"))
    assert errors(run(node, INSTALL, payload)) == []
    assert node.restarts == 2
    assert errors(run(node, REVERT, payload)) == []
    assert read(node) == CONFIG
    # Whose directories they are, the record would have told.
    assert {kind for _, kind, _ in snapshot(node, "opt").values()} == {""}


def test_what_others_left_beside_our_files_stays_and_does_not_hold_up_a_revert(
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


def test_a_revert_for_another_prefix_leaves_the_drop_in_that_both_would_have(
    node: FakeNode, payload: Path
) -> None:
    write(node, MAIN, WITH_CONF_D)
    node.version = "2.2.1"
    assert errors(run(node, CRI, payload, installation_prefix="/srv")) == []
    assert errors(run(node, BACK, payload)) == []
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


# A disk that is full, systemd that is gone


def test_an_install_on_a_full_disk_fails_before_anything_and_says_so(
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


def test_a_file_that_cannot_be_put_back_does_not_keep_the_runtime_from_being_restarted(
    node: FakeNode, payload: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Root.write

    def refuse_the_old(self: Root, path: str, content: bytes, **more: Any) -> None:
        if path == MAIN and content == CONFIG:
            raise HostError("No space left on device", where=path)
        real(self, path, content, **more)

    with monkeypatch.context() as patched:
        patched.setattr(Root, "write", refuse_the_old)
        reports = run(node, INSTALL, payload, user_drop_in=NO_CRI)
    assert exit_code(reports) == 1, reports
    assert "put back /etc/containerd/config.toml: " in reports[-1].summary
    assert (node.handlers, state(node)) == (("runc",), "restarting")
    assert errors(run(node, REVERT, payload)) == []
    assert read(node) == CONFIG
    assert snapshot(node, "opt") == {}


def test_when_systemd_goes_away_in_between_the_files_are_put_back_and_the_next_run_goes_on(
    node: FakeNode, payload: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(node, "etc")
    real = restart.CheckConfig.apply

    def and_then_it_goes(self: restart.CheckConfig, clients: object) -> None:
        real(self, clients)  # type: ignore[arg-type]
        node.systemd_gone = True

    monkeypatch.setattr(restart.CheckConfig, "apply", and_then_it_goes)
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


def test_the_labels_come_with_the_install_and_go_with_the_revert(
    node: FakeNode, payload: Path, cluster: FakeKube
) -> None:
    assert errors(run(node, INSTALL, payload, node_name="n1")) == []
    assert cluster.labels == {"kubernetes.io/hostname": "n1"} | MARKS
    assert outcomes(run(node, INSTALL, payload, node_name="n1"))[-1] == "label skipped"
    assert errors(run(node, REVERT, payload, node_name="n1")) == []
    assert cluster.labels == {"kubernetes.io/hostname": "n1"}


def test_a_revert_that_knows_of_no_cluster_tells_how_to_remove_the_labels_it_leaves(
    node: FakeNode, payload: Path
) -> None:
    """The shared label is that of the other installation too, until that one goes."""
    for suffix in ("", "blue"):
        assert errors(run(node, INSTALL, payload, multi_install_suffix=suffix)) == []
    unlabelled, *_ = run(node, REVERT, payload, multi_install_suffix="blue")
    (note,) = unlabelled.notes
    assert "`kubectl label node NAME kata-deploy.katacontainers.io/blue-`" in note
    unlabelled, *_ = run(node, REVERT, payload)
    (note,) = unlabelled.notes
    keys = "kata-deploy.katacontainers.io/default- katacontainers.io/kata-runtime-"
    assert f"`kubectl label node NAME {keys}`" in note
    unlabelled, *_ = run(node, REVERT, payload, offline=True, runtime="containerd://2.1.9")
    assert unlabelled.notes == ()


def test_a_node_is_claimed_before_anything_is_written_to_it(
    node: FakeNode, payload: Path, cluster: FakeKube
) -> None:
    before, seen = snapshot(node), []
    cluster.on_settled = lambda kube: seen.append((dict(kube.labels), snapshot(node) == before))
    assert errors(run(node, INSTALL, payload, node_name="n1")) == []
    labels, untouched = seen[0]
    assert labels == {"kubernetes.io/hostname": "n1"} | dict.fromkeys(MARKS, "false")
    assert untouched


def test_what_half_an_installation_left_can_be_found_until_it_is_gone(
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


def test_a_node_that_serves_goes_on_being_used_while_it_is_installed_again(
    node: FakeNode, payload: Path, cluster: FakeKube
) -> None:
    assert errors(run(node, INSTALL, payload, node_name="n1")) == []
    seen: list[str] = []
    cluster.on_settled = lambda kube: seen.append(kube.labels["katacontainers.io/kata-runtime"])
    assert errors(run(node, INSTALL, payload, node_name="n1", shims="qemu,clh")) == []
    assert "false" not in seen
    assert cluster.labels.items() >= MARKS.items()


def test_one_deadline_holds_for_all_of_a_stage(
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
def test_startup_taints_are_lifted_once_the_node_is_labelled(
    node: FakeNode, payload: Path, cluster: FakeKube, startup: str, left: list[dict[str, str]]
) -> None:
    cluster.taints = [GONE, STAYS]
    there_when_labelled: list[int] = []
    cluster.on_settled = lambda kube: there_when_labelled.append(len(kube.taints))
    assert errors(run(node, INSTALL, payload, node_name="n1", startup_taints=startup)) == []
    assert cluster.taints == left
    assert set(there_when_labelled) == {2}


def test_a_startup_taint_that_stays_is_noted_and_fails_nothing(
    node: FakeNode, payload: Path, cluster: FakeKube
) -> None:
    cluster.taints, cluster.keeps_taints = [GONE], True
    reports = run(node, INSTALL, payload, node_name="n1", startup_taints=GONE["key"])
    assert exit_code(reports) == 0
    assert ["example.com/starting:NoSchedule" in note for note in reports[-1].notes] == [True]
    cluster.keeps_taints = False
    reports = run(node, INSTALL, payload, node_name="n1", startup_taints=GONE["key"])
    assert (outcomes(reports)[-1], cluster.taints) == ("label done", [])


def test_a_node_that_registers_anew_after_the_restart_is_waited_for(
    node: FakeNode, payload: Path, cluster: FakeKube
) -> None:
    cluster.away = 1
    assert errors(run(node, INSTALL, payload, node_name="n1")) == []
    assert cluster.labels.items() >= MARKS.items()


def test_a_node_that_is_not_ready_for_a_moment_once_it_is_labelled_is_no_failure(
    node: FakeNode, payload: Path, cluster: FakeKube
) -> None:
    def away(kube: FakeKube) -> None:
        kube.ready = "true" not in kube.labels.values()

    cluster.on_settled = away
    assert errors(run(node, INSTALL, payload, node_name="n1")) == []


def test_an_api_server_that_refuses_costs_only_the_labels_until_the_next_run(
    node: FakeNode, payload: Path, cluster: FakeKube
) -> None:
    run(node, (claim,), payload, node_name="n1")
    cluster.error = KubeError("it refuses", where="https://api")
    reports = run(node, (*CRI, label), payload, node_name="n1")
    assert (reports[-1].stage, exit_code(reports)) == ("label", 1)
    assert handlers(node) == ("kata-qemu",)
    cluster.error = None
    assert outcomes(run(node, INSTALL, payload, node_name="n1"))[1:] == [
        "claim skipped",
        "artifacts skipped",
        "cri skipped",
        "label done",
    ]


def test_a_node_that_cannot_be_claimed_is_not_touched(
    node: FakeNode, payload: Path, cluster: FakeKube
) -> None:
    before = snapshot(node)
    cluster.error = KubeError("it refuses", where="https://api")
    reports = run(node, INSTALL, payload, node_name="n1")
    assert (reports[-1].stage, exit_code(reports)) == ("claim", 1)
    assert snapshot(node) == before


def test_nothing_is_taken_away_while_the_cluster_still_sends_pods_here(
    node: FakeNode, payload: Path, cluster: FakeKube
) -> None:
    assert errors(run(node, INSTALL, payload, node_name="n1")) == []
    before = snapshot(node)
    cluster.error = KubeError("it refuses", where="https://api")
    assert exit_code(run(node, REVERT, payload, node_name="n1")) == 1
    assert (snapshot(node), handlers(node)) == (before, ("kata-qemu",))


# Refusals


@pytest.mark.parametrize("installed", [False, True])
def test_a_runtime_that_is_just_being_restarted_does_not_fail_the_check(
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


def test_the_wrong_machine_is_not_touched_on_the_way_back_either(node: FakeNode, payload: Path) -> None:
    write(node, "/etc/machine-id", b"0123456789abcdef0123456789abcdef\n")
    right = "01234567-89AB-CDEF-0123-456789ABCDEF"
    assert errors(run(node, INSTALL, payload, machine_id=right)) == []
    before = snapshot(node)
    assert exit_code(run(node, REVERT, payload, machine_id="f" * 32)) == 3
    assert snapshot(node) == before


def test_the_node_of_another_machine_is_not_labelled_and_not_called_labelled(
    node: FakeNode, payload: Path, cluster: FakeKube
) -> None:
    for there in ({}, MARKS):
        cluster.labels = dict(there)
        for stage in (claim, label, unlabel, unclaim):
            assert exit_code(run(node, (stage,), payload, node_name="n1", machine_id="f" * 32)) == 3
            assert cluster.labels == there


def test_a_failure_is_told_when_the_node_is_free_for_others(node: FakeNode, payload: Path) -> None:
    free: list[bool] = []

    def told(report: object) -> None:
        with contextlib.suppress(LockedError), lock.hold(node.root, "cri", 0):
            free.append(True)

    node.systemd_gone = True
    assert exit_code(run(node, CRI, payload, report=told)) == 1
    assert free == [True]


def test_a_node_that_another_run_works_on_is_left_to_it(node: FakeNode, payload: Path) -> None:
    with lock.hold(node.root, "cri", 0):
        before = snapshot(node)
        assert exit_code(run(node, CRI, payload, lock_timeout=0)) == 5
        assert snapshot(node) == before


# What is only said


def test_status_tells_of_a_restart_that_is_owed_until_it_is_done(node: FakeNode, payload: Path) -> None:
    (done,) = installed_and_seen(node, payload)
    assert (done.restart_owed, done.drift, done.served) == (False, (), ("kata-qemu", "runc"))
    node.handlers = ("runc",)
    node.restart = die  # type: ignore[method-assign]
    with pytest.raises(Killed):
        run(node, (cri,), payload)
    (owed,) = seen(node, payload)
    assert (owed.cri, owed.restart_owed, owed.served) == ("restarting", True, ("runc",))
    node.systemd_gone = True
    assert seen(node, payload)[0].restart_owed
    node.systemd_gone = False
    del node.restart
    node.restart("containerd.service", 1)
    assert not seen(node, payload)[0].restart_owed


def test_status_names_what_changed_and_what_cannot_be_read(node: FakeNode, payload: Path) -> None:
    assert seen(node, payload) == []
    installed_and_seen(node, payload)
    write(node, DROP_IN, b"# by hand\n")
    write(node, "/opt/kata/bin/qemu-system-x86_64", b"# by hand")
    write(
        node, "/opt/kata-copy/.kata-node/receipt.json", read(node, "/opt/kata/.kata-node/receipt.json") or b""
    )
    found, copy = seen(node, payload)
    assert found.drift == ("/opt/kata/bin/qemu-system-x86_64: changed", f"{DROP_IN}: changed")
    assert "/opt/kata" in copy.error


def installed_and_seen(node: FakeNode, payload: Path) -> list[status.InstallationStatus]:
    assert errors(run(node, CRI, payload)) == []
    return seen(node, payload)


def seen(node: FakeNode, payload: Path) -> list[status.InstallationStatus]:
    wanted = settings.load(None, overrides={"shims": "qemu"}, arch="x86_64")
    return status.gather(wanted, Options(payload), node.clients(), deep=False)


def test_a_dry_run_tells_all_that_would_happen_and_changes_nothing(node: FakeNode, payload: Path) -> None:
    before = snapshot(node)
    planned = run(node, INSTALL, payload, dry_run=True)
    assert [report.outcome for report in planned] == ["done", "skipped", "planned", "planned", "skipped"]
    assert f"+++ {MAIN}" in planned[3].diff
    assert (snapshot(node), node.restarts) == (before, 0)
    assert errors(run(node, INSTALL, payload)) == []
    installed = snapshot(node)
    planned = run(node, REVERT, payload, dry_run=True)
    assert [report.outcome for report in planned] == ["skipped", "planned", "planned", "skipped"]
    assert [note for report in planned[1:] for note in report.notes] == []
    assert (snapshot(node), node.restarts) == (installed, 1)


def test_a_revert_by_hand_that_knows_no_cluster_says_that_labels_stay(node: FakeNode, payload: Path) -> None:
    assert errors(run(node, INSTALL, payload)) == []
    (note,) = run(node, REVERT, payload)[0].notes
    assert "NODE_NAME and KUBECONFIG" in note
    assert run(node, (unlabel,), payload, offline=True)[0].notes == ()


def test_a_node_is_not_labelled_from_another_machine(
    node: FakeNode, payload: Path, cluster: FakeKube
) -> None:
    write(node, "/etc/machine-id", b"0123456789abcdef0123456789abcdef\n")
    cluster.machine_id = "f" * 32
    before = snapshot(node)
    for stages in (INSTALL, REVERT):
        reports = run(node, stages, payload, node_name="n1", has_host_root=True)
        assert exit_code(reports) == 3
        assert "that of this machine is 0123456789abcdef" in reports[-1].summary
    assert (snapshot(node), cluster.labels) == (before, {"kubernetes.io/hostname": "n1"})
    assert errors(run(node, (claim,), payload, node_name="n1", has_host_root=False)) == []
    cluster.machine_id = "01234567-89AB-CDEF-0123-456789ABCDEF"
    assert errors(run(node, INSTALL, payload, node_name="n1", has_host_root=True)) == []


@pytest.mark.parametrize("late", ["away", "registered anew"])
def test_a_taint_that_comes_with_the_node_while_it_is_labelled_is_lifted(
    node: FakeNode, payload: Path, cluster: FakeKube, late: str
) -> None:
    assert errors(run(node, (claim, *CRI), payload, node_name="n1")) == []
    if late == "away":
        cluster.taints, cluster.away = [GONE], 1
    else:
        cluster.on_settled = lambda kube: kube.taints.append(GONE)
    assert errors(run(node, (label,), payload, node_name="n1", startup_taints=GONE["key"])) == []
    assert cluster.taints == []


def test_one_taint_that_may_not_be_lifted_keeps_no_other(
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
