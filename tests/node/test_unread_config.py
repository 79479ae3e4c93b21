"""A configuration that the running containerd has never read: host-check tries it before any change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from node import crio
from node.conftest import BootNode
from node.debian_node import POD_MOUNTS, Node
from node.installation import (
    HANDLERS,
    PAYLOAD,
    UNIT,
    VALUES,
    WATCHED,
    fake_kvm,
    install,
    kata_handlers,
    main_file,
)
from node.snapshot import changes

WRONG_TYPES = {
    "bookworm": b'\n[plugins."io.containerd.grpc.v1.cri"]\nsandbox_image = 3\n',
    "forky": b"\n[plugins.'io.containerd.cri.v1.images']\nsnapshotter = 3\n",
}
"""An error that is valid TOML, in no table that kata-node knows. containerd does not start with it."""
HARMLESS = b"\n[debug]\nlevel = 'warn'\n"


@pytest.fixture(params=["bookworm", "forky"])
def suite(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def ready(boot_node: BootNode, payload: Path, suite: str) -> Node:
    node = fake_kvm(boot_node(suite))
    node.mount(payload, PAYLOAD)
    # A main file without any table, so that a test can add each.
    main_file(node).write_bytes(b"version = 2\n" if suite == "bookworm" else b"version = 3\n")
    node.run(["systemctl", "restart", UNIT])
    node.wait_for_containerd()
    return node


def append(node: Node, text: bytes) -> None:
    main = main_file(node)
    main.write_bytes(main.read_bytes() + text)


def finding(stage: dict[str, Any], name: str = "unread-config") -> dict[str, Any]:
    return next(check for check in stage["checks"] if check["name"] == name)


def host_check(node: Node, *options: str) -> tuple[int, dict[str, Any]]:
    done = node.kata_node("stage", "host-check", "--output", "json", *options, config=VALUES, payload=PAYLOAD)
    (stage,) = json.loads(done.stdout)["stages"]
    return done.returncode, stage


def leftovers(node: Node) -> str:
    return node.run(["systemctl", "list-units", "--all", "--no-legend", "kata-node-*"]).stdout


def test_an_error_that_containerd_has_not_read_ends_the_install_before_anything_changes(
    ready: Node, suite: str
) -> None:
    append(ready, WRONG_TYPES[suite])
    before, invocation = ready.snapshot(*WATCHED), ready.unit(UNIT).invocation
    done = ready.kata_node("install", "--output", "json", config=VALUES, payload=PAYLOAD)
    assert done.returncode == 3, done.stdout + done.stderr
    found = finding(json.loads(done.stdout)["stages"][0])
    assert found["status"] == "fail"
    assert "/etc/containerd/config.toml" in found["reason"]
    assert 'it wrote "containerd: ' in found["reason"]
    assert changes(before, ready.snapshot(*WATCHED)) == []
    assert ready.unit(UNIT).invocation == invocation
    assert ready.cri().serving
    assert leftovers(ready) == ""


def test_a_harmless_change_is_only_a_warning_and_the_trial_disturbs_nothing(ready: Node) -> None:
    append(ready, HARMLESS)
    before, processes = ready.snapshot("/etc", "/run", "/var/lib"), ready.unit(UNIT).main_pid
    code, stage = host_check(ready)
    found = finding(stage)
    assert (code, found["status"]) == (0, "warn"), found
    assert "a trial start with it succeeded" in found["reason"]
    after = ready.snapshot("/etc", "/run", "/var/lib")
    # The running containerd itself collects garbage in its database soon after its start.
    touched = [each for each in changes(before, after) if "containerd" in each and "/meta.db" not in each]
    assert touched == []
    assert ready.unit(UNIT).main_pid == processes
    assert ready.cri().serving
    install(ready)
    assert kata_handlers(ready) == HANDLERS
    # The restart has read it, and what the install wrote is no change of others.
    assert finding(host_check(ready)[1])["status"] == "pass"


def test_a_configuration_that_containerd_has_read_is_not_tried(ready: Node) -> None:
    code, stage = host_check(ready)
    assert (code, finding(stage)["status"]) == (0, "pass")


def test_the_error_can_be_ignored_by_hand_and_the_words_of_the_unit_say_what_it_is(
    ready: Node, suite: str
) -> None:
    append(ready, WRONG_TYPES[suite])
    code, stage = host_check(ready, "--ignore-unread-config")
    assert (code, finding(stage)["status"]) == (0, "warn")
    done = ready.kata_node(
        "install", "--ignore-unread-config", "--output", "json", config=VALUES, payload=PAYLOAD
    )
    error = json.loads(done.stdout)["error"]
    assert done.returncode == 1, done.stdout
    assert "the rollback failed too" in error["what"]
    assert error["unit_log"].startswith(f'{UNIT} wrote: "')
    assert "containerd: " in error["unit_log"]


def test_an_edit_after_the_install_is_found_as_well(ready: Node, suite: str) -> None:
    install(ready)
    append(ready, WRONG_TYPES[suite])
    code, stage = host_check(ready)
    assert (code, finding(stage)["status"]) == (3, "fail")


def test_a_container_with_the_mounts_and_the_rights_of_host_check_finds_it_too(
    ready: Node, payload: Path, suite: str
) -> None:
    def checked() -> tuple[int, dict[str, Any]]:
        done = ready.kata_node_outside(
            *("stage", "host-check", "--output", "json"),
            config=VALUES,
            payload=payload,
            mounts=(*POD_MOUNTS, "/dev"),
            capabilities=("DAC_OVERRIDE",),
        )
        (stage,) = json.loads(done.stdout)["stages"]
        return done.returncode, finding(stage)

    append(ready, HARMLESS)
    code, found = checked()
    assert (code, found["status"]) == (0, "warn"), found
    assert "succeeded" in found["reason"]
    append(ready, WRONG_TYPES[suite])
    code, found = checked()
    assert (code, found["status"]) == (3, "fail"), found


def test_a_drop_in_that_crio_has_not_read_is_tried_with_crio_config(
    boot_node: BootNode, payload: Path, go: None
) -> None:
    """The key is in no table that kata-node knows."""
    node = fake_kvm(crio.boot(boot_node))
    node.mount(payload, PAYLOAD)
    code, stage = host_check(node)
    assert (code, finding(stage)["status"]) == (0, "pass"), stage
    crio.write(node, "20-admin.conf", "[crio.runtime]\npids_limit = 1024\n")
    code, stage = host_check(node)
    assert (code, finding(stage)["status"]) == (0, "warn"), stage
    assert "succeeded" in finding(stage)["reason"]
    pid = node.unit(crio.UNIT).main_pid
    crio.write(node, "20-admin.conf", '[crio.runtime]\npids_limit = "many"\n')
    code, stage = host_check(node)
    assert (code, finding(stage)["status"]) == (3, "fail"), stage
    assert "20-admin.conf" in finding(stage)["reason"]
    assert node.unit(crio.UNIT).main_pid == pid
    assert crio.status(node).serving
