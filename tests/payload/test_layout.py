"""The wanted files below the install dir, and their comparison with the existing files."""

from __future__ import annotations

import hashlib
import posixpath
from typing import Any

import pytest
from msgspec.structs import replace

from kata_node.errors import PayloadError, SettingsError
from kata_node.payload.layout import (
    CONFIG_HEADER,
    DesiredFile,
    Difference,
    ObservedFile,
    compare,
    kata_warnings,
    layout,
    record_before_placing,
)
from kata_node.payload.manifest import Entry
from kata_node.plan.receipt import PlacedFile
from kata_node.settings.model import Settings
from kata_node.settings.selection import CustomRuntime, ShimSettings
from kata_node.settings.shims import Shim, table

QEMU, RUST = table()["qemu"], table()["qemu-runtime-rs"]
GO_DIR = "share/defaults/kata-containers"


def sha(content: str | bytes) -> str:
    return hashlib.sha256(content if isinstance(content, bytes) else content.encode()).hexdigest()


def file(path: str, content: str = "x", *, mode: int = 0o644, mtime: int = 100) -> Entry:
    text = content if path.endswith(".toml") else ""
    return Entry(path, "file", mode, len(content), mtime, sha(content), content=text)


def dirs(*paths: str) -> tuple[Entry, ...]:
    """Return entries of the directories ``paths`` and all their parents."""
    every: set[str] = set()
    for path in paths:
        while path:
            every.add(path)
            path = posixpath.dirname(path)
    return tuple(Entry(path, "dir", 0o755) for path in sorted(every))


def on(*shims: Shim, drop_in: str = "", **fields: Any) -> Settings:
    """Return settings with these shims enabled, each with the user drop-in ``drop_in``."""
    own = {shim.name: ShimSettings(drop_in=drop_in) for shim in shims}
    return Settings(shims, "x86_64", shim_settings=own, **fields)


def added(wanted: dict[str, DesiredFile]) -> dict[str, str]:
    """Return the wanted paths that are not in the payload: path to kind."""
    return {path: desired.kind for path, desired in wanted.items() if path not in layout(PAYLOAD, on())}


PAYLOAD = (
    *dirs("bin", GO_DIR, f"{GO_DIR}/runtime-rs"),
    file("bin/containerd-shim-kata-v2", "shim", mode=0o755),
    Entry("bin/qemu", "link", 0o777, link="qemu-system-x86_64"),
    file(f"{GO_DIR}/configuration-qemu.toml", "[hypervisor.qemu]\n"),
    file(f"{GO_DIR}/configuration-clh.toml", "[hypervisor.clh]\n"),
    Entry(f"{GO_DIR}/configuration.toml", "link", 0o777, link="configuration-qemu.toml"),
    file(f"{GO_DIR}/runtime-rs/configuration-qemu-runtime-rs.toml", "[hypervisor.qemu]\n", mtime=200),
)


# --- the wanted files -------------------------------------------------------------------------------


def test_a_payload_entry_is_placed_unchanged() -> None:
    wanted = layout(PAYLOAD, on())
    assert list(wanted) == sorted(entry.path for entry in PAYLOAD)
    assert all(wanted[entry.path].entry == entry for entry in PAYLOAD)
    assert wanted["bin/containerd-shim-kata-v2"].placed(pending=False) == PlacedFile(
        "file", 0o755, 4, 100, sha("shim")
    )
    assert wanted["bin/qemu"].placed(pending=True) == PlacedFile(
        "link", 0o777, link="qemu-system-x86_64", pending=True
    )


