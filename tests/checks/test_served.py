"""A shim that nobody asked for by name is left out if the node or the payload does not have what it needs."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

import payloads
from fakes import FakeNode
from kata_node import pipeline
from kata_node.cluster.facts import LabelFacts
from kata_node.cluster.labelling import WaitForNode
from kata_node.payload import index
from kata_node.plan import receipt as receipts
from kata_node.plan.context import Options
from kata_node.plan.receipt import CriRecord, Receipt
from kata_node.plan.report import StageReport, read_shared_reports, write_shared_report
from kata_node.settings import load as settings
from kata_node.settings.model import Settings
from kata_node.settings.shims import table
from payloads import CONFIG as KATA_CONFIG
from payloads import Content
from pipeline.harness import INSTALL, REVERT, SMALL, exit_code, make_node, outcomes, snapshot
from stages import label

SHARE = "share/defaults/kata-containers"
OLD, NEW = "containerd://1.6.20", "containerd://2.1.9"


def config_of(shim: str) -> dict[str, Content]:
    return {table()[shim].base_config: KATA_CONFIG.encode()}


def payload_with(directory: Path, *shims: str, nydus: bool = False, go: bool = True) -> Path:
    """A payload as an unpacked tree with the configurations of these shims."""
    files = {path: content for path, content in SMALL.items() if "configuration" not in path}
    if not go:
        del files["bin/containerd-shim-kata-v2"]
    files["runtime-rs/bin/containerd-shim-kata-v2"] = b"#!shim"
    for shim in shims:
        files |= config_of(shim)
    if nydus:
        files |= {"nydus-snapshotter/containerd-nydus-grpc": b"#!nydus"}
    index.write_manifest(payloads.tree(directory, files))
    return directory


def load(values: str, tmp_path: Path) -> Settings:
    (tmp_path / "values.yaml").write_text(values)
    return settings.load(str(tmp_path / "values.yaml"), overrides={}, arch="x86_64")


def install(
    node: FakeNode, wanted: Settings, payload: Path, runtime: str, stages: object = INSTALL
) -> list[StageReport]:
    options = Options(payload, offline=True, runtime=runtime, stable_for=0)
    return pipeline.run(stages, pipeline.Run(wanted, options, node.clients(), 1))  # type: ignore[arg-type]


def served(node: FakeNode) -> list[str]:
    found = receipts.load(node.root, "/opt/kata")
    assert found is not None
    assert found.cri is not None
    return list(found.cri.handlers)


def left_out(reports: list[StageReport]) -> dict[str, tuple[str, ...]]:
    return {report.stage: report.left_out for report in reports if report.left_out}


DEVMAPPER = "{qemu: {}, clh: {containerd: {snapshotter: devmapper}}}"
EROFS = "{qemu: {}, qemu-runtime-rs: {containerd: {snapshotter: erofs}}}"
NYDUS = "{qemu: {}, qemu-coco-dev: {containerd: {snapshotter: nydus}}}"


@pytest.mark.parametrize(
    ("shims", "setup", "runtime", "says"),
    [
        pytest.param(DEVMAPPER, "[]", NEW, "only with the key pool_name", id="devmapper-without-a-pool"),
        pytest.param(DEVMAPPER, "[]", OLD, "has one snapshotter for all handlers", id="an-old-containerd"),
        pytest.param(NYDUS, "[nydus]", OLD, "has one snapshotter for all handlers", id="nydus-of-an-old-one"),
        pytest.param(NYDUS, "[nydus]", NEW, "no nydus-snapshotter/containerd-nydus-grpc", id="no-nydus"),
        pytest.param(EROFS, "[erofs]", NEW, "erofs needs containerd 2.2", id="erofs-of-an-old-containerd"),
        pytest.param(EROFS, "[erofs]", "containerd://2.3.4", "not found in", id="erofs-without-mkfs"),
        pytest.param(
            DEVMAPPER.replace("devmapper", "stargz"),
            "[]",
            NEW,
            "is neither built",
            id="unknown",
        ),
    ],
)
def test_a_shim_without_its_snapshotter_is_left_out_with_the_reason(
    shims: str, setup: str, runtime: str, says: str, tmp_path: Path
) -> None:
    node = make_node(tmp_path / "node")
    if setup == "[erofs]":
        (tmp_path / "node/usr/bin").mkdir(parents=True)
    if runtime == OLD:
        (tmp_path / "node/etc/containerd/config.toml").write_bytes(b"version = 2\n")
    payload = payload_with(
        tmp_path / "payload", "qemu", "clh", "qemu-runtime-rs", "qemu-coco-dev", nydus=runtime == OLD
    )
    before = snapshot(node)
    wanted = load(f"{{snapshotter: {{setup: {setup}}}, shims: {shims}}}", tmp_path)
    reports = install(node, wanted, payload, runtime)
    assert exit_code(reports) == 0, outcomes(reports)
    assert served(node) == ["kata-qemu"]
    shim = wanted.shims[0].name if wanted.shims[0].name != "qemu" else wanted.shims[1].name
    assert left_out(reports) == {"cri": (shim,)}
    [warning] = [check for check in reports[0].checks if check.name == "left-out"]
    assert (warning.status, shim in warning.reason, says in warning.reason) == ("warn", True, True)
    assert any(shim in note for report in reports if report.stage == "cri" for note in report.notes)
    assert [each.outcome for each in install(node, wanted, payload, runtime)[1:]] == ["skipped"] * 4
    assert exit_code(install(node, wanted, payload, runtime, REVERT)) == 0
    assert snapshot(node) == before


def test_a_shim_that_is_asked_for_by_name_is_refused_without_its_snapshotter(tmp_path: Path) -> None:
    node = make_node(tmp_path / "node")
    payload = payload_with(tmp_path / "payload", "qemu", "clh")
    before = snapshot(node)
    wanted = load("shims: {qemu: {}, clh: {enabled: true, containerd: {snapshotter: devmapper}}}", tmp_path)
    reports = install(node, wanted, payload, NEW)
    assert exit_code(reports) == 3
    assert "kata-clh uses devmapper" in str(reports[-1].error)
    assert snapshot(node) == before


def test_nydus_is_not_set_up_if_the_payload_lacks_it_and_no_shim_needs_it(
    tmp_path: Path,
) -> None:
    wanted = load("{shims: {qemu: {enabled: true}}, snapshotter: {setup: [nydus]}}", tmp_path)
    node = make_node(tmp_path / "node")
    reports = install(node, wanted, payload_with(tmp_path / "payload", "qemu"), NEW)
    assert exit_code(reports) == 0, outcomes(reports)
    assert served(node) == ["kata-qemu"]


def test_a_node_is_refused_if_every_shim_would_be_left_out(tmp_path: Path) -> None:
    node = make_node(tmp_path / "node")
    payload = payload_with(tmp_path / "payload", "clh")
    wanted = load("shims: {clh: {containerd: {snapshotter: devmapper}}}", tmp_path)
    reports = install(node, wanted, payload, NEW)
    assert exit_code(reports) == 3
    assert "pool_name" in str(reports[-1].error)


def test_a_shim_that_the_payload_does_not_have_is_left_out_and_its_archive_is_named(tmp_path: Path) -> None:
    node = make_node(tmp_path / "node")
    payload = payload_with(tmp_path / "payload", "qemu-runtime-rs", go=False)
    wanted = load("shims: {qemu: {}, clh: {}, qemu-runtime-rs: {}}", tmp_path)
    reports = install(node, wanted, payload, NEW)
    assert exit_code(reports) == 0, outcomes(reports)
    assert served(node) == ["kata-qemu-runtime-rs"]
    [warning] = [check for check in reports[0].checks if check.name == "left-out"]
    assert "left out: qemu is not in the payload" in warning.reason
    assert "kata-go-static" in warning.reason


def test_a_payload_that_lacks_a_file_of_a_shim_it_has_is_refused(tmp_path: Path) -> None:
    node = make_node(tmp_path / "node")
    payload = payload_with(tmp_path / "payload", "qemu", "clh")
    (payload / "opt/kata/share/kata-containers/vmlinux.container").unlink()
    index.write_manifest(payload)
    reports = install(node, load("shims: {qemu: {}, clh: {}}", tmp_path), payload, NEW)
    assert exit_code(reports) == 3
    assert "the payload is not complete" in str(reports[-1].error)


@pytest.mark.parametrize(
    ("has", "expected"),
    [
        pytest.param(("qemu", "qemu-runtime-rs"), "kata-qemu", id="both-archives"),
        pytest.param(("qemu-runtime-rs",), "kata-qemu-runtime-rs", id="kata-static-alone"),
    ],
)
def test_by_hand_the_shim_is_one_that_the_payload_has(
    has: tuple[str, ...], expected: str, tmp_path: Path
) -> None:
    node = make_node(tmp_path / "node")
    payload = payload_with(tmp_path / "payload", *has, go="qemu" in has)
    wanted = settings.load(None, overrides={}, arch="x86_64")
    reports = install(node, wanted, payload, NEW)
    assert exit_code(reports) == 0, outcomes(reports)
    assert served(node) == [expected]
    assert [each.outcome for each in install(node, wanted, payload, NEW)[1:]] == ["skipped"] * 4


def test_by_hand_a_payload_without_any_such_shim_is_refused_with_what_it_lacks(tmp_path: Path) -> None:
    node = make_node(tmp_path / "node")
    payload = payload_with(tmp_path / "payload", "dragonball")
    reports = install(node, settings.load(None, overrides={}, arch="x86_64"), payload, NEW)
    assert exit_code(reports) == 3
    assert "configuration-qemu.toml" in str(reports[-1].error)


def test_a_withdrawn_shim_is_left_out_even_if_it_is_asked_for_by_name(tmp_path: Path) -> None:
    node = make_node(tmp_path / "node")
    payload = payload_with(tmp_path / "payload", "qemu")
    reports = install(node, load("shims: {qemu: {}, stratovirt: {enabled: true}}", tmp_path), payload, NEW)
    assert exit_code(reports) == 0, outcomes(reports)
    assert served(node) == ["kata-qemu"]
    [warning] = [check for check in reports[0].checks if check.name == "left-out"]
    assert "stratovirt is not in the payload: Kata 4.1 and later do not have it" in warning.reason


def test_the_report_of_the_stage_cri_tells_other_containers_what_it_left_out(tmp_path: Path) -> None:
    write_shared_report(tmp_path, replace(StageReport("cri", "done", "x"), left_out=("fc", "clh")))
    assert [each.left_out for each in read_shared_reports(tmp_path, ["cri"])] == [("fc", "clh")]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param(f"shims: {DEVMAPPER}", ("kata-qemu",), id="left-out"),
        pytest.param("shims: {qemu: {}, clh: {enabled: true}}", ("kata-clh", "kata-qemu"), id="asked-for"),
    ],
)
def test_the_stage_label_waits_for_the_handlers_that_this_node_serves(
    values: str, expected: tuple[str, ...], tmp_path: Path
) -> None:
    cri = CriRecord("serving", "containerd", "2.1.9", "", "", "", ("kata-qemu",), ())
    facts = LabelFacts(None, "", 1, 1, 0, "", name="worker")
    plan = label.plan(load(values, tmp_path), facts, Receipt("default", "/opt/kata", "1", cri=cri))
    [wait] = [action for action in plan.actions if isinstance(action, WaitForNode)]
    assert wait.handlers == expected
