"""The archives of a Kata release as a payload, and archives that are read only as far as they are needed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import payloads
from kata_node.errors import UsageError
from kata_node.host.files import Root
from kata_node.payload import index
from kata_node.settings.selection import CustomRuntime
from kata_node.settings.shims import table
from payload.test_artifacts import placed, root, run, settings
from payloads import CONFIGS, FILES, Content
from stages import remove_artifacts

__all__ = ["root"]

SHARE = "share/defaults/kata-containers"
IMAGES = "share/kata-containers"
GO: dict[str, Content] = {
    **{path: content[:64] for path, content in FILES.items()},
    f"{SHARE}/configuration-qemu.toml": CONFIGS["qemu"].encode(),
    f"{SHARE}/configuration-fc.toml": CONFIGS["fc"].encode(),
    f"{SHARE}/configuration-qemu-nvidia-gpu-tdx.toml": CONFIGS["qemu-nvidia-gpu-tdx"].encode(),
    "bin/firecracker": b"#!firecracker",
    "share/kata-qemu/qemu/efi-virtio.rom": b"rom",
    f"{IMAGES}/kata-containers-initrd.img": "kata-alpine.initrd",
    f"{IMAGES}/kata-alpine.initrd": b"initrd",
    f"{IMAGES}/vmlinuz-gpu.container": "vmlinuz-gpu-6.18",
    f"{IMAGES}/vmlinuz-gpu-6.18": b"kernel",
    f"{IMAGES}/newest-gpu": "vmlinuz-gpu.container",
    f"{IMAGES}/kata-containers-gpu.img": b"image",
    "share/ovmf/TDX.fd": b"firmware",
}
RS: dict[str, Content] = {
    "VERSION": FILES["VERSION"][:64],
    "runtime-rs/bin/containerd-shim-kata-v2": b"#!rust",
    f"{SHARE}/runtime-rs/configuration-dragonball.toml": CONFIGS["dragonball"].encode(),
    f"{IMAGES}/vmlinux-6.18": b"kernel",
    f"{IMAGES}/vmlinux.container": "vmlinux-6.18",
    f"{IMAGES}/kata-containers.img": FILES[f"{IMAGES}/kata-containers.img"][:64],
}
RS_NAME = "kata-static-4.1.0-amd64"
QEMU_FILES = {
    *FILES,
    "share/kata-qemu/qemu/efi-virtio.rom",
    f"{SHARE}/runtimes/qemu/configuration-qemu.toml",
}


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A directory with both archives of a release, as it was downloaded."""
    payloads.release_archive(tmp_path / "release", files=GO)
    payloads.release_archive(tmp_path / "release", RS_NAME, RS)
    (tmp_path / "release" / "kata-go-static-4.1.0-amd64.tar.zst.sha256").write_text("…\n")
    return tmp_path / "release"


def archive_of(release: Path, prefix: str) -> Path:
    return release / f"{prefix}-4.1.0-amd64.tar.zst"


@pytest.mark.parametrize("one_file", [False, True])
def test_a_release_is_installed_from_its_archives(root: Root, release: Path, *, one_file: bool) -> None:
    payload = archive_of(release, "kata-go-static") if one_file else release
    wanted = settings("qemu")
    report = run(root, payload, wanted)
    assert report.error is None
    assert "release 4.1.0" in report.summary
    assert placed(root) == QEMU_FILES
    assert run(root, payload, wanted).outcome == "skipped"
    run(root, payload, wanted, remove_artifacts)
    assert not root.exists("/opt/kata")


def test_files_that_only_disabled_shims_need_are_not_placed(root: Root, release: Path) -> None:
    run(root, release, settings("qemu"))
    left_out = GO.keys() - placed(root)
    assert left_out == {
        *(f"{SHARE}/configuration-{name}.toml" for name in ("fc", "qemu-nvidia-gpu-tdx")),
        "bin/firecracker",
        *(f"{IMAGES}/{name}" for name in ("kata-containers-initrd.img", "kata-alpine.initrd")),
        *(f"{IMAGES}/{name}" for name in ("vmlinuz-gpu.container", "vmlinuz-gpu-6.18", "newest-gpu")),
        f"{IMAGES}/kata-containers-gpu.img",
        "share/ovmf/TDX.fd",
    }
    assert not root.exists("/opt/kata/share/ovmf")


def test_another_enabled_shim_adds_its_files(root: Root, release: Path) -> None:
    run(root, release, settings("qemu"))
    assert run(root, release, settings("qemu", "fc")).outcome == "done"
    assert {"bin/firecracker", f"{IMAGES}/kata-alpine.initrd"} <= placed(root)
    run(root, release, settings("qemu"))
    assert placed(root) == QEMU_FILES


def test_a_custom_runtime_brings_the_files_of_its_shim(root: Root, release: Path) -> None:
    mine = CustomRuntime("mine", "fc", "kata-mine")
    run(root, release, settings("qemu", custom_runtimes=(mine,)))
    assert {"bin/firecracker", f"{SHARE}/custom-runtimes/kata-mine/configuration-fc.toml"} <= placed(root)


