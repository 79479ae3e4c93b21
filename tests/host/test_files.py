from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kata_node.errors import HostError
from kata_node.host import atomic_replace, go_glob
from kata_node.host.files import FileState, Root, temp_sibling

CONFIG = "/etc/containerd/config.toml"


def make(root: Root, *paths: str) -> None:
    """Create files (the content is the path), directories (ending in ``/``) and symlinks (``a -> b``)."""
    for path in paths:
        name, _, target = path.partition(" -> ")
        real = root.base / name.strip("/")
        real.parent.mkdir(parents=True, exist_ok=True)
        if target:
            real.symlink_to(target)
        elif path.endswith("/"):
            real.mkdir(exist_ok=True)
        else:
            real.write_text(path)


def mode_of(root: Root, path: str) -> int:
    return stat.S_IMODE(root.resolve(path).stat().st_mode)


@pytest.fixture
def tight_umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


def failing(error: int) -> Callable[..., Any]:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(error, os.strerror(error))

    return fail


# --- resolving paths --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("links", "path", "leads_to"),
    [
        pytest.param([], "/etc/a", "/etc/a", id="plain"),
        pytest.param([], "//etc/./a/", "/etc/a", id="untidy"),
        pytest.param([], "/", "/", id="the root itself"),
        pytest.param([], "/.hidden", "/.hidden", id="hidden"),
        pytest.param([], "/..x/.y", "/..x/.y", id="dots that mean nothing"),
        pytest.param([], "/not/there", "/not/there", id="missing"),
        pytest.param([], "/../../etc", "/etc", id="above the root"),
        pytest.param([], "/etc/../var/./x", "/var/x", id="dots"),
        pytest.param(["/etc/a -> /var/b"], "/etc/a", "/var/b", id="absolute link starts at the root"),
        pytest.param(["/etc/a -> b"], "/etc/a", "/etc/b", id="relative link"),
        pytest.param(["/etc/a -> ../var/b"], "/etc/a", "/var/b", id="link upwards"),
        pytest.param(["/etc/a -> ../../../var/b"], "/etc/a", "/var/b", id="link that would leave the root"),
        pytest.param(["/etc/a -> /"], "/etc/a/x", "/x", id="link to the root"),
        pytest.param(["/opt -> /data/opt"], "/opt/kata/x", "/data/opt/kata/x", id="linked parent"),
        pytest.param(["/a -> /b", "/b -> c", "/c -> /d"], "/a/x", "/d/x", id="chain"),
        pytest.param(["/a -> b/.."], "/a/x", "/x", id="dots in a link"),
        pytest.param(
            ["/var/link -> /srv/deep/", "/srv/deep/"], "/var/link/../x", "/srv/x", id="dots behind a link"
        ),
        pytest.param(["/a -> /gone/x"], "/a", "/gone/x", id="dangling"),
    ],
)
def test_a_path_resolves_like_on_the_node(root: Root, links: list[str], path: str, leads_to: str) -> None:
    make(root, *links)
    assert root.resolve(path) == root.base.joinpath(leads_to.strip("/"))
    assert root.real_path(path) == leads_to


def test_the_last_symlink_is_not_followed_on_request(root: Root) -> None:
    make(root, "/etc/a -> /var/b", "/data -> /etc")
    assert root.resolve("/data/a", follow_last=False) == root.base / "etc/a"
    assert root.read_link("/data/a") == "/var/b"
    assert root.read_link("/etc") is None
    assert root.read_link("/gone/a") is None


def test_the_limit_of_symlinks_is_that_of_the_kernel(root: Root) -> None:
    make(root, "/0", *(f"/{number + 1} -> {number}" for number in range(41)))
    kernel = root.base
    assert (kernel / "40").read_text() == "/0"
    assert root.read("/40") == b"/0"
    with pytest.raises(OSError, match="Too many levels"):
        (kernel / "41").read_text()
    with pytest.raises(HostError, match="Too many levels"):
        root.read("/41")


@pytest.mark.parametrize("links", [["/a -> a"], ["/a -> /b/x", "/b -> /a"]], ids=["to itself", "in a circle"])
def test_a_loop_of_symlinks_is_an_error_that_names_the_path(root: Root, links: list[str]) -> None:
    make(root, *links)
    with pytest.raises(HostError) as caught:
        root.exists("/a/etc")
    assert caught.value.where == "/a/etc"
    assert "remove the symlink" in caught.value.hint