@pytest.mark.parametrize(
    ("shim", "config_dir", "mtime"),
    [
        pytest.param(QEMU, GO_DIR, 100, id="go"),
        pytest.param(RUST, f"{GO_DIR}/runtime-rs", 200, id="runtime-rs"),
    ],
)
def test_an_enabled_shim_has_its_own_directory_and_the_usual_path_points_to_it(
    shim: Shim, config_dir: str, mtime: int
) -> None:
    wanted = layout(PAYLOAD, on(shim))
    own = f"{config_dir}/runtimes/{shim.name}"
    content = CONFIG_HEADER + b"[hypervisor.qemu]\n"
    assert added(wanted) == {
        f"{config_dir}/runtimes": "dir",
        own: "dir",
        f"{own}/config.d": "dir",
        f"{own}/configuration-{shim.name}.toml": "file",
    }
    assert wanted[f"{own}/configuration-{shim.name}.toml"] == DesiredFile(
        f"{own}/configuration-{shim.name}.toml",
        "file",
        mode=0o644,
        size=len(content),
        mtime=mtime,
        sha256=sha(content),
        content=content,
    )
    link = wanted[f"{config_dir}/configuration-{shim.name}.toml"]
    assert (link.kind, link.entry) == ("link", None)
    target = posixpath.normpath(posixpath.join(config_dir, link.link))
    assert target == f"{own}/configuration-{shim.name}.toml"
    assert target in wanted


def test_the_header_of_a_managed_configuration_has_only_comments() -> None:
    assert CONFIG_HEADER.startswith(b"# Managed by kata-node")
    assert all(line.startswith(b"#") for line in CONFIG_HEADER.splitlines() if line)
    assert b"config.d/" in CONFIG_HEADER


def test_parents_come_before_their_content() -> None:
    seen: set[str] = {""}
    for path in layout(reversed(PAYLOAD), on(QEMU, RUST, debug=True)):
        assert posixpath.dirname(path) in seen
        seen.add(path)


def test_the_configuration_of_a_shim_can_be_a_link() -> None:
    real = file(f"{GO_DIR}/versions/qemu.toml", "real = 1\n")
    link = Entry(f"{GO_DIR}/configuration-qemu.toml", "link", 0o777, link="versions/qemu.toml")
    wanted = layout((*dirs(f"{GO_DIR}/versions"), real, link), on(QEMU))
    assert wanted[QEMU.own_config].content == CONFIG_HEADER + b"real = 1\n"
    assert wanted[QEMU.base_config].link == "runtimes/qemu/configuration-qemu.toml"
    assert wanted[real.path].entry == real


def test_two_shims_can_share_one_configuration_by_a_link() -> None:
    clh = table()["clh"]
    shared = file(QEMU.base_config, "shared = 1\n")
    link = Entry(clh.base_config, "link", 0o777, link="configuration-qemu.toml")
    for shims in ([QEMU, clh], [clh, QEMU]):
        wanted = layout((*dirs(GO_DIR), shared, link), on(*shims))
        assert (
            wanted[QEMU.own_config].content
            == wanted[clh.own_config].content
            == CONFIG_HEADER + b"shared = 1\n"
        )


@pytest.mark.parametrize(
    "entries",
    [
        pytest.param((), id="missing"),
        pytest.param((Entry(QEMU.base_config, "dir", 0o755),), id="directory"),
        pytest.param((Entry(QEMU.base_config, "link", 0o777, link="gone.toml"),), id="dangling link"),
    ],
)
def test_a_shim_without_a_configuration_gets_no_directory(entries: tuple[Entry, ...]) -> None:
    assert list(layout(entries, on(QEMU))) == [entry.path for entry in entries]


def test_a_payload_file_does_not_replace_the_configuration_that_kata_node_writes() -> None:
    wanted = layout((*PAYLOAD, file(QEMU.own_config, "theirs\n")), on(QEMU))
    assert wanted[QEMU.own_config].content == CONFIG_HEADER + b"[hypervisor.qemu]\n"


def test_a_debug_variant_has_its_own_directory_and_the_usual_path_points_to_the_plain_one() -> None:
    wanted = layout(PAYLOAD, on(QEMU, debug=True))
    debug = f"{GO_DIR}/runtimes/qemu-debug"
    assert {path: kind for path, kind in added(wanted).items() if path.startswith(debug)} == {
        debug: "dir",
        f"{debug}/config.d": "dir",
        f"{debug}/configuration-qemu.toml": "file",
    }, "there is no debug drop-in, because this configuration has no key that enables debug logs"
    assert wanted[QEMU.base_config].link == "runtimes/qemu/configuration-qemu.toml"


