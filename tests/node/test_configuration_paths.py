"""Units of containerd that do not show the path of its configuration in plain words."""

from __future__ import annotations

import json

import pytest

from node.debian_node import POD_MOUNTS, Node
from node.installation import (
    HANDLERS,
    MAIN,
    PAYLOAD,
    UNIT,
    VALUES,
    WATCHED,
    assert_nothing_to_do,
    install,
    kata_handlers,
    main_file,
)
from node.snapshot import changes

ELSEWHERE = "/srv/containerd/config.toml"


def run_as(node: Node, drop_in: str, main: str = ELSEWHERE, *, wait: bool = True) -> None:
    """Move containerd's main file to ``main``, and run containerd by the unit drop-in ``drop_in``."""
    target = node.root / main.lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    if target != main_file(node):
        main_file(node).rename(target)
    directory = node.root / "etc/systemd/system/containerd.service.d"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "path.conf").write_text(f"[Service]\nExecStart=\n{drop_in}\n")
    node.run(["systemctl", "daemon-reload"])
    node.run(["systemctl", "restart", UNIT])
    if wait:  # at its usual socket
        node.wait_for_containerd()


@pytest.mark.parametrize(
    "drop_in",
    [
        pytest.param(
            f"Environment=CONTAINERD_CONFIG={ELSEWHERE}\n"
            "ExecStart=/usr/bin/env PATH=/usr/sbin:/usr/bin containerd --config ${CONTAINERD_CONFIG}",
            id="variable-of-the-unit",
        ),
        pytest.param(
            f"Environment='A=b c' \"ARGS=-l info --config {ELSEWHERE}\"\nEnvironmentFile=-/etc/default/none\n"
            "ExecStart=/usr/bin/containerd $ARGS",
            id="words-of-a-variable",
        ),
        pytest.param(f"ExecStart=/bin/sh -c 'exec containerd --config {ELSEWHERE}'", id="shell"),
        pytest.param(
            "NotifyAccess=all\nKillMode=mixed\n"
            "ExecStart=/bin/sh -c 'cd /srv; containerd --config containerd/config.toml; true'",
            id="child-of-a-shell",
        ),
    ],
)
def test_the_file_that_containerd_reads_is_found_changed_and_restored(ready: Node, drop_in: str) -> None:
    run_as(ready, drop_in)
    watched = (*WATCHED, "/srv/containerd")
    before = ready.snapshot(*watched)
    starts = ready.activations(UNIT)
    install(ready)
    assert kata_handlers(ready) == HANDLERS
    assert ready.activations(UNIT) == starts + 1
    assert "/opt/kata" in (ready.root / ELSEWHERE.lstrip("/")).read_text()
    assert_nothing_to_do(ready, *watched)
    ready.kata_node("revert", check=True)
    assert kata_handlers(ready) == ()
    assert changes(before, ready.snapshot(*watched)) == []


def test_a_container_asks_systemd_for_the_processes_of_a_shell(ready: Node, payload: object) -> None:
    run_as(
        ready,
        "ExecStart=/bin/sh -c 'exec containerd --config /etc/containerd/mine.toml'",
        "/etc/containerd/mine.toml",
    )
    before = ready.snapshot(*WATCHED)
    ready.kata_node_outside("install", config=VALUES, payload=payload, check=True)  # type: ignore[arg-type]
    assert kata_handlers(ready) == HANDLERS
    ready.kata_node_outside("revert", config=VALUES, check=True)
    assert changes(before, ready.snapshot(*WATCHED)) == []


def test_a_container_without_the_directory_of_the_main_file_is_refused_with_the_values_to_set(
    ready: Node, payload: object
) -> None:
    run_as(ready, f"ExecStart=/bin/sh -c 'exec containerd --config {ELSEWHERE}'")
    before = ready.snapshot(*WATCHED)
    done = ready.kata_node_outside("install", config=VALUES, payload=payload)  # type: ignore[arg-type]
    assert done.returncode == 3, done.stdout + done.stderr
    assert "containerd.configDir" in done.stdout + done.stderr
    assert changes(before, ready.snapshot(*WATCHED)) == []
    values = {**VALUES, "containerd": {"configDir": "/srv/containerd"}}
    mounts = (*POD_MOUNTS, "/srv/containerd")
    ready.kata_node_outside("install", config=values, payload=payload, mounts=mounts, check=True)  # type: ignore[arg-type]
    assert kata_handlers(ready) == HANDLERS


def test_status_and_revert_find_the_socket_of_the_install_without_a_flag(ready: Node) -> None:
    socket = "/run/containerd/other.sock"
    run_as(ready, f"ExecStart=/usr/bin/containerd --address {socket}", MAIN, wait=False)
    ready.kata_node("install", "--cri-socket", socket, config=VALUES, payload=PAYLOAD, check=True)
    status = ready.kata_node("status", "--output", "json", check=True)  # code 0: healthy
    assert set(HANDLERS) <= set(json.loads(status.stdout)["runtime"]["served"])
    before = ready.activations(UNIT)
    ready.kata_node("revert", check=True)
    assert ready.activations(UNIT) == before + 1
    assert not (ready.root / "opt/kata").exists()
