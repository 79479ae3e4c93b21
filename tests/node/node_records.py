"""The records of running nodes on the machine, and the removal of their leftovers.

A node owns one directory below the cache and one control group. Both stay when its processes are killed,
so the start of the next node first removes the leftovers of dead nodes.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from node.cache import NodeError, cache_dir, key_of, locked, remove_tree

NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,40}[a-z0-9])?")


@dataclass(frozen=True)
class Process:
    """A process, identified by pid and start time, so that a later process with the same pid is not equal."""

    pid: int
    started: int  # clock ticks since the machine's boot

    @classmethod
    def of(cls, pid: int) -> Process:
        """Return the current process ``pid``; raises :class:`ProcessLookupError` if it has ended."""
        state, started = _stat(pid)
        if state in "ZX" and not _has_threads(pid):
            raise ProcessLookupError(pid)
        return cls(pid, started)

    @property
    def alive(self) -> bool:
        """Whether the process runs. A zombie does not.

        A process with a zombie first thread and other threads runs: they hold its open files.
        """
        with contextlib.suppress(ProcessLookupError):
            return Process.of(self.pid) == self
        return False

    def signal(self, number: int) -> bool:
        """Send a signal, and return whether the process was alive."""
        with contextlib.suppress(ProcessLookupError):
            if self.alive:
                os.kill(self.pid, number)
                return True
        return False

    def children(self) -> list[Process]:
        """Return its running child processes."""
        found = []
        with contextlib.suppress(OSError):
            for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    found.append(Process.of(int(pid)))
        return found


def _stat(pid: int) -> tuple[str, int]:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError as error:
        raise ProcessLookupError(pid) from error
    return fields[0], int(fields[19])


def _has_threads(pid: int) -> bool:
    """Return whether the process has more than one thread."""
    with contextlib.suppress(OSError):
        return len(os.listdir(f"/proc/{pid}/task")) > 1
    return False


@dataclass(frozen=True)
class Record:
    """The stored data of a node, which every process on the machine can read."""

    name: str
    suite: str
    cgroup: str  # absolute path; empty if the machine's systemd creates and removes the control group
    owner: Process  # the process that boots the node
    supervisor: Process | None = None  # the parent of systemd-nspawn
    leader: Process | None = None  # the node's process 1, once its systemd answers

    @property
    def directory(self) -> Path:
        """The node's directory on the machine."""
        return _running() / self.name

    @property
    def alive(self) -> bool:
        """Whether the node runs or boots."""
        return (self.supervisor or self.owner).alive

    def save(self) -> None:
        """Write the record to its file, replacing the previous content."""
        temp = self.directory / "record.tmp"
        temp.write_text(json.dumps(asdict(self)))
        temp.rename(self.directory / "record.json")


def _running() -> Path:
    return cache_dir() / "running"


def reserve(name: str, suite: str) -> Record:
    """Reserve ``name`` for a node that this process boots; remove the leftovers of dead nodes first."""
    if not NAME.fullmatch(name):
        raise NodeError(
            f"{name!r} is not a node name\n"
            "  hint: Use up to 42 of a-z, 0-9 and '-', with '-' neither first nor last"
        )
    clear_dead()
    with locked(_running() / ".lock"):
        record = Record(name, suite, _own_cgroup(name), Process.of(os.getpid()))
        try:
            record.directory.mkdir()
        except FileExistsError as error:
            raise NodeError(
                f"a node named {name} is already running\n"
                f"  hint: Choose another name, or run: scripts/testnode stop --name {name}"
            ) from error
        record.save()
    return record


def clear_dead() -> None:
    """Remove the leftovers of nodes that have no running supervisor, or no owner if they have none yet."""
    with locked(_running() / ".lock"):
        for record in _records():
            if not record.alive:
                clear(record)
        for directory in _running().iterdir():
            if directory.is_dir() and not (directory / "record.json").exists():
                remove_tree(
                    directory
                )  # reserved without a record, or half removed, by an interrupted process


def running() -> list[Record]:
    """Return the records of the running nodes, sorted by name."""
    with locked(_running() / ".lock"):
        return sorted((record for record in _records() if record.alive), key=lambda record: record.name)


def _records() -> Iterator[Record]:
    for file in list(_running().glob("*/record.json")):
        try:
            data = json.loads(file.read_text())
        except FileNotFoundError:
            continue  # its owner is removing it
        for field in ("owner", "supervisor", "leader"):
            data[field] = Process(**data[field]) if data[field] else None
        yield Record(**data)


def started(record: Record, supervisor: int) -> Record:
    """Save the parent of systemd-nspawn in the record, and return the new record."""
    noted = replace(record, supervisor=Process.of(supervisor))
    noted.save()
    return noted


def clear(record: Record) -> None:
    """Remove the control group and directory of a node that no longer runs."""
    if record.cgroup:
        for path in _same_in_every_hierarchy(Path(record.cgroup)):
            _remove_cgroup(path)
    remove_tree(record.directory)


def _own_cgroup(name: str) -> str:
    if Path("/run/systemd/system").is_dir():
        return ""
    for fs_type, mount, _ in _cgroup_mounts():
        if fs_type == "cgroup2":
            line = next(
                line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::")
            )
            return f"{mount}{line[3:].rstrip('/')}/kata-node-test-{name}-{key_of(str(cache_dir()))}"
    raise NodeError("no cgroup2 hierarchy is mounted on this machine, and systemd in a node needs one")


def _same_in_every_hierarchy(cgroup: Path) -> list[Path]:
    """Return the control group, and its copy that systemd-nspawn makes in a legacy hierarchy."""
    mounts = list(_cgroup_mounts())
    unified = next((mount for fs_type, mount, _ in mounts if fs_type == "cgroup2"), "/")
    twins = [mount for fs_type, mount, options in mounts if fs_type == "cgroup" and "name=systemd" in options]
    return [cgroup, *(Path(twin) / cgroup.relative_to(unified) for twin in twins)]


def _cgroup_mounts() -> Iterator[tuple[str, str, str]]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, source = line.partition(" - ")
        fs_type, _, options = source.split(" ", 2)
        if fs_type.startswith("cgroup"):
            yield fs_type, fields.split()[4], options


def _remove_cgroup(path: Path) -> None:
    deadline = time.monotonic() + 60
    while path.is_dir():
        with contextlib.suppress(OSError):
            (path / "cgroup.kill").write_text("1")
        for directory, _, _ in os.walk(path, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(directory)
        if time.monotonic() > deadline:
            raise NodeError(f"the control group {path} still has processes in it and cannot be removed")
        time.sleep(0.005)
