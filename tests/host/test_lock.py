from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import platform
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from host.faults import fail_with
from kata_node.errors import HostError, IneligibleNodeError, LockedError
from kata_node.host import lock
from kata_node.host.files import Root
from kata_node.host.lock import LOCK_PATH, hold

PLENTY = 60.0  # seconds; no test waits that long
NOBODY = 65534

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")

HOLDER = """
import sys
from pathlib import Path
from kata_node.host.files import Root
from kata_node.host.lock import hold
with hold(Root(Path(sys.argv[1])), sys.argv[2], 60):
    print("held", flush=True)
    sys.stdin.readline()
"""


@contextlib.contextmanager
def another_run(root: Root, stage: str) -> Iterator[subprocess.Popen[str]]:
    """Yield a process that holds the lock until it gets a line on stdin, or is killed."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(root.base), stage],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process


@contextlib.contextmanager
def in_a_thread(work: Callable[[], object]) -> Iterator[None]:
    """Run ``work`` in a thread while the body runs, and raise its error."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join()
    for error in raised:
        raise error


class WaitingLog(logging.Handler):
    """Collects the log lines of runs in this process, and sets ``event`` at each."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.event = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
        self.event.set()


@pytest.fixture
def waiting_log() -> Iterator[WaitingLog]:
    handler, logger = WaitingLog(), logging.getLogger("kata_node.host.lock")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)


def everything(root: Root) -> list[str]:
    return sorted(str(path.relative_to(root.base)) for path in root.base.rglob("*"))


# --- one at a time ----------------------------------------------------------------------------------


@pytest.mark.commands
def test_a_second_run_fails_with_the_name_of_the_holder(root: Root) -> None:
    with another_run(root, "artifacts") as first:
        with pytest.raises(LockedError) as caught, hold(root, "cri", timeout=0):
            pytest.fail("two at once")
        assert caught.value.what.startswith(f"artifacts (pid {first.pid} on {platform.node()}, for ")
        assert caught.value.what.endswith(" s) holds the node's lock; gave up after 0 s")
        assert caught.value.where == LOCK_PATH
        assert "--lock-timeout" in caught.value.hint
        assert caught.value.exit_code == 5
        first.communicate("go on\n")
    assert first.returncode == 0
    with hold(root, "cri", timeout=0):
        pass


@pytest.mark.commands
def test_a_second_run_continues_when_the_first_is_done(root: Root, waiting_log: WaitingLog) -> None:
    order: list[str] = []

    def second() -> None:
        with hold(root, "cri", PLENTY):
            order.append("second")

    with another_run(root, "artifacts") as first, in_a_thread(second):
        assert waiting_log.event.wait(PLENTY)
        order.append("first")
        first.communicate("go on\n")
    assert order == ["first", "second"]
    holder = f"artifacts (pid {first.pid} on {platform.node()}, for "
    assert [line.startswith(f"waiting for the lock held by {holder}") for line in waiting_log.lines] == [True]
    assert everything(root) == []


@pytest.mark.commands
def test_the_lock_of_a_killed_run_can_be_taken_and_is_cleaned_up(root: Root) -> None:
    with another_run(root, "artifacts") as first:
        first.kill()
    assert everything(root) == ["run", "run/kata-node", "run/kata-node/lock"]
    with hold(root, "cri", timeout=0):
        holder = json.loads(root.read(LOCK_PATH) or b"")
        assert (holder["stage"], holder["pid"]) == ("cri", os.getpid())
    assert everything(root) == []


def test_threads_exclude_each_other_like_processes(root: Root) -> None:
    def other() -> None:
        with hold(root, "cri", timeout=0):
            pytest.fail("two at once")

    with hold(root, "artifacts", timeout=0), pytest.raises(LockedError), in_a_thread(other):
        pass


def test_different_roots_have_different_locks(root: Root, tmp_path: Path) -> None:
    (tmp_path / "image").mkdir()
    with hold(root, "artifacts", timeout=0), hold(Root(tmp_path / "image"), "artifacts", timeout=0):
        pass


HAMMER = """
import os, sys
from pathlib import Path
from kata_node.host import lock
from kata_node.host.files import Root
lock.POLL = 0.0005
root = Root(Path(sys.argv[1]))
for _ in range(int(sys.argv[2])):
    with lock.hold(root, "cri", 60):
        os.close(os.open(root.base / "inside", os.O_CREAT | os.O_EXCL))
        os.unlink(root.base / "inside")