def test_a_relative_path_raises_a_value_error(root: Root) -> None:
    with pytest.raises(ValueError, match="must be absolute"):
        root.resolve("etc/passwd")


def test_the_root_can_be_the_slash_directory() -> None:
    machine = Root(Path("/"))
    assert machine.real_path("/") == "/"
    assert machine.real_path("/.kata-node-test/x") == "/.kata-node-test/x"
    assert machine.resolve("/proc/self/..") == Path("/proc")


def test_the_root_can_be_a_symlink_to_a_directory(tmp_path: Path) -> None:
    (tmp_path / "host").mkdir()
    (tmp_path / "link").symlink_to("host")
    Root(tmp_path / "link").make_dirs("/etc")
    assert (tmp_path / "host/etc").is_dir()


# --- reading ----------------------------------------------------------------------------------------


def test_the_root_of_a_process_is_not_resolved() -> None:
    """``/proc/PID/root`` reads as a symlink to ``/`` even if the process has another root."""
    assert Root(Path("/proc/self/root")).resolve("/etc") == Path("/proc/self/root/etc")


def test_files_directories_and_symlinks_are_told_apart(root: Root) -> None:
    make(root, "/dir/file", "/to-dir -> /dir", "/to-file -> dir/file", "/dangling -> gone")
    assert [root.exists(path) for path in ("/dir", "/to-file", "/dangling", "/gone", "/dir/file/x")] == [
        *(True, True, False, False, False)
    ]
    assert [root.is_dir(path) for path in ("/dir", "/to-dir", "/to-file", "/dir/file/x")] == [
        *(True, True, False, False)
    ]
    link = root.lstat("/dangling")
    assert link is not None
    assert stat.S_ISLNK(link.st_mode)
    assert root.lstat("/gone") is None
    assert root.lstat("/dir/file/x") is None
    assert root.list_dir("/to-dir") == ["file"]
    assert root.list_dir("/gone") == []
    assert root.list_dir("/dir/file") == []


def test_the_state_of_a_file_has_content_mode_and_owner(root: Root) -> None:
    make(root, "/etc/a", "/b -> /etc/a")
    root.resolve("/etc/a").chmod(0o640)
    assert root.read_state("/b") == FileState(b"/etc/a", 0o640, os.getuid(), os.getgid())
    assert root.read("/b") == b"/etc/a"
    assert root.read_state("/etc/gone") is None
    assert root.read("/gone/a") is None


@pytest.mark.parametrize(
    ("path", "what", "hint"),
    [
        pytest.param("/etc", "Is a directory", "move the directory away", id="directory"),
        pytest.param("/file/config.toml", "Not a directory", "move the file away", id="file above it"),
        pytest.param("/" + "x" * 300, "File name too long", "", id="long name"),
    ],
)
def test_a_path_that_cannot_be_read_is_an_error_with_a_hint(
    root: Root, path: str, what: str, hint: str
) -> None:
    make(root, "/etc/", "/file")
    with pytest.raises(HostError) as caught:
        root.read(path)
    assert (caught.value.what, caught.value.where) == (what, path)
    assert hint in caught.value.hint


READS: dict[str, Callable[[Root], object]] = {
    "read": lambda root: root.read(CONFIG),
    "read_link": lambda root: root.read_link(CONFIG),
    "resolve": lambda root: root.resolve(CONFIG),
    "exists": lambda root: root.exists(CONFIG),
    "is_dir": lambda root: root.is_dir(CONFIG),
    "lstat": lambda root: root.lstat(CONFIG),
    "make_dirs": lambda root: root.make_dirs(CONFIG),
}


@pytest.mark.parametrize(
    ("operation", "call"),
    [
        *((operation, "readlink") for operation in READS),
        *((operation, "lstat") for operation in ("exists", "is_dir", "lstat", "make_dirs")),
    ],
)
def test_a_refused_system_call_does_not_mean_that_the_file_is_missing(
    root: Root, monkeypatch: pytest.MonkeyPatch, operation: str, call: str
) -> None:
    make(root, CONFIG)
    monkeypatch.setattr(os, call, failing(errno.EACCES))
    with pytest.raises(HostError) as caught:
        READS[operation](root)
    assert (caught.value.what, caught.value.where) == ("Permission denied", CONFIG)
    assert "run as root" in caught.value.hint


