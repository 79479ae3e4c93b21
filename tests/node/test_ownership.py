"""Other users, open modes, and install dirs that are not plain directories, on a real node."""

from __future__ import annotations

import json

import pytest

from node.commands import CommandResult
from node.debian_node import Node
from node.installation import PAYLOAD, VALUES, WATCHED, install, kata_handlers
from node.snapshot import changes

RECEIPT = "/opt/kata/.kata-node/receipt.json"


def sh(node: Node, script: str) -> None:
    node.run(["sh", "-ec", script])


def refused(node: Node, command: str, path: str) -> CommandResult:
    """Run ``command`` and assert that it changes nothing, ends with 3 and names ``path``."""
    before = node.snapshot(*WATCHED)
    done = node.kata_node(command, config=VALUES, payload=PAYLOAD)
    assert done.returncode == 3, done.stdout + done.stderr
    assert path in done.stdout + done.stderr
    assert changes(before, node.snapshot(*WATCHED)) == []
    return done


def test_another_user_can_neither_choose_what_root_runs_nor_what_a_revert_removes(ready: Node) -> None:
    before = ready.snapshot(*WATCHED)
    install(ready)
    ready.run(["chown", "nobody", "/opt/kata"])
    refused(ready, "install", "/opt/kata")
    refused(ready, "revert", "/opt/kata")
    ready.run(["chown", "root", "/opt/kata"])

    receipt = ready.root / RECEIPT.lstrip("/")
    good = receipt.read_text()
    planted = json.loads(good)
    planted["artifacts"]["files"]["../../etc/shadow"] = planted["artifacts"]["files"]["VERSION"]
    receipt.write_text(json.dumps(planted))
    refused(ready, "revert", RECEIPT)
    receipt.write_text(good)

    ready.kata_node("revert", check=True)
    assert changes(before, ready.snapshot(*WATCHED)) == []


@pytest.mark.parametrize(
    "prepare",
    [
        pytest.param("mkdir -p /data/kata && ln -s /data/kata /opt/kata", id="symlink"),
        pytest.param("mkdir -p /data/kata /opt/kata && mount --bind /data/kata /opt/kata", id="bind-mount"),
    ],
)
def test_an_install_dir_that_is_not_plain_is_reverted_and_stays(ready: Node, prepare: str) -> None:
    sh(ready, prepare)
    before = ready.snapshot(*WATCHED)
    install(ready)
    assert kata_handlers(ready) != ()
    ready.kata_node("revert", check=True)
    assert changes(before, ready.snapshot(*WATCHED)) == []
    done = ready.kata_node("revert", "--output", "json", check=True)
    assert {stage["outcome"] for stage in json.loads(done.stdout)["stages"]} == {"skipped"}


def test_a_user_who_holds_the_lock_of_an_earlier_release_blocks_nobody(ready: Node) -> None:
    sh(ready, "umask 022; mkdir -p /run/kata-node && echo '{}' > /run/kata-node/lock")
    sh(
        ready,
        "systemd-run --quiet --unit=holder --uid=nobody flock /run/kata-node/lock sleep infinity; "
        "until ! flock --nonblock /run/kata-node/lock true; do sleep 0.1; done",
    )
    done = ready.kata_node("install", "--lock-timeout", "0", config=VALUES, payload=PAYLOAD)
    ready.run(["systemctl", "stop", "holder.service"])
    assert done.returncode == 0, done.stdout + done.stderr
