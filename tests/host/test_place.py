"""Placing a payload: all files durably, or none."""

from __future__ import annotations

import errno
import os
import posixpath
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from msgspec.structs import replace

import payloads
from host.faults import fail_with
from kata_node.errors import HostError, PayloadError
from kata_node.host.files import Root
from kata_node.host.place import place
from kata_node.host.spool import Spool
from kata_node.payload import index
from kata_node.payload.index import Payload
from kata_node.payload.manifest import Entry
from payloads import FILES, MTIME, QEMU, archive_path

IMAGE = "share/kata-containers/kata-containers.img"
INSTALL_DIR = "/opt/kata"


@pytest.fixture(params=["tree", "tarballs", "spooled"])
def payload(request: pytest.FixtureRequest, tmp_path: Path, node: Path) -> Payload:
    """A payload with a manifest, or archives without one whose files are on the node already, unnamed."""
    if request.param == "spooled":
        directory = payloads.tarballs(tmp_path / "payload")
        spool = Spool.open(Root(node), INSTALL_DIR, lambda *_: False)
        assert spool, "the tests need a file system with unnamed files"
        return index.load(directory, spool=spool)
    directory = getattr(payloads, request.param)(tmp_path / "payload")
    index.write_manifest(directory)
    return index.load(directory)


@pytest.fixture
def node(tmp_path: Path) -> Path:
    (tmp_path / "node/opt").mkdir(parents=True)
    return tmp_path / "node"


def all_of(payload: Payload) -> tuple[Entry, ...]:
    return payload.select([QEMU], "x86_64")


def only(payload: Payload, *paths: str) -> tuple[Entry, ...]:
    return tuple(entry for entry in all_of(payload) if entry.path in paths)


def install(node: Path, payload: Payload, entries: tuple[Entry, ...] | None = None) -> Path:
    place(Root(node), payload, all_of(payload) if entries is None else entries, INSTALL_DIR)
    return node / "opt/kata"


def test_every_file_and_link_is_placed_as_in_the_payload(node: Path, payload: Payload) -> None:
    base = install(node, payload)
    placed = {path: found for path, found in payloads.snapshot(base).items() if found[0] != "dir"}
    assert placed == {
        path: ("link", content)
        if isinstance(content, str)
        else ("file", oct(stat.S_IFREG | payloads.mode_of(path)), content, float(MTIME))
        for path, content in FILES.items()
    }


def test_placing_again_gives_the_same_files(node: Path, payload: Payload) -> None:
    first = payloads.snapshot(install(node, payload))
    assert payloads.snapshot(install(node, payload)) == first


def test_the_umask_does_not_change_modes(node: Path, payload: Payload) -> None:
    before = os.umask(0o077)
    try:
        base = install(node, payload)
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (base, *base.rglob("*")) if path.is_dir()}
    assert modes == {0o755}
    assert stat.S_IMODE((base / "bin/qemu-system-x86_64").stat().st_mode) == 0o755


def test_only_the_given_entries_are_written(node: Path, payload: Payload) -> None:
    base = install(node, payload, only(payload, "libexec/virtiofsd"))
    assert list(payloads.snapshot(base)) == ["libexec", "libexec/virtiofsd"]


def test_progress_adds_up_to_the_size_of_all_entries(node: Path, payload: Payload) -> None:
    entries, done = all_of(payload), [0]
    lock = threading.Lock()

    def count(size: int) -> None:
        with lock:
            done[0] += size

    place(Root(node), payload, entries, INSTALL_DIR, progress=count)
    assert done[0] == sum(entry.size for entry in entries)


