"""Stages that get SIGTERM as the first process of a pid namespace, on a real node."""

from __future__ import annotations

import signal
import time

import pytest

from node.commands import wait_until
from node.debian_node import Node
from node.installation import (
    AS_PROCESS_1,
    HANDLERS,
    PAYLOAD,
    UNIT,
    VALUES,
    WATCHED,
    assert_nothing_to_do,
    kata_handlers,
    starts_held,
    terminate,
)
from node.snapshot import changes

SECONDS = 30.0
"""More than the end of a process takes on a busy machine, and much less than the wait of 300 s."""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_stage_that_waits_for_the_lock_ends_on_a_signal_and_changes_nothing(
    ready: Node, number: signal.Signals
) -> None:
    # With the mode of kata-node: a lock file that others can read is of an earlier release, and is removed.
    ready.run(["install", "-D", "--mode=600", "/dev/null", "/run/kata-node/lock"])
    ready.start(["flock", "/run/kata-node/lock", "sleep", "300"])
    before = ready.snapshot(*WATCHED)
    stage = ready.start_kata_node("stage", "artifacts", payload=PAYLOAD, prefix=AS_PROCESS_1)
    wait_until(lambda: "waiting for the lock" in stage.stderr, "it waits")
    began = time.monotonic()
    terminate(stage, number)
    done = stage.wait()
    assert time.monotonic() - began < SECONDS
    assert done.returncode == 1
    assert f"stopped by {number.name}" in done.stdout
    assert changes(before, ready.snapshot(*WATCHED)) == []


def test_a_restart_is_seen_through_on_sigterm_and_host_check_waits_for_it(ready: Node) -> None:
    with starts_held(ready):
        install = ready.start_kata_node("install", config=VALUES, payload=PAYLOAD, prefix=AS_PROCESS_1)
        wait_until(lambda: ready.unit(UNIT).active == "activating", "the restart has begun")
        # Another installation: the receipt of this one would explain why the runtime does not answer.
        other = {**VALUES, "env": {"multiInstallSuffix": "other"}}
        check = ready.start_kata_node("stage", "host-check", config=other, payload=PAYLOAD)
        wait_until(lambda: "waiting for the lock held by install (pid" in check.stderr, "host-check waits")
        terminate(install)
        terminate(install)
    done = install.wait()
    assert done.returncode == 1
    assert "\ncri              done " in done.stdout
    assert "\nlabel            failed   stopped by SIGTERM" in done.stdout
    assert check.wait().returncode == 0
    assert kata_handlers(ready) == HANDLERS
    assert ready.activations(UNIT) == 2
    assert_nothing_to_do(ready)
