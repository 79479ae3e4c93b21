"""The daemon as the kubelet meets it: started, probed, sent away; its children are played by the test."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from daemon.daemon_process import NEVER_AGAIN, WAIT_TIMEOUT, DaemonProcess, daemon, failure
from kata_node.daemon.daemon import RetryDelays

pytestmark = pytest.mark.commands


def installed(it: DaemonProcess) -> None:
    it.child("install").ends(0)
    it.says("installed; waiting for the pod to end")


# --- what it tells the kubelet ------------------------------------------------------------------------


def test_it_is_ready_when_the_install_has_ended_well_and_not_before(tmp_path: Path) -> None:
    with daemon(tmp_path) as it:
        install = it.child("install")
        assert it.get("/healthz") == (200, "installing")
        assert it.get("/readyz") == (503, "installing")
        install.ends(0)
        it.says("installed")
        assert it.get("/readyz") == it.get("/healthz") == (200, "installed")


def test_it_lives_and_is_not_ready_while_it_reverts(tmp_path: Path) -> None:
    with daemon(tmp_path) as it:
        installed(it)
        it.terminate()
        wanted = it.child("wanted")
        assert it.get("/readyz") == (503, "ending")
        wanted.ends(10)
        it.child("revert")
        assert it.get("/readyz") == (503, "reverting")
        assert it.get("/healthz") == (200, "reverting")


def test_a_node_that_cannot_run_it_is_left_alone_and_the_reason_is_told(tmp_path: Path) -> None:
    with daemon(tmp_path) as it:
        it.child("install").ends(3, failure("host-check", "hardware: no /dev/kvm", "/dev", "turn it on"))
        told = "host-check: hardware: no /dev/kvm (/dev); turn it on"
        it.says(f"nothing more is tried on this node until the pod is made anew: {told}")
        assert it.get("/readyz") == (503, f"not installed, and not to be: {told}")
        assert it.get("/healthz")[0] == 200
        it.terminate()
        it.child("wanted").ends(0)
        assert it.exit_code() == 0


def test_wrong_settings_are_told_and_the_pod_stays_to_take_away_what_is_there(tmp_path: Path) -> None:
    with daemon(tmp_path) as it:
        it.child("install").ends(2, failure("install", "no shim qmeu"))
        it.says("nothing more is tried on this node until the pod is made anew: install: no shim qmeu")
        assert it.get("/readyz") == (503, "not installed, and not to be: install: no shim qmeu")
        assert it.get("/healthz")[0] == 200
        it.terminate()
        it.child("wanted").ends(10)
        it.child("revert").ends(0)
        assert it.exit_code() == 0


# --- an install that fails ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "says"),
    [
        pytest.param(1, "it failed", id="failed"),
        pytest.param(4, "it failed and was put back", id="put back"),
        pytest.param(5, "another run holds the node's lock", id="locked"),
        pytest.param(-9, "it was ended by the signal 9", id="killed"),
        pytest.param(77, "it ended with the exit code 77", id="something else"),
    ],
)
@pytest.mark.parametrize("message", [True, False], ids=["with a message", "without"])
def test_what_may_pass_is_tried_again_until_it_is_installed(
    tmp_path: Path, code: int, says: str, message: bool
) -> None:
    with daemon(tmp_path) as it:
        for _ in range(2):
            it.child("install").ends(code, failure("cri", "it hung") if message else None)
            it.says("the install is tried again in 0 s: " + ("cri: it hung" if message else says))
        installed(it)
        assert it.get("/readyz") == (200, "installed")


def test_between_two_tries_it_says_what_went_wrong_and_can_be_sent_away(tmp_path: Path) -> None:
    with daemon(tmp_path, NEVER_AGAIN) as it:
        it.child("install").ends(1, failure("artifacts", "no space left on device", "/opt"))
        it.says("tried again in 10000 s")
        told = "not installed, tried once: artifacts: no space left on device (/opt)"
        assert it.get("/readyz") == (503, told)
        it.terminate()
        it.child("wanted").ends(0)
        assert it.exit_code() == 0


def test_the_reason_of_an_earlier_try_is_not_taken_for_that_of_a_later_one(tmp_path: Path) -> None:
    with daemon(tmp_path) as it:
        it.child("install").ends(1, failure("artifacts", "no space left on device"))
        it.child("install").ends(-9)
        it.says("it was ended by the signal 9")


def test_without_a_file_for_the_pods_status_the_exit_code_is_told(tmp_path: Path) -> None:
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
def test_each_try_waits_longer_up_to_a_limit(code: int, pauses: list[float]) -> None:
    assert [RetryDelays().after(code, tries) for tries in range(1, 8)] == pauses
    assert RetryDelays().after(code, 10**6) == pauses[-1]


@pytest.mark.parametrize(
    ("code", "pauses"),
    [
        pytest.param(1, [10, 20, 40, 60, 60], id="failed"),
        pytest.param(4, [60, 120, 240, 480, 960], id="put back, which restarted the runtime"),
    ],
)
def test_a_pod_that_is_waited_for_tries_more_often_and_no_more_restarts_for_it(
    code: int, pauses: list[float]
) -> None:
    assert [RetryDelays().after(code, tries, reverting=True) for tries in range(1, 6)] == pauses


# --- its end ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_what_is_still_wanted_stays(tmp_path: Path, number: signal.Signals) -> None:
    with daemon(tmp_path) as it:
        installed(it)
        it.terminate(number)
        it.child("wanted").ends(0)
        assert it.exit_code() == 0


def test_what_is_not_wanted_any_more_is_reverted(tmp_path: Path) -> None:
    with daemon(tmp_path) as it:
        installed(it)
        it.terminate()
        it.child("wanted").ends(10)
        it.child("revert").ends(0)
        assert it.exit_code() == 0


@pytest.mark.parametrize("code", [1, 2, 3, 11, -9, -15])
def test_what_could_not_be_found_out_takes_nothing_away(tmp_path: Path, code: int) -> None:
    with daemon(tmp_path) as it:
        installed(it)
        it.terminate()
        it.child("wanted").ends(code)
        it.says("could not be found out, so it stays; if it is not, run `kata-node revert` here")
        assert it.exit_code() == 1


def test_a_revert_that_fails_is_tried_again_for_as_long_as_the_pod_lives(tmp_path: Path) -> None:
    with daemon(tmp_path) as it:
        installed(it)
        it.terminate()
        for code in (1, 5, -9, 4, 1, 1, 1, 1):
            it.child("wanted").ends(10)
            it.child("revert").ends(code)
        it.child("wanted").ends(10)
        it.child("revert").ends(0)
        assert it.exit_code() == 0


def test_what_keeps_a_revert_is_told(tmp_path: Path) -> None:
    with daemon(tmp_path, NEVER_AGAIN) as it:
        installed(it)
        it.terminate()
        it.child("wanted").ends(10)
        it.child("revert").ends(1, failure("revert-cri", "pods run on kata-qemu", hint="end them"))
        why = "revert-cri: pods run on kata-qemu; end them"
        it.says(f"in 10000 s, and if the pod is ended before, run `kata-node revert` on this node: {why}")
        assert it.get("/readyz") == (503, f"not reverted, tried 1 times: {why}")


def test_where_the_settings_are_wrong_it_reverts_by_what_names_the_installation(tmp_path: Path) -> None:
    with daemon(
        tmp_path, fallback_env={"KATA_NODE_CONFIG": "", "KATA_NODE_MULTI_INSTALL_SUFFIX": "blue"}
    ) as it:
        it.child("install").ends(2)
        it.terminate()
        it.child("wanted").ends(10)
        it.child("revert").ends(2, failure("revert", "no shim qmeu"))
        it.says("by the name of this installation alone: revert: no shim qmeu")
        revert = it.child("revert")
        variables = Path(f"/proc/{revert.pid}/environ").read_bytes().split(b"\0")
        assert {b"KATA_NODE_CONFIG=", b"KATA_NODE_MULTI_INSTALL_SUFFIX=blue"} <= {*variables}
        revert.ends(0)
        assert it.exit_code() == 0


@pytest.mark.parametrize("code", [2, 3])
def test_a_revert_that_can_never_work_is_not_tried_again(tmp_path: Path, code: int) -> None:
    with daemon(tmp_path) as it:
        installed(it)
        it.terminate()
        it.child("wanted").ends(10)
        it.child("revert").ends(code)
        assert it.exit_code() == code


def test_a_revert_that_failed_is_not_gone_on_with_when_kata_is_wanted_again(tmp_path: Path) -> None:
    with daemon(tmp_path) as it:
        installed(it)
        it.terminate()
        it.child("wanted").ends(10)
        it.child("revert").ends(1)
        it.child("wanted").ends(0)
        assert it.exit_code() == 0


def test_a_revert_that_was_begun_is_completed_when_nobody_can_be_asked_any_more(tmp_path: Path) -> None:
    with daemon(tmp_path) as it:
        installed(it)
        it.terminate()
        it.child("wanted").ends(10)
        it.child("revert").ends(1)
        it.child("wanted").ends(1)
        it.child("revert").ends(0)
        assert it.exit_code() == 0


def test_an_install_under_way_is_waited_for_where_kata_is_still_wanted(tmp_path: Path) -> None:
    with daemon(tmp_path) as it:
        install = it.child("install")
        it.terminate()
        it.child("wanted").ends(0)
        it.says("waiting for the install under way to end")
        assert it.process.poll() is None
        install.ends(1)  # and not tried again
        it.child("wanted").ends(0)
        assert it.exit_code() == 0


def test_a_daemonset_that_is_deleted_while_an_install_is_waited_for_is_not_missed(tmp_path: Path) -> None:
    with daemon(tmp_path) as it:
        install = it.child("install")
        it.terminate()
        it.child("wanted").ends(0)
        it.says("waiting for the install under way to end")
        install.ends(0)
        it.child("wanted").ends(10)
        it.child("revert").ends(0)
        assert it.exit_code() == 0


def test_an_install_under_way_is_waited_for_where_nobody_can_be_asked(tmp_path: Path) -> None:
    with daemon(tmp_path) as it:
        install = it.child("install")
        it.terminate()
        it.child("wanted").ends(1)
        it.says("waiting for the install under way to end")
        install.ends(0)
        it.child("wanted").ends(1)
        assert it.exit_code() == 1


def test_an_install_under_way_puts_itself_back_before_the_revert(tmp_path: Path) -> None:
    with daemon(tmp_path) as it:
        install = it.child("install")
        it.terminate()
        it.child("wanted").ends(10)
        install.is_interrupted()
        assert it.get("/readyz") == (503, "ending")
        install.ends(4)
        it.child("revert").ends(0)
        assert it.exit_code() == 0


def test_an_install_that_ends_while_the_question_is_asked_is_not_waited_for(tmp_path: Path) -> None:
    with daemon(tmp_path) as it:
        install = it.child("install")
        it.terminate()
        wanted = it.child("wanted")
        install.ends(0)
        wanted.ends(10)
        it.child("revert").ends(0)
        assert it.exit_code() == 0


def test_a_second_signal_stops_neither_the_question_nor_the_revert(tmp_path: Path) -> None:
    with daemon(tmp_path) as it:
        installed(it)
        it.terminate()
        wanted = it.child("wanted")
        it.terminate()
        it.says("a second one")
        wanted.ends(10)
        revert = it.child("revert")
        it.terminate(signal.SIGINT)
        it.says("a second one")
        revert.ends(0)
        assert it.exit_code() == 0


def test_a_signal_that_came_before_the_start_is_not_lost_and_nothing_is_installed(tmp_path: Path) -> None:
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


def test_a_signal_to_the_whole_group_of_a_terminal_reaches_the_daemon_alone(tmp_path: Path) -> None:
    with daemon(tmp_path) as it:
        install = it.child("install")
        assert install.in_a_session_of_its_own
        install.ends(0)


def test_children_do_not_inherit_what_is_blocked_or_ignored(tmp_path: Path) -> None:
    ignoring = "trap '' INT TERM PIPE; exec \"$@\""
    with daemon(tmp_path, wrapped=("sh", "-c", ignoring, "sh")) as it:
        status = Path(f"/proc/{it.child('install').pid}/status").read_text()
        masks = dict(line.split(":\t") for line in status.splitlines() if line.startswith("Sig"))
        mine = sum(1 << (number - 1) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD))
        assert int(masks["SigBlk"], 16) == 0
        assert int(masks["SigIgn"], 16) & mine == 0


def test_no_zombie_is_left_of_a_child(tmp_path: Path) -> None:
    with daemon(tmp_path, NEVER_AGAIN) as it:
        install = it.child("install")
        install.ends(1)
        it.says("tried again")
        with pytest.raises(ProcessLookupError):
            os.kill(install.pid, 0)


def test_an_orphan_that_is_left_to_it_is_reaped_and_taken_for_no_child_of_its_own(tmp_path: Path) -> None:
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
assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0  # PR_SET_CHILD_SUBREAPER, as the first process is one
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
