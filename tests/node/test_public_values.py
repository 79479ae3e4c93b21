"""Whole values files of the public chart, as helm gives them to a node, on real containerds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from node import crio
from node.conftest import BootNode
from node.installation import PAYLOAD, WATCHED, assert_nothing_to_do, fake_kvm, kata_handlers, make_payload
from node.snapshot import changes
from node.whole_values import FILES, LEFT_OUT, SERVED, node_values


@pytest.fixture(scope="session")
def all_shims(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A payload with the components of all shims, without nydus-snapshotter."""
    directory = tmp_path_factory.mktemp("payload") / "all"
    return make_payload(directory, "--form=tarballs", "--arch=x86_64")


@pytest.mark.parametrize("suite", ["bookworm", "trixie", "forky"])
@pytest.mark.parametrize("name", FILES)
def test_a_whole_values_file_is_installed_without_the_shims_that_the_node_cannot_serve(
    boot_node: BootNode, all_shims: Path, suite: str, name: str
) -> None:
    node = fake_kvm(boot_node(suite))
    node.mount(all_shims, PAYLOAD)
    before = node.snapshot(*WATCHED)
    values = {**node_values(FILES[name]), "debug": True}
    done = node.kata_node("install", "--output=json", config=values, payload=PAYLOAD, check=True)
    cri = next(stage for stage in json.loads(done.stdout)["stages"] if stage["stage"] == "cri")
    assert set(cri["left_out"]) > LEFT_OUT
    assert len([each for each in kata_handlers(node) if not each.endswith("-debug")]) == SERVED["containerd"]
    dump = node.run(["containerd", "config", "dump"]).stdout
    assert 'level = "debug"' in dump.replace("'", '"')
    assert_nothing_to_do(node, config=values, payload=PAYLOAD)
    node.kata_node("revert", config=values, check=True)
    assert changes(before, node.snapshot(*WATCHED)) == []


@pytest.mark.parametrize("suite", ["trixie", "forky"])
def test_the_devkit_is_served_and_reverted(
    boot_node: BootNode, tmp_path_factory: pytest.TempPathFactory, suite: str
) -> None:
    payload = make_payload(
        tmp_path_factory.mktemp("payload") / "extras", "--form=tarballs", "--shims=qemu,clh", "--extras"
    )
    node = fake_kvm(boot_node(suite))
    node.mount(payload, PAYLOAD)
    before = node.snapshot(*WATCHED)
    shims = {name: {"enabled": True} for name in ("qemu", "clh")}
    values = {"debug": True, "devkit": True, "shims": {"disableAll": True, **shims}}
    node.kata_node("install", config=values, payload=PAYLOAD, check=True)
    names = {"kata-qemu", "kata-qemu-debug", "kata-qemu-devkit", "kata-clh", "kata-clh-debug"}
    assert set(kata_handlers(node)) == names
    node.run(["test", "-x", "/opt/kata/bin/kata-ctl"])
    assert_nothing_to_do(node, config=values, payload=PAYLOAD)
    node.kata_node("revert", config=values, check=True)
    assert changes(before, node.snapshot(*WATCHED)) == []


@pytest.mark.parametrize("name", FILES)
def test_a_whole_values_file_is_installed_completely_with_crio(
    boot_node: BootNode, all_shims: Path, name: str
) -> None:
    node = fake_kvm(crio.boot(boot_node))
    node.mount(all_shims, PAYLOAD)
    before = node.snapshot(*WATCHED)
    values = node_values(FILES[name])
    node.kata_node("install", config=values, payload=PAYLOAD, check=True)
    assert len(crio.handlers(node)) == SERVED["cri-o"]
    assert node.kata_node("plan", config=values, payload=PAYLOAD).returncode == 0
    node.kata_node("revert", config=values, check=True)
    assert changes(before, node.snapshot(*WATCHED)) == []


def test_a_node_without_kvm_is_unfit_and_stays_as_it_was(boot_node: BootNode, all_shims: Path) -> None:
    node = boot_node("trixie")
    node.run(["rm", "-f", "/dev/kvm"])
    node.mount(all_shims, PAYLOAD)
    before = node.snapshot(*WATCHED)
    values = node_values(FILES["public_chart.yaml"])
    done = node.kata_node("install", "--output=json", config=values, payload=PAYLOAD)
    error = json.loads(done.stdout)["error"]
    assert (done.returncode, error["unfit"]) == (3, True)
    assert "/dev/kvm does not exist" in error["what"]
    assert changes(before, node.snapshot(*WATCHED)) == []
