"""Shared helpers of the tests of whole installations: values, a payload, install, and common checks."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from node.cache import CHECKOUT
from node.commands import CommandResult, RunningCommand
from node.debian_node import Node
from node.snapshot import changes

PAYLOAD = "/srv/payload"
VALUES: Mapping[str, Any] = {
    "shims": {"qemu": {"enabled": True}, "clh": {"enabled": True}, "qemu-runtime-rs": {"enabled": True}}
}
HANDLERS = ("kata-clh", "kata-qemu", "kata-qemu-runtime-rs")
UNIT = "containerd.service"
MAIN = "/etc/containerd/config.toml"
WATCHED = ("/etc", "/opt")
AS_PROCESS_1 = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
"""A command that runs a program as the first process of a pid namespace, like a container."""


def make_payload(directory: Path, *options: str) -> Path:
    """Make a sample payload in ``directory``; ``options`` are options of scripts/sample-payload."""
    subprocess.run([sys.executable, CHECKOUT / "scripts/sample-payload", *options, directory], check=True)
    return directory


def index(payload: Path) -> Path:
    """Write the index of a payload that was made with ``--no-index`` and then changed."""
    command = [sys.executable, "-P", "-m", "kata_node", "payload", "index", str(payload)]
    subprocess.run(command, cwd=CHECKOUT, env={"PYTHONPATH": str(CHECKOUT)}, check=True, capture_output=True)
    return payload


def fake_kvm(node: Node) -> Node:
    """Make ``/dev/kvm`` and the vhost devices in the node, and return the node; no test starts a VM."""
    numbers = (("kvm", 232), ("vhost-net", 238), ("vhost-vsock", 241))
    make = "; ".join(f"test -e /dev/{name} || mknod /dev/{name} c 10 {minor}" for name, minor in numbers)
    node.run(["sh", "-c", f"set -e; {make}"])
    return node


def main_file(node: Node) -> Path:
    """Return the path on the machine of containerd's main file in the node."""
    return node.root / MAIN.lstrip("/")


def configure(node: Node, config: bytes | None) -> None:
    """Replace containerd's main file with ``config``, or remove it, and restart containerd."""
    main = main_file(node)
    main.unlink(missing_ok=True)
    if config is not None:
        main.write_bytes(config)
    node.run(["systemctl", "restart", UNIT])
    node.wait_for_containerd()


def install(node: Node, **more: object) -> CommandResult:
    """Install with the values :data:`VALUES` plus ``more``."""
    return node.kata_node("install", config={**VALUES, **more}, payload=PAYLOAD, check=True)


def terminate(running: RunningCommand, number: signal.Signals = signal.SIGTERM) -> None:
    """Send a signal to a program that :data:`AS_PROCESS_1` runs."""
    (process,) = running.process.children()
    assert process.signal(number)


def kata_handlers(node: Node) -> tuple[str, ...]:
    return tuple(name for name in node.cri_handlers() if name.startswith("kata-"))


def outcomes(done: CommandResult) -> dict[str, str]:
    """Return stage -> outcome of a run with ``--output json``."""
    return {stage["stage"]: stage["outcome"] for stage in json.loads(done.stdout)["stages"]}


def assert_nothing_to_do(node: Node, *watched: str, **how: Any) -> None:
    """Install again, and assert that no stage does anything, no file changes and nothing is restarted."""
    watched = watched or WATCHED
    invocation, before = node.unit(UNIT).invocation, node.snapshot(*watched)
    done = node.kata_node(
        "install", "--output", "json", check=True, **{"config": VALUES, "payload": PAYLOAD, **how}
    )
    assert outcomes(done) == {
        "host-check": "done",
        "claim": "skipped",
        "artifacts": "skipped",
        "cri": "skipped",
        "label": "skipped",
    }
    assert changes(before, node.snapshot(*watched), times=True) == []
    assert node.unit(UNIT).invocation == invocation


def fail_next_start(node: Node) -> None:
    """Make the next start of containerd fail, without an automatic restart by systemd."""
    directory = node.root / "run/systemd/system/containerd.service.d"
    directory.mkdir(parents=True)
    command = "test ! -e /run/fail-once || { rm /run/fail-once; exit 1; }"
    (directory / "fail.conf").write_text(f"[Service]\nRestart=no\nExecStartPre=/bin/sh -c '{command}'\n")
    (node.root / "run/fail-once").touch()
    node.run(["systemctl", "daemon-reload"])


@contextmanager
def starts_held(node: Node) -> Iterator[None]:
    """Make every start of containerd wait until the ``with`` statement ends."""
    held = node.root / "run/starts-are-held"
    drop_in = node.root / "run/systemd/system/containerd.service.d/held.conf"
    held.touch()
    drop_in.parent.mkdir(parents=True, exist_ok=True)
    wait = f"while [ -e /run/{held.name} ]; do sleep 0.1; done"
    drop_in.write_text(f"[Service]\nExecStartPre=/bin/sh -c '{wait}'\n")
    node.run(["systemctl", "daemon-reload"])
    try:
        yield
    finally:
        held.unlink()


def kill_at_syscall(node: Node, stage: str, call: str, count: int) -> bool:
    """Run ``stage`` and kill it when it enters the ``count``-th system call ``call``.

    Returns False if the stage ended before that call.
    """
    inject = ("strace", "--quiet=all", "-o", "/dev/null", f"--inject={call}:signal=KILL:when={count}")
    done = node.kata_node("stage", stage, config=VALUES, payload=PAYLOAD, prefix=inject)
    assert done.returncode in (0, -9, 137), done.stdout + done.stderr
    return done.returncode != 0


def assert_converges_when_killed(node: Node, call: str) -> None:
    """Kill ``cri`` and ``revert-cri`` at the n-th system call ``call``, for every n, on one node.

    Asserts after each kill that containerd serves, and that the next run completes the stage.
    """
    before = node.snapshot(*WATCHED)
    node.kata_node("stage", "artifacts", config=VALUES, payload=PAYLOAD, check=True)
    placed = node.snapshot("/etc")
    for stage in ("cri", "revert-cri"):
        cuts = 0
        while kill_at_syscall(node, stage, call, cuts + 1):
            cuts += 1
            assert node.wait_for_containerd().serving
            node.kata_node("stage", stage, config=VALUES, payload=PAYLOAD, check=True)
            assert kata_handlers(node) == (HANDLERS if stage == "cri" else ())
            other = "revert-cri" if stage == "cri" else "cri"
            node.kata_node("stage", other, config=VALUES, payload=PAYLOAD, check=True)
        assert cuts >= 4, f"{stage} was cut only {cuts} times"
        assert kata_handlers(node) == (HANDLERS if stage == "cri" else ())
    assert changes(placed, node.snapshot("/etc")) == []
    node.kata_node("revert", check=True)
    assert changes(before, node.snapshot(*WATCHED)) == []
