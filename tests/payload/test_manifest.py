"""The manifest: validation, the selection for shims, and its file."""

from __future__ import annotations

import json

import pytest
from msgspec.structs import replace

from kata_node.errors import PayloadError
from kata_node.payload.manifest import (
    SCHEMA,
    Archive,
    Entry,
    Manifest,
    from_json,
    parse_shim_components,
    to_json,
    validate,
)
from kata_node.payload.selection import missing_paths, select
from payloads import CONFIG, FILES, QEMU, QEMU_RS, entry


def link(path: str, target: str, component: str = "") -> Entry:
    return Entry(path, "link", 0o777, link=target, component=component)


def directory(path: str, mode: int = 0o755, component: str = "") -> Entry:
    return Entry(path, "dir", mode, component=component)


def everything() -> list[Entry]:
    return [
        link(path, content)
        if isinstance(content, str)
        else entry(path, size=len(content), content=CONFIG if path.endswith(".toml") else "")
        for path, content in FILES.items()
    ]


TARBALLS = Manifest(
    SCHEMA,
    "tarballs",
    "4.1.0",
    (
        entry("bin/qemu", component="qemu", size=1, sha256="aa"),
        entry("bin/shim", component="shim-v2-go", size=2, sha256="bb"),
        entry("runtime-rs/bin/shim", component="shim-v2-rust", size=3, sha256="cc"),
        entry("share/same", component="qemu", size=4, sha256="dd"),
        entry("share/same", component="shim-v2-go", size=4, sha256="dd"),
    ),
    {
        "qemu": {"x86_64": ("shim-v2-go", "qemu")},
        "qemu-runtime-rs": {"x86_64": ("shim-v2-rust", "qemu", "rootfs-image")},
    },
    {
        name: Archive(f"tarballs/kata-static-{name}.tar.zst", 1, "0" * 64)
        for name in ("qemu", "shim-v2-go", "shim-v2-rust")
    },
)


@pytest.mark.parametrize(
    "hostile",
    [
        pytest.param([entry("/etc/passwd")], id="absolute path"),
        pytest.param([entry("../etc/passwd")], id="dots at the start"),
        pytest.param([entry("share/../../etc/passwd")], id="dots in the middle"),
        pytest.param([entry("share/..")], id="dots at the end"),
        pytest.param([entry("share//file")], id="empty part"),
        pytest.param([entry("./share/file")], id="dot part"),
        pytest.param([entry("")], id="empty path"),
        pytest.param([entry("share/a\0b")], id="NUL"),
        pytest.param([entry("share/a\nb")], id="newline"),
        pytest.param([entry("share/\udce4")], id="not UTF-8"),
        pytest.param([entry(".kata-node/receipt.json")], id="our own directory"),
        pytest.param([entry("share/.file.kata-node-tmp")], id="our own temporary name"),
        pytest.param([entry("share/file"), directory("share/file")], id="file and directory of one name"),
        pytest.param([link("share/file", "a"), entry("share/file")], id="link and file of one name"),
        pytest.param([entry("share/file", size=1), entry("share/file", size=2)], id="two contents"),
        pytest.param([link("share/file", "a"), link("share/file", "b")], id="two targets"),
        pytest.param([link("share/file", "/etc/passwd")], id="link to an absolute path"),
        pytest.param([link("share/file", "/opt/kata/../../etc")], id="link out of the prefix"),
        pytest.param([link("share/file", "/opt/katana")], id="link to a longer prefix"),
        pytest.param([link("share/file", "../../etc/passwd")], id="link out of the tree"),
        pytest.param([link("share/file", "a/../../../etc")], id="link out of the tree by a detour"),
        pytest.param([link("a/b/up", ".."), link("c", "a/b/up/../../etc")], id="link out over a link"),
        pytest.param([link("a", "b"), link("b", "a")], id="circle"),
        pytest.param([link("share/file", "")], id="link to nothing"),
        pytest.param([link("share/file", "a\nb")], id="link with a newline"),
        pytest.param([link("share", "bin"), entry("share/file")], id="beneath a link"),
        pytest.param([link("a", "b"), entry("a/b/c/d")], id="far beneath a link"),
        pytest.param([entry("share"), entry("share/file")], id="beneath a file"),
        pytest.param([entry("bin/su", mode=0o4755)], id="setuid"),
        pytest.param([entry("bin/su", mode=0o2755)], id="setgid"),
        pytest.param([entry("bin/su", size=-1)], id="negative size"),
    ],
)
def test_an_entry_that_is_invalid_or_leads_out_of_the_install_dir_is_refused(hostile: list[Entry]) -> None:
    with pytest.raises(PayloadError) as caught:
        validate(hostile)
    assert caught.value.where
    assert caught.value.hint


def test_a_directory_of_several_components_becomes_one() -> None:
    entries = [directory("share", 0o755, "qemu"), directory("share", 0o775, "kernel")]
    assert validate(entries) == (directory("share", 0o755, "kernel"),)


