"""Whole commands on a scratch node, as the user sees them: normal use, bad input, and interruptions."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

import payloads
from cli.cli_runner import (
    CONFIG,
    FILES,
    MAIN,
    RECEIPT,
    CliRunner,
    Result,
    make_live,
    make_payload,
    open_cli_runner,
    run_as,
    use_clients,
)
from fakes import FakeNode
from kata_node.cli.options import COMMAND_OPTIONS
from kata_node.host import lock, sparse_copy, temp_files
from kata_node.host.cri import Cri
from kata_node.host.files import Root
from kata_node.payload import index as payload_index
from kata_node.payload.manifest import Manifest
from kata_node.settings import load as settings


@pytest.fixture
def cli_runner(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[CliRunner]:
    with open_cli_runner(tmp_path, capsys) as cli_runner:
        yield cli_runner


@pytest.fixture
def installed(cli_runner: CliRunner) -> CliRunner:
    assert cli_runner.offline("install").code == 0
    return cli_runner


# --- normal use -------------------------------------------------------------------------------------


@pytest.mark.parametrize("output", ["text", "json"])
@pytest.mark.parametrize("form", ["tree", "tarballs"])
def test_install_plan_status_and_revert(
    cli_runner: CliRunner, tmp_path: Path, form: str, output: str
) -> None:
    cli_runner = dataclasses.replace(cli_runner, payload=make_payload(tmp_path / "image", form))

    def run(*arguments: str) -> Result:
        return cli_runner.offline(*arguments, "--output", output)

    before = cli_runner.content()
    there = ["host-check done", "claim skipped", "artifacts skipped", "cri skipped", "label skipped"]

    install = run("install")
    assert (install.code, install.outcomes) == (
        0,
        ["host-check done", "claim skipped", "artifacts done", "cri done", "label skipped"],
    )
    assert "error" not in install.err
    files = cli_runner.files()

    again = run("install")
    assert (again.code, again.outcomes, again.err) == (0, there, "")
    plan = run("plan")
    assert (plan.code, plan.outcomes, plan.err) == (0, there, "")
    status = run("status")
    assert (status.code, status.err) == (10, "")  # nobody can tell whether a runtime serves
    assert "kata-qemu" in status.out
    assert "4.1.0-test" in status.out
    assert cli_runner.files() == files

    plan = run("plan", "--shims", "qemu,clh")
    assert plan.code == 10
    assert plan.outcomes == [
        "host-check done",
        "claim skipped",
        "artifacts planned",
        "cri planned",
        "label skipped",
    ]
    diff = plan.out if output == "text" else plan.json["stages"][3]["diff"]
    assert '+[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.kata-clh]\n' in diff
    assert "kata-qemu]" not in re.sub(r"^[^+-].*\n", "", diff, flags=re.MULTILINE)
    assert cli_runner.files() == files

    assert run("install", "--shims", "qemu,clh").code == 0
    assert "kata-clh" in run("status", "--deep").out

    plan = run("plan", "revert")
    assert plan.code == 10
    assert plan.outcomes == [
        "unlabel skipped",
        "revert-cri planned",
        "remove-artifacts planned",
        "unclaim skipped",
    ]
    revert = run("revert")
    assert (revert.code, revert.outcomes) == (
        0,
        ["unlabel skipped", "revert-cri done", "remove-artifacts done", "unclaim skipped"],
    )
    assert cli_runner.content() == before
    assert run("plan", "revert").code == 0
    assert "kata" not in run("status").out.replace("kata-node", "")


def test_a_second_install_writes_nothing(installed: CliRunner) -> None:
    def marks() -> dict[str, tuple[int, int]]:
        below = [*installed.host.joinpath("opt").rglob("*"), *installed.host.joinpath("etc").rglob("*")]
        return {str(path): (path.lstat().st_ino, path.lstat().st_ctime_ns) for path in below}

    before = marks()
    assert installed.offline("install").code == 0
    assert marks() == before


def test_changes_are_logged_when_they_are_made_and_not_repeated_in_the_result(cli_runner: CliRunner) -> None:
    install = cli_runner.offline("install")
    assert (
        len(re.findall("write /etc/containerd/config.toml|change /etc/containerd/config.toml", install.err))
        == 1
    )
    assert "config.toml" not in install.out.partition("artifacts ")[2]
    plan = cli_runner.offline("plan", "revert")
    assert plan.err == ""
    assert "  - change /etc/containerd/config.toml\n" in plan.out


def test_summaries_count_files_without_directories(cli_runner: CliRunner) -> None:
    files = len(FILES) + 1  # a link to the configuration of the shim
    install = cli_runner.offline("install")
    assert f"artifacts        done     {files} files placed" in install.out
    assert f"all {files} files are in place" in cli_runner.offline("install").out
    assert f"{files} files as recorded" in cli_runner.offline("status").out
    assert f"{files} files removed" in cli_runner.offline("revert").out


def test_a_plan_to_revert_lists_only_foreign_files_as_left(installed: CliRunner) -> None:
    (installed.host / "opt/kata/notes").touch()
    plan = installed.offline("plan", "revert")
    assert re.findall("left, not placed by kata-node: (.*)", plan.out) == ["/opt/kata/notes"]


def test_each_stage_runs_alone_as_in_a_job(cli_runner: CliRunner) -> None:
    assert cli_runner.offline("stage", "artifacts").outcomes == ["artifacts done"]
    assert cli_runner.offline("stage", "cri", "--dry-run").outcomes == ["cri planned"]
    assert cli_runner.offline("stage", "cri").outcomes == ["cri done"]


def test_a_payload_without_a_manifest_is_hashed_once_for_all_stages(
    cli_runner: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[bool] = []
    build_manifest = payload_index.build_manifest

    def read(*given: Any, digests: bool) -> Manifest:
        reads.append(digests)
        return build_manifest(*given, digests=digests)

    monkeypatch.setattr(payload_index, "build_manifest", read)
    assert cli_runner.offline("install").code == 0
    assert reads == [False, True]


def test_the_host_check_compares_what_is_there_already(cli_runner: CliRunner) -> None:
    there = cli_runner.host / "opt/kata/libexec/virtiofsd"
    there.parent.mkdir(parents=True)
    content = FILES["libexec/virtiofsd"]
    assert isinstance(content, bytes)
    there.write_bytes(content)
    there.chmod(0o755)
    assert "no foreign files" in cli_runner.offline("stage", "host-check").out
    there.write_bytes(bytes(there.stat().st_size))
    assert "libexec/virtiofsd" in cli_runner.offline("stage", "host-check").out


def test_status_shows_a_half_installed_node(cli_runner: CliRunner) -> None:
    cli_runner.offline("stage", "artifacts")
    assert "cri        absent\n" in cli_runner.offline("status").out
    (cli_runner.host / "opt/kata/VERSION").unlink()
    assert "drift      /opt/kata/VERSION: missing" in cli_runner.offline("status").out


def test_changed_content_with_the_same_size_and_time_is_drift_with_deep(installed: CliRunner) -> None:
    path = installed.host / "opt/kata/libexec/virtiofsd"
    info = path.stat()
    path.write_bytes(bytes(info.st_size))
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
    assert "drift      none" in installed.offline("status").out
    assert "drift      /opt/kata/libexec/virtiofsd: changed" in installed.offline("status", "--deep").out


def test_a_configuration_behind_a_symlink_is_changed_and_the_symlink_stays(cli_runner: CliRunner) -> None:
    link, real = cli_runner.host / MAIN, cli_runner.host / "srv/containerd.toml"
    real.parent.mkdir()
    link.rename(real)
    link.symlink_to("/srv/containerd.toml")
    before = cli_runner.content()
    assert cli_runner.offline("install").code == 0
    assert link.readlink() == Path("/srv/containerd.toml")
    assert real.read_text().startswith(CONFIG[: CONFIG.index("version")])
    assert "/opt/kata/containerd/config.d/*.toml" in real.read_text()
    assert cli_runner.offline("revert").code == 0
    assert cli_runner.content() == before


def test_payload_index_writes_the_manifest_and_prints_its_path(cli_runner: CliRunner) -> None:
    manifest = cli_runner.payload / "manifest.json"
    result = cli_runner.run("payload", "index", cli_runner.payload)
    assert (result.code, result.out) == (0, f"{manifest}\n")
    assert manifest.is_file()
    result = cli_runner.run("payload", "index", cli_runner.payload, "--output=json")
    assert result.json == {"outcome": "ok", "manifest": str(manifest)}


# --- bad settings -----------------------------------------------------------------------------------


def refused(cli_runner: CliRunner, result: Result, code: int, *says: str) -> None:
    """Assert the exit code, and an error with these words and a hint in the output that the user reads."""
    assert result.code == code
    told = result.out if result.outcomes else result.err
    assert [text for text in says if text not in told] == [], told
    assert "hint:" in told or "-> " in told
    assert "Traceback" not in result.out + result.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param(
            ["--shims", "qmeu"], ["--shims", "qmeu is not a shim", "did you mean qemu?"], id="unknown shim"
        ),
        pytest.param(
            ["--shims", "qemu,qemu-se"],
            ["qemu-se", "this amd64 node", "s390x"],
            id="shim of another architecture",
        ),
        pytest.param(["--multi-install-suffix", "a/b"], ["--multi-install-suffix", '"a/b"'], id="suffix"),
        pytest.param(["--multi-install-suffix", "default"], ["--multi-install-suffix"], id="taken suffix"),
        pytest.param(["--installation-prefix", "srv"], ["--installation-prefix", "absolute"], id="prefix"),
        pytest.param(
            ["--runtime", "docker://1.0"], ["--runtime", "docker://1.0", "containerd://"], id="runtime"
        ),
        pytest.param(["--node-name", "n1"], ["--node-name", "--offline"], id="a node's name offline"),
        pytest.param(["--cri-socket", "/x"], ["--cri-socket", "--offline"], id="a socket offline"),
    ],
)
def test_an_invalid_option_is_refused(cli_runner: CliRunner, arguments: list[str], says: list[str]) -> None:
    before = cli_runner.files()
    having = [
        name
        for name in ("install", "plan", "revert", "status")
        if arguments[0].removeprefix("--").replace("-", "_") in COMMAND_OPTIONS[name]
    ]
    assert "install" in having
    for command in having:
        result = cli_runner.run(command, *cli_runner.paths_for(command), "--offline", *arguments)
        refused(cli_runner, result, 2, *says)
        assert result.out == ""
    assert cli_runner.files() == before


@pytest.mark.parametrize(
    ("content", "says"),
    [
        pytest.param(
            "shims: {qmeu: {enabled: true}}", ["shims.qmeu", "did you mean qemu?"], id="unknown shim"
        ),
        pytest.param("shims: {disableAll: true}", ["shims", "no shim is enabled"], id="no shim is left"),
        pytest.param(
            "shims: {qemu: {enabld: 1}}", ["shims.qemu.enabld", "did you mean enabled?"], id="unknown key"
        ),
        pytest.param("debug: 'yes'", ["debug", "true or false", '"yes"'], id="mistyped key"),
        pytest.param(
            "debgu: 1\nshim: {}", ["debgu", "did you mean debug?", "shim:", "2 problems"], id="two problems"
        ),
        pytest.param("env: {multiInstallSuffix: A/b}", ["env.multiInstallSuffix", '"A/b"'], id="suffix"),
        pytest.param("shims: [\n", ["line 2", "not valid YAML"], id="broken YAML"),
        pytest.param(b"a: \xff", ["line 1", "UTF-8"], id="no text"),
        pytest.param("- a", ["a mapping", "a list"], id="no mapping"),
        pytest.param(None, ["cannot be read", "No such file"], id="missing"),
    ],
)
def test_a_values_file_that_cannot_be_is_refused(
    cli_runner: CliRunner, tmp_path: Path, content: str | bytes | None, says: list[str]
) -> None:
    values = tmp_path / "values.yaml"
    if content is not None:
        values.write_bytes(content if isinstance(content, bytes) else content.encode())
    before = cli_runner.files()
    for command in ("install", "revert", "status"):
        refused(cli_runner, cli_runner.offline(command, "--config", values), 2, str(values), *says)
    assert cli_runner.files() == before


@pytest.mark.commands
@pytest.mark.parametrize("content", ["[" * 200_000, "a: {" * 50_000, "- " * 100_000], ids=["[", "{", "-"])
def test_200_kb_of_brackets_end_with_an_error_and_not_with_a_crash(
    cli_runner: CliRunner, tmp_path: Path, content: str
) -> None:
    values = tmp_path / "values.yaml"
    values.write_text(content)
    where = ["--host-root", str(cli_runner.host), "--payload", str(cli_runner.payload), "--offline"]
    command = [sys.executable, "-m", "kata_node", "install", *where, "--config", str(values)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"{values}: line 1, column " in done.stderr
    assert "nested more than 100 levels deep" in done.stderr


@pytest.mark.parametrize(
    ("path", "content"),
    [
        (MAIN, b"a = " + b"[" * 200_000),
        (MAIN, b"a." * 100_000 + b"a = 1"),
        (MAIN, b"version = " + b"9" * 5000),
        (MAIN, b'version = 3\nimports = ["/etc/\\u0000"]\n'),
        (RECEIPT, b"[" * 200_000),
        (RECEIPT, b'{"schema": 1, "cri": ' + b'{"fallback": ' * 50_000),
        (RECEIPT, b'{"schema": ' + b"9" * 5000 + b"}"),
    ],
    ids=["brackets", "dots", "digits", "NUL", "receipt-brackets", "receipt-braces", "receipt-digits"],
)
def test_a_file_of_the_node_that_cannot_be_parsed_ends_with_exit_code_3(
    cli_runner: CliRunner, path: str, content: bytes
) -> None:
    file = cli_runner.host / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    before = cli_runner.files()
    result = cli_runner.offline("install")
    assert result.code == 3, result.out + result.err
    assert "defect" not in result.out + result.err
    assert cli_runner.files() == before


def test_a_receipt_with_an_impossible_version_ends_with_exit_code_3(installed: CliRunner) -> None:
    path = installed.host / RECEIPT
    path.write_text(path.read_text().replace('"version":"2.1.9"', '"version":"x"'))
    before = installed.files()
    says = "'containerd' 'x' is not a container runtime and its version"
    refused(installed, installed.offline("revert"), 3, f"/{RECEIPT}", says)
    assert installed.files() == before


def test_a_manifest_that_cannot_be_parsed_ends_with_exit_code_3(cli_runner: CliRunner) -> None:
    (cli_runner.payload / "manifest.json").write_bytes(b'{"schema": 1, "entries": ' + b"[" * 200_000)
    result = cli_runner.offline("install")
    assert result.code == 3, result.out + result.err
    assert "the payload's manifest is damaged" in result.out


def test_a_setting_that_this_release_does_not_support_is_refused_by_name(
    cli_runner: CliRunner, tmp_path: Path
) -> None:
    values = tmp_path / "values.yaml"
    values.write_text("env: {hostOS: cbl-mariner}\n")
    before = cli_runner.files()
    result = cli_runner.offline("install", "--config", values)
    refused(cli_runner, result, 3, "env.hostOS", "is not supported in this release")
    assert result.outcomes == ["host-check failed"]
    assert cli_runner.files() == before


# --- a bad node or payload --------------------------------------------------------------------------


def test_a_host_root_that_does_not_exist_is_named(cli_runner: CliRunner, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for command in ("install", "plan", "revert", "status"):
        for name, says in (("none", "does not exist"), ("file", "is not a directory")):
            result = cli_runner.run(command, "--offline", "--host-root", tmp_path / name)
            refused(cli_runner, result, 2, str(tmp_path / name), says, "--host-root")


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        pytest.param(lambda path: path.rename(path.with_name("x")), ["does not exist"], id="missing"),
        pytest.param(lambda path: (path / "opt").rename(path / "x"), ["no directory opt/kata"], id="empty"),
    ],
)
def test_a_missing_or_empty_payload_is_named(
    cli_runner: CliRunner, break_it: Callable[[Path], object], says: list[str]
) -> None:
    break_it(cli_runner.payload)
    before = cli_runner.files()
    refused(cli_runner, cli_runner.offline("install"), 2, str(cli_runner.payload), *says, "--payload")
    refused(
        cli_runner, cli_runner.offline("stage", "artifacts"), 2, str(cli_runner.payload), *says, "--payload"
    )
    result = cli_runner.run("payload", "index", cli_runner.payload)
    refused(cli_runner, result, 2, str(cli_runner.payload), *says)
    assert result.out == ""
    assert cli_runner.files() == before


def damage(archive: Path) -> None:
    raw = bytearray(archive.read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    archive.write_bytes(raw)


@pytest.mark.parametrize(
    ("break_it", "code", "says"),
    [
        pytest.param(
            Path.unlink,
            3,
            "the payload does not have the component qemu, which the shim qemu needs",
            id="missing",
        ),
        pytest.param(lambda path: os.truncate(path, 20), 1, "the archive is damaged", id="cut short"),
        pytest.param(damage, 1, "the archive is damaged", id="corrupt"),
        pytest.param(
            lambda path: path.write_bytes(b"not an archive"), 1, "the archive is damaged", id="no archive"
        ),
    ],
)
def test_a_missing_or_damaged_archive_is_named(
    cli_runner: CliRunner, tmp_path: Path, break_it: Callable[[Path], object], code: int, says: str
) -> None:
    payload = make_payload(tmp_path / "image", "tarballs")
    break_it(payloads.archive_path(payload, "qemu"))
    cli_runner = dataclasses.replace(cli_runner, payload=payload)
    before = cli_runner.files()
    refused(cli_runner, cli_runner.offline("install"), code, "kata-static-qemu.tar.zst", says)
    refused(cli_runner, cli_runner.offline("stage", "artifacts"), code, "kata-static-qemu.tar.zst", says)
    assert cli_runner.files() == before


def test_an_archive_that_was_damaged_after_it_was_indexed_is_not_installed(
    cli_runner: CliRunner, tmp_path: Path
) -> None:
    cli_runner = dataclasses.replace(cli_runner, payload=make_payload(tmp_path / "image", "tarballs"))
    assert cli_runner.run("payload", "index", cli_runner.payload).code == 0
    damage(payloads.archive_path(cli_runner.payload, "qemu"))
    before = cli_runner.files()
    result = cli_runner.offline("install")
    refused(cli_runner, result, 4, "kata-static-qemu.tar.zst", "the changes of this stage were rolled back")
    assert result.outcomes == ["host-check done", "claim skipped", "artifacts failed"]
    assert cli_runner.files() == before


def test_a_broken_configuration_is_never_repaired(cli_runner: CliRunner) -> None:
    (cli_runner.host / MAIN).write_text("version = [\n")
    before = cli_runner.files()
    refused(
        cli_runner,
        cli_runner.offline("install"),
        3,
        "/etc/containerd/config.toml",
        "not valid TOML",
        "line 2",
    )
    refused(
        cli_runner, cli_runner.offline("revert"), 3, "/etc/containerd/config.toml", "not valid TOML", "line 2"
    )
    assert cli_runner.files() == before
    (cli_runner.host / MAIN).write_text(CONFIG)
    assert cli_runner.offline("stage", "artifacts").code == 0
    (cli_runner.host / MAIN).write_text("version = [\n")
    refused(
        cli_runner, cli_runner.offline("stage", "cri"), 3, "/etc/containerd/config.toml", "not valid TOML"
    )
    assert (cli_runner.host / MAIN).read_text() == "version = [\n"


def test_a_configuration_broken_since_the_install_is_left_by_revert(installed: CliRunner) -> None:
    path = installed.host / MAIN
    path.write_text(path.read_text() + "broken [\n")
    before = installed.files()
    refused(installed, installed.offline("revert"), 3, "/etc/containerd/config.toml", "not valid TOML")
    assert installed.files() == before


@pytest.mark.parametrize(
    ("content", "says"),
    [
        pytest.param('{"schema":1,"instance":"def', ["damaged", ".kata-node"], id="truncated"),
        pytest.param("", ["damaged", ".kata-node"], id="empty"),
        pytest.param(
            '{"schema":99}', ["schema 99", "this kata-node reads schema 1", "newer"], id="newer schema"
        ),
    ],
)
def test_an_unreadable_receipt_stops_every_change(
    installed: CliRunner, content: str, says: list[str]
) -> None:
    (installed.host / RECEIPT).write_text(content)
    before = installed.files()
    for command in ("install", "revert", "plan"):
        refused(installed, installed.offline(command), 3, f"/{RECEIPT}", *says)
    status = installed.offline("status")
    assert status.code == 10
    assert [text for text in (f"/{RECEIPT}", *says) if text not in status.out] == []
    assert installed.files() == before


def test_a_file_at_the_path_of_the_install_dir_stays(cli_runner: CliRunner) -> None:
    (cli_runner.host / "opt").mkdir()
    (cli_runner.host / "opt/kata").write_text("foreign")
    before = cli_runner.files()
    for command in ("install", "plan", "revert"):
        refused(
            cli_runner, cli_runner.offline(command), 3, "/opt/kata", "Not a directory", "move the file away"
        )
    assert "no installation on this node" in cli_runner.offline("status").out
    assert cli_runner.files() == before


@pytest.mark.parametrize(
    ("number", "says"),
    [
        pytest.param(errno.ENOSPC, ["No space left on device", "free some space"], id="full"),
        pytest.param(errno.EROFS, ["Read-only file system", "mount it writable"], id="read-only"),
        pytest.param(errno.EIO, ["Input/output error", "kernel log"], id="broken"),
    ],
)
def test_a_disk_failure_during_the_copy_leaves_the_node_unchanged(
    cli_runner: CliRunner, monkeypatch: pytest.MonkeyPatch, number: int, says: list[str]
) -> None:
    fail_after(monkeypatch, 3, OSError(number, os.strerror(number)))
    before = cli_runner.files()
    result = cli_runner.offline("install")
    refused(cli_runner, result, 4, "at: /opt/kata/", "the changes of this stage were rolled back", *says)
    assert result.outcomes == ["host-check done", "claim skipped", "artifacts failed"]
    assert cli_runner.files() == before


def fail_after(monkeypatch: pytest.MonkeyPatch, copies: int, error: BaseException) -> None:
    """Let ``copies`` files be copied, and raise ``error`` in the middle of the next one."""
    left = iter(range(copies))
    write_all = sparse_copy.write_all

    def failing(target: int, offset: int, data: memoryview) -> None:
        if next(left, None) is None:
            os.write(target, b"half")
            raise error
        write_all(target, offset, data)

    monkeypatch.setattr(temp_files, "write_all", failing)


def test_a_second_run_waits_for_the_first_and_names_it(cli_runner: CliRunner) -> None:
    before = cli_runner.files()
    with lock.hold(Root(cli_runner.host), "cri", 1):
        for command in ("install", "revert"):
            result = cli_runner.offline(command, "--lock-timeout", "0")
            refused(cli_runner, result, 5, f"cri (pid {os.getpid()} on ", "--lock-timeout", lock.LOCK_PATH)
        assert cli_runner.offline("plan", "--lock-timeout", "0").code == 10
        assert f"in progress: cri, pid {os.getpid()} on " in cli_runner.offline("status").out
    assert cli_runner.files() == before


# --- a live node ------------------------------------------------------------------------------------


def test_only_root_changes_a_live_node(cli_runner: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    run_as(monkeypatch, 1000)
    before = cli_runner.files()
    for arguments in (["install"], ["revert"], ["stage", "artifacts"], ["stage", "cri"]):
        result = cli_runner.online(*arguments)
        refused(cli_runner, result, 2, "needs root", "--offline --host-root DIR")
        assert result.out == ""
    for arguments in (["stage", "host-check"], ["stage", "label"], ["plan"], ["status"]):
        assert "needs root" not in cli_runner.online(*arguments).err
    assert cli_runner.files() == before


def test_a_node_without_systemd_is_refused(cli_runner: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    run_as(monkeypatch, 0)
    (cli_runner.host / "run").mkdir()
    before = cli_runner.files()
    refused(cli_runner, cli_runner.online("install"), 1, "/run/systemd/private", "--host-root", "--offline")
    refused(cli_runner, cli_runner.online("stage", "cri"), 1)
    refused(cli_runner, cli_runner.online("revert"), 1, "/run/systemd/private", "--host-root", "--offline")
    assert cli_runner.files() == before


def test_a_node_without_a_cri_socket_is_refused(
    cli_runner: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_as(monkeypatch, 0)
    root = Root(cli_runner.host)
    use_clients(monkeypatch, replace(FakeNode(root).clients(), cri=lambda socket: Cri(root, socket)))
    before = cli_runner.files()
    refused(cli_runner, cli_runner.online("install"), 1, "/run/containerd/containerd.sock", "no CRI socket")
    assert cli_runner.files() == before
    assert cli_runner.offline("install").code == 0
    status = cli_runner.online("status")
    assert status.code == 10
    assert "the CRI cannot be asked: there is no CRI socket (/run/containerd/containerd.sock)" in status.out


@pytest.fixture
def live(cli_runner: CliRunner, monkeypatch: pytest.MonkeyPatch) -> tuple[CliRunner, FakeNode]:
    return cli_runner, make_live(cli_runner, monkeypatch)


def test_status_shows_which_handlers_a_live_node_serves(live: tuple[CliRunner, FakeNode]) -> None:
    cli_runner, node = live
    before = cli_runner.content()
    assert cli_runner.online("install").code == 0
    assert node.restarts == 1
    status = cli_runner.online("status")
    assert (status.code, status.out.partition("\n")[0]) == (0, "default: healthy")
    assert "runtime    containerd.service active, containerd://2.1.9\n" in status.out
    assert "handler    kata-qemu: served\n" in status.out
    node.handlers = ("runc",)
    status = cli_runner.online("status")
    assert (status.code, status.out.partition("\n")[0]) == (10, "default: degraded")
    assert "handler    kata-qemu: NOT served\n" in status.out
    node.handlers = ("kata-qemu", "runc")
    assert cli_runner.online("revert").code == 0
    assert cli_runner.content() == before


# --- interruptions ----------------------------------------------------------------------------------


def test_ctrl_c_during_the_copy_leaves_the_node_unchanged(
    cli_runner: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_after(monkeypatch, 3, KeyboardInterrupt())
    before = cli_runner.files()
    result = cli_runner.offline("install")
    refused(
        cli_runner,
        result,
        4,
        "interrupted",
        "the changes of this stage were rolled back",
        "run the same command again",
    )
    assert cli_runner.files() == before


def test_ctrl_c_during_a_restart_restores_the_runtime(live: tuple[CliRunner, FakeNode]) -> None:
    cli_runner, node = live

    def press_once() -> None:
        node.on_restart = lambda: None
        raise KeyboardInterrupt

    node.on_restart = press_once
    result = cli_runner.online("install")
    refused(cli_runner, result, 4, "interrupted", "the changes of this stage were rolled back")
    assert result.outcomes == ["host-check done", "claim skipped", "artifacts done", "cri failed"]
    assert (cli_runner.host / MAIN).read_text() == CONFIG
    assert node.handlers == ("runc",)
    assert cli_runner.online("install").code == 0


def test_ctrl_c_between_changes_is_a_failure_of_the_stage(
    cli_runner: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.artifacts.gather_facts", press)
    result = cli_runner.offline("install")
    refused(cli_runner, result, 1, "interrupted", "run the same command again")
    assert result.outcomes == ["host-check done", "claim skipped", "artifacts failed"]


def press(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_ctrl_c_before_the_first_stage_prints_one_error(
    cli_runner: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "load", press)
    result = cli_runner.offline("install")
    assert (result.code, result.out) == (1, "")
    assert result.err == "error: interrupted\n  hint: run the same command again\n"


def test_an_unexpected_error_shows_a_traceback_only_with_log_level_debug(
    cli_runner: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("unforeseen")

    monkeypatch.setattr(settings, "load", fail)
    result = cli_runner.offline("install")
    assert result.code == 1
    assert result.err.startswith("error: unexpected error: RuntimeError: unforeseen\n  hint: ")
    assert "Traceback" not in result.err
    assert "Traceback" in cli_runner.offline("install", "--log-level", "debug").err


def test_a_closed_pipe_does_not_stop_the_run(cli_runner: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stdout:
        monkeypatch.setattr("sys.stdout", stdout)
        result = cli_runner.offline("install")
        monkeypatch.undo()
    assert (result.code, "rror" in result.err) == (0, False)
    assert (cli_runner.host / RECEIPT).exists()


def test_a_result_that_cannot_be_written_is_an_error(
    cli_runner: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.suppress(OSError), open("/dev/full", "w") as stdout:
        monkeypatch.setattr("sys.stdout", stdout)
        result = cli_runner.offline("status")
    assert result.code == 1
    assert result.err.startswith("error: stdout: cannot write the result: No space left on device\n")


def test_a_run_succeeds_without_stdout_and_stderr(
    cli_runner: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after ``>&- 2>&-`` in a shell."""
    monkeypatch.setattr("sys.stdout", None)
    monkeypatch.setattr("sys.stderr", None)
    assert cli_runner.offline("install").code == 0
    assert cli_runner.offline("nonsense").code == 2


