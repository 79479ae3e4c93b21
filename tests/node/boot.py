"""Start and end the systemd-nspawn container of a node, from the machine."""

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
    """Start systemd-nspawn on a fresh copy of ``tree``, and return its parent, which ends with it.

    Unless ``detached``, the node dies with this process.
    """
    scratch = record.directory / "scratch"
    scratch.mkdir()
    script = Path(__file__).with_name("start.sh")
    command = [
        *_own_cgroup(record),
        *("setpriv", f"--pdeathsig={'clear' if detached else 'KILL'}"),
        # systemd-nspawn is the first process of the pid namespace, so everything in the node ends with it.
        *("unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--propagation=private"),
        *("sh", str(script), str(tree), str(scratch), record.cgroup, *options),
    ]
    with (record.directory / "console.log").open("wb") as console:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches only the tests, which then end the node
        )


def _own_cgroup(record: Record) -> list[str]:
    """Return a command prefix that starts a command in its own control group, where systemd manages them."""
    if record.cgroup:
        return []  # start.sh creates the control group
    unit = f"--unit=kata-node-test-{record.name}"
    return ["systemd-run", "--quiet", "--collect", "--scope", unit, "--property=Delegate=yes"]


def wait_for_leader(record: Record, supervisor: Supervisor, timeout: float) -> Record:
    """Wait until the node's systemd accepts commands, and return ``record`` with the node's process 1.

    Raises :class:`NodeError` with the end of the console output after ``timeout`` seconds.
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
        what, hint = f"ended at once with exit code {ended}", "Read the last lines of its console below"
    raise NodeError(f"the node {record.name} {what}\n  hint: {hint}\n{console(record)}")


def _leader(supervisor: int) -> Process | None:
    """Return the node's process 1: a child of systemd-nspawn, and first in the innermost pid namespace."""
    with contextlib.suppress(OSError):
        for nspawn in Process.of(supervisor).children():
            for child in nspawn.children():
                status = Path(f"/proc/{child.pid}/status").read_text().splitlines()
                numbers = next(line for line in status if line.startswith("NSpid:")).split()[1:]
                # systemd-nspawn first has a short-lived child in its own pid namespace.
                if len(numbers) > 2 and numbers[-1] == "1":
                    return child
    return None


def end(record: Record, supervisor: Supervisor | None = None) -> None:
    """Kill the node at once, like a power failure, and remove its files and control group."""
    above = record.supervisor
    if above is None and supervisor is not None and supervisor.poll() is None:
        above = Process.of(supervisor.pid)  # interrupted before the record was saved
    if above is not None:
        for nspawn in above.children():
            nspawn.signal(signal.SIGKILL)
        with contextlib.suppress(NodeError):
            wait_until(lambda: not above.alive, "the parent of systemd-nspawn has ended", timeout=30)
        above.signal(signal.SIGKILL)
    if supervisor is not None:
        supervisor.wait(WAIT_TIMEOUT)
    node_records.clear(record)


def console(record: Record) -> str:
    """Return the last 30 lines of the node's console output."""
    try:
        return "\n".join((record.directory / "console.log").read_text(errors="replace").splitlines()[-30:])
    except OSError:
        return ""


def stop_all() -> list[str]:
    """End every running node, remove the leftovers of dead nodes, and return the names of the ended nodes."""
    records = node_records.running()
    for record in records:
        end(record)
    node_records.clear_dead()
    return [record.name for record in records]


def program_path(command: str) -> str:
    """Return the path of a program of the machine, for a command with another ``PATH``."""
    return shutil.which(command) or command