def test_drop_ins_are_in_config_d_with_the_time_of_the_configuration() -> None:
    wanted = layout(PAYLOAD, on(RUST, drop_in="a = 1\n"))
    path = f"{RUST.own_dir}/config.d/50-user-overrides.toml"
    assert wanted[path] == DesiredFile(path, "file", 0o600, 6, 200, sha("a = 1\n"), content=b"a = 1\n")


def test_a_custom_runtime_does_not_need_its_shim_to_be_enabled() -> None:
    mine = CustomRuntime("mine", "qemu-runtime-rs", "kata-mine", drop_in="a = 1\n")
    wanted = layout(PAYLOAD, on(custom_runtimes=(mine,)))
    own = f"{GO_DIR}/runtime-rs/custom-runtimes/kata-mine"
    assert added(wanted) == {
        f"{GO_DIR}/runtime-rs/custom-runtimes": "dir",
        own: "dir",
        f"{own}/config.d": "dir",
        f"{own}/config.d/50-user-overrides.toml": "file",
        f"{own}/configuration-qemu-runtime-rs.toml": "file",
    }
    assert wanted[RUST.base_config].kind == "file", "the payload's configuration of the shim stays"
    both = layout(PAYLOAD, on(RUST, custom_runtimes=(mine,)))
    assert both[f"{own}/configuration-qemu-runtime-rs.toml"].content == both[RUST.own_config].content
    assert f"{RUST.own_dir}/config.d/50-user-overrides.toml" not in both


QEMU_OF_PAYLOAD = file(
    QEMU.base_config, "[hypervisor.qemu]\npath = '/opt/kata/bin/qemu'\nkernel = '/opt/kata/k'\n"
)


def test_in_another_prefix_qemu_finds_its_firmware_through_the_qemu_bundle() -> None:
    wanted = layout((QEMU_OF_PAYLOAD,), on(QEMU, install_dir="/srv/opt/kata"))
    bundle = {path: desired for path, desired in wanted.items() if path.startswith("bin/qemu-bundle")}
    assert {path: desired.kind for path, desired in bundle.items()} == {
        "bin/qemu-bundle": "dir",
        "bin/qemu-bundle/opt": "dir",
        "bin/qemu-bundle/opt/kata": "link",
    }
    target = bundle["bin/qemu-bundle/opt/kata"].link
    assert posixpath.normpath(f"/srv/opt/kata/bin/qemu-bundle/opt/{target}") == "/srv/opt/kata"
    assert f"{QEMU.own_dir}/config.d/10-install-dir.toml" in wanted


@pytest.mark.parametrize(
    ("config", "install_dir"),
    [
        pytest.param(QEMU_OF_PAYLOAD, "/opt/kata", id="where it was built for"),
        pytest.param(
            file(QEMU.base_config, "[hypervisor.qemu]\npath = '/usr/bin/qemu'\n"), "/srv", id="the host's"
        ),
        pytest.param(file(QEMU.base_config, "[hypervisor.clh]\npath = '/opt/kata/x'\n"), "/srv", id="none"),
    ],
)
def test_there_is_no_qemu_bundle_where_qemu_does_not_need_it(config: Entry, install_dir: str) -> None:
    assert not [path for path in layout((config,), on(QEMU, install_dir=install_dir)) if "bundle" in path]


def test_a_configuration_or_drop_in_that_cannot_work_is_refused_by_layout() -> None:
    with pytest.raises(PayloadError) as broken:
        layout((file(QEMU.base_config, "[a"),), on(QEMU))
    assert broken.value.where == QEMU.base_config
    with pytest.raises(SettingsError) as refused:
        layout(PAYLOAD, on(QEMU, drop_in="[hypervisor]\nqemu = 1"))
    assert refused.value.where == "shims.qemu.dropIn"


