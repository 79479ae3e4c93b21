"""``kata-node status`` on a live node: its verdict, its exit code, and that its advice mends the node."""

from __future__ import annotations

import errno
import json
import os
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.cli_runner import CONFIG, MAIN, RECEIPT, CliRunner, Result, make_live, open_cli_runner
from fakes import UNIT, FakeNode
from kata_node.cli.context import invocation_of
from kata_node.cli.options import Common
from kata_node.errors import HostError, NoSpaceError
from kata_node.host import files, lock
from kata_node.host.files import Root

DROP_IN = "opt/kata/containerd/config.d/99-kata-deploy.toml"
STATE = "opt/kata/.kata-node"
LAST_RUN = f"{STATE}/last-run.json"


class Killed(BaseException):
    """Stands for SIGKILL."""


class LiveNode:
    """A node with a fake containerd, on which commands are typed."""

    def __init__(self, cli_runner: CliRunner, runtime: FakeNode, values: Path) -> None:
        self.cli_runner = cli_runner
        self.runtime = runtime
        self.host = cli_runner.host
        self.values = values

    def type(self, *arguments: str) -> Result:
        return self.cli_runner.online(*arguments)

    def install(self, *arguments: str) -> Result:
        return self.type("install", "--config", str(self.values), *arguments)

    def status(self, *arguments: str) -> dict[str, Any]:
        """Return the document of ``status``, after comparing its exit code with its outcome."""
        result = self.cli_runner.run("status", "--host-root", self.host, "--output", "json", *arguments)
        document: dict[str, Any] = result.json
        assert (result.code == 0) == (document["outcome"] == "healthy")
        assert result.code in (0, 10)
        return document

    def text(self) -> str:
        return self.cli_runner.run("status", "--host-root", self.host).out

    def follow(self, advice: str) -> None:
        """Do what ``status`` says."""
        command = advice.partition("; if it fails again")[0]
        if command.startswith("correct the cause"):
            command = command.partition(", then ")[2]
        words = shlex.split(command)
        if words[:2] == ["systemctl", "start"]:
            self.runtime.restart(words[2], 1)
        else:
            assert words[0] == "kata-node", advice
            result = self.cli_runner.run(*words[1:])
            assert result.code == 0, result.out + result.err


