"""What a payload of archives has in addition to the shims: nydus, kata-ctl, the devkit, versions.yaml."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

import payloads
from kata_node.errors import UnusablePayloadError
from kata_node.host.files import Root
from kata_node.kata import devkit
from kata_node.payload import index
from kata_node.settings.model import Settings
from kata_node.settings.runtime import SnapshotterSettings
from kata_node.settings.shims import table
from payload.test_artifacts import placed, run
from payloads import CONFIGS, FILES
from stages import remove_artifacts

VERSIONS = b"assets:\n  kernel: {version: v6.18}\n"
KATA_CTL = "bin/kata-ctl"
SHIMS = {"qemu": {"x86_64": ["qemu"]}}


@pytest.fixture
def root(tmp_path: Path) -> Root:
    (tmp_path / "node").mkdir()
    return Root(tmp_path / "node")


@pytest.fixture
def payload(tmp_path: Path) -> Path:
    """A payload with the components for debugging and the list of versions."""
    qemu = {path: content[:64] for path, content in FILES.items()}
    qemu["share/defaults/kata-containers/configuration-qemu.toml"] = CONFIGS["qemu"].encode()
    tools = {devkit.IMAGE: b"image", devkit.VERITY_PARAMS: b"root_hash=5a,salt=\n"}
    components = {
        "qemu": payloads.members(qemu),
        "kata-ctl": payloads.members({KATA_CTL: b"#!ctl"}),
        devkit.COMPONENT: payloads.members(tools),
    }
    made = payloads.tarballs(tmp_path / "payload", components, SHIMS)
    (made / "versions.yaml").write_bytes(VERSIONS)
    return made


def settings(*, debug: bool = False, with_devkit: bool = False) -> Settings:
    return Settings((table()["qemu"],), "x86_64", debug=debug, devkit=with_devkit)


@pytest.mark.parametrize("place", ["", "tarballs"])
@pytest.mark.parametrize("indexed", [False, True])
def test_the_list_of_versions_beside_the_archives_is_placed_and_removed(
    root: Root, payload: Path, place: str, *, indexed: bool
) -> None:
    (payload / "versions.yaml").rename(payload / place / "versions.yaml")
    if indexed:
        index.write_manifest(payload)
    run(root, payload, settings())
    assert root.resolve("/opt/kata/versions.yaml").read_bytes() == VERSIONS
    assert run(root, payload, settings()).outcome == "skipped"
    run(root, payload, settings(), remove_artifacts)
    assert not root.exists("/opt/kata")


def test_another_list_of_versions_is_placed_by_an_upgrade(root: Root, payload: Path) -> None:
    run(root, payload, settings())
    (payload / "versions.yaml").write_bytes(b"assets: {}\n")
    assert run(root, payload, settings()).outcome == "done"
    assert root.resolve("/opt/kata/versions.yaml").read_bytes() == b"assets: {}\n"


def test_a_list_of_versions_that_the_manifest_does_not_know_is_refused(payload: Path) -> None:
    index.write_manifest(payload)
    (payload / "versions.yaml").write_bytes(b"assets: {}\n")
    with pytest.raises(UnusablePayloadError, match=r"does not match the payload: versions\.yaml differs"):
        index.load(payload)


def test_a_list_of_versions_in_an_archive_has_precedence(root: Root, tmp_path: Path) -> None:
    qemu = {**FILES, "versions.yaml": VERSIONS}
    qemu["share/defaults/kata-containers/configuration-qemu.toml"] = CONFIGS["qemu"].encode()
    payload = payloads.tarballs(tmp_path / "payload", {"qemu": payloads.members(qemu)}, SHIMS)
    (payload / "versions.yaml").write_bytes(b"another: file\n")
    index.write_manifest(payload)
    run(root, payload, settings())
    assert root.resolve("/opt/kata/versions.yaml").read_bytes() == VERSIONS


def test_kata_ctl_is_on_the_node_while_debug_is_on(root: Root, payload: Path) -> None:
    run(root, payload, settings())
    assert KATA_CTL not in placed(root)
    run(root, payload, settings(debug=True))
    assert KATA_CTL in placed(root)
    assert devkit.IMAGE not in placed(root)
    run(root, payload, settings())
    assert KATA_CTL not in placed(root)


def test_debug_needs_no_payload_with_kata_ctl(root: Root, payload: Path) -> None:
    (payload / "tarballs/kata-static-kata-ctl.tar.zst").unlink()
    assert run(root, payload, settings(debug=True)).outcome == "done"


def test_the_devkit_is_placed_with_its_image_and_the_parameters_of_it(root: Root, payload: Path) -> None:
    run(root, payload, settings(debug=True, with_devkit=True))
    assert {devkit.IMAGE, devkit.VERITY_PARAMS} <= placed(root)
    directory = "/opt/kata/share/defaults/kata-containers/runtimes/qemu-devkit/config.d"
    assert 'verity_params = "root_hash=5a,salt="' in root.resolve(f"{directory}/22-devkit.toml").read_text()
    run(root, payload, settings(debug=True))
    assert devkit.IMAGE not in placed(root)
    assert not root.exists(directory)


@pytest.mark.parametrize("form", ["tree", "tarballs"])
def test_a_payload_without_the_devkit_is_refused_with_the_remedy(
    root: Root, tmp_path: Path, form: str
) -> None:
    payload = getattr(payloads, form)(tmp_path / "without")
    report = run(root, payload, settings(debug=True, with_devkit=True))
    assert report.error is not None
    assert (report.error.exit_code, report.error.what) == (
        3,
        "the payload does not have the image of the devkit",
    )
    assert "remove devkit from the values" in report.error.hint
    assert not root.exists("/opt/kata")


NYDUS = {
    "nydus-snapshotter/containerd-nydus-grpc": b"#!nydus",
    "nydus-snapshotter/nydus-overlayfs": b"#!overlay",
}


@pytest.mark.parametrize("place", ["", "tarballs", "archive"])
@pytest.mark.parametrize("indexed", [False, True])
def test_nydus_is_placed_from_an_archive_or_from_files_beside_the_archives(
    root: Root, payload: Path, place: str, *, indexed: bool
) -> None:
    if place == "archive":
        payloads.archive(payloads.archive_path(payload, "nydus-snapshotter"), payloads.members(NYDUS))
    else:
        for path, content in NYDUS.items():
            (payload / place / path).parent.mkdir(exist_ok=True)
            (payload / place / path).write_bytes(content)
    if indexed:
        index.write_manifest(payload)
    run(root, payload, settings())
    assert not NYDUS.keys() & placed(root)
    wanted = replace(settings(), snapshotter=SnapshotterSettings(setup=("nydus",)))
    run(root, payload, wanted)
    for path, content in NYDUS.items():
        file = root.resolve(f"/opt/kata/{path}")
        assert file.read_bytes() == content
        assert place == "archive" or file.stat().st_mode & 0o777 == 0o755
    assert run(root, payload, wanted).outcome == "skipped"


def test_a_file_beside_the_archives_that_changed_after_the_index_is_refused(
    root: Root, payload: Path
) -> None:
    index.write_manifest(payload)
    (payload / "versions.yaml").write_bytes(VERSIONS.swapcase())
    report = run(root, payload, settings())
    assert report.error is not None
    assert "differs from the one in the manifest" in report.error.what
    assert not root.exists("/opt/kata/versions.yaml")
