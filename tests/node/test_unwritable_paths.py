"""Paths that cannot be written or used: host-check finds them, and nothing on the node changes."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest

from node.conftest import BootNode
from node.debian_node import Node
from node.installation import (
    HANDLERS,
    MAIN,
    PAYLOAD,
    UNIT,
    VALUES,
    WATCHED,
    assert_nothing_to_do,
    fake_kvm,
    install,
    kata_handlers,
    main_file,
)
from node.snapshot import changes

LEFT_BEHIND = "/opt/kata/containerd/config.d/kata-deploy.toml"

STATES: Mapping[str, tuple[str, str, str]] = {
    "symlink into a read-only store": (
        f"mkdir /store; mount -t tmpfs store /store; mv {MAIN} /store/; ln -s /store/config.toml {MAIN}; "
        "mount -o remount,ro /store",
        f"mount -o remount,rw /store; rm {MAIN}; cp -p /store/config.toml {MAIN}; "
        "umount /store; rmdir /store",
        f"replace the symlink {MAIN} by a plain file",
    ),
    "main file that is a mount": (
        f"cp -p {MAIN} /srv/mounted.toml; mount --bind /srv/mounted.toml {MAIN}",
        f"umount {MAIN}; rm /srv/mounted.toml",
        f"unmount {MAIN}",
    ),
    "dangling symlink": (
        f"mv {MAIN} /srv/saved.toml; ln -s /gone/config.toml {MAIN}",
        f"rm {MAIN}; mv /srv/saved.toml {MAIN}",
        "create the directory /gone",
    ),
    "read-only /etc/containerd": (
        "mount --bind /etc/containerd /etc/containerd; mount -o remount,bind,ro /etc/containerd",
        "umount /etc/containerd",
        "make /etc/containerd writable",
    ),
    "file in place of the install dir": ("touch /opt/kata", "rm /opt/kata", "move the file away"),
    "noexec": (
        "mount -t tmpfs -o noexec opt /opt",
        "umount /opt",
        "mount -o remount,exec",
    ),
}


def test_what_cannot_change_ends_an_install_before_anything_is_written(ready: Node) -> None:
    starts = ready.activations(UNIT)
    clean = ready.snapshot(*WATCHED)
    for name, (make, undo, remedy) in STATES.items():
        ready.run(["sh", "-ec", make])
        before = ready.snapshot(*WATCHED)
        done = ready.kata_node("install", config=VALUES, payload=PAYLOAD)
        output = done.stdout + done.stderr
        assert done.returncode == 3, f"{name}: {output}"
        assert remedy in output, name
        assert changes(before, ready.snapshot(*WATCHED)) == [], name
        ready.run(["sh", "-ec", undo])
    assert changes(clean, ready.snapshot(*WATCHED)) == []
    assert ready.activations(UNIT) == starts
    install(ready)
    assert kata_handlers(ready) == HANDLERS


def test_a_container_sees_a_mounted_main_file_and_noexec_too(ready: Node, payload: object) -> None:
    ready.run(["sh", "-ec", f"cp -p {MAIN} /srv/m.toml; mount --bind /srv/m.toml {MAIN}"])
    ready.run(["mount", "-t", "tmpfs", "-o", "noexec,mode=755", "opt", "/opt"])
    done = ready.kata_node_outside(
        "install",
        "--output",
        "json",
        config=VALUES,
        payload=payload,  # type: ignore[arg-type]
    )
    assert done.returncode == 3
    failed = [
        each["name"] for each in json.loads(done.stdout)["stages"][0]["checks"] if each["status"] == "fail"
    ]
    assert failed == ["writable", "executable"]


@pytest.mark.parametrize("suite", ["trixie", "forky"])
def test_a_dangling_import_that_an_earlier_installer_left_is_taken_out(
    boot_node: BootNode, payload: object, suite: str
) -> None:
    node = fake_kvm(boot_node(suite))
    node.mount(payload, PAYLOAD)  # type: ignore[arg-type]
    plain = main_file(node).read_text()
    # containerd runs with an older configuration, and would not start with this one.
    main_file(node).write_text(f'imports = ["{LEFT_BEHIND}"]\n{plain}')
    install(node)
    assert kata_handlers(node) == HANDLERS
    assert LEFT_BEHIND not in main_file(node).read_text()
    assert_nothing_to_do(node)
    node.kata_node("revert", check=True)
    assert kata_handlers(node) == ()
    assert LEFT_BEHIND not in main_file(node).read_text()
    node.run(["systemctl", "restart", UNIT])
    assert node.wait_for_containerd().serving