@pytest.fixture(
    params=[None, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, 0],
    ids=lambda code: {None: "supported", 0: "gives nothing"}.get(code) or errno.errorcode[code],
)
def kernel_copy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels and file systems that support copy_file_range, and others that do not."""
    if request.param == 0:
        monkeypatch.setattr(os, "copy_file_range", lambda *_: 0)
    elif request.param is not None:
        monkeypatch.setattr(os, "copy_file_range", fail_with(request.param))


@pytest.mark.usefixtures("kernel_copy")
def test_holes_stay_holes_however_the_kernel_copies(node: Path, payload: Payload) -> None:
    placed = install(node, payload, only(payload, IMAGE)) / IMAGE
    assert placed.read_bytes() == FILES[IMAGE]
    assert placed.stat().st_blocks * 512 < payloads.HOLE // 4


def test_zeros_in_the_payload_become_a_hole(
    node: Path, payload: Payload, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = "bin/qemu-system-x86_64"
    if payload.manifest.form == "tree":
        Path(payload.file(path)).write_bytes(cast("bytes", FILES[path]))
    monkeypatch.setattr("fcntl.ioctl", fail_with(errno.EXDEV))
    monkeypatch.setattr(os, "copy_file_range", fail_with(errno.EXDEV))
    placed = install(node, payload, only(payload, path)) / path
    assert placed.read_bytes() == FILES[path]
    assert placed.stat().st_blocks * 512 < payloads.HOLE // 4


def test_a_sparse_member_of_an_archive_is_placed_with_its_holes(tmp_path: Path, node: Path) -> None:
    content = b"a" * 4096 + bytes(payloads.HOLE) + b"b" * 100 + bytes(payloads.HOLE)
    member = payloads.sparse_file(
        "share/image", [(0, b"a" * 4096), (4096 + payloads.HOLE, b"b" * 100)], len(content)
    )
    directory = payloads.tarballs(
        tmp_path / "payload",
        {"qemu": [member, payloads.file("share/next", b"next")]},
        {"qemu": {"x86_64": ["qemu"]}},
    )
    payload, done = index.load(directory), [0]

    def count(size: int) -> None:
        done[0] += size

    place(Root(node), payload, all_of(payload), INSTALL_DIR, progress=count)
    base = node / "opt/kata"
    assert done == [len(content) + len(b"next")]
    assert (base / "share/image").read_bytes() == content
    assert (base / "share/image").stat().st_blocks * 512 <= 64 * 1024
    assert (base / "share/next").read_bytes() == b"next"


def test_a_cloned_file_is_not_copied_again(
    tmp_path: Path, node: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def clone(target: int, request: int, source: int) -> int:
        assert request == 0x40049409
        return os.pwrite(target, content, 0)

    payload = index.load(payloads.tree(tmp_path / "payload"))
    content = cast(bytes, FILES[IMAGE])
    monkeypatch.setattr("fcntl.ioctl", clone)
    monkeypatch.setattr(os, "copy_file_range", lambda *_: pytest.fail("it was copied"))
    base = install(node, payload, only(payload, IMAGE))
    assert (base / IMAGE).read_bytes() == content
    content = bytes(len(content))
    with pytest.raises(PayloadError, match="digest"):
        install(node, payload, only(payload, IMAGE))


def hard_linked(directory: Path) -> Payload:
    packed = [payloads.file("bin/a", b"same", 0o755), payloads.hard_link("bin/b", "./opt/kata/bin/a")]
    payloads.tarballs(directory, {"qemu": packed}, {"qemu": {"x86_64": ["qemu"]}})
    return index.load(directory)


@pytest.mark.parametrize("names", [("bin/a", "bin/b"), ("bin/b",)], ids=["both names", "second name"])
def test_hard_links_become_separate_files(tmp_path: Path, node: Path, names: tuple[str, ...]) -> None:
    payload = hard_linked(tmp_path / "payload")
    base = install(node, payload, only(payload, *names))
    for name in names:
        assert (base / name).read_bytes() == b"same"
        assert ((base / name).stat().st_nlink, stat.S_IMODE((base / name).stat().st_mode)) == (1, 0o755)


def test_a_process_keeps_the_old_file_that_it_has_open(node: Path, payload: Payload) -> None:
    base = node / "opt/kata"
    (base / "bin").mkdir(parents=True)
    (base / "bin/qemu-system-x86_64").write_bytes(b"old")
    with (base / "bin/qemu-system-x86_64").open("rb") as running:
        install(node, payload)
        assert running.read() == b"old"
    assert (base / "bin/qemu-system-x86_64").read_bytes() == FILES["bin/qemu-system-x86_64"]


def test_a_symlink_on_the_node_is_replaced_and_its_target_is_kept(node: Path, payload: Payload) -> None:
    (node / "opt/kata/libexec").mkdir(parents=True)
    (node / "precious").write_bytes(b"precious")
    (node / "opt/kata/libexec/virtiofsd").symlink_to("../../../precious")
    base = install(node, payload)
    assert not (base / "libexec/virtiofsd").is_symlink()
    assert (node / "precious").read_bytes() == b"precious"


def test_existing_directories_do_not_change(node: Path, payload: Payload) -> None:
    (node / "opt/kata/bin").mkdir(parents=True)
    (node / "opt/kata/bin").chmod(0o700)
    base = install(node, payload)
    assert stat.S_IMODE((base / "bin").stat().st_mode) == 0o700


def test_files_are_placed_in_a_directory_that_is_read_only_in_the_payload(tmp_path: Path, node: Path) -> None:
    directory = payloads.tree(tmp_path / "payload")
    (directory / "opt/kata/libexec").chmod(0o555)
    payload = index.load(directory)
    base = install(node, payload)
    assert stat.S_IMODE((base / "libexec").stat().st_mode) == 0o555
    (directory / "opt/kata/libexec").chmod(0o755)
    (base / "libexec").chmod(0o755)


def test_the_install_dir_may_be_behind_a_symlink(node: Path, payload: Payload) -> None:
    (node / "data").mkdir()
    (node / "opt").rmdir()
    (node / "opt").symlink_to("/data")
    install(node, payload)
    assert (node / "data/kata/bin/qemu-system-x86_64").exists()


def test_the_leftover_of_a_killed_run_is_overwritten(node: Path, payload: Payload) -> None:
    (node / "opt/kata/libexec").mkdir(parents=True)
    (node / "opt/kata/libexec/.virtiofsd.kata-node-tmp").write_bytes(b"half")
    base = install(node, payload)
    assert [path.name for path in (base / "libexec").iterdir()] == ["virtiofsd"]


def test_the_leftover_directory_of_a_killed_run_is_replaced(node: Path, payload: Payload) -> None:
    leftover = node / "opt/kata/.libexec.kata-node-tmp"
    (leftover / "deep").mkdir(parents=True)
    (leftover / "deep/half").write_bytes(b"half")
    (leftover / "virtiofsd").symlink_to("/etc/passwd")
    base = install(node, payload)
    assert not leftover.exists()
    assert [path.name for path in (base / "libexec").iterdir()] == ["virtiofsd"]


@pytest.mark.parametrize("name", ["VERSION", "libexec"])
@pytest.mark.parametrize("is_dir", [False, True], ids=["file", "directory"])
def test_the_leftover_of_another_payload_is_replaced(
    node: Path, payload: Payload, name: str, is_dir: bool
) -> None:
    leftover = node / f"opt/kata/.{name}.kata-node-tmp"
    leftover.parent.mkdir()
    if is_dir:
        leftover.mkdir()
        (leftover / "half").write_bytes(b"half")
    else:
        leftover.write_bytes(b"half")
    base = install(node, payload)
    assert not list(base.rglob(".*.kata-node-tmp"))
    assert (base / "VERSION").read_bytes() == FILES["VERSION"]


def test_a_leftover_that_cannot_be_removed_is_named(
    node: Path, payload: Payload, monkeypatch: pytest.MonkeyPatch
) -> None:
    leftover = node / "opt/kata/.libexec.kata-node-tmp"
    leftover.mkdir(parents=True)
    monkeypatch.setattr(os, "rmdir", fail_with(errno.EPERM))
    with pytest.raises(HostError) as caught:
        install(node, payload)
    assert caught.value.where == "/opt/kata/.libexec.kata-node-tmp"


def directory_is_a_link(base: Path) -> None:
    (base / "elsewhere").mkdir()
    (base / "bin").symlink_to("elsewhere")


def directory_is_a_link_out(base: Path) -> None:
    (base / "bin").symlink_to("/etc")


def directory_is_a_file(base: Path) -> None:
    (base / "bin").write_bytes(b"file")


def file_is_a_directory(base: Path) -> None:
    (base / "bin/qemu-system-x86_64").mkdir(parents=True)


def link_is_a_directory(base: Path) -> None:
    (base / "share/kata-containers/vmlinux.container").mkdir(parents=True)


@pytest.mark.parametrize(
    ("obstacle", "says"),
    [
        (directory_is_a_link, "symlink"),
        (directory_is_a_link_out, "symlink"),
        (directory_is_a_file, "a file is where a directory is needed"),
        (file_is_a_directory, "a directory is where a file is needed"),
        (link_is_a_directory, "a directory is where a link is needed"),
    ],
)
def test_an_obstacle_is_named_and_kept(
    node: Path, payload: Payload, obstacle: Callable[[Path], None], says: str
) -> None:
    (node / "opt/kata").mkdir()
    obstacle(node / "opt/kata")
    before = payloads.snapshot(node)
    with pytest.raises(HostError, match=says) as caught:
        install(node, payload)
    assert caught.value.where.startswith(("/opt/kata/bin", "/opt/kata/share"))
    assert caught.value.hint
    assert payloads.snapshot(node) == before


def test_an_install_dir_that_is_a_file_is_an_error(node: Path, payload: Payload) -> None:
    (node / "opt/kata").write_bytes(b"file")
    with pytest.raises(HostError, match="/opt/kata") as caught:
        install(node, payload)
    assert caught.value.hint
    assert (node / "opt/kata").read_bytes() == b"file"


@pytest.fixture
def old_release(node: Path, payload: Payload) -> dict[str, tuple[object, ...]]:
    """A node that already has files with the names of the payload."""
    for path, content in FILES.items():
        target = node / "opt/kata" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            target.write_bytes(b"old release")
    return payloads.snapshot(node)


def break_after(monkeypatch: pytest.MonkeyPatch, name: str, calls: int, code: int) -> None:
    """Make the function ``name`` of :mod:`os` fail after ``calls`` calls."""
    real, count = getattr(os, name), iter(range(10**6))
    lock = threading.Lock()

    def maybe(*args: object, **kwargs: object) -> object:
        with lock:
            number = next(count)
        if number >= calls:
            raise OSError(code, os.strerror(code))
        return real(*args, **kwargs)

    monkeypatch.setattr(os, name, maybe)


@pytest.mark.parametrize("calls", [0, 1, 3])
@pytest.mark.parametrize(
    ("name", "code"),
    [
        pytest.param("pwrite", errno.ENOSPC, id="disk full"),
        pytest.param("pwrite", errno.EIO, id="disk fails"),
        pytest.param("fsync", errno.EIO, id="disk fails late"),
        pytest.param("fchmod", errno.EROFS, id="read-only"),
    ],
)
def test_a_failed_placement_leaves_the_previous_files(
    node: Path,
    payload: Payload,
    old_release: dict[str, tuple[object, ...]],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    code: int,
    calls: int,
) -> None:
    monkeypatch.setattr(os, "copy_file_range", fail_with(errno.EXDEV))
    # What was spooled is written, and only gets its names.
    name = "link" if payload.spool and name == "pwrite" else name
    break_after(monkeypatch, name, calls, code)
    with pytest.raises(HostError, match=os.strerror(code)) as caught:
        install(node, payload)
    assert caught.value.where.startswith("/opt/kata/")
    assert caught.value.hint
    monkeypatch.undo()
    assert payloads.snapshot(node) == old_release


def test_a_full_disk_during_a_kernel_copy_is_an_error(
    node: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    payload = index.load(payloads.tree(tmp_path / "payload"))
    monkeypatch.setattr(os, "copy_file_range", fail_with(errno.ENOSPC))
    with pytest.raises(HostError, match="No space left"):
        install(node, payload)


def test_a_failed_first_placement_leaves_nothing(
    node: Path, payload: Payload, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_after(monkeypatch, "fsync", 4, errno.ENOSPC)
    with pytest.raises(HostError):
        install(node, payload)
    assert list(payloads.snapshot(node)) == ["opt"]


def test_an_interruption_stops_the_threads_and_cleans_up(
    node: Path, payload: Payload, old_release: dict[str, tuple[object, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: object) -> Iterator[None]:
        raise KeyboardInterrupt

    monkeypatch.setattr("kata_node.host.place.as_completed", interrupt)
    with pytest.raises(KeyboardInterrupt):
        install(node, payload)
    assert payloads.snapshot(node) == old_release
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("place")]


def test_one_error_stops_the_other_copies(
    node: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large, small = b"large" * payloads.HOLE, b"small"
    payload = index.load(payloads.tree(tmp_path / "payload", {"large": large, "small": small}))
    stopped = threading.Event()
    pwrite, written = os.pwrite, [0]

    class Stop(threading.Event):
        def set(self) -> None:
            super().set()
            stopped.set()

    def write(fd: int, data: memoryview, offset: int) -> int:
        if data == small:
            raise OSError(errno.ENOSPC, "No space left")
        stopped.wait(1)
        written[0] += len(data)
        return pwrite(fd, data, offset)

    monkeypatch.setattr(
        "kata_node.host.place.threading", SimpleNamespace(Event=Stop, Semaphore=threading.Semaphore)
    )
    monkeypatch.setattr(os, "copy_file_range", fail_with(errno.EXDEV))
    monkeypatch.setattr(os, "pwrite", write)
    with pytest.raises(HostError, match="No space left"):
        install(node, payload)
    assert written[0] < len(large) // 4


def test_all_files_are_on_the_disk_before_the_first_rename(
    node: Path, payload: Payload, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, rename = os.fsync, os.rename

    def log_fsync(fd: int) -> None:
        events.append("directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file")
        fsync(fd)

    def log_rename(path: str, target: str, **directories: int) -> None:
        events.append("rename")
        rename(path, target, **directories)

    base = install(node, payload, ())
    monkeypatch.setattr(os, "fsync", log_fsync)
    monkeypatch.setattr(os, "rename", log_rename)
    install(node, payload)
    files = ["file" for content in FILES.values() if isinstance(content, bytes)]
    new_dirs = ["directory" for path in base.rglob("*") if path.is_dir()]
    assert events == files + new_dirs + ["rename" for _ in base.iterdir()] + ["directory"]
    events.clear()
    install(node, payload)
    with_files = {posixpath.dirname(path) for path in FILES}
    assert events == files + ["rename"] * len(FILES) + ["directory"] * len(with_files)


def test_a_new_directory_appears_with_all_its_files(
    node: Path, payload: Payload, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = install(node, payload, ())
    (base / "share").mkdir()
    seen: list[set[str]] = []
    rename = os.rename

    def look(path: str, target: str, **directories: int) -> None:
        rename(path, target, **directories)
        seen.append({str(each.relative_to(base)) for each in base.rglob("*")} & FILES.keys())

    monkeypatch.setattr(os, "rename", look)
    install(node, payload)
    new_dirs = {f"{path.split('/')[0]}/" for path in FILES if not path.startswith("share/")}
    for names in seen:
        for directory in new_dirs:
            files = {path for path in FILES if path.startswith(directory)}
            assert names & files in (set(), files)
    assert seen[-1] == set(FILES)


def harm_tree(payload: Payload, path: str, harm: Callable[[Path], object]) -> None:
    harm(payload.path / "opt/kata" / path)


@pytest.mark.parametrize(
    "harm",
    [
        pytest.param(lambda path: path.write_bytes(b"another size"), id="another size"),
        pytest.param(lambda path: path.write_bytes(bytes(path.stat().st_size)), id="another content"),
        pytest.param(Path.unlink, id="gone"),
        pytest.param(lambda path: path.symlink_to(path.rename(path.with_name("moved"))), id="a link now"),
    ],
)
def test_a_tree_that_does_not_match_its_manifest_is_an_error(
    tmp_path: Path, node: Path, harm: Callable[[Path], object]
) -> None:
    payload = index.load(payloads.tree(tmp_path / "payload"))
    harm(Path(payload.file(IMAGE)))
    with pytest.raises(PayloadError, match="payload index") as caught:
        install(node, payload)
    assert caught.value.where == payload.file(IMAGE)
    assert list(payloads.snapshot(node)) == ["opt"]


def repacked(*members: payloads.Member) -> Callable[[Path], object]:
    return lambda path: payloads.archive(path, members)


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        pytest.param(repacked(payloads.file("libexec/virtiofsd", b"#!virtiofsX")), "digest", id="content"),
        pytest.param(repacked(payloads.file("libexec/virtiofsd", b"longer" * 9)), "digest", id="size"),
        pytest.param(repacked(payloads.file("libexec/other")), "digest", id="another file"),
        pytest.param(repacked(), "digest", id="nothing in it"),
        pytest.param(repacked(payloads.link("libexec", "/etc")), "digest", id="a link out"),
        pytest.param(repacked(payloads.file("../../../evil")), "cannot be trusted|digest", id="a path out"),
        pytest.param(repacked(payloads.Member("/evil")), "cannot be trusted", id="an absolute path"),
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[:40]), "damaged", id="cut short"),
        pytest.param(Path.unlink, "missing", id="gone"),
    ],
)
def test_an_archive_that_does_not_match_its_manifest_is_an_error(
    tmp_path: Path, node: Path, harm: Callable[[Path], object], says: str
) -> None:
    payload = index.load(payloads.tarballs(tmp_path / "payload"))
    path = archive_path(payload.path, "virtiofsd")
    harm(path)
    with pytest.raises(PayloadError, match=says) as caught:
        install(node, payload)
    assert caught.value.hint
    assert list(payloads.snapshot(node)) == ["opt"]
    assert [found.name for found in tmp_path.iterdir() if "evil" in found.name] == []


def test_a_component_that_is_not_needed_is_not_read(tmp_path: Path, node: Path) -> None:
    payload = index.load(payloads.tarballs(tmp_path / "payload"))
    archive_path(payload.path, "kernel").write_bytes(b"broken")
    base = install(node, payload, only(payload, "libexec/virtiofsd"))
    assert (base / "libexec/virtiofsd").exists()


def test_a_file_that_the_archive_does_not_have_is_an_error(tmp_path: Path, node: Path) -> None:
    payload = index.load(payloads.tarballs(tmp_path / "payload"))
    entries = tuple(replace(entry, sha256="0" * 64) for entry in only(payload, "libexec/virtiofsd"))
    with pytest.raises(PayloadError, match="digest"):
        install(node, payload, entries)