def test_a_drop_in_can_have_keys_that_another_configuration_of_the_same_kata_runtime_documents() -> None:
    drop_in = "[hypervisor.qemu]\nother = 1"
    entries = (file(QEMU.base_config, "[hypervisor.qemu]\npath = '/usr/bin/qemu'\n"),)
    other = "[hypervisor.clh]\n# other = 0\n"
    with pytest.raises(SettingsError, match=r"hypervisor\.qemu\.other is not a key of the shim qemu"):
        layout((*entries, file(RUST.base_config, other)), on(QEMU, drop_in=drop_in))
    documented = (*entries, file(table()["clh"].base_config, other))
    wanted = on(QEMU, drop_in=drop_in)
    assert kata_warnings(documented, wanted, layout(documented, wanted)) == (
        "shims.qemu.dropIn: hypervisor.qemu.other is only in configurations of other hypervisors, so it can "
        "be without effect",
    )


# --- the differences from the existing files --------------------------------------------------------

NEW = {
    "d": DesiredFile("d", "dir"),
    "d/f": DesiredFile("d/f", "file", 0o644, 10, 100, sha("new")),
    "d/l": DesiredFile("d/l", "link", 0o777, link="f"),
}
PLACED = {path: desired.placed(pending=False) for path, desired in NEW.items()}
THERE = {
    "d": ObservedFile("dir", 0o755, 4096, 1, ""),
    "d/f": ObservedFile("file", 0o644, 10, 100, ""),
    "d/l": ObservedFile("link", 0o777, 1, 1, "f"),
}


def missing(difference: Difference) -> list[str]:
    return [desired.path for desired in difference.missing]


def test_on_a_new_node_everything_is_missing() -> None:
    difference = compare(NEW, {}, {}, {})
    assert difference == Difference(tuple(NEW.values()), (), (), (), (), PLACED)
    assert difference


def test_a_complete_installation_has_no_differences() -> None:
    difference = compare(NEW, THERE, PLACED, {})
    assert difference == Difference((), (), (), (), (), PLACED)
    assert not difference


@pytest.mark.parametrize(
    ("path", "found"),
    [
        pytest.param("d/f", replace(THERE["d/f"], size=11), id="size"),
        pytest.param("d/f", replace(THERE["d/f"], mtime=101), id="time"),
        pytest.param("d/f", replace(THERE["d/f"], mode=0o600), id="mode"),
        pytest.param("d/f", ObservedFile("link", 0o777, 1, 1, "x"), id="a link in place of a file"),
        pytest.param("d/f", ObservedFile("other", 0o644, 10, 100, ""), id="a socket in place of a file"),
        pytest.param("d/f", None, id="file gone"),
        pytest.param("d/l", replace(THERE["d/l"], link="elsewhere"), id="target"),
        pytest.param("d/l", ObservedFile("file", 0o777, 1, 1, ""), id="a file in place of a link"),
        pytest.param("d/l", None, id="link gone"),
    ],
)
def test_a_file_that_changed_on_the_node_is_named_and_placed_again(
    path: str, found: ObservedFile | None
) -> None:
    there = {**THERE, path: found} if found else {each: THERE[each] for each in THERE if each != path}
    there = {each: state for each, state in there.items() if state is not None}
    difference = compare(NEW, there, PLACED, {})
    assert missing(difference) == [path]
    assert difference.drifted == (path,)
    assert difference.conflicts == ()
    assert difference.resulting_record == PLACED


@pytest.mark.parametrize(
    "found",
    [
        pytest.param(replace(THERE["d/l"], mode=0o700), id="mode of a link"),
        pytest.param(replace(THERE["d/l"], mtime=7), id="time of a link"),
    ],
)
def test_mode_and_time_of_links_and_times_of_directories_are_ignored(found: ObservedFile) -> None:
    assert not compare(NEW, {**THERE, "d/l": found}, PLACED, {})
    assert not compare(NEW, {**THERE, "d": ObservedFile("dir", 0o755, 1, 9, "")}, PLACED, {})