@pytest.fixture
def node(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[LiveNode]:
    """A node without Kata. Its values file has a shim that is not the default."""
    values = tmp_path / "values.yaml"
    values.write_text("shims: {disableAll: true, clh: {enabled: true}, qemu: {enabled: true}}\n")
    with open_cli_runner(tmp_path, capsys) as cli_runner:
        yield LiveNode(cli_runner, make_live(cli_runner, monkeypatch), values)


def remove(path: str) -> Callable[[LiveNode], object]:
    def act(node: LiveNode) -> None:
        found = node.host / path
        shutil.rmtree(found) if found.is_dir() else found.unlink()

    return act


def restart(node: LiveNode) -> None:
    node.runtime.restart(UNIT, 1)


def edit(path: str) -> Callable[[LiveNode], object]:
    return lambda node: (node.host / path).write_text("# by hand\n")


def without_import(node: LiveNode) -> None:
    (node.host / MAIN).write_text(CONFIG)


def then(*steps: Callable[[LiveNode], object]) -> Callable[[LiveNode], object]:
    def act(node: LiveNode) -> None:
        for step in steps:
            step(node)

    return act


def fail(node: LiveNode) -> None:
    node.runtime.state, node.runtime.handlers = "failed", ()


def die(*_: object) -> None:
    raise Killed


def killed_before_the_restart(command: str) -> Callable[[LiveNode], object]:
    def act(node: LiveNode) -> None:
        edit(DROP_IN)(node)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(FakeNode, "restart", die)
            with pytest.raises(Killed):
                node.type(command, "--config", str(node.values))
        node.cli_runner.capsys.readouterr()

    return act


@pytest.mark.parametrize(
    ("break_it", "verdict", "reason", "after"),
    [
        pytest.param(
            remove("opt/kata/bin"), "drifted", "paths differ from the record", "healthy", id="files-deleted"
        ),
        pytest.param(edit(DROP_IN), "drifted", "1 path differs", "healthy", id="drop-in-edited"),
        pytest.param(without_import, "drifted", "1 path differs", "healthy", id="import-deleted"),
        pytest.param(
            then(without_import, restart),
            "degraded",
            "does not serve kata-clh, kata-qemu",
            "healthy",
            id="import-deleted-and-restarted",
        ),
        pytest.param(
            lambda node: node.runtime.stop(),
            "broken",
            "the container runtime is down: containerd.service is inactive",
            "healthy",
            id="runtime-stopped",
        ),
        pytest.param(fail, "broken", "down: containerd.service is failed", "healthy", id="runtime-failed"),
        pytest.param(remove(RECEIPT), "broken", "the receipt is gone", "healthy", id="receipt-deleted"),
        pytest.param(
            then(remove(RECEIPT), lambda node: node.runtime.stop()),
            "broken",
            "the receipt is gone",
            "broken",
            id="receipt-deleted-and-runtime-stopped",
        ),
        pytest.param(remove("opt/kata"), "broken", "the receipt is gone", "absent", id="install-dir-deleted"),
        pytest.param(
            lambda node: (killed_before_the_restart("install")(node), node.runtime.stop()),
            "broken",
            "the container runtime is down",
            "healthy",
            id="install-killed-and-runtime-stopped",
        ),
        pytest.param(
            killed_before_the_restart("install"),
            "degraded",
            "a restart is owed",
            "healthy",
            id="install-killed",
        ),
        pytest.param(
            killed_before_the_restart("revert"),
            "degraded",
            "reverted, not yet unloaded",
            "absent",
            id="revert-killed",
        ),
    ],
)
def test_the_advice_mends_the_node(
    node: LiveNode, break_it: Callable[[LiveNode], object], verdict: str, reason: str, after: str
) -> None:
    assert node.install().code == 0
    healthy = node.status()
    assert [(each["verdict"], each["reasons"], each["advice"]) for each in healthy["installations"]] == [
        ("healthy", [], "")
    ]
    break_it(node)
    document = node.status()
    (found,) = document["installations"]
    assert (document["outcome"], found["verdict"]) == (verdict, verdict)
    assert reason in "; ".join(found["reasons"])
    assert f"  → {found['advice']}\n" in node.text()
    node.follow(found["advice"])
    assert node.status()["outcome"] == after
    if after == "broken":  # the first of two causes is mended; the advice now names the second
        (found,) = node.status()["installations"]
        node.follow(found["advice"])
        assert node.status()["outcome"] == "healthy"
    if after != "absent":
        assert node.runtime.handlers == ("kata-clh", "kata-qemu", "runc")


def test_a_run_that_was_killed_after_the_restart_is_told_on_a_node_that_serves(node: LiveNode) -> None:
    node.runtime.on_restart = die
    with pytest.raises(Killed):
        node.install()
    node.cli_runner.capsys.readouterr()
    document = node.status()
    assert document["outcome"] == "healthy"
    assert document["installations"][0]["interrupted"].endswith("Z")
    text = node.text()
    assert "cri        serving; the record says: written, not yet proven to serve\n" in text
    assert "last run   did not finish; it last wrote the receipt at " in text
    node.runtime.on_restart = lambda: None
    assert node.install().code == 0
    assert "did not finish" not in node.text()


def test_a_command_that_labelled_a_node_is_repeated_with_its_name() -> None:
    assert invocation_of(Common(node_name="node-1", verbose=True), "install").options == (
        "--node-name",
        "node-1",
    )


@pytest.mark.parametrize(
    "options",
    [["--multi-install-suffix", "blue"], ["--installation-prefix", "/srv"]],
    ids=["suffix", "prefix"],
)
def test_the_advice_names_the_installation(node: LiveNode, options: list[str]) -> None:
    (node.host / "srv").mkdir()
    assert node.install(*options).code == 0
    without_import(node)
    (found,) = node.status(*options)["installations"]
    assert options[1] in found["advice"]
    node.follow(found["advice"])
    assert node.status()["outcome"] == "healthy"
    (node.host / found["install_dir"][1:] / ".kata-node/last-run.json").unlink()
    without_import(node)
    (found,) = node.status(*options)["installations"]
    assert found["advice"] == (
        f"kata-node install --host-root {node.host} {' '.join(options)} --config FILE --payload DIR, with "
        "the values file of its install"
    )


def test_the_advice_to_revert_names_the_node_and_the_runtime(node: LiveNode) -> None:
    assert node.install().code == 0
    record = json.loads((node.host / LAST_RUN).read_bytes())
    record["options"] += ["--node-name", "worker-1"]  # this test has no cluster to install with it
    (node.host / LAST_RUN).write_text(json.dumps(record))
    killed_before_the_restart("revert")(node)
    (found,) = node.status("--cri-socket", "/run/containerd/containerd.sock")["installations"]
    assert found["advice"] == (
        f"kata-node revert --host-root {node.host} --node-name worker-1 "
        "--cri-socket /run/containerd/containerd.sock"
    )
    assert "--node-name worker-2" in node.status("--node-name", "worker-2")["installations"][0]["advice"]
    assert "--node-name" not in node.status("--offline")["installations"][0]["advice"]


def test_a_command_that_the_record_cut_is_not_in_the_advice(node: LiveNode) -> None:
    assert node.install("--shims", "qemu," * 200 + "qemu").code == 0
    without_import(node)
    (found,) = node.status()["installations"]
    assert found["last_run"]["is_cut"]
    assert "--config FILE" in found["advice"]


def test_a_first_install_that_failed_is_told(node: LiveNode, monkeypatch: pytest.MonkeyPatch) -> None:
    before = node.cli_runner.content()

    def full(*_: object) -> None:
        raise NoSpaceError("No space left on device", where="/opt/kata/bin/qemu")

    with monkeypatch.context() as patched:
        patched.setattr("kata_node.payload.actions.PlaceFiles.apply", full)
        assert node.install().code == 4
    document = node.status()
    (found,) = document["installations"]
    assert (document["outcome"], found["verdict"]) == ("absent", "absent")
    assert found["last_run"]["stages"][0]["error"].startswith("/opt/kata/bin/qemu: No space left on device")
    assert "last run" in node.text()
    assert found["advice"].startswith(
        "correct the cause that the last run names, then kata-node install --config"
    )
    assert node.cli_runner.content() == before
    node.follow(found["advice"])
    assert node.status()["outcome"] == "healthy"
    assert node.type("revert").code == 0
    assert node.status()["installations"] == []


def test_a_values_file_that_was_deleted_is_not_in_the_advice(node: LiveNode) -> None:
    assert node.install().code == 0
    without_import(node)
    node.values.unlink()
    (found,) = node.status()["installations"]
    assert "--config FILE" in found["advice"]


def test_after_a_rollback_status_tells_when_and_why_the_run_failed(node: LiveNode) -> None:
    node.runtime.refusals = 1
    assert node.install().code == 4
    (found,) = node.status()["installations"]
    assert (found["verdict"], found["artifacts"], found["cri"]) == ("degraded", "placed", "absent")
    run = found["last_run"]
    assert [(each["stage"], each["outcome"], each["exit_code"]) for each in run["stages"]] == [
        ("artifacts", "done", 0),
        ("cri", "failed", 4),
    ]
    assert run["command"] == "install"
    failed = run["stages"][-1]
    assert failed["started"] <= failed["ended"]
    assert (
        f"  last run   {failed['ended']} install by kata-node {run['program']}: artifacts done, cri failed"
        in (node.text())
    )
    assert "containerd.service: the job ended as failed: no space left for a pid file" in node.text()
    node.follow(found["advice"])
    (found,) = node.status()["installations"]
    assert [each["outcome"] for each in found["last_run"]["stages"]] == ["skipped", "done"]


def test_a_failed_upgrade_that_was_rolled_back_leaves_a_healthy_node_and_its_error(node: LiveNode) -> None:
    assert node.install().code == 0
    node.runtime.refusals = 1
    assert node.type("install", "--shims", "clh").code == 4
    document = node.status()
    assert document["outcome"] == "healthy"
    assert "cri failed (exit code 4)" in node.text()
    assert node.install().code == 0
    assert "install by kata-node" in node.text()
    assert "cri skipped\n" in node.text()


def test_a_failed_revert_is_told_and_a_complete_one_leaves_nothing(
    node: LiveNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = node.cli_runner.content()
    assert node.install().code == 0

    def broken(*_: object) -> None:
        raise HostError("Input/output error", where="/opt/kata/bin")

    with monkeypatch.context() as patched:
        patched.setattr("kata_node.plan.remove_files.RemoveFiles.apply", broken)
        assert node.type("revert").code == 1
    (found,) = node.status()["installations"]
    assert (found["verdict"], found["recorded"]["artifacts"]) == ("degraded", "removing")
    assert (
        "revert-cri done, remove-artifacts failed (exit code 1)\n             /opt/kata/bin: Input"
        in node.text()
    )
    node.follow(found["advice"])
    assert node.cli_runner.content() == before
    assert not (node.host / "opt").exists()
    assert node.status()["installations"] == []


def test_each_stage_of_a_job_adds_to_the_last_run(node: LiveNode) -> None:
    assert node.type("stage", "artifacts").code == 0
    (found,) = node.status()["installations"]
    assert (found["verdict"], found["last_run"]["command"]) == ("degraded", "stage artifacts")
    assert node.type("stage", "cri").code == 0
    (found,) = node.status()["installations"]
    assert (found["verdict"], found["last_run"]["command"]) == ("healthy", "stage cri")
    assert [each["stage"] for each in found["last_run"]["stages"]] == ["artifacts", "cri"]


def test_a_run_without_work_writes_no_record(node: LiveNode) -> None:
    assert node.install().code == 0
    record = node.host / LAST_RUN
    before = record.read_bytes(), record.stat().st_mtime_ns, record.stat().st_ino
    assert node.install().code == 0
    assert (record.read_bytes(), record.stat().st_mtime_ns, record.stat().st_ino) == before


@pytest.mark.parametrize("content", [b"", b"[" * 100_000, b'{"schema": 9}', b"\xff"])
def test_a_damaged_record_of_the_last_run_harms_nothing(node: LiveNode, content: bytes) -> None:
    assert node.install().code == 0
    (node.host / LAST_RUN).write_bytes(content)
    assert (node.status()["outcome"], node.status()["installations"][0]["last_run"]) == ("healthy", None)
    assert node.install("--shims", "clh").code == 0
    assert node.status()["installations"][0]["last_run"]["command"] == "install"


def test_a_run_in_progress_is_named(node: LiveNode) -> None:
    assert node.install().code == 0
    node.runtime.stop()
    with lock.hold(Root(node.host), "install", 1):
        document = node.status()
        assert document["run_in_progress"] | {"since": "", "host": ""} == {
            "command": "install",
            "pid": os.getpid(),
            "host": "",
            "since": "",
        }
        assert document["run_in_progress"]["since"].endswith("Z")
        (found,) = document["installations"]
        assert "wait for the run in progress" in found["advice"]
        assert f"a run is in progress: install, pid {os.getpid()} on " in node.text()
    assert "run_in_progress" not in node.status()


def test_a_run_says_in_the_lock_which_command_it_is(node: LiveNode) -> None:
    seen: list[lock.Holder | None] = []
    node.runtime.on_restart = lambda: seen.append(lock.find_holder(Root(node.host)))
    assert node.install().code == 0
    assert [(each.command, each.pid) for each in seen if each] == [("install", os.getpid())]


def test_a_node_without_an_installation_is_not_healthy(node: LiveNode) -> None:
    assert node.status() == {"outcome": "absent", "installations": []} | {"runtime": node.status()["runtime"]}
    assert node.text() == "no installation on this node\n"
    assert node.install().code == 0
    assert node.status()["outcome"] == "healthy"
    document = node.status("--multi-install-suffix", "blue")
    assert document["outcome"] == "absent"
    assert [each["verdict"] for each in document["installations"]] == ["healthy", "absent"]


@pytest.mark.parametrize(("uid", "code"), [(1000, 2), (0, 1)], ids=["an ordinary user", "root"])
def test_what_the_user_may_not_read_is_an_error(
    node: LiveNode, monkeypatch: pytest.MonkeyPatch, uid: int, code: int
) -> None:
    assert node.install().code == 0

    def deny(path: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(files, "read_real", deny)
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    result = node.type("status")
    assert (result.code, result.out) == (code, "")
    assert f"error: /{RECEIPT}: " in result.err
    assert ("hint: run `kata-node status` as root\n" in result.err) == (uid == 1000)


def test_the_worst_installation_decides(node: LiveNode) -> None:
    assert node.install().code == 0
    assert node.install("--multi-install-suffix", "blue").code == 0
    (node.host / "opt/kata-blue/.kata-node/receipt.json").write_text("{")
    document = node.status()
    assert document["outcome"] == "broken"
    assert [each["verdict"] for each in document["installations"]] == ["healthy", "broken"]


def test_kata_of_another_program_is_named_as_such(node: LiveNode) -> None:
    drop_in = node.host / "opt/kata/containerd/config.d/kata-deploy.toml"
    drop_in.parent.mkdir(parents=True)
    table = "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.kata-qemu]\n"
    drop_in.write_text(f'{table}runtime_path = "/opt/kata/bin/containerd-shim-kata-v2"\n')
    (node.host / MAIN).write_text(
        'version = 3\nimports = ["/opt/kata/containerd/config.d/kata-deploy.toml"]\n'
    )
    document = node.status()
    assert (document["outcome"], document["foreign"]) == ("absent", ["/opt/kata"])
    assert "uninstall it with that program" in node.text()


@pytest.mark.parametrize(
    "install_dir", ["/x[/opt/kata", "/*/opt/kata-[a", "/loop/opt/kata", "/loop/opt/kata-blue"]
)
@pytest.mark.parametrize("line", ["imports = ['{}/containerd/config.d/*.toml']", '# "{}/bin/{}"'])
def test_a_path_of_the_configuration_that_is_none_does_not_hide_the_status(
    node: LiveNode, install_dir: str, line: str
) -> None:
    assert node.install().code == 0
    (node.host / "loop").symlink_to("loop")
    main = node.host / MAIN
    main.write_text(f"{main.read_text()}{line.format(install_dir, 'containerd-shim-kata-v2')}\n")
    found = {each["install_dir"]: each["verdict"] for each in node.status()["installations"]}
    assert found["/opt/kata"] in ("healthy", "drifted")


def test_offline_the_verdict_is_unknown_unless_something_wrong_is_seen(node: LiveNode) -> None:
    assert node.install().code == 0
    assert node.status("--offline")["outcome"] == "unknown"
    (node.host / "opt/kata/VERSION").unlink()
    assert node.status("--offline")["outcome"] == "drifted"


def test_a_cri_that_does_not_answer_leaves_the_verdict_unknown(node: LiveNode) -> None:
    assert node.install().code == 0
    node.runtime.cri_hangs = True
    (found,) = node.status()["installations"]
    assert (found["verdict"], found["reasons"]) == (
        "unknown",
        ["the CRI cannot be asked: no answer (the socket)"],
    )
    node.runtime.cri_hangs, node.runtime.handlers = False, None
    (found,) = node.status()["installations"]
    assert found["verdict"] == "broken"


def test_a_main_file_that_cannot_be_parsed_comes_before_the_install(node: LiveNode) -> None:
    assert node.install().code == 0
    (node.host / MAIN).write_text("version = 3\nnot [TOML\n")
    (found,) = node.status()["installations"]
    assert found["verdict"] == "drifted"
    assert "line 2" in found["advice"]
    assert "correct" in found["advice"]
    without_import(node)
    (found,) = node.status()["installations"]
    node.follow(found["advice"])
    assert node.status()["outcome"] == "healthy"


def test_a_receipt_that_cannot_be_compared_is_broken(node: LiveNode) -> None:
    assert node.install().code == 0
    path = node.host / RECEIPT
    path.write_text(path.read_text().replace('"version":"2.1.9"', '"version":"x"'))
    (found,) = node.status()["installations"]
    (reason,) = found["reasons"]
    assert (found["verdict"], reason.partition(": ")[0]) == ("broken", f"/{RECEIPT}")
    assert found["advice"].startswith("find out who changed it; restore it from a copy, or move the whole")
    shutil.move(node.host / STATE, node.host / "root-copy")
    assert node.install().code == 0
    assert node.status()["outcome"] == "healthy"


def test_hundreds_of_missing_files_are_few_lines(node: LiveNode) -> None:
    assert node.install().code == 0
    shutil.rmtree(node.host / "opt/kata/share")
    lines = [line for line in node.text().splitlines() if line.startswith("  drift ")]
    (found,) = node.status()["installations"]
    assert len(lines) == 1
    assert lines[0].startswith("  drift      /opt/kata/share: missing, with ")
    assert len(found["drift"]) > 1


def test_the_record_has_bounded_printable_texts(node: LiveNode, monkeypatch: pytest.MonkeyPatch) -> None:
    assert node.install().code == 0

    def fail(*_: object) -> None:
        raise HostError("\x1b[31m" + "x" * 10_000 + "\nsecond line")

    monkeypatch.setattr("stages.cri.gather_facts", fail)
    assert node.install("--shims", "clh").code == 1
    error = json.loads((node.host / LAST_RUN).read_bytes())["stages"][-1]["error"]
    assert (len(error), error.isprintable()) == (600, True)