def test_missing_parent_directories_are_added_before_their_content() -> None:
    assert [(found.path, found.kind, found.mode) for found in validate([entry("a/b/c")])] == [
        ("a", "dir", 0o755),
        ("a/b", "dir", 0o755),
        ("a/b/c", "file", 0o644),
    ]


def test_the_setgid_bit_of_a_directory_is_removed() -> None:
    assert validate([directory("share", 0o2775)])[0].mode == 0o755


@pytest.mark.parametrize(
    ("path", "target", "kept"),
    [
        pytest.param("share/a", "b", "b", id="beside"),
        pytest.param("share/x/a", "../../bin/b", "../../bin/b", id="within the tree"),
        pytest.param("share/a", "not/there", "not/there", id="dangling"),
        pytest.param("share/x/a", "/opt/kata/bin/b", "../../bin/b", id="below the prefix"),
        pytest.param("a", "/opt/kata/bin/b", "bin/b", id="below the prefix, from the top"),
        pytest.param("share/a", "/opt/kata", "..", id="the prefix itself"),
        pytest.param("share/a", "..", "..", id="the install dir"),
    ],
)
def test_links_are_correct_in_any_install_dir(path: str, target: str, kept: str) -> None:
    assert validate([link(path, target)])[-1].link == kept


def test_a_link_through_a_link_inside_the_install_dir_is_valid() -> None:
    entries = [link("a/b/up", ".."), link("c", "a/b/up/d"), entry("a/d")]
    assert len(validate(entries)) == 5


def test_a_shim_gets_the_components_it_needs_and_no_others() -> None:
    paths = [found.path for found in select(TARBALLS, [QEMU], "x86_64")]
    assert paths == ["bin", "bin/qemu", "bin/shim", "share", "share/same"]


def test_a_shim_gets_all_entries_of_a_tree() -> None:
    tree = replace(TARBALLS, form="tree", entries=(entry("a"), entry("b")), shim_components={}, archives={})
    assert select(tree, [QEMU], "x86_64") == (entry("a"), entry("b"))


def test_without_shims_no_entry_of_tarballs_is_selected() -> None:
    assert select(TARBALLS, [], "x86_64") == ()


@pytest.mark.parametrize(
    ("manifest", "arch", "says"),
    [
        pytest.param(TARBALLS, "x86_64", ["qemu-runtime-rs", "rootfs-image"], id="archive missing"),
        pytest.param(TARBALLS, "s390x", ["qemu-runtime-rs", "s390x"], id="not for this architecture"),
        pytest.param(replace(TARBALLS, shim_components={}), "x86_64", ["qemu-runtime-rs"], id="unknown shim"),
    ],
)
def test_the_error_names_a_shim_that_the_payload_cannot_serve(
    manifest: Manifest, arch: str, says: list[str]
) -> None:
    with pytest.raises(PayloadError) as caught:
        select(manifest, [QEMU_RS], arch)
    assert all(word in str(caught.value) for word in says)
    assert "qemu-runtime-rs" in caught.value.hint


def test_the_same_file_in_two_components_is_placed_once() -> None:
    paths = [found.path for found in select(TARBALLS, [QEMU], "x86_64")]
    assert paths.count("share/same") == 1


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(entry("share/same", component="shim-v2-go", size=4, sha256="ee"), id="content"),
        pytest.param(directory("share/same", component="shim-v2-go"), id="kind"),
        pytest.param(entry("share/same/below", component="shim-v2-go"), id="beneath the other's file"),
    ],
)
def test_components_with_conflicting_files_cannot_be_installed_together(other: Entry) -> None:
    entries = (*(found for found in TARBALLS.entries if found.component != "shim-v2-go"), other)
    manifest = replace(TARBALLS, entries=entries)
    with pytest.raises(PayloadError, match="share/same"):
        select(manifest, [QEMU], "x86_64")


def test_components_with_conflicting_files_can_be_installed_separately() -> None:
    other = entry("share/same", component="shim-v2-rust", size=9, sha256="ff")
    manifest = replace(TARBALLS, entries=(*TARBALLS.entries, other))
    assert select(manifest, [QEMU], "x86_64") == select(TARBALLS, [QEMU], "x86_64")


def test_a_complete_payload_has_no_missing_paths() -> None:
    assert missing_paths(everything(), QEMU) == []


@pytest.mark.parametrize(
    ("gone", "named"),
    [
        pytest.param("bin/containerd-shim-kata-v2", "bin/containerd-shim-kata-v2", id="shim"),
        pytest.param(QEMU.base_config, QEMU.base_config, id="configuration"),
        pytest.param("bin/qemu-system-x86_64", "bin/qemu-system-x86_64", id="hypervisor"),
        pytest.param("libexec/virtiofsd", "libexec/virtiofsd", id="daemon"),
        pytest.param(
            "share/kata-containers/vmlinux-6.18",
            "share/kata-containers/vmlinux.container",
            id="dangling link",
        ),
    ],
)
def test_a_missing_file_that_a_shim_needs_is_named(gone: str, named: str) -> None:
    assert missing_paths([found for found in everything() if found.path != gone], QEMU) == [named]