@pytest.mark.parametrize(
    ("mode_on_node", "recorded_mode", "drifted"),
    [
        pytest.param(0o700, 0o755, ("d",), id="left by a kill, or changed by a person"),
        pytest.param(0o777, 0o777, (), id="placed by an earlier release"),
    ],
)
def test_a_placed_directory_gets_its_mode_again(
    mode_on_node: int, recorded_mode: int, drifted: tuple[str, ...]
) -> None:
    placed = {**PLACED, "d": PlacedFile("dir", recorded_mode)}
    difference = compare(NEW, {**THERE, "d": ObservedFile("dir", mode_on_node, 1, 9, "")}, placed, {})
    assert [desired.path for desired in difference.missing] == ["d"]
    assert difference.drifted == drifted
    assert difference.resulting_record["d"] == PlacedFile("dir", 0o755)


def test_the_mode_of_a_foreign_directory_is_left_alone() -> None:
    placed = {path: record for path, record in PLACED.items() if path != "d"}
    assert not compare(NEW, {**THERE, "d": ObservedFile("dir", 0o700, 1, 9, "")}, placed, {})


@pytest.mark.parametrize("path", ["d/f", "d/l"])
def test_a_file_that_another_user_put_in_place_of_ours_is_replaced(path: str) -> None:
    found = {**THERE, path: replace(THERE[path], trusted=False)}
    assert [desired.path for desired in compare(NEW, found, PLACED, {}).missing] == [path]


def test_a_missing_directory_is_created_again_without_a_note() -> None:
    """The receipt of an interrupted run can have directories that the run did not create."""
    difference = compare(NEW, {}, PLACED, {})
    assert missing(difference) == ["d", "d/f", "d/l"]
    assert difference.drifted == ("d/f", "d/l")


@pytest.mark.parametrize(
    "found",
    [
        pytest.param(THERE["d/f"], id="it looks whole"),
        pytest.param(replace(THERE["d/f"], size=3), id="half of it"),
        pytest.param(None, id="nothing of it"),
    ],
)
def test_a_file_that_an_interrupted_run_was_writing_is_written_again_without_a_note(
    found: ObservedFile | None,
) -> None:
    there = {path: state for path, state in {**THERE, "d/f": found}.items() if state}
    placed = {**PLACED, "d/f": replace(PLACED["d/f"], pending=True)}
    difference = compare(NEW, there, placed, {})
    assert missing(difference) == ["d/f"]
    assert (difference.drifted, difference.conflicts) == ((), ())
    assert difference.resulting_record == PLACED


def test_an_upgrade_replaces_changed_files_and_removes_stale_files() -> None:
    old = {
        "d": PlacedFile("dir", 0o755),
        "d/f": PlacedFile("file", 0o644, 9, 50, sha("old")),
        "d/l": PlacedFile("file", 0o644, 1, 1, sha("was a file")),
        "d/stale": PlacedFile("link", 0o777, link="f"),
        "old": PlacedFile("dir", 0o755),
        "old/deep": PlacedFile("dir", 0o755),
        "old/deep/x": PlacedFile("file", 0o644, pending=True),
        "old-er": PlacedFile("dir", 0o755),
    }
    there = {
        "d": THERE["d"],
        "d/f": ObservedFile("file", 0o644, 9, 50, ""),
        "d/l": ObservedFile("file", 0o644, 1, 1, ""),
    }
    difference = compare(NEW, there, old, {})
    assert missing(difference) == ["d/f", "d/l"]
    assert difference.stale == ("d/stale", "old/deep/x")
    assert difference.stale_dirs == ("old/deep", "old-er", "old"), "deepest first"
    assert difference.drifted == ()
    assert difference.resulting_record == PLACED


