"""A Debian node with its own systemd and containerd. It boots in about a second and leaves nothing behind.

It is a systemd-nspawn container on a fresh copy of a cached tree. All its mounts are in a separate mount
namespace and all its processes in a pid namespace below systemd-nspawn. When systemd-nspawn ends, for
whatever reason, nothing stays mounted or running.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, TypedDict, Unpack

from node import boot, containerd_build, installed_program, node_records
from node.cache import CHECKOUT, NodeError
from node.commands import WAIT_TIMEOUT, CommandResult, RunningCommand, checked, describe_result, wait_until
from node.cri import CriStatus
from node.cri import status as cri_status
from node.mounts import CONTAINER_CAPABILITIES, HostPath
from node.node_records import Record
from node.rootfs import PACKAGES, SUITE, build_rootfs
from node.snapshot import Snapshot, take

SOCKET = "run/containerd/containerd.sock"

POD_MOUNTS = (
    "/etc/containerd",
    "/etc/machine-id",
    "/opt",
    "/run/containerd",
    "/run/dbus",
    "/run/kata-node",
)
"""The paths of the node that a container which installs Kata has below its host root."""

_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
}
_SHARED_BY_PODS = ("--pid", "--net", "--ipc", "--uts")
_OWN_OF_A_CONTAINER = ("--mount", "--propagation=private", "--pid", "--fork", "--kill-child", "--mount-proc")
_MOUNTER = (sys.executable, "-P", str(Path(__file__).with_name("mounts.py")))
_UNIT_STARTED = "39f53479d3a045ac8e11786248231fbf"  # systemd's catalogue id of "unit started"
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Unit:
    """The state of a systemd unit, from ``systemctl show``."""

    active: str  # active, activating, failed, inactive, …
    sub: str
    invocation: str  # the InvocationID: another one for every activation, empty before the first
    main_pid: int  # in the node's pid namespace; 0 if there is none
    restarts: int  # automatic restarts after a failure


class RunOptions(TypedDict, total=False):
    """Options of a kata-node run in a node."""

    config: Mapping[str, Any] | str
    """The values file: a mapping, or its text."""
    payload: str
    """The directory of the payload in the node; :meth:`Node.mount` can mount it there."""
    env: Mapping[str, str]
    prefix: Sequence[str]
    """A command that runs kata-node, for example strace."""


class Node:
    """A booted node. It ends with the ``with`` statement, :meth:`stop`, or the process that booted it.

    ``root`` is the node's file system as the machine sees it. The kernel follows an absolute symlink in it
    from the machine's root, so use paths without such links.
    ``history`` holds the finished kata-node commands, oldest first.
    """

    def __init__(self, record: Record) -> None:
        if record.leader is None:
            raise NodeError(f"the node {record.name} has not come up yet")
        self.name = record.name
        self.suite = record.suite
        self.leader = record.leader
        self.root = Path(f"/proc/{self.leader.pid}/root")
        self.history: list[CommandResult] = []
        self._entering = (boot.program_path("nsenter"), "--all", f"--target={self.leader.pid}")
        self._record = record
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._commands: list[RunningCommand] = []

    @classmethod
    def boot(
        cls,
        suite: str = SUITE,
        *,
        packages: Sequence[str] = PACKAGES,
        containerd: str = "",
        tree: Path | None = None,
        name: str = "",
        detached: bool = False,
        timeout: float = WAIT_TIMEOUT,
    ) -> Node:
        """Boot a fresh node and return when its containerd serves the CRI.

        ``containerd`` is a release, for example ``2.4.2``, to run instead of the suite's package. The node
        is a copy of ``tree``; without it, of the tree of ``packages``, which is built if it is not cached.
        A ``detached`` node outlives this process; any other node dies with it, even if it is killed.
        Raises :class:`NodeError` and removes the node if it does not boot within ``timeout`` seconds.
        """
        tree = tree or build_rootfs(suite, packages)
        built = containerd_build.binds(containerd) if containerd else []
        record = node_records.reserve(name or f"{suite}-{os.getpid()}-{next(_numbers)}", suite)
        supervisor = None
        try:
            options = [f"--machine={record.name}", *installed_program.binds(tree, record.directory), *built]
            supervisor = boot.start(record, tree, options, detached=detached)
            record = node_records.started(record, supervisor.pid)
            record = boot.wait_for_leader(record, supervisor, timeout)
            node = cls(record)
            node._supervisor = supervisor
            if "containerd" in packages:
                node.wait_for_containerd(timeout)
        except BaseException:
            boot.end(record, supervisor)
            raise
        return node

    @classmethod
    def attach(cls, name: str) -> Node:
        """Return the running node ``name``, which any process may have booted."""
        for record in node_records.running():
            if record.name == name:
                return cls(record)
        raise NodeError(f"no node named {name} runs")

    def __enter__(self) -> Node:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Kill the node at once, like a power failure, and remove its files."""
        for command in self._commands:
            command.close()
        boot.end(self._record, self._supervisor)

    # Commands

    def start(
        self, args: Sequence[str], *, env: Mapping[str, str] | None = None, text: str | None = None
    ) -> RunningCommand:
        """Start a command in the node as root, with ``text`` as its standard input; do not wait for it."""
        running = RunningCommand(self._entering, args, env={**_ENVIRONMENT, **(env or {})}, text=text)
        self._commands.append(running)
        return running

    def run(
        self,
        args: Sequence[str],
        *,
        check: bool = True,
        timeout: float = WAIT_TIMEOUT,
        env: Mapping[str, str] | None = None,
        text: str | None = None,
    ) -> CommandResult:
        """Run a command in the node as root, and return its exit code and output.

        The exit code is negative if a signal ended the command. Raises :class:`CommandFailed` if ``check``
        is set and the exit code is not 0, and :class:`NodeError` after ``timeout`` seconds.
        """
        return checked(self.start(args, env=env, text=text).wait(timeout), check=check)

    def become(self, args: Sequence[str]) -> NoReturn:
        """Replace this process with a command in the node, on the same terminal; does not return."""
        environment = {"TERM": os.environ.get("TERM", "dumb"), **_ENVIRONMENT}
        os.execve(self._entering[0], [*self._entering, *args], environment)

    def start_kata_node(self, *args: str, **how: Unpack[RunOptions]) -> RunningCommand:
        """Start the checkout's ``kata-node`` in the node with the node's Python; do not wait for it."""
        env = dict(how.get("env", {}))
        if "payload" in how:
            env["KATA_NODE_PAYLOAD"] = how["payload"]
        if "config" in how:
            values = f"/tmp/kata-node-values-{next(_numbers)}.yaml"  # another file for each run
            _write_values(Path(f"{self.root}{values}"), how["config"])
            env["KATA_NODE_CONFIG"] = values
        running = self.start([*how.get("prefix", ()), installed_program.COMMAND, *args], env=env)
        running.when_done(self.history.append)
        return running

    def kata_node(
        self, *args: str, check: bool = False, timeout: float = WAIT_TIMEOUT, **how: Unpack[RunOptions]
    ) -> CommandResult:
        """Run ``kata-node`` in the node and wait for its end; see :meth:`start_kata_node` and :meth:`run`."""
        return checked(self.start_kata_node(*args, **how).wait(timeout), check=check)

    def kata_node_outside(
        self,
        *args: str,
        config: Mapping[str, Any] | str | None = None,
        payload: Path | None = None,
        env: Mapping[str, str] | None = None,
        mounts: Sequence[str | HostPath] = POD_MOUNTS,
        capabilities: Collection[str] = tuple(CONTAINER_CAPABILITIES),
        check: bool = False,
        timeout: float = WAIT_TIMEOUT,
    ) -> CommandResult:
        """Run ``kata-node`` with this Python, the way a container on the node runs it.

        The process has the machine's file system as its image, the node's network, a pid namespace below the
        node's, and the ``capabilities`` of a container. Its host root is read-only and contains only the
        node's ``mounts``. If the kubelet would refuse a mount, nothing runs and the exit code is 1.
        ``payload`` is a directory of the machine.
        """
        host = self._record.directory / "host"
        host.mkdir(exist_ok=True)
        environment = {
            **_ENVIRONMENT,
            "PYTHONPATH": str(CHECKOUT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "KATA_NODE_HOST_ROOT": str(host),
            **(env or {}),
        }
        if payload is not None:
            environment["KATA_NODE_PAYLOAD"] = str(payload)
        if config is not None:
            values = self._record.directory / "values.yaml"
            _write_values(values, config)
            environment["KATA_NODE_CONFIG"] = str(values)
        with self._mount_namespace() as namespace:
            entering = [
                *(boot.program_path("nsenter"), f"--target={self.leader.pid}", *_SHARED_BY_PODS),
                *("unshare", *_OWN_OF_A_CONTAINER),
                *(*_MOUNTER, "pod", str(namespace), str(host), ",".join(capabilities)),
                *(*map(str, (HostPath(each) if isinstance(each, str) else each for each in mounts)), "--"),
            ]
            command = [sys.executable, "-P", "-m", "kata_node", *args]
            running = RunningCommand(entering, command, env=environment, depth=2, pass_fds=[namespace])
        self._commands.append(running)
        running.when_done(self.history.append)
        return checked(running.wait(timeout), check=check)

    def mount(self, source: Path, target: str, *, read_only: bool = False) -> None:
        """Mount a file or directory of the machine in the node until the node ends."""
        act = "attach-read-only" if read_only else "attach"
        with self._mount_namespace() as namespace:
            command = [*_MOUNTER, act, str(namespace), str(source), target]
            done = subprocess.run(command, pass_fds=[namespace], capture_output=True, text=True, check=False)
        checked(done, check=True)

    def replace_containerd(self, containerd: str = "", *, serving: bool = True) -> CriStatus:
        """Replace containerd with a release, or with the suite's package, and restart it, as an upgrade does.

        Waits until it serves the CRI. With ``serving=False`` it does not wait, and returns the first answer.
        """
        # Lazy because the program runs; unchecked because there may be no mount.
        self.run(["umount", "--lazy", containerd_build.PROGRAM], check=False)
        if containerd:
            self.mount(containerd_build.built(containerd), containerd_build.PROGRAM, read_only=True)
        self.run(["systemctl", "restart", "containerd.service"])
        return self.wait_for_containerd() if serving else self.cri()

    @contextmanager
    def _mount_namespace(self) -> Iterator[int]:
        namespace = os.open(f"/proc/{self.leader.pid}/ns/mnt", os.O_RDONLY)
        try:
            yield namespace
        finally:
            os.close(namespace)

    # The state of the node

    def unit(self, name: str) -> Unit:
        """Return the state of the systemd unit ``name``."""
        keys = ("ActiveState", "SubState", "InvocationID", "MainPID", "NRestarts")
        shown = self.run(["systemctl", "show", f"--property={','.join(keys)}", name]).stdout
        values = dict(line.split("=", 1) for line in shown.splitlines())
        pid, restarts = int(values["MainPID"]), int(values.get("NRestarts") or 0)
        return Unit(values["ActiveState"], values["SubState"], values["InvocationID"], pid, restarts)

    def activations(self, unit: str) -> int:
        """Return how often ``unit`` was started since the node booted, according to the journal."""
        match = [f"UNIT={unit}", f"MESSAGE_ID={_UNIT_STARTED}"]
        self.run(["journalctl", "--sync"])
        return len(self.run(["journalctl", "--quiet", "--output=cat", *match]).stdout.splitlines())

    def journal(self, unit: str, *, lines: int = 500) -> str:
        """Return the last ``lines`` journal lines of ``unit``, with the lines of systemd about it."""
        options = ["--no-pager", "--output=short-precise", f"--lines={lines}", f"--unit={unit}"]
        return self.run(["journalctl", *options], check=False).stdout

    def snapshot(self, *directories: str) -> Snapshot:
        """Return a snapshot of these directories of the node; :func:`node.snapshot.changes` compares two."""
        return take(self.root, directories)

    def cri(self, *, timeout: float = 30) -> CriStatus:
        """Ask containerd for its CRI status, without any code of kata-node."""
        return cri_status(self.root / SOCKET, timeout=timeout)

    def cri_handlers(self) -> tuple[str, ...]:
        """Return the handlers that the CRI serves, sorted; raises :class:`NodeError` if the CRI fails."""
        answer = self.cri()
        if not answer.serving:
            raise NodeError(f"the CRI of {self.name} does not serve: {answer.error}")
        return answer.handlers

    def wait_for_containerd(self, timeout: float = WAIT_TIMEOUT) -> CriStatus:
        """Wait until the CRI serves; raises :class:`NodeError` with containerd's journal on timeout."""
        answers: list[CriStatus] = []

        def serving() -> bool:
            if not self.leader.alive:
                raise NodeError(f"the node {self.name} has ended:\n{boot.console(self._record)}")
            answers[:] = [self.cri()]
            return answers[0].serving

        try:
            wait_until(serving, "containerd serves the CRI", timeout=timeout)
        except NodeError as error:
            if not self.leader.alive:
                raise
            journal = self.journal("containerd.service", lines=40)
            raise NodeError(f"{error}; it answers {answers[0].error}\n{journal}") from error
        return answers[0]

    def report(self) -> list[tuple[str, str]]:
        """Return titles and texts for the report of a failed test: kata-node output, journal or console."""
        sections = [(f"{self.name}: kata-node", "\n\n".join(describe_result(done) for done in self.history))]
        if self.leader.alive:
            lines = self.journal("containerd.service").splitlines(keepends=True)
            # containerd logs about a hundred such lines at every start.
            relevant = "".join(line for line in lines if "loading plugin" not in line)
            sections.append((f"{self.name}: journal of containerd", relevant))
        else:
            sections.append((f"{self.name}: console", boot.console(self._record)))
        return [(title, text) for title, text in sections if text.strip()]


def _write_values(path: Path, config: Mapping[str, Any] | str) -> None:
    path.write_text(config if isinstance(config, str) else json.dumps(config))  # JSON is YAML