def test_a_directory_that_cannot_be_listed_is_an_error(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "listdir", failing(errno.EIO))
    with pytest.raises(HostError, match="Input/output error") as caught:
        root.list_dir("/etc")
    assert "kernel log" in caught.value.hint


# --- patterns ---------------------------------------------------------------------------------------

TREE = (
    "/c/10-a.toml",
    "/c/9-b.toml",
    "/c/.hidden.toml",
    "/c/B.toml",
    "/c/a^b",
    "/c/x]y",
    "/c/[z",
    "/c/back\\slash",
    "/c/plain",
    "/c/é.toml",
    "/k/a/x.toml",
    "/k/a-b/x.toml",
    "/k/.a/x.toml",
    "/k/file",
    "/link -> /c",
    "/c/dangling.toml -> /gone",
)


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        # Each result was compared with that of Go's filepath.Glob in such a tree.
        pytest.param(
            "/c/*.toml",
            ["/c/.hidden.toml", "/c/10-a.toml", "/c/9-b.toml", "/c/B.toml", "/c/dangling.toml", "/c/é.toml"],
            id="hidden ones and dangling links as well, ordered by bytes",
        ),
        pytest.param("/c/.*", ["/c/.hidden.toml"], id="hidden ones alone"),
        pytest.param(
            "/k/*/x.toml", ["/k/.a/x.toml", "/k/a/x.toml", "/k/a-b/x.toml"], id="ordered by component"
        ),
        pytest.param("/*/*/x.toml", ["/k/.a/x.toml", "/k/a/x.toml", "/k/a-b/x.toml"], id="any depth"),
        pytest.param("/k/*", ["/k/.a", "/k/a", "/k/a-b", "/k/file"], id="directories"),
        pytest.param("/link/p*", ["/link/plain"], id="through a link, by its name"),
        pytest.param("/c/plain", ["/c/plain"], id="no pattern"),
        pytest.param("/c/gone", [], id="no pattern and no file"),
        pytest.param("/gone/*", [], id="no directory"),
        pytest.param("/k/file/*", [], id="a file where a directory would be"),
        pytest.param("/c/?.toml", ["/c/B.toml", "/c/é.toml"], id="one character"),
        pytest.param("/c/[0-9]*", ["/c/10-a.toml", "/c/9-b.toml"], id="range"),
        pytest.param("/c/[^0-9.a-zé]*", ["/c/B.toml", "/c/[z"], id="negated by ^"),
        pytest.param("/c/[!B].toml", ["/c/B.toml"], id="not negated by !"),
        pytest.param("/c/a[b^]b", ["/c/a^b"], id="^ behind the first place"),
        pytest.param("/c/[z-a].toml", [], id="range that holds nothing"),
        pytest.param("/c/[^z-a].toml", ["/c/B.toml", "/c/é.toml"], id="all but a range that holds nothing"),
        pytest.param("/c/x[]]*", None, id="class that ends before it begins"),
        pytest.param("/c/x[\\]]*", ["/c/x]y"], id="escaped in a class"),
        pytest.param("/c/\\[*", ["/c/[z"], id="escaped"),
        pytest.param("/c/back\\\\*", ["/c/back\\slash"], id="escaped backslash"),
        pytest.param("/c/pl\\ain", ["/c/plain"], id="escape alone makes a pattern"),
        pytest.param("/c/*\\", None, id="backslash at the end"),
        pytest.param("/c/[a-*", None, id="range without an end"),
        pytest.param("/c/[*", None, id="class without an end"),
        pytest.param("/c/[-x]*", None, id="range without a beginning"),
        pytest.param("/[/c]*", None, id="class over a slash"),
    ],
)
def test_a_pattern_matches_the_same_files_as_in_containerd(
    root: Root, pattern: str, found: list[str] | None
) -> None:
    make(root, *TREE)
    if found is not None:
        assert root.glob(pattern) == found
        return
    with pytest.raises(HostError, match="the pattern is not valid") as caught:
        root.glob(pattern)
    assert caught.value.where == pattern


