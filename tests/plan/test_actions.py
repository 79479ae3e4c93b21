"""The actions of a plan: what each does to the node, how it is checked, and how it is described."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

import payloads
from kata_node.errors import HostError, NoSpaceError
from kata_node.host.files import Root, temp_sibling
from kata_node.payload import index
from kata_node.payload.actions import PlaceFiles
from kata_node.plan import receipt as receipts
from kata_node.plan.actions import (
    Action,
    Clients,
    MakeDirs,
    MakeLinks,
    Plan,
    RemoveDirs,
    RemoveFile,
    RemoveLeftovers,
    RemoveReceipt,
    WriteFile,
    WriteReceipt,
)
from kata_node.plan.effects import PathEffect
from kata_node.plan.receipt import Receipt
from kata_node.plan.remove_files import RemoveFiles
from kata_node.text import human_size, unified_diff

INSTALL_DIR = "/opt/kata"
MAIN = "/etc/containerd/config.toml"
RECEIPT = Receipt("default", INSTALL_DIR, "1.2.3")


def unused() -> Any:
    pytest.fail("an action on files must not use systemd, CRI or API server")


@contextlib.contextmanager
def no_progress(total: int, title: str) -> Iterator[Callable[[int], None]]:
    yield lambda _: None


@pytest.fixture
def clients(root: Root) -> Clients:
    return Clients(root, unused, lambda socket: unused(), unused, no_progress)


def apply_and_check(action: Action, clients: Clients) -> None:
    action.apply(clients)
    action.check(clients)


def put(root: Root, path: str, content: str = "") -> Path:
    real = root.base / path.strip("/")
    real.parent.mkdir(parents=True, exist_ok=True)
    real.write_text(content)
    return real


def mode_of(root: Root, path: str) -> int:
    return stat.S_IMODE((root.base / path.strip("/")).lstat().st_mode)


def lines_of(action: Action) -> list[str]:
    return [effect.line for effect in action.effects()]


def everything(root: Root) -> list[str]:
    return sorted(f"/{path.relative_to(root.base)}" for path in root.base.rglob("*"))


# --- one small file ---------------------------------------------------------------------------------


def test_a_new_file_is_written_and_reported_as_new(root: Root, clients: Clients) -> None:
    put(root, "/etc/other")
    action = WriteFile("/etc/a.toml", b"version = 3\n", 0o640, mtime=7)
    apply_and_check(action, clients)
    assert root.read("/etc/a.toml") == b"version = 3\n"
    assert mode_of(root, "/etc/a.toml") == 0o640
    assert root.resolve("/etc/a.toml").stat().st_mtime == 7
    assert action.describe() == "write /etc/a.toml"
    assert action.effects() == (
        PathEffect("write /etc/a.toml", "/etc/a.toml", "add", size=12, after=b"version = 3\n"),
    )


def test_a_changed_file_gets_the_given_mode(root: Root, clients: Clients) -> None:
    put(root, MAIN, "a\n")
    action = WriteFile(MAIN, b"b\n", 0o600, before=b"a\n")
    apply_and_check(action, clients)
    assert (root.read(MAIN), mode_of(root, MAIN)) == (b"b\n", 0o600)
    assert action.describe() == f"change {MAIN}"
    assert action.effects() == (
        PathEffect(f"change {MAIN}", MAIN, "change", size=2, before=b"a\n", after=b"b\n", is_secret=True),
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_file_gets_the_given_owner(root: Root, clients: Clients) -> None:
    apply_and_check(WriteFile("/a", b"", owner=(12, 34)), clients)
    info = root.resolve("/a").stat()
    assert (info.st_uid, info.st_gid) == (12, 34)


def test_the_check_finds_a_file_that_another_program_overwrote(root: Root, clients: Clients) -> None:
    action = WriteFile("/a", b"ours")
    action.apply(clients)
    for foreign in ("theirs", ""):
        put(root, "/a", foreign)
        with pytest.raises(HostError, match="does not have the content that was written") as caught:
            action.check(clients)
        assert caught.value.where == "/a"
    root.remove("/a")
    with pytest.raises(HostError, match="does not have the content that was written"):
        action.check(clients)


def test_removing_a_file_removes_the_target_of_a_link_and_keeps_the_link(
    root: Root, clients: Clients
) -> None:
    put(root, "/srv/real.toml", "a\n")
    root.symlink("/link.toml", "srv/real.toml")
    action = RemoveFile("/link.toml", b"a\n")
    apply_and_check(action, clients)
    assert everything(root) == ["/link.toml", "/srv"]
    assert action.describe() == "remove /link.toml"
    assert action.effects() == (
        PathEffect("remove /link.toml", "/link.toml", "remove", size=2, before=b"a\n"),
    )
    apply_and_check(action, clients)
    put(root, "/srv/real.toml")
    with pytest.raises(HostError, match="still exists") as caught:
        action.check(clients)
    assert caught.value.where == "/link.toml"


def test_leftovers_of_an_interrupted_write_are_removed_and_nothing_else(root: Root, clients: Clients) -> None:
    real = put(root, "/srv/real.toml")
    root.symlink("/link.toml", "srv/real.toml")
    temp_sibling(real).touch()
    put(root, "/srv/.real.toml.mine")
    apply_and_check(RemoveLeftovers(("/link.toml", "/srv/real.toml", "/gone/a", "/srv/real.toml/x")), clients)
    assert everything(root) == ["/link.toml", "/srv", "/srv/.real.toml.mine", "/srv/real.toml"]


# --- directories and links --------------------------------------------------------------------------


def test_a_directory_is_created_with_its_mode_and_checked(root: Root, clients: Clients) -> None:
    action = MakeDirs("/opt/kata/private", 0o700)
    apply_and_check(action, clients)
    assert [mode_of(root, path) for path in ("/opt/kata", "/opt/kata/private")] == [0o755, 0o700]
    assert action.describe() == "create directory /opt/kata/private"
    assert lines_of(action) == ["new directory /opt/kata/private"]
    root.remove_dir("/opt/kata/private")
    with pytest.raises(HostError, match="does not exist after"):
        action.check(clients)


def test_empty_directories_are_removed_in_the_given_order_and_others_stay(
    root: Root, clients: Clients
) -> None:
    put(root, "/a/used/theirs")
    root.make_dirs("/a/empty/deep")
    action = RemoveDirs(("/a/empty/deep", "/a/empty", "/a/used", "/a", "/gone"))
    apply_and_check(action, clients)
    assert everything(root) == ["/a", "/a/used", "/a/used/theirs"]
    assert action.describe() == "remove 5 empty directories"
    assert RemoveDirs(("/a",)).describe() == "remove 1 empty directory"
    assert lines_of(RemoveDirs(("/a", "/b"))) == [
        "remove directory /a if empty",
        "remove directory /b if empty",
    ]


def test_links_are_created_and_their_targets_checked(root: Root, clients: Clients) -> None:
    put(root, "/a", "a file first")
    action = MakeLinks((("/a", "x"), ("/b", "../y")))
    apply_and_check(action, clients)
    assert (root.read_link("/a"), root.read_link("/b")) == ("x", "../y")
    assert action.describe() == "create 2 symlinks"
    assert lines_of(action) == ["new symlink /a -> x", "new symlink /b -> ../y"]
    root.symlink("/b", "z")
    with pytest.raises(HostError, match=r"does not point to \.\./y") as caught:
        action.check(clients)
    assert caught.value.where == "/b"


# --- many files -------------------------------------------------------------------------------------


@pytest.fixture
def placing(tmp_path_factory: pytest.TempPathFactory) -> PlaceFiles:
    payload = index.load(payloads.tree(tmp_path_factory.mktemp("payload")))
    return PlaceFiles(INSTALL_DIR, payload.select([payloads.QEMU], "x86_64"), payload)


def test_placing_the_payload_reports_progress_for_every_byte(root: Root, placing: PlaceFiles) -> None:
    announced: list[object] = []
    done: list[int] = []

    @contextlib.contextmanager
    def progress(total: int, title: str) -> Iterator[Callable[[int], None]]:
        announced.extend((total, title))
        yield done.append

    apply_and_check(placing, Clients(root, unused, lambda socket: unused(), unused, progress))
    size = sum(len(content) for content in payloads.FILES.values() if isinstance(content, bytes))
    assert announced == [size, "placing below /opt/kata"]
    assert sum(done) == placing.size == size
    assert root.read("/opt/kata/VERSION") == b"4.1.0-test\n"
    assert root.read_link("/opt/kata/share/kata-containers/vmlinux.container") == "vmlinux-6.18"


def test_placing_is_described_with_a_count_and_a_line_per_file(placing: PlaceFiles) -> None:
    assert (
        placing.describe()
        == f"place {len(payloads.FILES)} files ({human_size(placing.size)}) below /opt/kata"
    )
    lines = lines_of(placing)
    assert len(lines) == len(payloads.FILES)
    assert "place /opt/kata/VERSION (11 B)" in lines
    assert sum(each.size for each in placing.effects() if isinstance(each, PathEffect)) == placing.size


def shorten(path: Path) -> None:
    os.truncate(path, 1)


def link_elsewhere(path: Path) -> None:
    path.unlink()
    path.symlink_to("elsewhere")


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        pytest.param("VERSION", Path.unlink, id="gone"),
        pytest.param("VERSION", shorten, id="shorter"),
        pytest.param("VERSION", link_elsewhere, id="a link instead"),
        pytest.param("share/kata-containers/vmlinux.container", link_elsewhere, id="another target"),
        pytest.param("share/kata-containers/vmlinux.container", Path.unlink, id="link gone"),
    ],
)
def test_the_check_finds_a_placed_file_that_changed(
    root: Root, clients: Clients, placing: PlaceFiles, name: str, spoil: Callable[[Path], object]
) -> None:
    placing.apply(clients)
    spoil(root.base / "opt/kata" / name)
    with pytest.raises(HostError, match="missing or incomplete after it was placed") as caught:
        placing.check(clients)
    assert caught.value.where == f"/opt/kata/{name}"


def test_removing_files_also_removes_temporary_files_of_an_interrupted_run(
    root: Root, clients: Clients
) -> None:
    for path in ("bin/a", "bin/b", "bin/theirs", "bin/.gone.kata-node-tmp", "share/now-a-dir/theirs"):
        put(root, f"{INSTALL_DIR}/{path}")
    root.symlink(f"{INSTALL_DIR}/bin/link", "../share")
    action = RemoveFiles(INSTALL_DIR, ("bin/a", "bin/b", "bin/link", "bin/gone", "share/now-a-dir", "no/dir"))
    apply_and_check(action, clients)
    assert everything(root)[2:] == [
        "/opt/kata/bin",
        "/opt/kata/bin/theirs",
        "/opt/kata/share",
        "/opt/kata/share/now-a-dir",
        "/opt/kata/share/now-a-dir/theirs",
    ]
    assert action.describe() == "remove 6 files below /opt/kata"
    assert RemoveFiles(INSTALL_DIR, ("a", "b"), {"b": 7}).effects() == (
        PathEffect("remove /opt/kata/a", "/opt/kata/a", "remove"),
        PathEffect("remove /opt/kata/b", "/opt/kata/b", "remove", size=7),
    )
    root.symlink(f"{INSTALL_DIR}/bin/link", "back")
    with pytest.raises(HostError, match="still exists") as caught:
        action.check(clients)
    assert caught.value.where == "/opt/kata/bin/link"


# --- the receipt ------------------------------------------------------------------------------------


def test_receipt_and_backups_are_written_and_only_root_can_read_them(root: Root, clients: Clients) -> None:
    digest = hashlib.sha256(b"theirs").hexdigest()
    action = WriteReceipt(RECEIPT, (b"theirs", b"theirs"))
    apply_and_check(action, clients)
    assert receipts.load(root, INSTALL_DIR) == RECEIPT
    path = receipts.backup_path(INSTALL_DIR, digest)
    assert root.read(path) == b"theirs"
    modes = [mode_of(root, each) for each in ("/opt/kata", "/opt/kata/.kata-node", posix_parent(path), path)]
    assert modes == [0o755, 0o700, 0o700, 0o600]
    assert (action.describe(), action.effects()) == ("", ())


def posix_parent(path: str) -> str:
    return path.rpartition("/")[0]


def test_an_existing_backup_is_not_written_again(root: Root, clients: Clients) -> None:
    apply_and_check(WriteReceipt(RECEIPT, (b"theirs",)), clients)
    path = receipts.backup_path(INSTALL_DIR, hashlib.sha256(b"theirs").hexdigest())
    inode = root.resolve(path).stat().st_ino
    changed = replace(RECEIPT, settings="changed")
    apply_and_check(WriteReceipt(changed, (b"theirs", b"more")), clients)
    assert root.resolve(path).stat().st_ino == inode
    assert len(root.list_dir(receipts.backups(INSTALL_DIR))) == 2
    assert receipts.load(root, INSTALL_DIR) == changed


def test_the_receipt_is_not_written_if_a_backup_cannot_be_written(
    root: Root, clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply_and_check(WriteReceipt(RECEIPT), clients)
    write = Root.write

    def full(self: Root, path: str, content: bytes, **options: Any) -> None:
        if "/backups/" in path:
            raise HostError("No space left on device", where=path)
        write(self, path, content, **options)

    monkeypatch.setattr(Root, "write", full)
    with pytest.raises(HostError, match="No space left"):
        WriteReceipt(replace(RECEIPT, settings="changed"), (b"theirs",)).apply(clients)
    assert receipts.load(root, INSTALL_DIR) == RECEIPT


def test_removing_the_receipt_removes_backups_and_temporary_files(root: Root, clients: Clients) -> None:
    apply_and_check(WriteReceipt(RECEIPT, (b"a", b"b")), clients)
    half = receipts.backup_path(INSTALL_DIR, hashlib.sha256(b"c").hexdigest())
    temp_sibling(root.resolve(half)).touch()
    temp_sibling(root.resolve(receipts.path(INSTALL_DIR))).touch()
    action = RemoveReceipt(INSTALL_DIR)
    apply_and_check(action, clients)
    assert everything(root) == ["/opt", "/opt/kata"]
    assert (action.describe(), action.effects()) == ("", ())
    apply_and_check(action, clients)


def test_removing_the_receipt_keeps_foreign_files_beside_it(root: Root, clients: Clients) -> None:
    apply_and_check(WriteReceipt(RECEIPT, (b"a",)), clients)
    put(root, "/opt/kata/.kata-node/notes.txt")
    put(root, "/opt/kata/.kata-node/backups/mine.bak")
    (root.base / "opt/kata/.kata-node/backups/dir").mkdir()
    apply_and_check(RemoveReceipt(INSTALL_DIR), clients)
    assert everything(root)[2:] == [
        "/opt/kata/.kata-node",
        "/opt/kata/.kata-node/backups",
        "/opt/kata/.kata-node/backups/dir",
        "/opt/kata/.kata-node/backups/mine.bak",
        "/opt/kata/.kata-node/notes.txt",
    ]


def test_the_receipt_is_removed_after_its_backups(
    root: Root, clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply_and_check(WriteReceipt(RECEIPT, (b"a", b"b")), clients)
    removed: list[str] = []
    remove, remove_dir = Root.remove, Root.remove_dir

    def noted(self: Root, path: str, **options: Any) -> bool:
        removed.append(path)
        return remove(self, path, **options)

    def noted_dir(self: Root, path: str) -> bool:
        removed.append(path)
        return remove_dir(self, path)

    monkeypatch.setattr(Root, "remove", noted)
    monkeypatch.setattr(Root, "remove_dir", noted_dir)
    apply_and_check(RemoveReceipt(INSTALL_DIR), clients)
    assert removed[-3:] == [
        receipts.backups(INSTALL_DIR),
        receipts.path(INSTALL_DIR),
        receipts.directory(INSTALL_DIR),
    ]


# --- plans, diffs and sizes -------------------------------------------------------------------------


def test_a_plan_shows_all_actions_except_bookkeeping() -> None:
    plan = Plan(
        "two things", (WriteReceipt(RECEIPT), MakeDirs("/a"), RemoveReceipt(INSTALL_DIR), RemoveFile("/b"))
    )
    assert plan.changes == ("create directory /a", "remove /b")


HEAD = "--- /f\n+++ /f\n"
NO_END = "\\ No newline at end of file\n"


@pytest.mark.parametrize(
    ("before", "after", "diff"),
    [
        pytest.param(b"a\n", b"a\n", "", id="no change"),
        pytest.param(b"a\nb\n", b"a\nc\n", f"{HEAD}@@ -1,2 +1,2 @@\n a\n-b\n+c\n", id="a line"),
        pytest.param(b"a\r\nb\r\n", b"a\r\nc\r\n", f"{HEAD}@@ -1,2 +1,2 @@\n a\r\n-b\r\n+c\r\n", id="CRLF"),
        pytest.param(b"a\r\n", b"a\n", f"{HEAD}@@ -1 +1 @@\n-a\r\n+a\n", id="CRLF to LF"),
        pytest.param(b"a", b"b", f"{HEAD}@@ -1 +1 @@\n-a\n{NO_END}+b\n{NO_END}", id="no newline at the end"),
        pytest.param(b"a", b"a\n", f"{HEAD}@@ -1 +1 @@\n-a\n{NO_END}+a\n", id="newline added"),
        pytest.param(b"a\nb", b"c\nb", f"{HEAD}@@ -1,2 +1,2 @@\n-a\n+c\n b\n{NO_END}", id="same end"),
        pytest.param(
            "a\x0cb\u2028c\x85\rd\n".encode(),
            b"a\n",
            f"{HEAD}@@ -1 +1 @@\n-a\x0cb\u2028c\x85\rd\n+a\n",
            id="what else Python takes for line ends",
        ),
        pytest.param(b"\xff\n", b"\n", f"{HEAD}@@ -1 +1 @@\n-\\xff\n+\n", id="no UTF-8"),
        pytest.param(b"", b"a\n", f"{HEAD}@@ -0,0 +1 @@\n+a\n", id="was empty"),
        pytest.param(None, b"a\n", "--- /dev/null\n+++ /f\n@@ -0,0 +1 @@\n+a\n", id="new"),
        pytest.param(b"a\n", None, "--- /f\n+++ /dev/null\n@@ -1 +0,0 @@\n-a\n", id="gone"),
    ],
)
def test_a_change_is_shown_as_a_unified_diff(before: bytes | None, after: bytes | None, diff: str) -> None:
    assert unified_diff("/f", before, after) == diff


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536 * 1024, "1.5 MiB"),
        (1 << 30, "1.0 GiB"),
        (5 << 40, "5120.0 GiB"),
    ],
)
def test_a_size_is_shown_in_a_readable_unit(size: int, shown: str) -> None:
    assert human_size(size) == shown


def test_a_receipt_without_space_takes_that_of_files_that_nothing_needs(
    clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        clients.root.write(f"/{name}", b"placed")
    failures = iter((True, True, False))
    real = receipts.save

    def save(root: Root, receipt: Receipt) -> None:
        if next(failures):
            raise NoSpaceError("No space left on device", where="/opt")
        real(root, receipt)

    monkeypatch.setattr(receipts, "save", save)
    WriteReceipt(RECEIPT, expendable=("/a", "/b", "/c")).apply(clients)
    assert [clients.root.exists(f"/{name}") for name in "abc"] == [False, False, True]
    assert receipts.load(clients.root, INSTALL_DIR) == RECEIPT


@pytest.mark.parametrize("optional", [True, False])
def test_only_an_optional_record_may_lack_space(
    clients: Clients, monkeypatch: pytest.MonkeyPatch, optional: bool
) -> None:
    def save(root: Root, receipt: Receipt) -> None:
        raise NoSpaceError("No space left on device", where="/opt")

    monkeypatch.setattr(receipts, "save", save)
    action = WriteReceipt(RECEIPT, (b"backup",), optional=optional)
    if optional:
        action.apply(clients)
    else:
        with pytest.raises(NoSpaceError):
            action.apply(clients)
