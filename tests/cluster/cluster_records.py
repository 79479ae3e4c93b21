"""The records of running clusters on the machine, and the removal of their leftovers.

A cluster owns one directory below the cache. It stays when a process is killed, so the start of the next
cluster first removes the leftovers of dead clusters.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import signal
import socket
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from node.cache import NodeError, cache_dir, locked, remove_tree
from node.commands import wait_until
from node.node_records import NAME, Process


@dataclass(frozen=True)
class Record:
    """The stored data of a cluster, which every process on the machine can read."""

    name: str
    owner: Process  # the process that started it
    detached: bool  # whether it stays when its owner ends
    port: int  # of the API server, on loopback
    kubernetes: str  # the release of Kubernetes
    processes: Mapping[str, Process] = field(default_factory=dict)  # by program name

    @property
    def directory(self) -> Path:
        """The directory of the cluster."""
        return _clusters() / self.name

    @property
    def alive(self) -> bool:
        """Whether the cluster runs or starts."""
        running = any(process.alive for process in self.processes.values())
        return self.owner.alive or (self.detached and running)

    def save(self) -> None:
        """Write the record to its file, replacing the previous content."""
        temp = self.directory / "record.tmp"
        temp.write_text(json.dumps(asdict(self)))
        temp.rename(self.directory / "record.json")

    def noted(self, name: str, process: Process) -> Record:
        """Save and return the record with this process added."""
        record = replace(self, processes={**self.processes, name: process})
        record.save()
        return record

    def without(self, name: str) -> Record:
        """Save and return the record without this process."""
        record = replace(self, processes={key: each for key, each in self.processes.items() if key != name})
        record.save()
        return record


def _clusters() -> Path:
    return cache_dir() / "clusters"


def reserve(record: Record) -> None:
    """Reserve the name of a cluster before its start; remove the leftovers of dead clusters first."""
    if not NAME.fullmatch(record.name):
        raise NodeError(
            f"{record.name!r} is not a cluster name\n"
            "  hint: Use up to 42 of a-z, 0-9 and '-', with '-' neither first nor last"
        )
    with locked(_clusters() / ".lock"):
        _clear_dead()
        try:
            # It contains tokens and keys.
            record.directory.mkdir(mode=0o700)
        except FileExistsError as error:
            raise NodeError(
                f"a cluster named {record.name} is already running\n"
                f"  hint: Choose another name, or run: scripts/testcluster down --name {record.name}"
            ) from error
        record.save()


def running() -> list[Record]:
    """Return the records of the running clusters, sorted by name."""
    with locked(_clusters() / ".lock"):
        return sorted((record for record in _records() if record.alive), key=lambda record: record.name)


def clear(record: Record) -> None:
    """Kill every process of the cluster and remove its directory."""
    for process in reversed(list(record.processes.values())):
        end(process, signal.SIGKILL)
    remove_tree(record.directory)


def end(process: Process, number: signal.Signals) -> None:
    """Send ``process`` the signal and wait until all its threads have ended, so that its files are closed."""
    process.signal(number)
    wait_until(lambda: not process.alive, f"process {process.pid} has ended")


def _clear_dead() -> None:
    for record in _records():
        if not record.alive:
            clear(record)
    for directory in _clusters().iterdir():
        if directory.is_dir() and not (directory / "record.json").exists():
            remove_tree(directory)  # reserved without a record, or half removed, by an interrupted process


def _records() -> Iterator[Record]:
    for file in list(_clusters().glob("*/record.json")):
        try:
            data = json.loads(file.read_text())
        except FileNotFoundError:
            continue  # its owner is removing it
        data["owner"] = Process(**data["owner"])
        data["processes"] = {name: Process(**each) for name, each in data["processes"].items()}
        yield Record(**data)


def free_port() -> int:
    """Return a free port of 127.0.0.1 below the kernel's ephemeral range, so that no client gets it."""
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for _ in range(100):
        port = max(low - 1 - secrets.randbelow(10_000), 1024 + secrets.randbelow(1000))
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise NodeError("no port of 127.0.0.1 below the kernel's ephemeral range is free")