"""


@pytest.mark.commands
@pytest.mark.parametrize("run", ["there", "missing"])
def test_the_lock_is_exclusive_under_heavy_use(root: Root, monkeypatch: pytest.MonkeyPatch, run: str) -> None:
    if run == "there":
        (root.base / "run").mkdir()
    rounds = 40
    processes = [
        subprocess.Popen([sys.executable, "-c", HAMMER, str(root.base), str(rounds)]) for _ in range(3)
    ]
    monkeypatch.setattr(lock, "POLL", 0.0005)

    def work() -> None:
        for _ in range(rounds):
            with hold(root, "artifacts", PLENTY):
                os.close(os.open(root.base / "inside", os.O_CREAT | os.O_EXCL))
                os.unlink(root.base / "inside")

    try:
        with contextlib.ExitStack() as threads:
            for _ in range(3):
                threads.enter_context(in_a_thread(work))
    finally:
        assert [process.wait(PLENTY) for process in processes] == [0, 0, 0]
    left = everything(root)
    # Without /run, two runs that overlap closely can each take it for the other's, and leave it.
    assert left == ["run"] if run == "there" else left in ([], ["run"])


# --- cleanup ----------------------------------------------------------------------------------------


def test_the_lock_file_and_its_directories_are_removed(root: Root) -> None:
    with hold(root, "artifacts", timeout=0):
        assert everything(root) == ["run", "run/kata-node", "run/kata-node/lock"]
    assert everything(root) == []


def test_existing_files_and_directories_are_kept(root: Root) -> None:
    (root.base / "run/kata-node").mkdir(parents=True)
    (root.base / "run/kata-node/theirs").touch()
    with hold(root, "artifacts", timeout=0):
        pass
    assert everything(root) == ["run", "run/kata-node", "run/kata-node/theirs"]
    (root.base / "run/kata-node/theirs").unlink()
    with hold(root, "artifacts", timeout=0):
        pass
    assert everything(root) == ["run"], "kata-node owns the directory, even if it existed before"


def test_the_last_holder_removes_the_directory_that_the_first_created(
    root: Root, waiting_log: WaitingLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second run gets the lock before the first one removes the directories."""
    second_has_it, first_is_gone = threading.Event(), threading.Event()
    remove_dir = Root.remove_dir

    def late(self: Root, path: str) -> bool:
        if threading.current_thread() is threading.main_thread():
            assert second_has_it.wait(PLENTY)
        return remove_dir(self, path)

    def second() -> None:
        with hold(root, "cri", PLENTY):
            second_has_it.set()
            assert first_is_gone.wait(PLENTY)

    monkeypatch.setattr(Root, "remove_dir", late)
    monkeypatch.setattr(lock, "POLL", 0.001)
    with contextlib.ExitStack() as until_both_are_gone:
        with hold(root, "artifacts", timeout=0):
            until_both_are_gone.enter_context(in_a_thread(second))
            assert waiting_log.event.wait(PLENTY)
        assert everything(root) == ["run", "run/kata-node", "run/kata-node/lock"]
        first_is_gone.set()
    assert everything(root) == []


