"""Payload directories: reading all files, reading the manifest, and refusing damaged or hostile ones."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

import payloads
from kata_node.errors import PayloadError, UsageError
from kata_node.host import archive
from kata_node.payload import forms, index, validation
from kata_node.payload.manifest import Entry
from kata_node.payload.selection import missing_paths
from payloads import CONFIG, FILES, MTIME, QEMU, Member, archive_path, tarfile


def by_path(entries: tuple[Entry, ...]) -> dict[str, Entry]:
    return {entry.path: entry for entry in entries}


@pytest.fixture(params=["tree", "tarballs"])
def payload(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    made: Path = getattr(payloads, request.param)(tmp_path / "payload")
    return made


def hostile(directory: Path, *members: Member) -> Path:
    return payloads.tarballs(directory, {"qemu": members}, {"qemu": {"x86_64": ["qemu"]}})


def test_the_manifest_has_the_digest_mode_and_time_of_every_file(payload: Path) -> None:
    manifest = index.build_manifest(payload)
    entries = by_path(manifest.entries)
    assert {path for path, entry in entries.items() if entry.kind != "dir"} == set(FILES)
    for path, content in FILES.items():
        entry = entries[path]
        if isinstance(content, str):
            assert (entry.kind, entry.link) == ("link", content)
        else:
            digest = hashlib.sha256(content).hexdigest()
            assert (entry.size, entry.sha256, entry.mtime) == (len(content), digest, MTIME)
            assert entry.mode == payloads.mode_of(path)


def test_a_tree_and_its_tarballs_have_the_same_entries(tmp_path: Path) -> None:
    tree = index.build_manifest(payloads.tree(tmp_path / "tree"))
    tarballs = index.load(payloads.tarballs(tmp_path / "tarballs"))
    plain = [(entry.path, entry.sha256, entry.link, entry.content) for entry in tree.entries]
    selected = tarballs.select([QEMU], "x86_64")
    assert [(entry.path, entry.sha256, entry.link, entry.content) for entry in selected] == plain
    assert missing_paths(selected, QEMU) == []


def test_files_are_hashed_only_on_request(payload: Path) -> None:
    whole = index.build_manifest(payload)
    listed = index.build_manifest(payload, digests=False)
    assert [replace(entry, sha256="") for entry in listed.entries] == [
        replace(entry, sha256="") for entry in whole.entries
    ]
    hashed = [entry.path for entry in listed.entries if entry.sha256]
    assert sorted(hashed) == sorted(entry.path for entry in whole.entries if entry.content)


@pytest.mark.parametrize("other", [b"same", b"else"])
def test_archives_with_the_same_path_are_compared_by_content(tmp_path: Path, other: bytes) -> None:
    packed = {"one": [payloads.file("x", b"same")], "two": [payloads.file("x", other)]}
    payload = payloads.tarballs(tmp_path / "payload", packed, {"qemu": {"x86_64": ["one", "two"]}})
    manifest = index.build_manifest(payload, digests=False)
    assert manifest.entries == index.build_manifest(payload).entries
    if other == b"else":
        with pytest.raises(PayloadError, match="differ"):
            index.load(payload, digests=False).select([QEMU], "x86_64")


def test_the_manifest_keeps_the_content_of_configurations_and_version_only(payload: Path) -> None:
    entries = index.build_manifest(payload).entries
    assert {entry.path: entry.content for entry in entries if entry.content} == {
        QEMU.base_config: CONFIG,
        "VERSION": "4.1.0-test\n",
    }


def test_the_release_is_read_from_the_payload(payload: Path) -> None:
    assert index.build_manifest(payload).release == "4.1.0-test"


@pytest.mark.parametrize("place", [pytest.param("", id="above"), pytest.param("tarballs", id="beside")])
def test_the_release_of_archives_can_be_in_a_file_beside_them(tmp_path: Path, place: str) -> None:
    payload = hostile(tmp_path / "payload", payloads.file("bin/qemu"))
    (payload / place / "VERSION").write_text("4.2.0\n")
    assert index.build_manifest(payload).release == "4.2.0"


def test_a_payload_without_a_version_file_has_no_release(tmp_path: Path) -> None:
    payload = hostile(tmp_path / "payload", payloads.file("bin/qemu"))
    assert index.build_manifest(payload).release == ""


def test_the_same_payload_gives_the_same_manifest(payload: Path, tmp_path: Path) -> None:
    first = index.write_manifest(payload).read_bytes()
    copy = tmp_path / "copy"
    shutil.copytree(payload, copy, symlinks=True)
    (copy / "manifest.json").unlink()
    assert index.write_manifest(copy).read_bytes() == first
    assert index.write_manifest(copy).read_bytes() == first


def test_a_payload_with_a_manifest_is_not_read(payload: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = index.load(payload)
    index.write_manifest(payload)
    monkeypatch.setattr(index, "build_manifest", lambda _: pytest.fail("the payload was read"))
    assert index.load(payload) == read


def test_archives_that_no_shim_needs_are_ignored(tmp_path: Path) -> None:
    payload = payloads.tarballs(tmp_path / "payload")
    archive_path(payload, "agent").write_bytes(b"not even an archive")
    assert "agent" not in index.build_manifest(payload).archives


def test_an_archive_that_no_enabled_shim_needs_can_be_missing(tmp_path: Path) -> None:
    shims = payloads.SHIMS | {"qemu-runtime-rs": {"x86_64": ["shim-v2-rust"]}}
    payload = index.load(payloads.tarballs(tmp_path / "payload", shims=shims))
    assert payload.select([QEMU], "x86_64")
    with pytest.raises(PayloadError, match="shim-v2-rust"):
        payload.select([payloads.QEMU_RS], "x86_64")


@pytest.mark.parametrize(
    "members",
    [
        pytest.param([Member("/opt/kata/bin/x")], id="absolute path"),
        pytest.param([Member("/etc/passwd")], id="absolute path elsewhere"),
        pytest.param([Member("./etc/passwd")], id="outside the prefix"),
        pytest.param([Member("./opt/katana/x")], id="beside the prefix"),
        pytest.param([payloads.file("../../etc/passwd")], id="dots"),
        pytest.param([Member("../opt/kata/x")], id="dots before the prefix"),
        pytest.param([payloads.link("x", "/etc")], id="absolute link"),
        pytest.param([payloads.link("x", "../../etc")], id="link out of the tree"),
        pytest.param([payloads.link("x", "."), payloads.file("x/y")], id="beneath a link"),
        pytest.param([payloads.file("x"), payloads.file("x/y")], id="beneath a file"),
        pytest.param([Member("./opt/kata", type=tarfile.SYMTYPE, link="/etc")], id="prefix is a link"),
        pytest.param([Member("./opt", type=tarfile.SYMTYPE, link="/etc")], id="above the prefix is a link"),
        pytest.param([Member("./opt/kata/x", type=tarfile.CHRTYPE)], id="character device"),
        pytest.param([Member("./opt/kata/x", type=tarfile.BLKTYPE)], id="block device"),
        pytest.param([Member("./opt/kata/x", type=tarfile.FIFOTYPE)], id="pipe"),
        pytest.param([Member("./opt/kata/x", type=b"Z")], id="unknown kind"),
        pytest.param([payloads.hard_link("x", "/etc/passwd")], id="hard link to an absolute path"),
        pytest.param(
            [payloads.hard_link("x", "./opt/kata/../../etc/passwd")], id="hard link out of the tree"
        ),
        pytest.param(
            [payloads.hard_link("x", "./opt/kata/y"), payloads.file("y")], id="hard link to a later file"
        ),
        pytest.param(
            [payloads.link("y", "z"), payloads.hard_link("x", "./opt/kata/y")], id="hard link to a link"
        ),
        pytest.param([payloads.file("x", b"one"), payloads.file("x", b"two")], id="one name twice"),
        pytest.param([payloads.file("x", mode=0o4755)], id="setuid"),
        pytest.param([payloads.file("a\nb")], id="newline in a name"),
        pytest.param([Member("./opt/kata/x", pax={"path": "./opt/kata/x\0y"})], id="NUL in a name"),
        pytest.param([payloads.file("containerd/config.d/evil.toml")], id="beneath containerd"),
        pytest.param([payloads.file("a" * 256)], id="name too long"),
        pytest.param([payloads.file("d/" * 40 + "x")], id="too deep"),
        pytest.param([payloads.sparse_file("image", [(0, b"x")], 1 << 50)], id="huge hole"),
        pytest.param([Member("./opt/kata/x", pax={"mtime": "nan"})], id="time that is no number"),
        pytest.param(
            [payloads.file("share/defaults/kata-containers/x.toml", b"\xff")], id="configuration not text"
        ),
        pytest.param(
            [payloads.file("share/defaults/kata-containers/x.toml", b"#" * 1_100_000)],
            id="configuration too large",
        ),
    ],
)
def test_a_hostile_archive_is_refused(tmp_path: Path, members: list[Member]) -> None:
    payload = hostile(tmp_path / "payload", *members)
    before = payloads.snapshot(tmp_path)
    with pytest.raises(PayloadError) as caught:
        index.load(payload)
    assert caught.value.hint
    assert payloads.snapshot(tmp_path) == before


def test_a_hard_link_becomes_a_file_with_the_same_content(tmp_path: Path) -> None:
    payload = hostile(
        tmp_path / "payload",
        payloads.file("bin/a", b"same", 0o755),
        payloads.hard_link("bin/b", "./opt/kata/bin/a"),
        payloads.hard_link("bin/c", "opt/kata/bin/b"),
    )
    entries = by_path(index.build_manifest(payload).entries)
    for path in ("bin/b", "bin/c"):
        assert entries[path].kind == "file"
        assert (entries[path].sha256, entries[path].mode) == (entries["bin/a"].sha256, 0o755)


def test_holes_count_as_zeros_in_size_and_digest(tmp_path: Path) -> None:
    content = b"a" * 4096 + bytes(payloads.HOLE) + b"b" * 100 + bytes(payloads.HOLE)
    regions = [(0, b"a" * 4096), (4096 + payloads.HOLE, b"b" * 100)]
    payload = hostile(tmp_path / "payload", payloads.sparse_file("share/image", regions, len(content)))
    entry = by_path(index.build_manifest(payload).entries)["share/image"]
    assert (entry.size, entry.sha256) == (len(content), hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize("regions", [[(0, b"x"), (0, b"x")], [(9, b"xx")]], ids=["overlap", "past the end"])
def test_a_sparse_member_with_overlapping_or_excess_data_is_refused(
    tmp_path: Path, regions: list[tuple[int, bytes]]
) -> None:
    payload = hostile(tmp_path / "payload", payloads.sparse_file("share/image", regions, 10))
    with pytest.raises(PayloadError, match="has an invalid sparse map"):
        index.load(payload)


def test_an_untrusted_payload_is_permanent(tmp_path: Path) -> None:
    with pytest.raises(PayloadError) as caught:
        index.load(hostile(tmp_path / "payload", payloads.link("x", "/etc")))
    assert caught.value.exit_code == 3


def test_names_of_up_to_255_bytes_are_valid(tmp_path: Path) -> None:
    names = {"a" * length for length in range(238, 256)}
    payload = hostile(tmp_path / "payload", *(payloads.file(f"share/x.d/{name}") for name in names))
    found = {entry.path.rpartition("/")[2] for entry in index.load(payload).manifest.entries}
    assert names <= found


def test_files_together_larger_than_any_payload_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "MAX_TOTAL_SIZE", 1 << 20)
    files = (payloads.sparse_file(f"image{at}", [(0, b"x")], 1 << 18) for at in range(5))
    with pytest.raises(PayloadError, match="the files up to this one"):
        index.load(hostile(tmp_path / "payload", *files))


@pytest.mark.parametrize(
    ("size", "says"),
    [
        pytest.param(archive.MAX_REST_SIZE + (1 << 20), "follow its end", id="after the end"),
        pytest.param(-1, "the headers of a member have more than", id="header"),
    ],
)
def test_an_archive_that_unpacks_to_much_more_than_its_members_is_refused(
    tmp_path: Path, size: int, says: str
) -> None:
    payload = hostile(tmp_path / "payload", payloads.file("x"))
    path = archive_path(payload, "qemu")
    with payloads.zstd_open(path) as file:
        raw = file.read()
    if size < 0:
        header = tarfile.TarInfo("pax")
        header.type, header.size = tarfile.XHDTYPE, archive.MAX_HEADER_SIZE * 2
        raw = header.tobuf() + bytes(header.size) + raw
    with payloads.zstd_open(path, "wb") as file:
        file.write(raw + bytes(max(size, 0)))
    with pytest.raises(PayloadError, match=says):
        index.load(payload)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda base: os.truncate(base / "VERSION", 1 << 40), id="huge hole"),
        pytest.param(lambda base: (base / "/".join("d" * 40)).mkdir(parents=True), id="too deep"),
        pytest.param(lambda base: (base / "containerd").mkdir(), id="beneath containerd"),
    ],
)
def test_no_file_is_read_of_a_tree_that_is_refused(
    tmp_path: Path, make: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    payload = payloads.tree(tmp_path / "payload")
    make(payload / "opt/kata")
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("a file was read"))
    with pytest.raises(PayloadError, match="cannot be trusted") as caught:
        index.load(payload)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("kind", ["pipe", "setuid", "link"])
def test_a_hostile_tree_is_refused(tmp_path: Path, kind: str) -> None:
    payload = payloads.tree(tmp_path / "payload")
    bad = payload / "opt/kata/bin/bad"
    if kind == "pipe":
        os.mkfifo(bad)
    elif kind == "setuid":
        bad.touch()
        bad.chmod(0o4755)
    else:
        bad.symlink_to("/etc/passwd")
    with pytest.raises(PayloadError, match="bin/bad"):
        index.load(payload)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    path.write_bytes(raw)


def not_zstd(path: Path) -> None:
    path.write_bytes(b"an HTML page of a proxy" * 100)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def garbage_after(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"garbage")


def tar_cut_short(path: Path) -> None:
    """Cut the tar stream short; the zstd stream is complete."""
    with payloads.zstd_open(path) as file:
        raw = file.read()
    with payloads.zstd_open(path, "wb") as file:
        file.write(raw[:1024])


def tar_garbled(path: Path) -> None:
    with payloads.zstd_open(path) as file:
        raw = bytearray(file.read())
    raw[-10240:] = b"\x01" * 10240
    with payloads.zstd_open(path, "wb") as file:
        file.write(raw)


@pytest.mark.parametrize(
    "harm", [cut_short, flip, not_zstd, empty, garbage_after, tar_cut_short, tar_garbled]
)
def test_the_error_names_a_damaged_archive(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    payload = payloads.tarballs(tmp_path / "payload")
    harm(archive_path(payload, "kernel"))
    with pytest.raises(PayloadError, match="damaged") as caught:
        index.load(payload)
    assert caught.value.where == str(archive_path(payload, "kernel"))
    assert "pull the image, or download" in caught.value.hint


def test_the_error_names_a_missing_archive(tmp_path: Path) -> None:
    payload = payloads.tarballs(tmp_path / "payload")
    index.write_manifest(payload)
    archive_path(payload, "kernel").unlink()
    with pytest.raises(PayloadError, match=r"kata-static-kernel\.tar\.zst.*missing"):
        index.load(payload)


def another_size(payload: Path) -> None:
    archive_path(payload, "kernel").write_bytes(b"x")


def another_archive(payload: Path) -> None:
    path = payload / "shim-components.json"
    path.write_text(json.dumps({"shims": {"qemu": {"x86_64": ["kernel", "new"]}}}))


def another_shim(payload: Path) -> None:
    path = payload / "shim-components.json"
    path.write_text(path.read_text().replace('"qemu": {', '"clh": {'))


def archive_come_back(payload: Path) -> None:
    away = archive_path(payload, "kernel").rename(payload / "away")
    index.write_manifest(payload)
    away.rename(archive_path(payload, "kernel"))


def archive_from_nowhere(payload: Path) -> None:
    path = payload / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["archives"]["kernel"]["file"] = "../../etc/passwd"
    path.write_text(json.dumps(manifest))


def tree_instead(payload: Path) -> None:
    shutil.rmtree(payload / "tarballs")
    payloads.tree(payload)


def truncated(payload: Path) -> None:
    path = payload / "manifest.json"
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize(
    "change",
    [
        another_size,
        another_archive,
        another_shim,
        archive_come_back,
        archive_from_nowhere,
        tree_instead,
        truncated,
    ],
)
def test_a_manifest_that_does_not_match_the_archives_is_refused(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    payload = payloads.tarballs(tmp_path / "payload")
    index.write_manifest(payload)
    change(payload)
    with pytest.raises(PayloadError) as caught:
        index.load(payload)
    assert caught.value.hint
    assert caught.value.exit_code == 3


def test_a_manifest_that_does_not_match_the_tree_is_refused(tmp_path: Path) -> None:
    payload = payloads.tree(tmp_path / "payload")
    index.write_manifest(payload)
    (payload / "opt/kata/new").touch()
    with pytest.raises(PayloadError, match="payload index") as caught:
        index.load(payload)
    assert "new" in caught.value.what


def test_indexing_warns_of_components_with_conflicting_files(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    archives = {"one": [payloads.file("x", b"1")], "two": [payloads.file("x", b"2")]}
    shims = {"qemu": {"x86_64": ["one"]}, "qemu-runtime-rs": {"x86_64": ["two"]}}
    index.write_manifest(payloads.tarballs(tmp_path / "payload", archives, shims))
    assert "one and two both have this path" in caplog.text


@pytest.mark.parametrize("form", ["both", "neither", "no directory"])
def test_a_directory_with_both_forms_or_neither_is_refused(tmp_path: Path, form: str) -> None:
    payload = tmp_path / "payload"
    if form == "both":
        payloads.tree(payloads.tarballs(payload))
    elif form == "neither":
        payload.mkdir()
    for read in (index.load, index.fingerprint, index.write_manifest):
        with pytest.raises(UsageError, match=str(payload)) as caught:
            read(payload)
        assert "--payload" in caught.value.hint
        assert caught.value.exit_code == 2


@pytest.mark.parametrize("empty", [True, False], ids=["an empty volume", "no volume"])
def test_a_pod_without_a_payload_says_which_image_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty: bool
) -> None:
    payload = tmp_path / "payload"
    monkeypatch.setattr(forms, "PLACE_IN_PODS", payload)
    if empty:
        payload.mkdir()
    with pytest.raises(UsageError) as caught:
        index.load(payload)
    for word in ("--payload", "nodeImage", "image.volume: never", "Kubernetes before 1.35"):
        assert word in caught.value.hint
    with pytest.raises(UsageError) as caught:
        index.load(tmp_path / "another")
    assert "nodeImage" not in caught.value.hint


@pytest.mark.parametrize("content", [pytest.param(None, id="missing"), pytest.param("", id="empty")])
def test_archives_without_a_valid_map_of_components_are_refused(tmp_path: Path, content: str | None) -> None:
    payload = payloads.tarballs(tmp_path / "payload")
    (payload / "shim-components.json").unlink()
    if content is not None:
        (payload / "shim-components.json").write_text(content)
    with pytest.raises(PayloadError, match=r"shim-components\.json"):
        index.load(payload)


def test_the_map_of_components_can_be_beside_the_archives(tmp_path: Path) -> None:
    payload = payloads.tarballs(tmp_path / "payload")
    (payload / "shim-components.json").rename(payload / "tarballs/shim-components.json")
    assert index.load(payload).select([QEMU], "x86_64")


def test_a_manifest_that_cannot_be_written_is_an_error_and_leaves_no_file(
    payload: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "fsync", read_only)
    with pytest.raises(PayloadError, match="Read-only file system"):
        index.write_manifest(payload)
    assert not (payload / "manifest.json").exists()


@pytest.mark.parametrize("indexed", [True, False])
def test_the_fingerprint_of_an_unchanged_payload_stays_the_same(payload: Path, indexed: bool) -> None:
    if indexed:
        index.write_manifest(payload)
    assert index.fingerprint(payload) == index.fingerprint(payload)


def test_the_fingerprint_changes_with_any_file(payload: Path) -> None:
    seen = {index.fingerprint(payload)}
    for path in sorted(path for path in payload.rglob("*") if path.is_file() and not path.is_symlink()):
        path.write_bytes(path.read_bytes() + b"more")
        seen.add(index.fingerprint(payload))
    assert len(seen) == 1 + len(
        [path for path in payload.rglob("*") if path.is_file() and not path.is_symlink()]
    )


def test_the_fingerprint_is_the_digest_of_the_manifest_if_there_is_one(payload: Path) -> None:
    path = index.write_manifest(payload)
    assert index.fingerprint(payload) == hashlib.sha256(path.read_bytes()).hexdigest()
