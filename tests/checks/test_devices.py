"""Which devices the handlers need, and the remedy for each way in which a node lacks them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from checks.test_table import MACHINE
from kata_node.checks.devices import checks
from kata_node.checks.kata_configurations import kata_configurations
from kata_node.host import devices
from kata_node.host.devices import KVM, NUMBERS, VHOST_NET, VHOST_VSOCK, device_state
from kata_node.host.files import Root
from kata_node.payload.facts import ArtifactFacts
from kata_node.payload.layout import DesiredFile
from kata_node.plan.context import Options, StageContext
from kata_node.plan.receipt import ArtifactsRecord, PlacedFile, Receipt
from kata_node.plan.report import Finding
from kata_node.settings import load as settings
from kata_node.settings.handlers import handlers

QEMU = b"[hypervisor.qemu]\ndisable_vhost_net = %s\n"


def findings(
    shims: str, lacking: Mapping[str, str], configurations: Mapping[str, Any] | None = None, **machine: Any
) -> dict[str, Finding]:
    loaded = settings.load(None, overrides={"shims": shims}, arch="x86_64")
    facts = replace(MACHINE, devices={**MACHINE.devices, **lacking}, **machine)
    return {finding.name: finding for finding in checks(loaded, facts, configurations or {})}


@pytest.mark.parametrize(
    ("shim", "needed"),
    [
        ("qemu", {VHOST_VSOCK, VHOST_NET}),
        ("qemu-runtime-rs", {VHOST_VSOCK, VHOST_NET}),
        ("qemu-snp", {VHOST_VSOCK, VHOST_NET}),
        ("stratovirt", {VHOST_VSOCK, VHOST_NET}),
        ("clh", set()),
        ("clh-runtime-rs", set()),
        ("fc", set()),
        ("dragonball", {VHOST_NET}),
    ],
)
def test_a_node_without_vhost_fails_only_for_the_shims_that_need_it(shim: str, needed: set[str]) -> None:
    for path in (VHOST_VSOCK, VHOST_NET):
        found = findings(shim, {path: "missing"})["vhost"]
        assert (found.status == "fail") == (path in needed), (path, found)
        assert not found.unfit
        if path in needed:
            assert f"{path} does not exist" in found.reason
            assert f"kata-{shim}" in found.reason


def test_the_remote_shim_needs_no_device() -> None:
    found = findings("remote", dict.fromkeys(NUMBERS, "missing"))
    assert {each.status for each in found.values()} == {"skip"}


def test_only_the_handlers_that_need_the_device_are_named() -> None:
    found = findings("qemu,clh", {VHOST_VSOCK: "missing"})["vhost"]
    assert "kata-qemu" in found.reason
    assert "kata-clh" not in found.reason


@pytest.mark.parametrize(("disabled", "status"), [(True, "pass"), (False, "fail"), (None, "fail")])
def test_vhost_net_is_needed_unless_the_configuration_disables_it(disabled: bool | None, status: str) -> None:
    hypervisor = {} if disabled is None else {"disable_vhost_net": disabled}
    configurations = {"kata-qemu": {"hypervisor": {"qemu": hypervisor}}}
    assert findings("qemu", {VHOST_NET: "missing"}, configurations)["vhost"].status == status


@pytest.mark.parametrize(
    ("lacking", "loaded", "commands"),
    [
        ({VHOST_VSOCK: "missing"}, (), ["modprobe -a vhost_vsock"]),
        (
            {VHOST_VSOCK: "missing", VHOST_NET: "missing"},
            (),
            ["modprobe -a vhost_vsock vhost_net"],
        ),
        # The module is loaded, so loading it again makes no device.
        ({VHOST_VSOCK: "missing"}, ("vhost_vsock",), ["mknod /dev/vhost-vsock c 10 241"]),
        ({VHOST_VSOCK: "other"}, (), ["rm /dev/vhost-vsock", "modprobe -a vhost_vsock"]),
    ],
)
def test_the_remedy_has_the_commands_that_make_the_device(
    lacking: dict[str, str], loaded: tuple[str, ...], commands: list[str]
) -> None:
    found = findings("qemu", lacking, modules=frozenset(loaded))["vhost"]
    assert re.findall("`(.*?)`", found.remedy) == commands


@pytest.mark.parametrize("state", ["missing", "other"])
def test_a_node_without_kvm_is_unfit_and_nothing_else_is_said(state: str) -> None:
    found = findings("qemu", {KVM: state, VHOST_VSOCK: "missing"})
    assert set(found) == {"kvm"}
    assert (found["kvm"].status, found["kvm"].unfit) == ("fail", True)


def test_an_ordinary_file_and_another_device_are_not_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dev").mkdir()
    root = Root(tmp_path)
    assert device_state(root, KVM) == "missing"
    (tmp_path / "dev/kvm").touch()
    assert device_state(root, KVM) == "other"
    monkeypatch.setattr(devices, "NUMBERS", {"/dev/null": (1, 3), "/dev/zero": (1, 3)})
    assert device_state(Root(Path("/")), "/dev/null") == "there"
    assert device_state(Root(Path("/")), "/dev/zero") == "other"


def _context(root: Root, receipt: Receipt) -> StageContext:
    loaded = settings.load(None, overrides={"shims": "qemu"}, arch="x86_64")
    clients: Any = type("Clients", (), {"root": root})()
    return StageContext(loaded, receipt, clients, Options(Path("/payload")))


@pytest.mark.parametrize("is_placed", [True, False])
def test_the_effective_configuration_has_our_drop_ins_and_those_of_the_admin(
    tmp_path: Path, *, is_placed: bool
) -> None:
    """Ours are those that the install will place. A drop-in that it will remove does not count."""
    (handler,) = handlers(settings.load(None, overrides={"shims": "qemu"}, arch="x86_64"))
    directory = tmp_path / "opt/kata" / handler.drop_in_dir
    directory.mkdir(parents=True)
    names = ("50-ours.toml", "90-their.toml", "60-old.toml")
    ours, theirs, old = (f"{handler.drop_in_dir}/{name}" for name in names)
    on_node = {handler.own_config: QEMU % b"false", ours: QEMU % b"false", theirs: b"[runtime]\nx = 1\n"}
    for path, content in {**on_node, old: QEMU % b"false"}.items():
        (tmp_path / "opt/kata" / path).write_bytes(content)
    placed_file = PlacedFile("file", 0o644, 1, 1, "", "", pending=False)
    placed = dict.fromkeys((handler.own_config, ours, old), placed_file)
    record = ArtifactsRecord("placed", "", "", placed, ())
    desired = {
        handler.own_config: DesiredFile(handler.own_config, "file", content=QEMU % b"false"),
        ours: DesiredFile(ours, "file", content=QEMU % b"true"),
    }
    context = _context(Root(tmp_path), Receipt("default", "/opt/kata", "0", artifacts=record))
    found = kata_configurations(context, ArtifactFacts("inputs", None if is_placed else desired))
    assert found["kata-qemu"]["runtime"] == {"x": 1}
    assert found["kata-qemu"]["hypervisor"]["qemu"]["disable_vhost_net"] is not is_placed


def test_a_broken_drop_in_is_left_to_other_checks(tmp_path: Path) -> None:
    (handler,) = handlers(settings.load(None, overrides={"shims": "qemu"}, arch="x86_64"))
    (tmp_path / "opt/kata" / handler.drop_in_dir).mkdir(parents=True)
    (tmp_path / "opt/kata" / handler.own_config).write_bytes(b"= broken")
    context = _context(Root(tmp_path), Receipt("default", "/opt/kata", "0"))
    assert kata_configurations(context, ArtifactFacts("inputs")) == {}