def test_a_directory_that_another_run_removes_is_created_again(
    root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_dirs = Root.make_dirs
    times = iter(range(3))

    def taken_away(self: Root, path: str, mode: int = 0o755) -> list[str]:
        made = make_dirs(self, path, mode)
        if next(times, None) is not None:
            for each in reversed(made):
                self.remove_dir(each)
        return made

    monkeypatch.setattr(Root, "make_dirs", taken_away)
    with hold(root, "artifacts", timeout=0):
        assert root.exists(LOCK_PATH)
    assert everything(root) == []


@pytest.mark.parametrize("link", ["run/kata-node", "run/kata-node/lock"])
def test_a_symlink_in_place_of_the_lock_is_refused_and_its_target_stays(root: Root, link: str) -> None:
    target = root.base / "victim"
    target.write_text("the admin's")
    (root.base / link).parent.mkdir(parents=True)
    (root.base / link).symlink_to("/victim")
    with pytest.raises(IneligibleNodeError, match="symlink") as caught, hold(root, "cri", timeout=PLENTY):
        pytest.fail("held what is not a lock")
    assert caught.value.where == f"/{link}"
    assert target.read_text() == "the admin's"


def test_a_hard_link_in_place_of_the_lock_is_refused_and_its_content_stays(root: Root) -> None:
    (root.base / "run/kata-node").mkdir(parents=True)
    (root.base / "victim").write_text("the admin's")
    (root.base / "victim").chmod(0o600)
    os.link(root.base / "victim", root.base / "run/kata-node/lock")
    with pytest.raises(IneligibleNodeError, match="not a file that kata-node made"), hold(root, "cri", 0):
        pytest.fail("held what is not a lock")
    assert (root.base / "victim").read_text() == "the admin's"


@as_root
@pytest.mark.parametrize("path", ["run/kata-node", "run/kata-node/lock"])
def test_a_lock_that_belongs_to_another_user_is_refused(root: Root, path: str) -> None:
    (root.base / "run/kata-node").mkdir(parents=True)
    (root.base / "run/kata-node/lock").touch(0o600)
    os.chown(root.base / path, NOBODY, NOBODY)
    with pytest.raises(IneligibleNodeError, match=f"belongs to the user {NOBODY}"), hold(root, "cri", 0):
        pytest.fail("held what another user can hold")


def test_only_the_owner_can_open_the_lock(root: Root) -> None:
    (root.base / "run/kata-node").mkdir(parents=True, mode=0o755)
    with hold(root, "cri", timeout=0):
        assert stat.S_IMODE((root.base / "run/kata-node").stat().st_mode) == 0o700
        assert stat.S_IMODE((root.base / LOCK_PATH.strip("/")).stat().st_mode) == 0o600


def test_a_reader_of_the_file_that_an_earlier_release_left_blocks_nobody(root: Root) -> None:
    path = leftover_of_earlier_release(root)
    with path.open("rb") as reader:
        fcntl.flock(reader, fcntl.LOCK_EX)
        with hold(root, "cri", timeout=0):
            assert path.stat().st_ino != os.fstat(reader.fileno()).st_ino
    assert everything(root) == ["run"]


def test_a_running_earlier_release_keeps_its_lock(root: Root) -> None:
    path = leftover_of_earlier_release(root)
    with path.open("r+b") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        with pytest.raises(LockedError, match=r"artifacts \(pid 7 "), hold(root, "cri", timeout=0):
            pytest.fail("two at once")
    with hold(root, "cri", timeout=0):
        pass


def leftover_of_earlier_release(root: Root) -> Path:
    """Make the lock file as a release does that lets every user open it."""
    path = root.base / LOCK_PATH.strip("/")
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"stage": "artifacts", "pid": 7, "host": "node", "since": 0}))
    path.chmod(0o644)
    return path