def test_an_upgrade_names_a_file_that_changed_on_the_node() -> None:
    old = {**PLACED, "d/f": PlacedFile("file", 0o644, 9, 50, sha("old"))}
    difference = compare(NEW, {**THERE, "d/f": ObservedFile("file", 0o644, 5, 60, "")}, old, {})
    assert missing(difference) == ["d/f"]
    assert difference.drifted == ("d/f",)


def test_a_file_that_differs_only_in_content_is_placed() -> None:
    """Size and time are the same, so only the digest in the record differs."""
    old = {**PLACED, "d/f": replace(PLACED["d/f"], sha256=sha("old"))}
    assert missing(compare(NEW, THERE, old, {})) == ["d/f"]


# --- foreign files ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "found", "digest"),
    [
        pytest.param("d", ObservedFile("file", 0o644, 1, 1, ""), "", id="file in place of a directory"),
        pytest.param("d", ObservedFile("link", 0o777, 1, 1, "/mnt"), "", id="link in place of a directory"),
        pytest.param("d/f", THERE["d/f"], sha("foreign"), id="other content"),
        pytest.param("d/f", replace(THERE["d/f"], size=11), "", id="other size, so not even hashed"),
        pytest.param("d/f", THERE["d"], "", id="directory in place of a file"),
        pytest.param("d/f", THERE["d/l"], "", id="link in place of a file"),
        pytest.param("d/f", ObservedFile("other", 0o644, 10, 100, ""), "", id="socket in place of a file"),
        pytest.param("d/l", replace(THERE["d/l"], link="elsewhere"), "", id="link to elsewhere"),
        pytest.param("d/l", THERE["d/f"], sha("new"), id="file in place of a link"),
        pytest.param("d/l", THERE["d"], "", id="directory in place of a link"),
    ],
)
def test_foreign_content_at_a_wanted_path_is_a_conflict(path: str, found: ObservedFile, digest: str) -> None:
    difference = compare(NEW, {path: found}, {}, {path: digest} if digest else {})
    assert difference.conflicts == (path,)
    assert path not in missing(difference)
    assert path not in difference.resulting_record


def test_a_foreign_file_is_not_adopted_without_a_digest() -> None:
    """Two missing digests do not prove that the files are equal."""
    difference = compare(
        {"f": DesiredFile("f", "file", size=3)}, {"f": ObservedFile("file", 0o644, 5, 1, "")}, {}, {}
    )
    assert difference.conflicts == ("f",)


@pytest.mark.parametrize("path", ["d/f", "d/l"])
def test_a_directory_instead_of_a_placed_file_is_a_conflict(path: str) -> None:
    difference = compare(NEW, {**THERE, path: THERE["d"]}, PLACED, {})
    assert difference.conflicts == (path,)
    assert missing(difference) == []


def test_foreign_files_with_the_wanted_content_are_adopted() -> None:
    difference = compare(NEW, THERE, {}, {"d/f": sha("new")})
    assert missing(difference) == []
    assert difference.conflicts == ()
    assert list(difference.resulting_record) == ["d/f", "d/l"], "the foreign directory is not recorded"
    assert not compare(NEW, THERE, difference.resulting_record, {}), "the next comparison needs no digests"


def test_an_adopted_file_gets_the_wanted_mode_and_time() -> None:
    difference = compare(NEW, {**THERE, "d/f": replace(THERE["d/f"], mtime=7)}, {}, {"d/f": sha("new")})
    assert missing(difference) == ["d/f"]
    assert difference.drifted == ()


# --- changed settings -------------------------------------------------------------------------------


def found_as(wanted: dict[str, DesiredFile]) -> dict[str, ObservedFile]:
    return {
        path: ObservedFile(desired.kind, desired.mode, desired.size, desired.mtime, desired.link)
        for path, desired in wanted.items()
    }


