"""How a node comes up and how it ends, seen from the machine."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from node import node_records
from node.cache import NodeError
from node.commands import POLL_INTERVAL, WAIT_TIMEOUT, wait_until
from node.node_records import Process, Record

Supervisor = subprocess.Popen[bytes]


def start(record: Record, tree: Path, options: Iterable[str], *, detached: bool) -> Supervisor:
    """Start systemd-nspawn on a fresh copy of ``tree``; unless ``detached`` it dies with this process.

    Returned is the process above it, which ends when it ends.
    """
    scratch = record.directory / "scratch"
    scratch.mkdir()
    script = Path(__file__).with_name("start.sh")
    command = [
        *_own_cgroup(record),
        *("setpriv", f"--pdeathsig={'clear' if detached else 'KILL'}"),
        # The first process of the pid namespace is systemd-nspawn: with it everything in the node ends.
        *("unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--propagation=private"),
        *("sh", str(script), str(tree), str(scratch), record.cgroup, *options),
    ]
    with (record.directory / "console.log").open("wb") as console:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the tests, which then end the node themselves
        )


def _own_cgroup(record: Record) -> list[str]:
    """What runs a command in a control group of its own, where systemd hands them out."""
    if record.cgroup:
        return []  # start.sh makes it
    unit = f"--unit=kata-node-test-{record.name}"
    return ["systemd-run", "--quiet", "--collect", "--scope", unit, "--property=Delegate=yes"]


def wait_for_leader(record: Record, supervisor: Supervisor, timeout: float) -> Record:
    """``record`` with the node's process 1, once its systemd can be talked to.

    Raises :class:`NodeError` with the end of the console when that takes more than ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    while supervisor.poll() is None and time.monotonic() < deadline:
        leader = _leader(supervisor.pid)
        if leader and os.path.lexists(f"/proc/{leader.pid}/root/run/systemd/private"):
            record = replace(record, leader=leader)
            record.save()
            return record
        time.sleep(POLL_INTERVAL)
    if (ended := supervisor.poll()) is None:
        what, hint = f"did not come up within {timeout:.0f} s", "Boot it again when the machine is less busy"
    else:
        what, hint = f"ended at once, with {ended}", "Read below what its console showed last"
    raise NodeError(f"the node {record.name} {what}\n  hint: {hint}\n{console(record)}")


def _leader(supervisor: int) -> Process | None:
    """The node's process 1: below ``supervisor`` and systemd-nspawn, first of the innermost pid namespace."""
    with contextlib.suppress(OSError):
        for nspawn in Process.of(supervisor).children():
            for child in nspawn.children():
                status = Path(f"/proc/{child.pid}/status").read_text().splitlines()
                numbers = next(line for line in status if line.startswith("NSpid:")).split()[1:]
                # systemd-nspawn has a short-lived child before it, in its own namespace.
                if len(numbers) > 2 and numbers[-1] == "1":
                    return child
    return None


def end(record: Record, supervisor: Supervisor | None = None) -> None:
    """End the node at once, as a pulled plug would, and remove all that was its own on the machine."""
    above = record.supervisor
    if above is None and supervisor is not None and supervisor.poll() is None:
        above = Process.of(supervisor.pid)  # interrupted before it was noted
    if above is not None:
        for nspawn in above.children():
            nspawn.signal(signal.SIGKILL)
        with contextlib.suppress(NodeError):
            wait_until(lambda: not above.alive, "it has noticed", timeout=30)
        above.signal(signal.SIGKILL)
    if supervisor is not None:
        supervisor.wait(WAIT_TIMEOUT)
    node_records.clear(record)


def console(record: Record) -> str:
    """The last lines the node's console showed."""
    try:
        return "\n".join((record.directory / "console.log").read_text(errors="replace").splitlines()[-30:])
    except OSError:
        return ""


def stop_all() -> list[str]:
    """End every running node, clear away what dead ones left, and return the names of those ended."""
    records = node_records.running()
    for record in records:
        end(record)
    node_records.clear_dead()
    return [record.name for record in records]


def program_path(command: str) -> str:
    """Where a program of the machine is, for when the environment of a command names other directories."""
    return shutil.which(command) or command