@pytest.mark.parametrize(
    ("shim", "other"), [("qemu", "kata-static"), ("dragonball", "kata-go-static")], ids=["go", "runtime-rs"]
)
def test_the_archive_of_the_other_runtime_is_not_read(
    root: Root, release: Path, shim: str, other: str
) -> None:
    archive_of(release, other).write_bytes(b"not even an archive")
    assert run(root, release, settings(shim)).error is None
    assert table()[shim].shim_binary in placed(root)


def test_shims_of_both_runtimes_come_from_both_archives(root: Root, release: Path) -> None:
    run(root, release, settings("qemu", "dragonball"))
    assert {table()[shim].shim_binary for shim in ("qemu", "dragonball")} <= placed(root)


def test_a_release_with_one_archive_for_all_shims_is_installed_from_it(root: Root, tmp_path: Path) -> None:
    payload = payloads.release_archive(tmp_path / "old", "kata-static-3.30.0-amd64", {**GO, **RS})
    assert run(root, payload, settings("qemu")).error is None
    assert placed(root) == QEMU_FILES


def test_a_newer_release_replaces_the_files(root: Root, release: Path, tmp_path: Path) -> None:
    run(root, release, settings("qemu"))
    name = "kata-go-static-4.2.0-amd64"
    newer = payloads.release_archive(tmp_path / "newer", name, {**GO, "bin/qemu-system-x86_64": b"#!newer"})
    assert "release 4.2.0" in run(root, newer, settings("qemu")).summary
    assert root.resolve("/opt/kata/bin/qemu-system-x86_64").read_bytes() == b"#!newer"


def test_only_the_archives_for_the_architecture_are_used(root: Root, release: Path) -> None:
    (release / "kata-go-static-4.1.0-arm64.tar.zst").write_bytes(b"not even an archive")
    assert run(root, release, settings("qemu")).error is None
    archive_of(release, "kata-go-static").unlink()
    archive_of(release, "kata-static").unlink()
    error = run(root, release, settings("qemu")).error
    assert str(error).startswith(
        "--payload: the payload has no archive for x86_64, only kata-go-static-4.1.0-arm64"
    )


@pytest.mark.parametrize(
    ("names", "message"),
    [
        pytest.param(
            ["kata-static-4.1.0-amd64.tar.zst", "kata-go-static-4.2.0-amd64.tar.zst"],
            "archives of several Kata releases: 4.1.0, 4.2.0",
            id="two releases",
        ),
        pytest.param(["kata-static-3.2.0-amd64.tar.xz"], r"does not read .*\.tar\.xz", id="xz"),
        pytest.param(["kata-static-qemu.tar.zst"], "no directory opt/kata or tarballs", id="a component"),
        pytest.param([], "no directory opt/kata or tarballs", id="nothing"),
    ],
)
def test_a_directory_without_one_release_is_refused(tmp_path: Path, names: list[str], message: str) -> None:
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(UsageError, match=message):
        index.load(tmp_path)


def test_a_file_with_another_name_is_refused(tmp_path: Path) -> None:
    other = payloads.release_archive(tmp_path, "download")
    with pytest.raises(
        UsageError, match=r"the name of the payload .* kata-static-<version>-<arch>\.tar\.zst"
    ):
        index.load(other)


def test_the_archives_of_a_release_get_no_manifest(release: Path) -> None:
    with pytest.raises(UsageError, match="get no manifest"):
        index.write_manifest(release)
    assert not (release / "manifest.json").exists()


def test_a_damaged_archive_of_a_release_leaves_the_node_as_it_was(root: Root, release: Path) -> None:
    archive = archive_of(release, "kata-go-static")
    archive.write_bytes(archive.read_bytes()[:-20])
    error = run(root, release, settings("qemu")).error
    assert error is not None
    assert "the archive is damaged" in error.what
    assert "download the archive" in error.hint
    assert not root.exists("/opt/kata")


def test_component_archives_that_are_not_needed_are_not_read(root: Root, tmp_path: Path) -> None:
    payload = payloads.tarballs(tmp_path / "payload", shims={**payloads.SHIMS, "fc": {"x86_64": ["fc"]}})
    payloads.archive_path(payload, "fc").write_bytes(b"not even an archive")
    assert run(root, payload, settings("qemu")).error is None
    assert run(root, payload, settings("qemu")).outcome == "skipped"
    assert "the archive is damaged" in str(run(root, payload, settings("qemu", "fc")).error)


@pytest.mark.parametrize("form", ["tarballs", "release"])
def test_the_same_archives_in_another_mount_are_the_same_payload(
    root: Root, tmp_path: Path, release: Path, form: str
) -> None:
    payload = release if form == "release" else payloads.tarballs(tmp_path / "payload")
    run(root, payload, settings("qemu"))
    copy = tmp_path / "copy"
    shutil.copytree(payload, copy)
    for path in copy.rglob("*.tar.zst"):
        path.chmod(0o600)  # another inode and another change time
    assert run(root, copy, settings("qemu")).outcome == "skipped"
    newest = max(copy.rglob("*.tar.zst"))
    os.utime(newest, (0, 0))
    assert index.fingerprint(copy) != index.fingerprint(payload)
