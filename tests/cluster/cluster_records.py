"""Where running clusters keep what is theirs, and how all of it goes away again.

A cluster owns one directory below the cache. It outlives a process that is killed, so whoever starts
the next cluster first clears away what dead ones left.
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
    """What is known of a cluster by everybody on the machine."""

    name: str
    owner: Process  # who started it
    detached: bool  # whether it stays when its owner ends
    port: int  # the API server's, on loopback
    kubernetes: str  # the release it was started with
    processes: Mapping[str, Process] = field(default_factory=dict)  # by the name of the program

    @property
    def directory(self) -> Path:
        """The cluster's own directory."""
        return _clusters() / self.name

    @property
    def alive(self) -> bool:
        """Whether it runs or is being started."""
        running = any(process.alive for process in self.processes.values())
        return self.owner.alive or (self.detached and running)

    def save(self) -> None:
        """Write it down, replacing what was."""
        temp = self.directory / "record.tmp"
        temp.write_text(json.dumps(asdict(self)))
        temp.rename(self.directory / "record.json")

    def noted(self, name: str, process: Process) -> Record:
        """The record with this process in it, written down."""
        record = replace(self, processes={**self.processes, name: process})
        record.save()
        return record

    def without(self, name: str) -> Record:
        """The record without this process in it, written down."""
        record = replace(self, processes={key: each for key, each in self.processes.items() if key != name})
        record.save()
        return record


def _clusters() -> Path:
    return cache_dir() / "clusters"


def reserve(record: Record) -> None:
    """Claim the name of a cluster about to be started; clear dead ones away first."""
    if not NAME.fullmatch(record.name):
        raise NodeError(f"{record.name!r} cannot be a cluster's name: up to 42 of a-z, 0-9 and '-'")
    with locked(_clusters() / ".lock"):
        _clear_dead()
        try:
            # Tokens and keys are in there.
            record.directory.mkdir(mode=0o700)
        except FileExistsError as error:
            raise NodeError(
                f"a cluster named {record.name} runs already; stop it first, or choose another name"
            ) from error
        record.save()


def running() -> list[Record]:
    """The clusters that run now, by name."""
    with locked(_clusters() / ".lock"):
        return sorted((record for record in _records() if record.alive), key=lambda record: record.name)


def clear(record: Record) -> None:
    """End every process of the cluster at once, each by its number and start, and remove its directory."""
    for process in reversed(list(record.processes.values())):
        end(process, signal.SIGKILL)
    remove_tree(record.directory)


def end(process: Process, number: signal.Signals) -> None:
    """Send ``process`` the signal and wait until it has ended, and with it all that it had open."""
    process.signal(number)
    wait_until(lambda: not process.alive, f"process {process.pid} has ended")


def _clear_dead() -> None:
    for record in _records():
        if not record.alive:
            clear(record)
    for directory in _clusters().iterdir():
        if directory.is_dir() and not (directory / "record.json").exists():
            remove_tree(directory)  # claimed and not noted, or half cleared: interrupted in between


def _records() -> Iterator[Record]:
    for file in list(_clusters().glob("*/record.json")):
        try:
            data = json.loads(file.read_text())
        except FileNotFoundError:
            continue  # its owner is just clearing it away
        data["owner"] = Process(**data["owner"])
        data["processes"] = {name: Process(**each) for name, each in data["processes"].items()}
        yield Record(**data)


def free_port() -> int:
    """A port of loopback that nobody listens on, and that the kernel gives to no client meanwhile."""
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for _ in range(100):
        port = max(low - 1 - secrets.randbelow(10_000), 1024 + secrets.randbelow(1000))
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise NodeError("no free port was found on 127.0.0.1 below the range of the kernel's own")