def test_a_name_with_a_line_break_is_matched(root: Root) -> None:
    make(root, "/c/a\nb.toml")
    assert (
        root.glob("/c/*.toml") == root.glob("/c/a?b.toml") == root.glob("/c/a[^x]b.toml") == ["/c/a\nb.toml"]
    )


@pytest.mark.parametrize(
    ("name", "special"), [("a.toml", False), ("*", True), ("a?", True), ("[", True), ("\\", True)]
)
def test_a_name_with_a_special_character_is_a_pattern(name: str, special: bool) -> None:
    assert go_glob.is_pattern(name) is special


# --- directories ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("tight_umask")
def test_missing_directories_are_created_and_returned_outermost_first(root: Root) -> None:
    make(root, "/opt/")
    assert root.make_dirs("/opt/kata/.kata-node", mode=0o700) == ["/opt/kata", "/opt/kata/.kata-node"]
    assert mode_of(root, "/opt/kata/.kata-node") == 0o700
    assert mode_of(root, "/opt/kata") == 0o755, "parents are readable for all users"
    assert root.make_dirs("/opt/kata/.kata-node") == []
    assert mode_of(root, "/opt/kata/.kata-node") == 0o700, "an existing directory does not change"
    assert root.make_dirs("/") == []


def test_created_directories_behind_a_symlink_are_returned_with_their_real_paths(root: Root) -> None:
    make(root, "/opt -> /data/opt")
    made = root.make_dirs("/opt/kata")
    assert made == ["/data", "/data/opt", "/data/opt/kata"]
    assert all(root.remove_dir(path) for path in reversed(made))
    assert os.listdir(root.base) == ["opt"]


@pytest.mark.parametrize("path", ["/opt/file/kata", "/opt/file"])
def test_a_file_where_a_directory_is_needed_is_an_error_that_names_it(root: Root, path: str) -> None:
    make(root, "/opt/file")
    with pytest.raises(HostError, match="a file is where a directory is needed") as caught:
        root.make_dirs(path)
    assert caught.value.where == "/opt/file"
    assert caught.value.hint == "move the file away that is in the place of a directory of this path"


