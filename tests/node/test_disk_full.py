"""Full disks: a rollback and a revert need no space on them. containerd fills them, or a person does."""

from __future__ import annotations

import os

import pytest

from node.conftest import BootNode
from node.debian_node import Node
from node.installation import HANDLERS, PAYLOAD, VALUES, install, main_file
from node.snapshot import changes

ETC, OPT = "/etc/containerd", "/opt"
WATCHED = ("/etc", "/opt")

EACH = pytest.mark.parametrize("node", ["trixie", "forky"], indirect=True)
"""containerd 1.7, where kata-node edits the main file, and 2.1, where it adds an import and drop-ins."""

ATTRIBUTE = "trusted.note"  # stands for an ACL, which is an extended attribute too

MAIN_FILE = b"# of the administrator\nversion = 2\n"


@pytest.fixture
def node(boot_node: BootNode, request: pytest.FixtureRequest) -> Node:
    return boot_node(getattr(request, "param", "forky"))


def small_disk(node: Node, directory: str, options: str) -> None:
    """Put ``directory`` on a file system of its own, with a main file if it is containerd's."""
    node.run(
        [
            "sh",
            "-c",
            f"cp -a {directory} /run/before && mount -t tmpfs -o mode=755,{options} tmpfs {directory}",
        ]
    )
    node.run(["sh", "-c", f"cp -a /run/before/. {directory}/ && rm -r /run/before"])
    if directory == ETC:
        main_file(node).write_bytes(MAIN_FILE)
        node.run(["systemctl", "restart", "containerd.service"])
        node.wait_for_containerd()


def filling(directory: str) -> str:
    """Return the shell command that uses every block and every inode of a file system."""
    blocks = f"cat /dev/zero 2>/dev/null >{directory}/fill"
    return f"{blocks}; n=0; while : 2>/dev/null >{directory}/fill-$n; do n=$((n+1)); done"


def fill(node: Node, *directories: str) -> None:
    for directory in directories:
        # A shell ends at a failed redirection of a special built-in command.
        node.run(["sh", "-c", f"({filling(directory)}); true"])


def empty(node: Node, *directories: str) -> None:
    for directory in directories:
        node.run(["sh", "-c", f"rm -f {directory}/fill*"])


def fill_and_fail(node: Node, *directories: str) -> None:
    """Make containerd fill the disks and fail to start as long as Kata is in its configuration."""
    drop_in = node.root / "run/systemd/system/containerd.service.d"
    drop_in.mkdir(parents=True)
    script = node.root / "run/fill"
    commands = "\n".join(f"({filling(directory)})" for directory in directories)
    script.write_text(f"grep -q kata /etc/containerd/config.toml || exit 0\n{commands}\nexit 1\n")
    (drop_in / "full.conf").write_text("[Service]\nRestart=no\nExecStartPre=/bin/sh /run/fill\n")
    node.run(["systemctl", "daemon-reload"])


@EACH
@pytest.mark.parametrize("directories", [(ETC,), (ETC, OPT)], ids=["etc", "etc-and-opt"])
def test_an_install_is_rolled_back_when_the_disks_are_full(ready: Node, directories: tuple[str, ...]) -> None:
    small_disk(ready, ETC, "size=64k,nr_inodes=40")
    small_disk(ready, OPT, "size=96m,nr_inodes=2000")
    before, etc = ready.snapshot(*WATCHED), ready.snapshot("/etc")
    fill_and_fail(ready, *directories)
    done = ready.kata_node("install", config=VALUES, payload=PAYLOAD)
    assert done.returncode == 4, done.stdout + done.stderr
    assert ready.wait_for_containerd().serving
    assert ready.cri_handlers() == ("runc",)
    empty(ready, *directories)
    assert changes(etc, ready.snapshot("/etc")) == []
    ready.kata_node("revert", check=True)
    assert changes(before, ready.snapshot(*WATCHED)) == []


@EACH
@pytest.mark.parametrize("directories", [(OPT,), (ETC, OPT)], ids=["opt", "etc-and-opt"])
@pytest.mark.parametrize("has_reserve", [True, False], ids=["", "installed-by-an-earlier-version"])
def test_a_revert_needs_no_space(ready: Node, directories: tuple[str, ...], has_reserve: bool) -> None:
    small_disk(ready, ETC, "size=64k,nr_inodes=40")
    small_disk(ready, OPT, "size=96m,nr_inodes=2000")
    os.setxattr(main_file(ready), ATTRIBUTE, b"of the administrator")
    before = ready.snapshot(*WATCHED)
    install(ready)
    assert os.getxattr(main_file(ready), ATTRIBUTE) == b"of the administrator"
    assert ready.cri_handlers() == (*HANDLERS, "runc")
    if not has_reserve:
        (ready.root / "opt/kata/.kata-node/.receipt.json.kata-node-reserve").unlink()
    fill(ready, *directories)
    ready.kata_node("revert", check=True)
    assert ready.cri_handlers() == ("runc",)
    empty(ready, *directories)
    assert changes(before, ready.snapshot(*WATCHED)) == []
    assert os.getxattr(main_file(ready), ATTRIBUTE) == b"of the administrator"
