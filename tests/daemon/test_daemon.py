"""The daemon as the kubelet sees it: it is started, probed and stopped. The test plays its children."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from daemon.daemon_process import AT_ONCE, NEVER_AGAIN, WAIT_TIMEOUT, DaemonProcess, daemon, failure
from kata_node.daemon.delays import RepairLimit, RetryDelays

pytestmark = pytest.mark.commands


def wait_until(done: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_TIMEOUT
    while not done():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.02)


def installed(it: DaemonProcess) -> None:
    it.child("install").ends(0)
    it.says("installed; waiting for the signal to stop")


@pytest.fixture
def watched(tmp_path: Path) -> Path:
    """A file that the install placed."""
    path = tmp_path / "placed" / "drop-in.toml"
    path.parent.mkdir()
    path.touch()
    return path


# --- what others change after the install ------------------------------------------------------------


def serving(it: DaemonProcess, watched: Path) -> None:
    it.verify_says("served", "", watched)
    installed(it)
    directory = watched.parent if watched.parent.exists() else watched.parent.parent
    wait_until(lambda: watches(it, directory) and it.questions > 1, "the daemon watches the directory")


def watches(it: DaemonProcess, directory: Path) -> bool:
    return any(
        os.readlink(each) == str(directory)
        for each in Path(f"/proc/{it.process.pid}/fd").iterdir()
        if each.is_symlink()
    )


def test_it_is_not_ready_while_the_node_does_not_serve_and_repairs_it(tmp_path: Path, watched: Path) -> None:
    with daemon(tmp_path) as it:
        serving(it, watched)
        it.verify_says("not served", "the runtime does not serve kata-qemu", watched)
        watched.unlink()
        it.says("not served: the runtime does not serve kata-qemu; installing again")
        install = it.child("install")
        assert it.get("/readyz")[0] == 503
        it.verify_says("served", "", watched)
        watched.touch()
        install.ends(0)
        it.says("installed; waiting")
        assert it.get("/readyz") == (200, "installed")
        it.terminate()
        it.child("wanted").ends(0)
        assert it.exit_code() == 0


def test_a_program_that_undoes_each_repair_is_named_and_repaired_less_often(
    tmp_path: Path, watched: Path
) -> None:
    with daemon(
        tmp_path, {**AT_ONCE, "first_after_rollback": 10_000, "longest_after_rollback": 10_000}
    ) as it:
        serving(it, watched)
        it.verify_says("not served", "no kata-qemu", watched)
        watched.unlink()
        it.child("install").ends(0)
        it.says("something changes it again: find that program")
        assert it.get("/readyz") == (503, "not served, repaired once, and changed again")
        # When somebody else repairs the node, only the labels are set again.
        it.verify_says("served", "", watched)
        watched.touch()
        it.child("install").ends(0)
        it.says("installed; waiting")
        assert it.get("/readyz") == (200, "installed")


def test_a_file_that_changes_and_means_nothing_leads_to_a_question_and_to_no_install(
    tmp_path: Path, watched: Path
) -> None:
    with daemon(tmp_path) as it:
        serving(it, watched)
        asked = it.questions
        watched.write_text("changed")
        wait_until(lambda: it.questions > asked, "verify ran")
        assert it.get("/readyz") == (200, "installed")
        it.terminate()
        it.child("wanted").ends(0)
        assert it.exit_code() == 0


def test_a_file_whose_directory_is_made_later_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "conf.d" / "drop-in.toml"
    with daemon(tmp_path) as it:
        serving(it, path)
        path.parent.mkdir()
        wait_until(lambda: watches(it, path.parent), "the daemon watches the new directory")
        asked = it.questions
        path.touch()
        wait_until(lambda: it.questions > asked, "verify ran")


def test_what_an_install_leaves_as_it_is_is_not_installed_again_and_again(
    tmp_path: Path, watched: Path
) -> None:
    with daemon(tmp_path) as it:
        it.verify_says("changed", "1 path differs", watched)
        it.child("install").ends(0)
        it.says("changed: 1 path differs; installing again")
        it.child("install").ends(0)
        it.says("installed; waiting")
        assert it.get("/readyz") == (200, "installed")
        it.terminate()
        it.child("wanted").ends(0)
        assert it.exit_code() == 0


def test_without_an_answer_for_a_while_it_is_not_ready(tmp_path: Path) -> None:
    with daemon(tmp_path) as it:
        it.answer.write_text("no answer")
        it.child("install").ends(0)
        wait_until(lambda: it.get("/readyz") == (503, "not served"), "it is not ready")
        it.verify_says("served")
        it.child("install").ends(0)
        wait_until(lambda: it.get("/readyz") == (200, "installed"), "it is ready")


def test_repairs_are_at_once_again_after_a_quiet_hour() -> None:
    limit = RepairLimit(RetryDelays())
    assert limit.delay(0) == 0
    limit.repaired(0)
    assert limit.delay(10) == 50
    limit.repaired(60)
    assert limit.delay(60) == 120
    assert limit.delay(3700) == 0


# --- answers to probes --------------------------------------------------------------------------------


def test_it_is_ready_only_after_the_install_has_succeeded(tmp_path: Path) -> None:
    with daemon(tmp_path) as it:
        install = it.child("install")
        assert it.get("/healthz") == (200, "installing")
        assert it.get("/readyz") == (503, "installing")
        install.ends(0)
        it.says("installed")
        assert it.get("/readyz") == it.get("/healthz") == (200, "installed")


def test_it_is_alive_but_not_ready_while_it_reverts(tmp_path: Path) -> None:
    with daemon(tmp_path) as it:
        installed(it)
        it.terminate()
        wanted = it.child("wanted")
        assert it.get("/readyz") == (503, "stopping")
        wanted.ends(10)
        it.child("revert")
        assert it.get("/readyz") == (503, "reverting")
        assert it.get("/healthz") == (200, "reverting")


def test_on_a_node_that_cannot_run_kata_it_gives_the_reason_and_does_not_retry(tmp_path: Path) -> None:
    with daemon(tmp_path) as it:
        it.child("install").ends(3, failure("host-check", "hardware: no /dev/kvm", "/dev", "turn it on"))
        why = "host-check: hardware: no /dev/kvm (/dev); turn it on"
        it.says(f"no retry on this node until the pod is replaced: {why}")
        assert it.get("/readyz") == (503, "not installed, no retry")
        assert it.get("/healthz")[0] == 200
        it.terminate()
        it.child("wanted").ends(0)
        assert it.exit_code() == 0


@pytest.mark.parametrize(("unfit_is_ready", "code"), [(True, 200), (False, 503)])
def test_on_an_unfit_node_it_is_ready_unless_the_values_say_otherwise_and_still_reverts(
    tmp_path: Path, *, unfit_is_ready: bool, code: int
) -> None:
    with daemon(tmp_path, unfit_is_ready=unfit_is_ready) as it:
        it.child("install").ends(3, failure("host-check", "kvm: no /dev/kvm", hint="turn it on", unfit=True))
        it.says("this node is unfit, so Kata is not installed: host-check: kvm: no /dev/kvm; turn it on")
        assert it.get("/readyz") == (code, "unfit")
        it.terminate()
        it.child("wanted").ends(10)
        it.child("revert").ends(0)
        assert it.exit_code() == 0


def test_with_wrong_settings_it_gives_the_reason_and_stays_to_revert(tmp_path: Path) -> None:
    with daemon(tmp_path) as it:
        it.child("install").ends(2, failure("install", "no shim qmeu"))
        it.says("no retry on this node until the pod is replaced: install: no shim qmeu")
        assert it.get("/readyz") == (503, "not installed, no retry")
        assert it.get("/healthz")[0] == 200
        it.terminate()
        it.child("wanted").ends(10)
        it.child("revert").ends(0)
        assert it.exit_code() == 0


# --- a release that is to be absent -------------------------------------------------------------------


def test_an_absent_release_is_reverted_at_once_and_the_pod_then_waits(tmp_path: Path) -> None:
    with daemon(tmp_path, absent=True) as it:
        for _ in range(2):
            it.child("revert").ends(1, failure("revert-cri", "3 pods run in Kata"))
            it.says("the revert failed; retrying in 0 s")
        revert = it.child("revert")
        assert it.get("/readyz") == (503, "reverting, try 3")
        revert.ends(0)
        it.says("INFO    reverted")
        assert it.get("/readyz") == (200, "reverted")
        it.terminate()
        assert it.exit_code() == 0, "it neither asks whether Kata is wanted nor reverts again"


def test_a_revert_of_an_absent_release_is_completed_before_the_pod_ends(tmp_path: Path) -> None:
    with daemon(tmp_path, absent=True) as it:
        revert = it.child("revert")
        it.terminate()
        it.says("stopping")
        revert.ends(0)
        assert it.exit_code() == 0


def test_with_wrong_settings_an_absent_release_is_not_reverted_again(tmp_path: Path) -> None:
    with daemon(tmp_path, absent=True) as it:
        it.child("revert").ends(2, failure("revert", "no shim qmeu"))
        it.says("run `kata-node revert` on this node: revert: no shim qmeu")
        assert it.get("/readyz") == (503, "not reverted, tried once")
        it.terminate()
        assert it.exit_code() == 2


# --- an install that fails ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "says"),
    [
        pytest.param(1, "it failed", id="failed"),
        pytest.param(4, "it failed and was rolled back", id="put back"),
        pytest.param(5, "another run holds the node's lock", id="locked"),
        pytest.param(-9, "signal 9 ended it", id="killed"),
        pytest.param(77, "it ended with exit code 77", id="something else"),
    ],
)
@pytest.mark.parametrize("message", [True, False], ids=["with a message", "without"])
def test_a_failed_install_is_retried_until_it_succeeds(
    tmp_path: Path, code: int, says: str, message: bool
) -> None:
    with daemon(tmp_path) as it:
        for _ in range(2):
            it.child("install").ends(code, failure("cri", "it hung") if message else None)
            it.says("the install failed; retrying in 0 s: " + ("cri: it hung" if message else says))
        installed(it)
        assert it.get("/readyz") == (200, "installed")


def test_between_two_tries_it_gives_the_reason_and_can_be_stopped(tmp_path: Path) -> None:
    with daemon(tmp_path, NEVER_AGAIN) as it:
        it.child("install").ends(1, failure("artifacts", "no space left on device", "/opt"))
        it.says("retrying in 10000 s")
        # Everyone on the network can read it, so the error is only in the log.
        assert it.get("/readyz") == (503, "not installed, tried once")
        it.terminate()
        it.child("wanted").ends(0)
        assert it.exit_code() == 0


def test_the_reason_is_that_of_the_last_try(tmp_path: Path) -> None:
    with daemon(tmp_path) as it:
        it.child("install").ends(1, failure("artifacts", "no space left on device"))
        it.child("install").ends(-9)
        it.says("signal 9 ended it")


def test_without_a_termination_message_the_reason_is_the_exit_code(tmp_path: Path) -> None:
    with daemon(tmp_path, termination_log=False) as it:
        it.child("install").ends(3, failure("host-check", "never read"))
        it.says("this node cannot run it")
        assert not it.log.exists()


@pytest.mark.parametrize(
    ("code", "pauses"),
    [
        pytest.param(1, [10, 20, 40, 80, 160, 300, 300], id="failed"),
        pytest.param(5, [10, 20, 40, 80, 160, 300, 300], id="locked"),
        pytest.param(-9, [10, 20, 40, 80, 160, 300, 300], id="killed"),
        pytest.param(4, [60, 120, 240, 480, 960, 1800, 1800], id="put back, which restarted the runtime"),
    ],
)
def test_the_delay_doubles_up_to_a_limit(code: int, pauses: list[float]) -> None:
    assert [RetryDelays().after(code, tries) for tries in range(1, 8)] == pauses
    assert RetryDelays().after(code, 10**6) == pauses[-1]


@pytest.mark.parametrize(
    ("code", "pauses"),
    [
        pytest.param(1, [10, 20, 40, 60, 60], id="failed"),
        pytest.param(4, [60, 120, 240, 480, 960], id="put back, which restarted the runtime"),
    ],
)
def test_a_revert_is_retried_sooner_unless_it_was_rolled_back(code: int, pauses: list[float]) -> None:
    assert [RetryDelays().after(code, tries, reverting=True) for tries in range(1, 6)] == pauses


# --- the end ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_kata_stays_when_it_is_still_wanted(tmp_path: Path, number: signal.Signals) -> None:
    with daemon(tmp_path) as it:
        installed(it)
        it.terminate(number)
        it.child("wanted").ends(0)
        assert it.exit_code() == 0


def test_kata_is_reverted_when_it_is_no_longer_wanted(tmp_path: Path) -> None:
    with daemon(tmp_path) as it:
        installed(it)
        it.terminate()
        it.child("wanted").ends(10)
        it.child("revert").ends(0)
        assert it.exit_code() == 0


@pytest.mark.parametrize("code", [1, 2, 3, 11, -9, -15])
def test_kata_stays_when_it_is_unknown_whether_it_is_wanted(tmp_path: Path, code: int) -> None:
    with daemon(tmp_path) as it:
        installed(it)
        it.terminate()
        it.child("wanted").ends(code)
        it.says("so Kata stays; if it is not wanted, run `kata-node revert` on this node")
        assert it.exit_code() == 1


def test_a_failed_revert_is_retried_until_the_pod_is_killed(tmp_path: Path) -> None:
    with daemon(tmp_path) as it:
        installed(it)
        it.terminate()
        for code in (1, 5, -9, 4, 1, 1, 1, 1):
            it.child("wanted").ends(10)
            it.child("revert").ends(code)
        it.child("wanted").ends(10)
        it.child("revert").ends(0)
        assert it.exit_code() == 0


def test_the_reason_of_a_failed_revert_is_shown(tmp_path: Path) -> None:
    with daemon(tmp_path, NEVER_AGAIN) as it:
        installed(it)
        it.terminate()
        it.child("wanted").ends(10)
        it.child("revert").ends(1, failure("revert-cri", "pods run on kata-qemu", hint="end them"))
        why = "revert-cri: pods run on kata-qemu; end them"
        it.says(f"in 10000 s; if the pod ends before that, run `kata-node revert` on this node: {why}")
        assert it.get("/readyz") == (503, "not reverted, tried once")


def test_with_wrong_settings_it_reverts_by_prefix_and_suffix(tmp_path: Path) -> None:
    with daemon(
        tmp_path, fallback_env={"KATA_NODE_CONFIG": "", "KATA_NODE_MULTI_INSTALL_SUFFIX": "blue"}
    ) as it:
        it.child("install").ends(2)
        it.terminate()
        it.child("wanted").ends(10)
        it.child("revert").ends(2, failure("revert", "no shim qmeu"))
        it.says("reverting by prefix and suffix alone: revert: no shim qmeu")
        revert = it.child("revert")
        variables = Path(f"/proc/{revert.pid}/environ").read_bytes().split(b"\0")
        assert {b"KATA_NODE_CONFIG=", b"KATA_NODE_MULTI_INSTALL_SUFFIX=blue"} <= {*variables}
        revert.ends(0)
        assert it.exit_code() == 0


@pytest.mark.parametrize("code", [2, 3])
def test_a_revert_that_cannot_work_is_not_retried(tmp_path: Path, code: int) -> None:
    with daemon(tmp_path) as it:
        installed(it)
        it.terminate()
        it.child("wanted").ends(10)
        it.child("revert").ends(code)
        assert it.exit_code() == code


def test_a_failed_revert_is_not_retried_when_kata_is_wanted_again(tmp_path: Path) -> None:
    with daemon(tmp_path) as it:
        installed(it)
        it.terminate()
        it.child("wanted").ends(10)
        it.child("revert").ends(1)
        it.child("wanted").ends(0)
        assert it.exit_code() == 0


def test_a_failed_revert_is_retried_when_the_api_server_stops_answering(tmp_path: Path) -> None:
    with daemon(tmp_path) as it:
        installed(it)
        it.terminate()
        it.child("wanted").ends(10)
        it.child("revert").ends(1)
        it.child("wanted").ends(1)
        it.child("revert").ends(0)
        assert it.exit_code() == 0


def test_a_running_install_may_finish_when_kata_is_still_wanted(tmp_path: Path) -> None:
    with daemon(tmp_path) as it:
        install = it.child("install")
        it.terminate()
        it.child("wanted").ends(0)
        it.says("waiting for the running install to end")
        assert it.process.poll() is None
        install.ends(1)  # it is not retried
        it.child("wanted").ends(0)
        assert it.exit_code() == 0


def test_a_daemonset_deleted_during_the_wait_for_an_install_leads_to_a_revert(tmp_path: Path) -> None:
    with daemon(tmp_path) as it:
        install = it.child("install")
        it.terminate()
        it.child("wanted").ends(0)
        it.says("waiting for the running install to end")
        install.ends(0)
        it.child("wanted").ends(10)
        it.child("revert").ends(0)
        assert it.exit_code() == 0


def test_a_running_install_may_finish_when_the_api_server_does_not_answer(tmp_path: Path) -> None:
    with daemon(tmp_path) as it:
        install = it.child("install")
        it.terminate()
        it.child("wanted").ends(1)
        it.says("waiting for the running install to end")
        install.ends(0)
        it.child("wanted").ends(1)
        assert it.exit_code() == 1


def test_a_running_install_is_interrupted_before_the_revert(tmp_path: Path) -> None:
    with daemon(tmp_path) as it:
        install = it.child("install")
        it.terminate()
        it.child("wanted").ends(10)
        install.is_interrupted()
        assert it.get("/readyz") == (503, "stopping")
        install.ends(4)
        it.child("revert").ends(0)
        assert it.exit_code() == 0


def test_an_install_that_ends_while_wanted_runs_is_not_waited_for(tmp_path: Path) -> None:
    with daemon(tmp_path) as it:
        install = it.child("install")
        it.terminate()
        wanted = it.child("wanted")
        install.ends(0)
        wanted.ends(10)
        it.child("revert").ends(0)
        assert it.exit_code() == 0


def test_a_second_signal_interrupts_neither_wanted_nor_the_revert(tmp_path: Path) -> None:
    with daemon(tmp_path) as it:
        installed(it)
        it.terminate()
        wanted = it.child("wanted")
        it.terminate()
        it.says("again; already stopping")
        wanted.ends(10)
        revert = it.child("revert")
        it.terminate(signal.SIGINT)
        it.says("again; already stopping")
        revert.ends(0)
        assert it.exit_code() == 0


def test_a_signal_before_the_start_is_not_lost_and_prevents_the_install(tmp_path: Path) -> None:
    with daemon(tmp_path, wrapped=(sys.executable, "-c", EARLY)) as it:
        it.child("wanted").ends(10)
        it.child("revert").ends(0)
        assert it.exit_code() == 0


EARLY = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
os.kill(os.getpid(), signal.SIGTERM)
os.execv(sys.argv[1], sys.argv[1:])
"""