def test_a_directory_that_another_process_creates_is_not_returned(
    root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.mkdir

    def overtaken(self: Path, mode: int = 0o777) -> None:
        if self.name == "run":
            real(self)
        real(self, mode)

    monkeypatch.setattr(Path, "mkdir", overtaken)
    assert root.make_dirs("/run/kata-node") == ["/run/kata-node"]


@pytest.mark.parametrize("broken", ["mkdir", "chmod"])
def test_no_directory_is_created_when_one_of_them_fails(
    root: Root, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    real = getattr(Path, broken)

    def full(self: Path, *args: int) -> None:
        if self.name == "c":
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, *args)

    make(root, "/a/")
    monkeypatch.setattr(Path, broken, full)
    with pytest.raises(HostError, match="No space left") as caught:
        root.make_dirs("/a/b/c/d")
    assert caught.value.where == "/a/b/c"
    assert os.listdir(root.base / "a") == []


def test_only_an_empty_directory_is_removed(root: Root) -> None:
    make(root, "/full/file", "/empty/", "/link -> empty")
    assert root.remove_dir("/full") is False
    assert root.remove_dir("/link") is False
    assert root.remove_dir("/full/file") is False
    assert root.remove_dir("/empty") is True
    assert root.remove_dir("/empty") is True, "a missing directory counts as removed"
    assert root.remove_dir("/full/file/x") is True
    assert sorted(os.listdir(root.base)) == ["full", "link"]


@pytest.mark.parametrize(
    ("error", "left"),
    [pytest.param(errno.EBUSY, True, id="mount point"), pytest.param(errno.EROFS, None, id="read-only")],
)
def test_a_mount_point_is_kept_and_a_read_only_directory_is_an_error(
    root: Root, monkeypatch: pytest.MonkeyPatch, error: int, left: bool | None
) -> None:
    make(root, "/run/")
    monkeypatch.setattr(Path, "rmdir", failing(error))
    if left:
        assert root.remove_dir("/run") is False
        return
    with pytest.raises(HostError, match="Read-only file system") as caught:
        root.remove_dir("/run")
    assert caught.value.where == "/run"


# --- writing ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("tight_umask")
def test_a_file_gets_its_content_mode_and_time(root: Root) -> None:
    make(root, "/etc/containerd/")
    root.write(CONFIG, b"new", mode=0o664, mtime=1_700_000_000)
    info = root.resolve(CONFIG).stat()
    assert (root.read(CONFIG), stat.S_IMODE(info.st_mode)) == (b"new", 0o664)
    assert info.st_mtime_ns == 1_700_000_000 * 10**9
    root.write(CONFIG, b"", mode=0o600)
    assert (root.read(CONFIG), mode_of(root, CONFIG)) == (b"", 0o600)
    assert root.list_dir("/etc/containerd") == ["config.toml"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_file_gets_its_owner_and_keeps_special_bits(root: Root) -> None:
    root.write("/tool", b"", mode=0o4755, owner=(12, 34))
    assert root.read_state("/tool") == FileState(b"", 0o4755, 12, 34)


def test_the_owner_is_set_only_if_it_differs(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fchown", failing(errno.EPERM))
    root.write("/a", b"", owner=(os.geteuid(), os.getegid()))
    with pytest.raises(HostError, match="Operation not permitted") as caught:
        root.write("/b", b"", owner=(12, 34))
    assert "run as root" in caught.value.hint
    assert root.list_dir("/") == ["a"]


def test_writing_to_a_symlink_replaces_its_target(root: Root) -> None:
    make(root, "/etc/containerd/config.toml -> ../../srv/real.toml", "/srv/real.toml")
    inode = root.resolve(CONFIG).stat().st_ino
    root.write(CONFIG, b"new")
    assert root.read_link(CONFIG) == "../../srv/real.toml"
    assert (root.base / "srv/real.toml").read_bytes() == b"new"
    assert root.resolve(CONFIG).stat().st_ino != inode, "a process that has the old file open keeps it"
    assert root.list_dir("/srv") == ["real.toml"]
    assert root.list_dir("/etc/containerd") == ["config.toml"]


def test_writing_to_a_dangling_symlink_creates_its_target(root: Root) -> None:
    make(root, "/a -> /srv/new", "/srv/")
    root.write("/a", b"new")
    assert root.read("/srv/new") == b"new"
    assert root.read_link("/a") == "/srv/new"


def test_the_leftover_of_a_killed_run_is_overwritten(root: Root) -> None:
    left = temp_sibling(root.base / "a")
    left.write_text("half of it")
    left.chmod(0o400)
    root.write("/a", b"whole")
    assert root.list_dir("/") == ["a"]
    assert root.read("/a") == b"whole"
    left.symlink_to("/etc/passwd")
    root.symlink("/a", "b")
    assert root.list_dir("/") == ["a"]


STEPS: dict[str, tuple[object, str, str]] = {
    "unlink": (Path, "unlink", "old"),
    "open": (os, "open", "old"),
    "mode": (os, "fchmod", "old"),
    "time": (os, "utime", "old"),
    "fsync": (os, "fsync", "old"),
    "rename": (Path, "rename", "old"),
    "fsync of the directory": (atomic_replace, "fsync_dir", "new"),
}


@pytest.mark.parametrize(
    "error", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT, errno.EACCES], ids=os.strerror
)
@pytest.mark.parametrize("step", STEPS)
def test_a_failed_write_leaves_the_old_or_the_new_file_and_nothing_else(
    root: Root, step: str, error: int
) -> None:
    make(root, "/a")
    owner, name, left = STEPS[step]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, failing(error))
        with pytest.raises(HostError) as caught:
            root.write("/a", b"new", mtime=1)
    assert (caught.value.what, caught.value.where) == (os.strerror(error), "/a")
    assert caught.value.hint
    assert root.read("/a") == (b"/a" if left == "old" else b"new")
    assert root.list_dir("/") == ["a"]


class Stopped(BaseException):
    """An interrupt like Ctrl-C."""


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(
    root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(fd: int) -> None:
        raise Stopped

    make(root, "/a")
    monkeypatch.setattr(os, "fsync", stop)
    with pytest.raises(Stopped):
        root.write("/a", b"new")
    assert root.list_dir("/") == ["a"]
    assert root.read("/a") == b"/a"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_leaves_the_old_file(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def full(path: Path, flags: int, *mode: int) -> int:
        if flags & os.O_CREAT:
            os.close(real(path, flags, *mode))
            return real("/dev/full", os.O_WRONLY)
        return real(path, flags, *mode)

    make(root, "/a")
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", full)
        with pytest.raises(HostError, match="No space left on device") as caught:
            root.write("/a", b"new" * 100_000)
    assert caught.value.hint == "free some space on this file system, then run again"
    assert root.read("/a") == b"/a"
    assert root.list_dir("/") == ["a"]


def test_a_write_syncs_the_file_then_renames_it_then_syncs_the_directory(
    root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def sync(fd: int) -> None:
        is_dir = stat.S_ISDIR(os.fstat(fd).st_mode)
        done.append("directory" if is_dir else f"file of {os.fstat(fd).st_size}")
        fsync(fd)

    def renamed(self: Path, target: Path) -> Path:
        done.append("rename")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "rename", renamed)
    root.write("/a", b"four")
    assert done == ["file of 4", "rename", "directory"]


@pytest.mark.parametrize(
    ("path", "what"),
    [
        pytest.param("/gone/a", "No such file or directory", id="no directory"),
        pytest.param("/file/a", "Not a directory", id="a file above it"),
        pytest.param("/dir", "Is a directory", id="a directory in its place"),
    ],
)
def test_a_file_that_cannot_be_created_is_an_error(root: Root, path: str, what: str) -> None:
    make(root, "/file", "/dir/")
    with pytest.raises(HostError) as caught:
        root.write(path, b"x")
    assert (caught.value.what, caught.value.where) == (what, path)
    assert root.list_dir("/") == ["dir", "file"]


# --- symlinks and removal ---------------------------------------------------------------------------


def test_a_symlink_replaces_a_file_or_a_symlink_but_not_a_directory(root: Root) -> None:
    make(root, "/file", "/link -> elsewhere", "/elsewhere", "/dir/")
    for path in ("/file", "/link", "/new"):
        root.symlink(path, "there/x")
        assert root.read_link(path) == "there/x"
    assert root.read("/elsewhere") == b"/elsewhere"
    with pytest.raises(HostError) as caught:
        root.symlink("/dir", "there")
    assert caught.value.where == "/dir"
    assert root.list_dir("/") == ["dir", "elsewhere", "file", "link", "new"]


@pytest.mark.parametrize("step", ["symlink_to", "rename"])
def test_a_symlink_that_cannot_be_created_leaves_the_old_file(root: Root, step: str) -> None:
    make(root, "/a")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, step, failing(errno.ENOSPC))
        with pytest.raises(HostError, match="No space left"):
            root.symlink("/a", "b")
    assert root.read("/a") == b"/a"
    assert root.list_dir("/") == ["a"]


def test_removing_a_file_also_removes_the_leftover_of_a_killed_write(root: Root) -> None:
    make(root, "/file", "/link -> file", "/.file.kata-node-tmp")
    assert root.remove("/link") is True
    assert root.read("/file") == b"/file"
    assert root.remove("/file") is True
    assert root.list_dir("/") == []
    assert root.remove("/file") is False
    assert root.remove("/gone/file") is False
    make(root, "/.file.kata-node-tmp", "/plain")
    assert root.remove("/file") is False, "only a leftover existed"
    assert root.list_dir("/") == ["plain"]
    assert root.remove("/plain/x") is False


def test_removing_can_follow_a_symlink_and_keep_it(root: Root) -> None:
    make(root, "/etc/a -> /srv/b", "/srv/b", "/srv/.b.kata-node-tmp")
    assert root.remove("/etc/a", follow_last=True) is True
    assert root.read_link("/etc/a") == "/srv/b"
    assert root.list_dir("/srv") == []
    assert root.remove("/etc/a", follow_last=True) is False


@pytest.mark.parametrize(
    ("path", "what"),
    [
        pytest.param("/dir", "Is a directory", id="directory"),
        pytest.param("/a", "Read-only file system", id="read-only"),
    ],
)
def test_a_file_that_cannot_be_removed_is_an_error(
    root: Root, monkeypatch: pytest.MonkeyPatch, path: str, what: str
) -> None:
    make(root, "/dir/", "/a")
    if path == "/a":
        monkeypatch.setattr(Path, "unlink", failing(errno.EROFS))
    with pytest.raises(HostError) as caught:
        root.remove(path)
    assert (caught.value.what, caught.value.where) == (what, path)