def with_config(text: str) -> list[Entry]:
    return [
        replace(found, content=text) if found.path == QEMU.base_config else found for found in everything()
    ]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        pytest.param('[[h.q.images]]\npath = "/opt/kata/share/x.img"', ["share/x.img"], id="list of tables"),
        pytest.param('a = "/opt/kata/share/./b/../x.img"', ["share/x.img"], id="roundabout path"),
        pytest.param('a = "/usr/bin/x"\nb = "/opt/katana/x"\nc = ""', [], id="paths elsewhere"),
        pytest.param('valid_x_paths = ["/opt/kata/nowhere"]', [], id="what pods may choose from"),
        pytest.param('virtio_fs_daemon = "/opt/kata/d"', ["d"], id="daemon by default"),
        pytest.param('shared_fs = "none"\nvirtio_fs_daemon = "/opt/kata/d"', [], id="daemon not used"),
        pytest.param(
            'shared_fs = "virtio-fs-nydus"\nvirtio_fs_daemon = "/opt/kata/d"', ["d"], id="nydus daemon"
        ),
    ],
)
def test_files_that_a_configuration_names_are_needed(text: str, named: list[str]) -> None:
    assert missing_paths(with_config(text), QEMU) == named


def test_the_error_names_a_configuration_that_is_not_toml() -> None:
    with pytest.raises(PayloadError, match=r"configuration-qemu\.toml"):
        missing_paths(with_config("[hypervisor"), QEMU)


def test_a_manifest_reads_back_as_it_was_written() -> None:
    assert from_json(to_json(TARBALLS), "manifest.json") == TARBALLS


def test_a_manifest_file_has_one_value_per_line() -> None:
    lines = to_json(TARBALLS).decode().splitlines()
    assert '   "path": "bin/qemu",' in lines


def changed(**fields: object) -> bytes:
    return json.dumps(json.loads(to_json(TARBALLS)) | fields).encode()


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        pytest.param(to_json(TARBALLS)[:500], "damaged", id="cut short"),
        pytest.param(b"", "damaged", id="empty"),
        pytest.param(b'{"schema": 1, "form": "\xff"}', "damaged", id="not UTF-8"),
        pytest.param(b'{"schema": 1, "form": ' + b"[" * 100_000, "damaged", id="nested without end"),
        pytest.param(changed(schema="1"), "damaged", id="mistyped schema"),
        pytest.param(changed(form="zip"), "damaged", id="unknown form"),
        pytest.param(changed(entries=[{"path": "a"}]), "damaged", id="entry without a kind"),
        pytest.param(changed(entries=[{"path": "a", "kind": "pipe", "mode": 1}]), "damaged", id="kind"),
        pytest.param(changed(archives={"a": {"file": 1}}), "damaged", id="mistyped archive"),
        pytest.param(changed(schema=2), "schema 2", id="newer schema"),
        pytest.param(b'{"schema": 2, "other": "things"}', "schema 2", id="newer and different"),
    ],
)
def test_a_damaged_manifest_or_another_schema_is_refused(raw: bytes, says: str) -> None:
    with pytest.raises(PayloadError, match=says) as caught:
        from_json(raw, "/payload/manifest.json")
    assert caught.value.where == "/payload/manifest.json"
    assert "payload index" in caught.value.hint
    assert caught.value.exit_code == 3


def test_comments_in_the_map_of_components_are_ignored() -> None:
    raw = b'{"_comment": ["x"], "shims": {"qemu": {"x86_64": ["shim-v2-go", "qemu"]}}}'
    assert parse_shim_components(raw, "here") == {"qemu": {"x86_64": ("shim-v2-go", "qemu")}}


def test_required_components_are_added_to_every_shim() -> None:
    """Later releases of Kata list common components under a separate key."""
    raw = b"""{"shims": {"qemu": {"x86_64": ["qemu"], "s390x": ["qemu"]}},
        "requiredComponents": {"x86_64": ["shim-v2-go", "qemu"]}}"""
    assert parse_shim_components(raw, "here")["qemu"] == {
        "x86_64": ("qemu", "shim-v2-go"),
        "s390x": ("qemu",),
    }


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b'{"shims": {"qemu": {"x86_64": "qemu"}}}', id="mistyped"),
        pytest.param(b'{"shims": {}, "requiredComponents": ["qemu"]}', id="mistyped requirements"),
        pytest.param(b'{"shims": ', id="cut short"),
        pytest.param(b"{}", id="without shims"),
        pytest.param(b'{"shims": {"qemu": {"x86_64": ["../../etc/x"]}}}', id="leads elsewhere"),
        pytest.param(b'{"shims": {"qemu": {"x86_64": ["a/b"]}}}', id="in a directory"),
    ],
)
def test_an_invalid_map_of_components_is_refused(raw: bytes) -> None:
    with pytest.raises(PayloadError, match="here"):
        parse_shim_components(raw, "here")