# --- its children -------------------------------------------------------------------------------------


def test_a_signal_to_the_process_group_does_not_reach_the_children(tmp_path: Path) -> None:
    with daemon(tmp_path) as it:
        install = it.child("install")
        assert install.in_a_session_of_its_own
        install.ends(0)


def test_children_inherit_no_blocked_or_ignored_signals(tmp_path: Path) -> None:
    ignoring = "trap '' INT TERM PIPE; exec \"$@\""
    with daemon(tmp_path, wrapped=("sh", "-c", ignoring, "sh")) as it:
        status = Path(f"/proc/{it.child('install').pid}/status").read_text()
        masks = dict(line.split(":\t") for line in status.splitlines() if line.startswith("Sig"))
        mine = sum(1 << (number - 1) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD))
        assert int(masks["SigBlk"], 16) == 0
        assert int(masks["SigIgn"], 16) & mine == 0


def test_an_ended_child_is_reaped(tmp_path: Path) -> None:
    with daemon(tmp_path, NEVER_AGAIN) as it:
        install = it.child("install")
        install.ends(1)
        it.says("retrying")
        with pytest.raises(ProcessLookupError):
            os.kill(install.pid, 0)


def test_an_orphan_is_reaped_and_not_mistaken_for_a_child(tmp_path: Path) -> None:
    with daemon(tmp_path, wrapped=(sys.executable, "-c", SUBREAPER)) as it:
        install = it.child("install")
        orphan = int(it.line())
        os.kill(orphan, signal.SIGKILL)
        _wait(lambda: not Path(f"/proc/{orphan}").exists())
        assert it.get("/readyz") == (503, "installing")
        install.ends(0)
        it.says("installed")


SUBREAPER = """
import ctypes, os, signal, sys
assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0  # PR_SET_CHILD_SUBREAPER: inherit orphans, like process 1
if os.fork() == 0:
    if os.fork() == 0:
        print(os.getpid(), file=sys.stderr, flush=True)
        signal.pause()
    os._exit(0)
os.wait()
os.execv(sys.argv[1], sys.argv[1:])
"""


def _wait(done: Callable[[], bool]) -> None:
    until = time.monotonic() + WAIT_TIMEOUT
    while not done():
        assert time.monotonic() < until
        with contextlib.suppress(InterruptedError):
            os.sched_yield()
