"""Who can write what root runs: other users, planted receipts, open modes, and special files."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fakes import MAIN, FakeNode
from kata_node.errors import SettingsError
from kata_node.payload import index, ownership
from kata_node.runtime.model.distributions import DISTRIBUTION_RUNTIMES
from kata_node.settings import load as settings
from payloads import FILES, Content, tree
from pipeline.harness import (
    CONFIG,
    INSTALL,
    REVERT,
    SMALL,
    errors,
    exit_code,
    make_node,
    node_status,
    outcomes,
    run,
    snapshot,
)
from stages import artifacts, cri, host_check, remove_artifacts, revert_cri

NOBODY = 65534
SHIM = "opt/kata/bin/containerd-shim-kata-v2"
RECEIPT = "opt/kata/.kata-node/receipt.json"
CONFIG_D = "opt/kata/share/defaults/kata-containers/runtimes/qemu/config.d"

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


@pytest.fixture
def node(tmp_path: Path) -> FakeNode:
    return make_node(tmp_path / "host")


@pytest.fixture
def installed(node: FakeNode, payload: Path) -> FakeNode:
    assert errors(run(node, INSTALL, payload)) == []
    return node


def mode_of(node: FakeNode, path: str) -> int:
    return stat.S_IMODE((node.root.base / path).stat().st_mode)


def drift(node: FakeNode, payload: Path) -> list[str]:
    (only,) = node_status(node, payload, deep=True).installations
    return list(only.drift) + [only.error] * bool(only.error)


def assert_refused(node: FakeNode, payload: Path, path: str) -> None:
    """Assert that host-check names ``path``, that the stages refuse, and that nothing changes."""
    before = snapshot(node)
    for stages in (INSTALL, (host_check,)):
        reports = run(node, stages, payload)
        assert [report.stage for report in reports] == ["host-check"]
        assert exit_code(reports) == 3
        (finding,) = (each for each in reports[0].checks if each.name == "ownership")
        assert f"/{path}: " in finding.reason
        assert f"/{path}`" in finding.remedy
    assert exit_code(run(node, (artifacts,), payload)) == 3
    assert snapshot(node) == before


# --- other users ------------------------------------------------------------------------------------


@as_root
@pytest.mark.parametrize(
    "path",
    ["opt", "opt/kata", "opt/kata/bin", "opt/kata/.kata-node", RECEIPT, "opt/kata/containerd/config.d"],
)
def test_a_path_of_another_user_is_named_and_refused(installed: FakeNode, payload: Path, path: str) -> None:
    os.chown(installed.root.base / path, NOBODY, NOBODY)
    assert_refused(installed, payload, path)


@pytest.mark.parametrize("path", ["opt", "opt/kata", "opt/kata/.kata-node", RECEIPT])
@pytest.mark.parametrize("bits", [0o002, pytest.param(0o020, marks=as_root)])
def test_a_path_that_others_can_write_is_named_and_refused(
    installed: FakeNode, payload: Path, path: str, bits: int
) -> None:
    (installed.root.base / path).chmod(mode_of(installed, path) | bits)
    assert_refused(installed, payload, path)
    before = snapshot(installed)
    assert exit_code(run(installed, (revert_cri,), payload)) == 3
    assert exit_code(run(installed, (remove_artifacts,), payload)) == 3
    assert snapshot(installed) == before
    assert any(f"/{path}: " in line for line in drift(installed, payload)) or path == RECEIPT


def test_an_open_directory_behind_a_symlink_is_refused(node: FakeNode, payload: Path) -> None:
    (node.root.base / "srv/open/kata").mkdir(parents=True)
    (node.root.base / "srv/open").chmod(0o777)
    (node.root.base / "opt/kata").symlink_to("/srv/open/kata")
    assert_refused(node, payload, "srv/open")


@as_root
def test_a_configuration_that_another_user_left_for_kata_is_refused(
    installed: FakeNode, payload: Path
) -> None:
    planted = installed.root.base / CONFIG_D / "99-evil.toml"
    planted.write_text("[runtime]\n")
    assert errors(run(installed, INSTALL, payload)) == [], "a file of the administrator is used"
    os.chown(planted, NOBODY, NOBODY)
    reports = run(installed, (host_check,), payload)
    assert exit_code(reports) == 3
    assert "99-evil.toml" in str(errors(reports))


@as_root
def test_a_shim_that_another_user_put_there_is_replaced(installed: FakeNode, payload: Path) -> None:
    shim = installed.root.base / SHIM
    before, info = shim.read_bytes(), shim.stat()
    shim.write_bytes(before[::-1])
    os.utime(shim, ns=(info.st_atime_ns, info.st_mtime_ns))
    os.chown(shim, NOBODY, NOBODY)
    assert drift(installed, payload) == [f"/{SHIM}: changed"]
    assert errors(run(installed, INSTALL, payload)) == []
    assert (shim.read_bytes(), shim.stat().st_uid) == (before, 0)


@pytest.mark.skipif(os.geteuid() == 0, reason="the group of root is no group of its own")
def test_an_ordinary_user_with_a_group_of_their_own_can_try_it(node: FakeNode, payload: Path) -> None:
    (node.root.base / "opt").chmod(0o775)
    assert errors(run(node, INSTALL, payload)) == []
    assert errors(run(node, REVERT, payload)) == []


# --- planted receipts -------------------------------------------------------------------------------


def plant(node: FakeNode, change: Callable[[Any], object]) -> None:
    path = node.root.base / RECEIPT
    receipt = json.loads(path.read_bytes())
    change(receipt)
    path.write_text(json.dumps(receipt))


FILE = {"kind": "file", "mode": 0o644, "size": 1, "mtime": 1, "sha256": "a" * 64}
BEFORE = {"sha256": "a" * 64, "mode": 0o644, "uid": 0, "gid": 0}


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda r: r["artifacts"]["files"].update({"../../etc/victim": FILE}), id="dots"),
        pytest.param(lambda r: r["artifacts"]["files"].update({"/etc/victim": FILE}), id="absolute"),
        pytest.param(lambda r: r["artifacts"]["files"].update({"bin/\0": FILE}), id="NUL"),
        pytest.param(lambda r: r["artifacts"]["files"].update({".kata-node/x": FILE}), id="receipt itself"),
        pytest.param(lambda r: r["artifacts"]["files"]["VERSION"].update(mode=0o4755), id="setuid"),
        pytest.param(lambda r: r["artifacts"]["made_dirs"].append("/opt/../etc"), id="directory"),
        *(
            pytest.param(
                lambda r, path=path: r["cri"]["files"].append({"path": path, "before": None, "after": ""}),
                id=path,
            )
            for path in (
                "/etc/victim",
                "/opt/kata/../../etc/victim",
                "/etc/containerd/../victim",
                "etc/victim",
            )
        ),
        pytest.param(
            lambda r: r["cri"]["files"].append(
                {"path": "/etc/profile.d/99-kata-deploy.sh", "before": BEFORE, "after": "a" * 64}
            ),
            id="restored drop-in elsewhere",
        ),
        *(
            pytest.param(
                lambda r, more=more: r["cri"]["files"][0].update(before={**BEFORE, **more}), id=str(more)
            )
            for more in ({"mode": 0o4755}, {"uid": -1}, {"sha256": "../../../../etc/shadow"})
        ),
    ],
)
def test_a_receipt_that_kata_node_never_writes_is_refused(
    installed: FakeNode, payload: Path, change: Callable[[Any], object]
) -> None:
    (installed.root.base / "etc/victim").write_text("root's")
    plant(installed, change)
    before, restarts = snapshot(installed), installed.restarts
    for stages in (REVERT, (revert_cri,)):
        reports = run(installed, stages, payload)
        assert exit_code(reports) == 3, outcomes(reports)
    assert snapshot(installed) == before
    assert installed.restarts == restarts


def test_a_configuration_at_an_unusual_place_is_reverted_without_the_settings(
    node: FakeNode, payload: Path
) -> None:
    node.argv = ("/usr/bin/containerd", "--config", "/srv/containerd/own.toml")
    (node.root.base / "srv/containerd").mkdir(parents=True)
    (node.root.base / "srv/containerd/own.toml").write_bytes(CONFIG)
    assert errors(run(node, INSTALL, payload)) == []
    node.argv = ("/usr/bin/containerd",)
    assert errors(run(node, REVERT, payload)) == []
    assert node.root.read("/srv/containerd/own.toml") == CONFIG


# --- modes ------------------------------------------------------------------------------------------


@pytest.fixture
def open_payload(tmp_path: Path) -> Path:
    """A payload whose files and directories everybody can write."""
    directory = tree(tmp_path / "open", SMALL)
    for path in (directory / "opt/kata").rglob("*"):
        if not path.is_symlink():
            path.chmod(0o777)
    index.write_manifest(directory)
    return directory


def open_paths(node: FakeNode) -> list[str]:
    base = node.root.base / "opt/kata"
    return [str(p) for p in base.rglob("*") if not p.is_symlink() and p.stat().st_mode & 0o022]


def test_a_payload_is_placed_without_write_bits_for_others(node: FakeNode, open_payload: Path) -> None:
    assert errors(run(node, INSTALL, open_payload)) == []
    assert open_paths(node) == []
    assert mode_of(node, SHIM) == 0o755


@pytest.fixture
def left_open(node: FakeNode, open_payload: Path) -> FakeNode:
    """A node with the modes that an earlier release placed and recorded."""
    assert errors(run(node, INSTALL, open_payload)) == []

    def open_all(receipt: Any) -> None:
        receipt["artifacts"]["inputs"] = "of an earlier release"
        for path, placed in receipt["artifacts"]["files"].items():
            if path.startswith(("bin", "share/kata-containers", "libexec")) and placed["kind"] != "link":
                placed["mode"] = 0o777
                (node.root.base / "opt/kata" / path).chmod(0o777)

    plant(node, open_all)
    assert open_paths(node)
    return node


def test_the_modes_that_an_earlier_release_placed_are_repaired(
    left_open: FakeNode, open_payload: Path
) -> None:
    reports = run(left_open, INSTALL, open_payload)
    assert errors(reports) == []
    assert not [note for report in reports for note in report.notes if "changed on the node" in note]
    assert open_paths(left_open) == []
    assert drift(left_open, open_payload) == []
    assert outcomes(run(left_open, (artifacts,), open_payload)) == ["artifacts skipped"]


def test_an_installation_with_open_modes_is_reverted(left_open: FakeNode, open_payload: Path) -> None:
    assert errors(run(left_open, REVERT, open_payload)) == []
    assert snapshot(left_open, "opt") == {}


def test_a_revert_does_not_follow_a_symlink_in_place_of_a_directory(
    left_open: FakeNode, open_payload: Path
) -> None:
    victim = left_open.root.base / "etc/victims"
    images = left_open.root.base / "opt/kata/share/kata-containers"
    images.rename(victim)
    images.symlink_to("/etc/victims")
    before = snapshot(left_open, "etc/victims")
    reports = run(left_open, REVERT, open_payload)
    assert errors(reports) == []
    assert snapshot(left_open, "etc/victims") == before
    notes = [note for report in reports for note in report.notes]
    assert "left, not placed by kata-node: /opt/kata/share/kata-containers" in notes


@pytest.mark.parametrize("target", ["bin", "/opt/kata/bin", "../kata/bin"])
def test_a_revert_ends_beside_a_symlink_that_leads_back_to_itself(
    installed: FakeNode, payload: Path, target: str
) -> None:
    directory = installed.root.base / "opt/kata/bin"
    directory.rename(installed.root.base / "elsewhere")
    directory.symlink_to(target)
    reports = run(installed, REVERT, payload)
    assert errors(reports) == []
    assert "left, not placed by kata-node: /opt/kata/bin" in [n for each in reports for n in each.notes]
    assert list(snapshot(installed, "opt")) == ["opt/kata", "opt/kata/bin"]
    (report,) = (each for each in run(installed, INSTALL, payload) if each.error)
    assert report.exit_code == 3
    assert "kata-node did not place already exists below /opt/kata: bin" in str(report.error)


def test_without_a_receipt_the_files_that_stay_are_named(installed: FakeNode, payload: Path) -> None:
    (installed.root.base / RECEIPT).unlink()
    (report,) = run(installed, (remove_artifacts,), payload)
    assert "no receipt records the files in /opt/kata" in report.summary
    assert f"left, not placed by kata-node: /{SHIM}" in report.notes
    assert errors(run(installed, (*INSTALL, *REVERT), payload)) == []
    assert [path for path in (installed.root.base / "opt").rglob("*") if not path.is_dir()] == []


@pytest.mark.parametrize("path", ["opt/kata/bin", CONFIG_D, "opt/kata"])
def test_a_directory_that_a_kill_left_closed_is_noticed_and_repaired(
    installed: FakeNode, payload: Path, path: str
) -> None:
    (installed.root.base / path).chmod(0o700)
    assert drift(installed, payload) == [f"/{path}: changed"]
    reports = run(installed, INSTALL, payload)
    assert errors(reports) == []
    assert f"repaired because it changed on the node: /{path}'" in str(reports)
    assert mode_of(installed, path) == ownership.MADE_DIR_MODE
    assert outcomes(run(installed, (artifacts,), payload)) == ["artifacts skipped"]


# --- directories that are not plain, long names -----------------------------------------------------


@pytest.mark.parametrize("target_exists", [True, False])
def test_an_install_dir_that_is_a_symlink_is_reverted_and_stays(
    node: FakeNode, payload: Path, target_exists: bool
) -> None:
    if target_exists:
        (node.root.base / "data/kata").mkdir(parents=True)
    (node.root.base / "opt/kata").symlink_to("/data/kata")
    before = snapshot(node)
    for _ in range(2):
        assert errors(run(node, INSTALL, payload)) == []
        reports = run(node, REVERT, payload)
        assert errors(reports) == []
        assert [report.stage for report in reports][-1] == "unclaim"
        assert snapshot(node) == before
    assert outcomes(run(node, (remove_artifacts,), payload)) == ["remove-artifacts skipped"]


def test_names_that_leave_no_room_for_a_temporary_name_are_installed_and_reverted(
    node: FakeNode, tmp_path: Path
) -> None:
    long: dict[str, Content] = {f"share/{'x' * length}": b"long" for length in (239, 240, 241, 255)}
    directory = tree(tmp_path / "long", {**FILES, **SMALL, **long})
    index.write_manifest(directory)
    assert errors(run(node, INSTALL, directory)) == []
    assert [path for path in long if not (node.root.base / "opt/kata" / path).is_file()] == []
    assert errors(run(node, REVERT, directory)) == []
    assert snapshot(node, "opt") == {}


# --- special files ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "stages"),
    [
        pytest.param(MAIN.strip("/"), (host_check,), id="configuration"),
        pytest.param(MAIN.strip("/"), (cri,), id="configuration in the cri stage"),
        pytest.param(RECEIPT, (artifacts,), id="receipt"),
        pytest.param(RECEIPT, REVERT, id="receipt in a revert"),
    ],
)
@pytest.mark.parametrize("kind", ["FIFO", "socket", "huge"])
def test_a_special_or_huge_file_is_refused_and_not_waited_for(
    installed: FakeNode, payload: Path, path: str, stages: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = installed.root.base / path
    real.unlink()
    if kind == "FIFO":
        os.mkfifo(real, 0o600)
    elif kind == "huge":
        real.touch(0o600)
        os.truncate(real, 1 << 40)
    else:
        import socket

        monkeypatch.chdir(real.parent)  # the name of a socket is short
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(real.name)
        real.chmod(0o600)
    reports = run(installed, stages, payload)
    assert errors(reports) != []
    assert f"/{path}" in str(errors(reports))
    assert ("larger than" if kind == "huge" else f"a {kind} is where") in str(errors(reports))


@pytest.mark.parametrize("kind", ["FIFO", "directory", "broken", "handlers"])
def test_a_file_that_our_import_would_read_is_found_before_anything_is_written(
    node: FakeNode, payload: Path, kind: str
) -> None:
    path = node.root.base / "opt/kata/containerd/config.d/10-foreign.toml"
    path.parent.mkdir(parents=True)
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        table = "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.kata-qemu]\n"
        path.write_text(f"{table}runtime_path = '/usr/x'\n" if kind == "handlers" else "broken")
    before = snapshot(node)
    reports = run(node, INSTALL, payload)
    assert [(report.stage, report.exit_code) for report in reports] == [("host-check", 3)]
    assert "/opt/kata/containerd/config.d/10-foreign.toml" in str(reports[-1].error)
    assert snapshot(node) == before


def test_a_file_in_the_place_of_the_backups_is_found_before_anything_is_written(
    node: FakeNode, payload: Path
) -> None:
    path = node.root.base / "opt/kata/.kata-node/backups"
    path.parent.mkdir(parents=True, mode=0o700)
    path.touch()
    reports = run(node, INSTALL, payload)
    assert [(report.stage, report.exit_code) for report in reports] == [("host-check", 3)]
    assert "/opt/kata/.kata-node/backups is not a directory" in str(reports[-1].error)


def test_a_values_file_that_is_a_fifo_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "values.yaml")
    with pytest.raises(SettingsError, match="a FIFO is where a file is needed"):
        settings.load(str(tmp_path / "values.yaml"), overrides={}, arch="x86_64")


def test_a_drop_in_masked_with_the_null_device_is_empty_and_never_replaces_it(
    installed: FakeNode, payload: Path
) -> None:
    null = installed.root.base / "dev/null"
    null.unlink()
    try:
        os.mknod(null, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root can make a device")
    (drop_in,) = (installed.root.base / "opt/kata/containerd/config.d").iterdir()
    drop_in.unlink()
    drop_in.symlink_to("/dev/null")
    assert installed.root.read("/dev/null") == b""
    run(installed, REVERT, payload)
    assert stat.S_ISCHR(null.lstat().st_mode)


def add_file(entry: object, receipt: Any) -> None:
    receipt["cri"]["files"].append(entry)


def test_every_known_file_of_a_runtime_can_be_in_a_receipt(installed: FakeNode, payload: Path) -> None:
    """An installation outlives a change of the distribution."""
    for each in DISTRIBUTION_RUNTIMES:
        for directory in each.drop_in_dirs.values():
            entry = {"path": f"{directory}/99-kata-deploy.toml", "before": BEFORE, "after": "b" * 64}
            plant(installed, partial(add_file, entry))
    assert errors(run(installed, REVERT, payload)) == []