def test_a_lock_file_that_its_last_holder_removed_is_not_used(
    root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After this run opens the file, its last holder removes it and a third run creates a new one."""
    flock, path = fcntl.flock, root.base / LOCK_PATH.strip("/")
    removed = iter([True])

    def removed_before(fd: int, operation: int) -> None:
        if next(removed, False):
            path.unlink()
            path.touch()
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", removed_before)
    with hold(root, "artifacts", timeout=0):
        assert "artifacts" in path.read_text()
    assert everything(root) == []


def test_the_lock_file_of_another_run_is_not_removed(root: Root) -> None:
    """The lock file was removed and another run created a new one. A third run must still be blocked."""
    path = root.base / LOCK_PATH.strip("/")
    with hold(root, "artifacts", timeout=0):
        path.unlink()
        second = contextlib.ExitStack()
        second.enter_context(hold(root, "cri", timeout=0))
    with second, pytest.raises(LockedError), hold(root, "label", timeout=0):
        pytest.fail("two at once")


# --- errors -----------------------------------------------------------------------------------------


def test_an_error_of_the_stage_releases_the_lock(root: Root) -> None:
    with pytest.raises(KeyError, match="mine"), hold(root, "artifacts", timeout=0):
        raise KeyError("mine")
    assert everything(root) == []


@pytest.mark.parametrize("call", ["unlink", "rmdir"])
def test_a_failed_cleanup_does_not_hide_the_error_of_the_stage(
    root: Root, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def work() -> None:
        monkeypatch.setattr(Path, call, fail_with(errno.EROFS))
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"), hold(root, "artifacts", timeout=0):
        work()
    monkeypatch.undo()
    with hold(root, "cri", timeout=0):
        pass
    assert root.list_dir("/run") == []


@pytest.mark.parametrize(
    ("prepared", "owner", "call", "where"),
    [
        pytest.param("run", Path, "mkdir", "/run/kata-node", id="directory"),
        pytest.param("run/kata-node", os, "open", "/run/kata-node", id="file"),
    ],
)
def test_a_read_only_root_is_an_error(
    root: Root, monkeypatch: pytest.MonkeyPatch, prepared: str, owner: object, call: str, where: str
) -> None:
    (root.base / prepared).mkdir(parents=True)
    monkeypatch.setattr(owner, call, fail_with(errno.EROFS))
    with pytest.raises(HostError, match="Read-only file system") as caught, hold(root, "cri", PLENTY):
        pytest.fail("held what is not there")
    assert caught.value.where == where
    assert "mount it writable" in caught.value.hint


def test_a_file_where_the_directory_is_needed_is_an_error(root: Root) -> None:
    (root.base / "run").touch()
    with pytest.raises(HostError) as caught, hold(root, "cri", PLENTY):
        pytest.fail("held what is not there")
    assert caught.value.where == "/run"


def test_a_file_system_without_locks_is_an_error(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(fcntl, "flock", fail_with(errno.ENOLCK))
    with pytest.raises(HostError, match="No locks available") as caught, hold(root, "cri", PLENTY):
        pytest.fail("held what is not there")
    assert caught.value.where == LOCK_PATH
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_lock_works_on_a_full_disk_without_the_name_of_the_holder(
    root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "pwrite", fail_with(errno.ENOSPC))
    with (
        hold(root, "artifacts", timeout=0),
        pytest.raises(LockedError, match="another run holds the node's lock;"),
        hold(root, "cri", timeout=0),
    ):
        pytest.fail("two at once")


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"[]", b"null", b"\xff", b'{"stage": 1, "pid": 2}', b'{"stage": "cri"}', b"[" * 4096),
        b'{"stage": "cri", "pid": 1, "host": "a", "since": 100000000000000000000}',
    ],
)
def test_a_holder_that_cannot_be_read_is_called_another_run(root: Root, content: bytes) -> None:
    with hold(root, "artifacts", timeout=0):
        (root.base / LOCK_PATH.strip("/")).write_bytes(content)
        with (
            pytest.raises(LockedError, match="another run holds the node's lock;"),
            hold(root, "cri", timeout=0),
        ):
            pytest.fail("two at once")


def test_a_reader_blocks_no_run(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    path = root.base / LOCK_PATH.strip("/")
    path.parent.mkdir(parents=True)
    path.touch(mode=0o600)
    reader = path.open()
    fcntl.flock(reader, fcntl.LOCK_SH)  # as `status` does
    monkeypatch.setattr("time.sleep", lambda seconds: reader.close())
    with hold(root, "cri", timeout=0):
        assert reader.closed


def test_no_descriptor_is_left_open(root: Root) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with hold(root, "artifacts", timeout=0):
        with pytest.raises(LockedError), hold(root, "cri", timeout=0):
            pytest.fail("two at once")
        assert len(os.listdir("/proc/self/fd")) == before + 1
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_socket_in_place_of_the_lock_is_refused(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = root.base / "run/kata-node"
    directory.mkdir(parents=True, mode=0o700)
    monkeypatch.chdir(directory)  # the name of a socket is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("lock")
    with pytest.raises(IneligibleNodeError, match="a socket") as caught, hold(root, "cri", timeout=0):
        pytest.fail("it is held")
    assert "/run/kata-node/lock" in caught.value.hint