def test_characters_that_the_encoding_lacks_are_printed_as_escapes(
    cli_runner: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert cli_runner.offline("plan").code == 10
    assert rb" # the admin's own: \u96ea" in raw.getvalue()


def test_a_terminal_gets_the_log_without_times(
    cli_runner: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stderr = Terminal()
    monkeypatch.setattr("sys.stderr", stderr)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("KATA_NODE_HOSTROOT", "/mnt")
    cli_runner.offline("install")
    assert "\nwrite /opt/kata/containerd/config.d/99-kata-deploy.toml\n" in stderr.getvalue()
    assert stderr.getvalue().startswith("warning: the variable KATA_NODE_HOSTROOT is not an option")
    monkeypatch.undo()
    for line in cli_runner.offline("revert").err.splitlines():
        assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ INFO    [a-z]", line)


def test_the_log_level_debug_tells_what_is_read_compared_and_decided(installed: CliRunner) -> None:
    assert installed.offline("install").err == ""
    log = installed.offline("install", "--log-level", "debug").err
    for pattern in (
        r"DEBUG   the settings of no values file, for /opt/kata: qemu\n",
        r"DEBUG   the runtime is containerd://2\.1\.9, as --runtime tells; .*main file /etc/containerd/",
        r"DEBUG   read /etc/containerd/config.toml: \d+ bytes\n",
        r"DEBUG   \d+ files below /opt/kata compared with the receipt, differing: none\n",
        r"DEBUG   cri: look at the node: done in \d+ ms\n",
        r"DEBUG   cri: decided: containerd 2\.1\.9 will serve kata-qemu when it starts; no changes\n",
    ):
        assert re.search(pattern, log), log
    (installed.host / "opt/kata/VERSION").unlink()
    assert "differing: VERSION\n" in installed.offline("plan", "--log-level", "debug").err