def test_a_disabled_shim_loses_its_directory_and_gets_the_payload_configuration_back() -> None:
    both, one = layout(PAYLOAD, on(QEMU, RUST)), layout(PAYLOAD, on(RUST))
    placed = compare(both, {}, {}, {}).resulting_record
    difference = compare(one, found_as(both), placed, {})
    assert missing(difference) == [QEMU.base_config]
    assert difference.missing[0].kind == "file"
    assert difference.stale == (QEMU.own_config,)
    assert difference.stale_dirs == (
        f"{QEMU.own_dir}/config.d",
        QEMU.own_dir,
        posixpath.dirname(QEMU.own_dir),
    )
    assert difference.drifted == ()
    assert not compare(one, found_as(one), difference.resulting_record, {})


def test_a_drop_in_and_a_debug_variant_are_removed_with_their_settings() -> None:
    before, now = layout(PAYLOAD, on(QEMU, drop_in="a = 1", debug=True)), layout(PAYLOAD, on(QEMU))
    placed = compare(before, {}, {}, {}).resulting_record
    difference = compare(now, found_as(before), placed, {})
    assert difference.missing == ()
    assert difference.stale == (
        f"{QEMU.own_dir}-debug/config.d/50-user-overrides.toml",
        f"{QEMU.own_dir}-debug/configuration-qemu.toml",
        f"{QEMU.own_dir}/config.d/50-user-overrides.toml",
    )
    assert difference.stale_dirs == (f"{QEMU.own_dir}-debug/config.d", f"{QEMU.own_dir}-debug")


def test_a_drop_in_is_written_again_if_only_its_content_changes() -> None:
    before, now = layout(PAYLOAD, on(QEMU, drop_in="a = 1")), layout(PAYLOAD, on(QEMU, drop_in="a = 2"))
    difference = compare(now, found_as(before), compare(before, {}, {}, {}).resulting_record, {})
    assert missing(difference) == [f"{QEMU.own_dir}/config.d/50-user-overrides.toml"]


def test_a_file_of_a_user_in_config_d_is_ignored() -> None:
    both = layout(PAYLOAD, on(QEMU))
    placed = compare(both, {}, {}, {}).resulting_record
    foreign = f"{QEMU.own_dir}/config.d/50-mine.toml"
    there = {**found_as(both), foreign: ObservedFile("file", 0o644, 1, 1, "")}
    assert not compare(both, there, placed, {})
    off = compare(layout(PAYLOAD, on()), there, placed, {})
    assert foreign not in off.stale
    assert foreign not in off.resulting_record


# --- the record before placing ----------------------------------------------------------------------


def test_the_record_before_placing_has_pending_files_and_still_has_stale_files() -> None:
    old = {
        "d": PlacedFile("dir", 0o755),
        "d/f": PlacedFile("file", 0o644, 9, 50, sha("old")),
        "gone": PlacedFile("file", 0o644),
        "gone.d": PlacedFile("dir", 0o755),
    }
    there = {"d": THERE["d"], "d/f": ObservedFile("file", 0o644, 9, 50, ""), "d/l": THERE["d/l"]}
    before_placing = record_before_placing(compare(NEW, there, old, {}), old)
    assert before_placing == {
        "d": PlacedFile("dir", 0o755),
        "d/f": replace(PLACED["d/f"], pending=True),
        "d/l": PLACED["d/l"],
        "gone": PlacedFile("file", 0o644),
        "gone.d": PlacedFile("dir", 0o755),
    }
    assert list(before_placing) == sorted(before_placing)


def test_a_directory_is_never_pending() -> None:
    before_placing = record_before_placing(compare(NEW, {}, {}, {}), {})
    assert [path for path, record in before_placing.items() if record.pending] == ["d/f", "d/l"]


@pytest.mark.parametrize("written", [(), ("d",), ("d", "d/f"), ("d", "d/f", "d/l")])
def test_the_next_run_completes_a_run_that_was_killed_while_placing(written: tuple[str, ...]) -> None:
    before_placing = record_before_placing(compare(NEW, {}, {}, {}), {})
    there = {path: THERE[path] for path in written}
    difference = compare(NEW, there, before_placing, {})
    assert {*missing(difference), "d"} == set(NEW)
    assert (difference.drifted, difference.conflicts) == ((), ())
    assert difference.resulting_record == PLACED
